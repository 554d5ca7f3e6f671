"""How many requests a client may send: a bucket of tokens for each, which fills at a constant rate."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)
_CLIENTS = 10_000  # that are remembered
_QUIET = 60.0  # seconds between two lines of the log about one client


@dataclass
class _Bucket:
    left: float
    at: float
    refused: int = 0
    said: float = float("-inf")


class RateLimit:
    """Limits the requests of each client; for one thread.

    Parameters
    ----------
    rate
        Requests a second, in the long run; 0: no limit.
    burst
        Requests that may come at once, after a pause.
    clock
        Seconds, ever more.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait(self, client: str) -> float:
        """Count a request; return 0.0, or how many seconds too early it is. What is too early costs nothing."""
        if not self._rate:
            return 0.0
        now = self._clock()
        bucket = self._buckets.setdefault(client, _Bucket(self._burst, now))
        self._buckets.move_to_end(client)
        if len(self._buckets) > _CLIENTS:  # whoever was silent for longest begins anew
            self._buckets.popitem(last=False)
        bucket.left = min(self._burst, bucket.left + (now - bucket.at) * self._rate)
        bucket.at = now
        if bucket.left >= 1:
            bucket.left -= 1
            return 0.0
        bucket.refused += 1
        if now - bucket.said >= _QUIET:
            log.warning("refused %d requests of %s: more than %g a second", bucket.refused, client, self._rate)
            bucket.refused, bucket.said = 0, now
        return (1 - bucket.left) / self._rate
