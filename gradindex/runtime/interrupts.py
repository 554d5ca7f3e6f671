"""SIGTERM, full and read-only disks: what is stopped says so and loses nothing."""

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gradindex.errors import MismatchError
from gradindex.runtime.log import log

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_TEXTS = ("No space left on device", "File too large", "Disk quota exceeded")


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into ``SystemExit(143)``, so that what is being written is removed and the rest kept.

    Only in the main thread, and where the program has not chosen a handler of its own.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def stop(number: int, frame: FrameType | None) -> None:
        log.warning("stopped by SIGTERM; published shards are kept: run the same build again to continue")
        raise SystemExit(128 + signal.SIGTERM)

    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def kept_if_possible(place: object, what: str) -> Iterator[None]:
    """Let a result be returned where it cannot be kept: read-only mount, full disk, index that was changed since."""
    try:
        yield
    except (OSError, MismatchError) as error:
        log.warning("%s could not be kept in %s: %s", what, place, error)


@contextmanager
def explain_full_disk(state: Callable[[], str]) -> Iterator[None]:
    """Say what is kept and what to do when the disk is full, whichever library noticed (FAISS: RuntimeError)."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        if number not in _FULL and not any(text in str(error) for text in _FULL_TEXTS):
            raise
        message = f"The disk is full ({state()}). Free some space and run the same build again to continue"
        raise OSError(number or errno.ENOSPC, message) from error
