"""Compiled loops: numba's, with a cache on disk where there is room for one."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numba
from numba.core.caching import FunctionCache

from gradindex.runtime.log import log

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.templates import Signature

F = TypeVar("F", bound=Callable[..., Any])


class _Cache(FunctionCache):
    """A cache whose failures cost a compilation, and nothing else: full disks, or files that a crash left torn."""

    def load_overload(self, sig: "Signature", target_context: "BaseContext") -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            log.debug("numba's cache cannot be read: %s", error)
            return None

    def save_overload(self, sig: "Signature", data: object) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            log.debug("numba's cache cannot be written to: %s", error)


def compiled(**options: object) -> Callable[[F], F]:
    """Compile a loop when it is first called, to run beside the interpreter; options are those of ``numba.njit``."""

    def compile_lazily(function: F) -> F:
        dispatcher = numba.njit(nogil=True, **options)(function)
        try:
            dispatcher._cache = _Cache(function)
        except RuntimeError:  # neither the package's folder nor the home directory can be written to
            log.debug("%s is compiled anew in every process: numba finds no place for its cache", function.__name__)
        return dispatcher  # type: ignore[no-any-return]

    return compile_lazily
