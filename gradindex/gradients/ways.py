"""Ways of computing exact products, and which of them agree with training steps.

A product ⟨q, g⟩ of a query's gradient with a sample's can be had by forward mode, by differentiating twice, from the
factors of layers, or from formed gradients. Each of these may miss something that a training step does. So a few
products of every way are compared with those of training steps before the first of its answers is called exact, and
more from time to time; a way that disagrees is not used again. What is left in the end is the training step itself.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Batch
from gradindex.gradients import paths
from gradindex.gradients.parameter import Floats
from gradindex.gradients.prices import Prices

if TYPE_CHECKING:
    from gradindex.gradients.engine import Engine

FORMED, STEPS = "formed gradients", "training steps"
TOKENS = "forward mode by token"
_FIRST = 8  # products compared before the first answer of a way
_ROWS, _EVERY = 8, 2000  # rows of formed gradients: compared at first, and one in so many later
_RECENT = 64  # comparisons of a way that are judged together
_SECONDS, _USUAL = 1e-3, 100  # of comparing, for an answer of so many products; less for fewer


class WayDiffers(Exception):
    """A way of computing products disagrees with training steps; `way` says which."""

    def __init__(self, way: str, error: float) -> None:
        super().__init__(f"{way} is off by up to {error:.2g} of the norms' product")
        self.way = way


@dataclass(frozen=True)
class Truth:
    """The gradient (P,) of a sample by a training step, and its loss."""

    gradient: Floats
    loss: float

    @cached_property
    def norm(self) -> float:
        """The gradient's norm."""
        return math.sqrt(_dot(self.gradient, self.gradient))


