"""The watch over rows: some of every shard are compared with training steps while they are made.

A fault that a first batch cannot show (a branch that few batches take, a penalty that is small beside the first
gradients, rows of an embedding that a mask keeps fixed) shows in rows drawn from everywhere. They are compared as they
come out of the batch, and the path, that everything else comes out of. If f is the share of rows that a fault touches,
n compared rows miss it with probability (1 − f)ⁿ: with the 64 of a small build, what touches 7 % of its rows is found
with 99 %; with the 500 of a million rows, what touches .9 %.
"""

import contextlib
import math
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Batch, Ids
from gradindex.gradients import paths
from gradindex.gradients.engine import Engine
from gradindex.gradients.projector import Projector
from gradindex.gradients.results import Embedded
from gradindex.job import Job
from gradindex.runtime.log import log
from gradindex.sketch.unit_rows import normalise
from gradindex.store.codes import RowType
from gradindex.store.layout import WATCH
from gradindex.store.location import Location, make_directory
from gradindex.store.manifest import publish, read_json
from gradindex.store.store import Store

_EVERY = 2000  # rows, of which one is compared
_ROUNDED = 2e-3  # of a stored row: its rounding to float16, and what may be rounded otherwise in 8 bits
_OF_A_SHARD, _LARGE_SHARD, _OF_A_BUILD = 8, 10_000, 64


class RowsDiffer(Exception):
    """Rows that a path made are not those of a training step.

    `ids` are those of the rows that differ, `error` the largest relative difference.
    """

    def __init__(self, ids: list[int], error: float) -> None:
        super().__init__(f"gradients of samples {ids[:10]} are off by up to {error:.2g} of their length")
        self.ids, self.error = ids, error


@dataclass(frozen=True)
class Compared:
    """What a comparison of some rows with training steps found: how many, and the largest relative error.

    `differed` counts the shards of which rows differed at first, and were made again by a slower path.
    """

    rows: int = 0
    error: float = 0.0
    differed: int = 0

    def __bool__(self) -> bool:
        return self.rows > 0

    def __add__(self, other: "Compared") -> "Compared":
        return Compared(self.rows + other.rows, max(self.error, other.error), self.differed + other.differed)

    def __str__(self) -> str:
        if not self.rows:
            return "no rows"
        again = f"; {self.differed} shards made again, more slowly" if self.differed else ""
        return f"{self.rows:,} rows, largest error {'below ' if self.error else ''}{self.error:.0e}{again}"


def draw(seed: int, start: int, stop: int, rows: int) -> Ids:
    """Return which samples from `start` to `stop` of a build of `rows` are compared, ascending.

    One in 2,000, at least 8 of 10,000 and more, and so many that a build has 64; spread evenly, the first one early.
    """
    count = stop - start
    wanted = max(
        math.ceil(count / _EVERY),
        _OF_A_SHARD if count >= _LARGE_SHARD else 0,
        math.ceil(_OF_A_BUILD * count / max(rows, 1)),
    )
    wanted = min(wanted, count)
    bounds = start + np.arange(wanted + 1) * count // max(wanted, 1)
    rng = np.random.default_rng([seed, start])
    return np.array([rng.integers(low, high) for low, high in pairwise(bounds)], np.int64)


class RowWatch:
    """Compares the rows of drawn samples with training steps, batch by batch.

    Parameters
    ----------
    engine
        Makes the rows.
    projector
        Makes sketches of their gradients.
    drawn
        Positions of the samples to compare, see `draw`. Where the engine saw something that makes gradients depend on
        the batch, a sample of every other batch is compared, too.
    """

    def __init__(self, engine: Engine, projector: Projector, drawn: Ids) -> None:
        self._engine, self._projector, self._drawn = engine, projector, drawn
        self._errors: list[float] = []
        self._largest = 0.0  # norm that was seen

    @property
    def compared(self) -> Compared:
        """What was compared so far; the error is rounded up to a power of ten, so that rounding does not show."""
        largest = max(self._errors, default=0.0)
        return Compared(len(self._errors), 0.0 if largest == 0 else 10.0 ** math.ceil(math.log10(largest)))

    def forget(self) -> None:
        """Begin anew, with rows that another path makes."""
        self._errors.clear()

    def look(self, batch: Batch, found: Embedded) -> None:
        """Compare the drawn rows of a batch.

        Raises
        ------
        RowsDiffer
            If they are not those of training steps.
        """
        self._largest = max(self._largest, float(found.norms.max(initial=0.0)))
        places = np.flatnonzero(np.isin(batch.ids, self._drawn))
        if not len(places) and self._engine.suspect:
            places = np.random.default_rng(int(batch.ids[0])).integers(0, len(batch), 1)
        if not len(places):
            return
        errors = np.array([self._error(batch, found, int(place)) for place in places])
        self._errors += errors.tolist()
        every, _ = paths.tolerances(self._engine)
        if not paths.agree(np.array(self._errors), self._engine):
            raise RowsDiffer(batch.ids[places[errors > every]].tolist(), float(errors.max()))

    def _error(self, batch: Batch, found: Embedded, place: int) -> float:
        one = batch.select(np.array([place]))
        truth = self._engine.sample_gradient(one.x, one.y)
        norm = float(np.linalg.norm(truth.gradients[0].astype(np.float64)))
        sketch = self._projector(self._engine.parameters, truth.gradients)[0]
        turned = float(np.linalg.norm(found.sketches[place].astype(np.float64) - sketch))
        off = max(turned, abs(float(found.norms[place]) - norm))
        largest = max(self._largest, norm)
        if norm == 0 or not math.isfinite(norm):
            return 0.0 if off <= paths.ROUNDING * largest or not math.isfinite(norm) else math.inf
        return max(0.0, off / norm - paths.allowance(norm, largest, float(truth.losses[0]), self._engine.loss_unit))


