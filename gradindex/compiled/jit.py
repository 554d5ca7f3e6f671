"""Compiled loops: numba's, with a cache on disk where there is room for one."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache

from gradindex.runtime.log import log

F = TypeVar("F", bound=Callable[..., Any])


class _Cache(FunctionCache):  # type: ignore[misc]
    """A cache whose failures cost a compilation, and nothing else: full disks, or files that a crash left torn."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            log.debug("numba's cache cannot be read: %s", error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            log.debug("numba's cache cannot be written to: %s", error)


def compiled(**options: Any) -> Callable[[F], F]:
    """Compile a loop when it is first called, to run beside the interpreter; options are those of ``numba.njit``."""

    def compile_lazily(function: F) -> F:
        dispatcher = numba.njit(nogil=True, **options)(function)
        try:
            dispatcher._cache = _Cache(function)
        except RuntimeError:  # neither the package's folder nor the home directory can be written to
            log.debug("%s is compiled anew in every process: numba finds no place for its cache", function.__name__)
        return dispatcher  # type: ignore[no-any-return]

    return compile_lazily
