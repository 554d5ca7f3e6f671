"""What ways of computing exact products were seen to cost, so that the cheaper one is taken next time."""

from collections import deque

_NEEDED, _RECENT = 3, 9  # of what something took
_SIZES = 4, 16, 64  # of what is done at once, which costs less each; of one size prices are alike


class Prices:
    """Seconds that each of something takes, by its name and by how many are done at once.

    The least of the last times: what else the machine does only adds to it. The first time does not count, when code is
    compiled and memory is asked for.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], deque[float]] = {}

    def note(self, name: str, seconds: float, count: int, at_once: int) -> None:
        """Note that `count` took so long, `at_once` at a time."""
        key = name, _size(at_once)
        if key in self._seen:
            self._seen[key].append(seconds / count)
        else:
            self._seen[key] = deque(maxlen=_RECENT)

    def of(self, name: str, at_once: int) -> float | None:
        """Return the seconds of one; None if they are not known yet."""
        seen = self._seen.get((name, _size(at_once)), ())
        return min(seen) if len(seen) >= _NEEDED else None


def _size(at_once: int) -> int:
    return sum(at_once >= size for size in _SIZES)