class Ways:
    """What is known of an engine's ways of computing products.

    Parameters
    ----------
    engine
        Whose `sample_gradient` is the training step.
    """

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._errors: dict[str, list[float]] = {}
        self._begun: set[str] = set()  # ways of which products were compared
        self._wrong: set[str] = set()
        self._saved, self._cost = 0.0, math.inf  # seconds that may be spent, and what a step takes
        self._largest = 0.0  # norm that was seen
        self._rows = 0  # of formed gradients, since the last that was compared
        self.prices = Prices()
        """What ways were seen to cost."""
        self.compared = 0
        """Products and rows that were compared with training steps."""
        self.distrusted = False
        """Whether rows were found that are not those of training steps, so that nothing but these is trusted."""

    def is_new(self, way: str) -> bool:
        """Whether no product of a way was compared yet."""
        return way not in self._begun

    def usable(self, way: str) -> bool:
        """Whether a way has not been seen to disagree, and nothing is known that it misses."""
        return not self.distrusted and way not in self._wrong and way not in self._engine.blocked

    def due(self, way: str, passes: int = 1, products: int = _USUAL) -> int:
        """Return how many products of this way had better be compared now, of so many that took so many passes."""
        if way == STEPS:
            return 0
        if way not in self._begun:
            return _FIRST
        if self._engine.suspect:
            return passes
        earned = _SECONDS * min(1.0, products / _USUAL)
        self._saved = min(self._saved + earned, max(self._cost, _SECONDS))
        if self._saved < self._cost:
            return 0
        self._saved -= self._cost
        return 1

    def truth(self, one: Batch, of_query: bool = False) -> Truth:
        """Return the gradient of a batch of one sample (or query), by a training step."""
        found = (self._engine.of_queries if of_query else self._engine).sample_gradient(one.x, one.y)
        return Truth(found.gradients[0], float(found.losses[0]))

    def token_truth(self, one: Batch, token: int) -> Truth:
        """Return the gradient of one token's loss in a batch of one sample, by a training step on that loss."""
        found = self._engine.token_gradient(one.x, one.y, token)
        return Truth(found.gradients[0], float(found.losses[0]))

    def check(self, way: str, compared: Iterable[tuple[Truth, Truth, float]]) -> None:
        """Compare products that a way found with those of gradients by training steps: (query's, sample's, product).

        Raises
        ------
        WayDiffers
            If they disagree; the way is not `usable` any more.
        """
        errors = self._errors.setdefault(way, [])
        began = time.perf_counter()
        for query, sample, product in compared:  # which takes the training step of each
            self._begun.add(way)
            errors.append(self._error(query, sample, product))
            self._count(began)
            began = time.perf_counter()
        self._judge(way, errors)

    def check_sums(
        self,
        way: str,
        sums: NDArray[np.float64],
        products: NDArray[np.float64],
        query_norm: float,
        norms: NDArray[np.float64],
    ) -> None:
        """Compare sums (n,) of what a way found in parts with the products (n,) of whole gradients, of these norms.

        Raises
        ------
        WayDiffers
            If they disagree; the way is not `usable` any more.
        """
        if not len(sums):
            return
        self._largest = max(self._largest, query_norm, float(norms.max()))
        scale, off = query_norm * norms, np.abs(sums - products)
        with np.errstate(divide="ignore", invalid="ignore"):
            rounding = paths.ROUNDING * self._largest * (1 / query_norm + 1 / norms) if query_norm else 0.0
            relative = np.maximum(off / scale - rounding, 0)
        small = off <= paths.ROUNDING * self._largest**2
        relative = np.where(scale > 0, np.nan_to_num(relative, nan=np.inf), np.where(small, 0.0, np.inf))
        for begin in range(0, len(relative), _RECENT):
            self._judge(way, relative[begin : begin + _RECENT].tolist())

    def check_row(self, way: str, off: float, true: Truth) -> None:
        """Judge a row that is `off` by so much from that of a training step, for what a way computes from it.

        Raises
        ------
        WayDiffers
            If that is more than rounding; the way is not `usable` any more.
        """
        self._largest = max(self._largest, true.norm)
        errors = self._errors.setdefault(f"rows of {way}", [])
        errors.append(self._relative(off, true) if true.norm else math.inf if off else 0.0)
        self.compared += 1
        self._judge(way, errors)

    def check_rows(self, batch: Batch, gradients: Floats) -> None:
        """Compare some formed gradients (b, P) of a batch with training steps, if that is due.

        Raises
        ------
        WayDiffers
            If they disagree.
        """
        self._rows += len(batch)
        if FORMED not in self._errors:
            places = np.unique(np.linspace(0, len(batch) - 1, min(_ROWS, len(batch))).astype(np.int64))
        elif self._engine.suspect or self._rows >= _EVERY:
            places = np.random.default_rng(self.compared).integers(0, len(batch), 1)
        else:
            return
        self._rows = 0
        errors = self._errors.setdefault(FORMED, [])
        for place in places.tolist():
            began = time.perf_counter()
            true = self.truth(batch.select(np.array([place])))
            off = float(paths.norms((gradients[place] - true.gradient)[None])[0])
            self._largest = max(self._largest, true.norm)
            errors.append(self._relative(off, true) if true.norm else math.inf if off else 0.0)
            self._count(began)
        recent = errors[-_RECENT:]
        if not paths.agree(np.array(recent), self._engine):
            errors.clear()
            raise WayDiffers(FORMED, max(recent))

    def _judge(self, way: str, errors: list[float]) -> None:
        recent = np.array(errors[-_RECENT:])
        if not paths.agree(recent, self._engine, least=0):  # to give up a way costs little
            self._wrong.add(way)
            raise WayDiffers(way, float(recent.max()))

    def _relative(self, off: float, true: Truth) -> float:
        return max(0.0, off / true.norm - self._allowance(true))

    def _error(self, query: Truth, sample: Truth, product: float) -> float:
        self._largest = max(self._largest, query.norm, sample.norm)
        if not min(query.norm, sample.norm):
            return 0.0 if abs(product) <= paths.ROUNDING * self._largest**2 else math.inf
        off = abs(product - _dot(query.gradient, sample.gradient)) / (query.norm * sample.norm)
        rounding = sum(map(self._allowance, (query, sample)))
        return max(0.0, off - rounding) if math.isfinite(off) else math.inf

    def _allowance(self, true: Truth) -> float:
        return paths.allowance(true.norm, self._largest, true.loss, self._engine.loss_unit)

    def _count(self, began: float) -> None:
        self.compared += 1
        self._cost = min(self._cost, time.perf_counter() - began)


def _dot(a: Floats, b: Floats) -> float:
    """Return the inner product of two vectors; in double precision, as products of tiny numbers are zero in single."""
    return float(np.einsum("i,i->", a, b, dtype=np.float64))


def pairs(candidates: NDArray[Any], count: int, seed: int) -> list[tuple[int, int]]:
    """Return places (line, column) of some candidates (m, c) that are there (≥ 0), drawn by a seed."""
    there = np.argwhere(candidates >= 0)
    rows = np.random.default_rng(seed).choice(len(there), min(count, len(there)), replace=False)
    return [(int(line), int(column)) for line, column in there[np.sort(rows)]]