def lower(engine: Engine, why: RowsDiffer) -> None:
    """Let an engine take the next rung of its ladder.

    Raises
    ------
    ValueError
        If there is none: its training steps themselves are not the same each time.
    """
    if not engine.lower():
        raise ValueError(
            f"The {why}, each time they are computed one by one. Does the model draw random numbers in evaluation "
            "mode, or change its weights? The gradient of such a model is not defined; see exact.md in examples/docs."
        ) from why
    engine.ways.distrusted = True  # what made rows wrong, in some shards only, makes products wrong, too
    log.warning("%s, so the next way is taken: %s", why, sorted(set(engine.paths.values())))


def save(store: Location, number: int, found: Compared) -> None:
    """Write what was compared of a shard beside it, outside of what is sealed."""
    directory = store / WATCH
    make_directory(directory)
    publish(directory / name(number), asdict(found), replace=True)


def name(number: int) -> str:
    """Return the name of a shard's record."""
    return f"{number:06d}.json"


def of_store(store: Store) -> Compared:
    """Return what was compared of all rows of a store when they were made."""
    return sum((read(one.path, one.header.shards) for one in map(store.part, store.state.parts)), Compared())


def read(store: Location, shards: int) -> Compared:
    """Return what was compared of the shards of a part; those without a record count as not compared."""
    total = Compared()
    for number in range(shards):
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # damaged ones are ValueErrors
            saved = read_json(store / WATCH / name(number))
            total += Compared(int(saved["rows"]), float(saved["error"]), int(saved["differed"]))
    return total


def compare_stored(store: Store, job: Job, projector: Projector) -> tuple[Compared, bool]:
    """Compare 64 stored rows, drawn by the store's seed, with training steps; return what was found, and if they agree.

    For stores of versions that did not compare while they built.
    """
    there = np.arange(len(store)) if store.alive is None else np.flatnonzero(store.alive)
    rows = np.random.default_rng(store.header.seed).choice(there, min(_OF_A_BUILD, len(there)), replace=False)
    rows = rows[np.argsort(store.ids[rows])]
    batch, engine = job.source.take(store.ids[rows]), job.engine
    kept, norms = store.kept(rows), store.norms[rows]
    errors = errors_of(engine, projector, batch, kept, norms, store.header.row_type, float(store.norms.max()))
    agree = paths.agree(errors, engine)
    if not agree:
        log.warning("rows of %s are off by up to %.2g from training steps; build it again", store.path, errors.max())
    return Compared(len(errors), float(errors.max())), agree


def errors_of(
    engine: Engine,
    projector: Projector,
    batch: Batch,
    kept: NDArray[np.generic],
    norms: NDArray[np.float32],
    row_type: str,
    largest: float,
) -> NDArray[np.float64]:
    """Return how far stored rows are from training steps of their samples, relative, without what rounding does, (n,).

    Parameters
    ----------
    engine, projector
        Make the gradients, and sketches of these.
    batch
        The n samples.
    kept, norms
        Their stored sketches, see `gradindex.store.codes`, and norms (n,).
    row_type
        How the sketches are kept.
    largest
        The largest norm of all rows that were made with these: where gradients cancel, its rounding is left.
    """
    kind, errors = RowType(row_type), np.empty(len(batch))
    for place in range(len(batch)):
        one = batch.select(np.array([place]))
        truth = engine.sample_gradient(one.x, one.y)
        norm = float(np.linalg.norm(truth.gradients[0].astype(np.float64)))
        sketch = projector.finish(projector(engine.parameters, truth.gradients), np.array([norm]))
        true = normalise(sketch)
        stored = kind.dequantize(kept[place : place + 1], np.empty_like(true))
        turned = float(np.linalg.norm(true - stored))
        turned -= float(np.linalg.norm(true - kind.dequantize(kind.quantize(true), np.empty_like(true))))
        off = max(turned, abs(float(norms[place]) - norm) / max(norm, paths.ROUNDING))
        rounding = paths.allowance(max(norm, 1e-30), max(largest, norm), float(truth.losses[0]), engine.loss_unit)
        errors[place] = max(0.0, off - rounding - _ROUNDED)
    return errors
