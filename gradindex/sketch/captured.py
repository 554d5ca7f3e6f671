"""Keeping the gradients of a few samples, as factors where layers have one position: landmarks, or queries."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Batch
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.sketch.landmark import NONE, SIDES, TOUCHED, WHOLE, LandmarkProjector
from gradindex.sketch.touched import TouchedRows


class _Touched(NamedTuple):
    """Row numbers (b, T) of a table, and their gradients (b, T, C)."""

    numbers: NDArray[np.int64]
    columns: Floats


class Recorder(Projector):
    """Keeps the gradients of samples, as the engine hands them out: of one sample, or of a batch, between two `take`s.

    A parameter used twice hands out two sets of factors, each of the whole batch. `take` refuses a batch that came in
    parts, since a part does not tell which samples it holds.
    """

    dim = 1
    one_row = False

    def __init__(self, projector: LandmarkProjector, count: int) -> None:
        self.count = count
        self.forms: dict[str, str] = {}
        self._costs = projector
        self._taken = 0
        self._tables: dict[str, tuple[int, int]] = {}  # shapes of those whose rows were looked up
        self._found: dict[str, list[NDArray[Any] | tuple[NDArray[Any], Floats] | _Touched]] = {}
        self.sides: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self.whole: dict[str, NDArray[np.float32]] = {}
        self.touched: dict[str, TouchedRows] = {}

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Keep formed gradients (b, size)."""
        if self.forms.get(parameter.name) != NONE:
            self._found.setdefault(parameter.name, []).append(np.array(gradients, np.float32))

    def add_factors(self, out: NDArray[np.float32], parameter: Parameter, rows: NDArray[Any], columns: Floats) -> None:
        """Keep factors of one position, or rows of a table."""
        if self.forms.get(parameter.name) == NONE:
            return
        if rows.ndim == 2 and self._costs.touches:
            self._tables[parameter.name] = parameter.matrix_shape
            kept = _Touched(np.array(rows, np.int64), np.array(columns, np.float32))
            self._found.setdefault(parameter.name, []).append(kept)
            return
        if rows.ndim == 2 or rows.shape[1] != 1:
            super().add_factors(out, parameter, rows, columns)
            return
        pair = np.array(rows[:, 0], np.float32), np.array(columns[:, 0], np.float32)
        self._found.setdefault(parameter.name, []).append(pair)

    def cost(self, parameter: Parameter) -> float:
        """Return what `LandmarkProjector.cost` will, so that gradients come in the same form."""
        return 0.0 if self.forms.get(parameter.name) == NONE else self._costs.cost(parameter)

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return what `LandmarkProjector.factor_cost` will."""
        form = self.forms.get(parameter.name)
        if form in (NONE, WHOLE):
            return 0.0 if form == NONE else math.inf
        return self._costs.factor_cost(parameter, positions, touched)

    def scale(self, factors: dict[str, float]) -> None:
        """Multiply what was kept of some parameters' gradients."""
        for table in self.touched.values():
            table.sort()
        for name, factor in factors.items():
            if name in self.touched:
                self.touched[name].scale(np.full(self.count, factor))
            kept = self.sides[name][0] if name in self.sides else self.whole.get(name)
            if kept is not None:
                kept *= np.float32(factor)

    def take(self, count: int = 1) -> bool:
        """File what was kept of the last `count` samples; False if it came in parts, or in another form than before."""
        found, self._found = {name: self._of_one_kind(name, parts) for name, parts in self._found.items()}, {}
        if any(_rows(part) != count for parts in found.values() for part in parts):
            return False
        if not self._taken:
            self._allot(found)
        here = slice(self._taken, self._taken + count)
        for name, parts in found.items():
            form = self.forms.get(name)
            single = len(parts) == 1 and type(parts[0]) is tuple
            if form is None or (form == SIDES and not single):
                return False
            if form == TOUCHED and not self._touch(name, parts):
                return False
            if form == SIDES:
                rows, columns = self.sides[name]
                rows[here], columns[here] = parts[0]
            elif form == WHOLE:
                self.whole[name][here] = sum(_formed(part) for part in parts)
        self._taken += count
        return True

    def _of_one_kind(self, name: str, parts: list[Any]) -> list[Any]:
        """Return one formed gradient (b, size) where rows of a table came with others, as those of a tied head do."""
        touched = [isinstance(part, _Touched) for part in parts]
        if not any(touched) or (all(touched) and self.forms.get(name, TOUCHED) == TOUCHED):
            return parts
        total = np.zeros((_rows(parts[0]), *self._tables[name]), np.float32)
        for part in parts:
            if isinstance(part, _Touched):
                for table, numbers, columns in zip(total, *part, strict=True):
                    np.add.at(table, numbers, columns)
            else:
                total += _formed(part).reshape(total.shape)
        return [total.reshape(len(total), -1)]

    def _touch(self, name: str, parts: list[Any]) -> bool:
        for part in parts:
            if isinstance(part, _Touched):
                self.touched[name].add(self._taken, *part)
            elif isinstance(part, np.ndarray):
                self.touched[name].add_formed(self._taken, part)
            else:
                return False
        return True

    def _allot(self, found: dict[str, list[Any]]) -> None:
        """Decide which parameters have coordinates, the smallest first, and make room for them."""
        sizes: dict[str, tuple[int, ...]] = {}
        for name, parts in found.items():
            if all(isinstance(part, _Touched) for part in parts):
                self.forms[name] = TOUCHED
                self.touched[name] = TouchedRows(parts[0].columns.shape[2])
                continue
            single = len(parts) == 1 and type(parts[0]) is tuple
            sizes[name] = (parts[0][0].shape[1], parts[0][1].shape[1]) if single else (_formed(parts[0]).shape[1],)
        left = self._costs.options.memory
        for name, size in sorted(sizes.items(), key=lambda item: sum(item[1])):
            left -= 4 * self.count * sum(size)
            if left < 0:
                self.forms[name] = NONE
            elif len(size) == 2:
                self.forms[name] = SIDES
                self.sides[name] = (
                    np.zeros((self.count, size[0]), np.float32),
                    np.zeros((self.count, size[1]), np.float32),
                )
            else:
                self.forms[name] = WHOLE
                self.whole[name] = np.zeros((self.count, size[0]), np.float32)
        if not self.sides and not self.whole and not self.touched:
            least = min(map(sum, sizes.values()), default=0) * 4 * self.count
            raise ValueError(
                f"Landmark(memory={self._costs.options.memory}) holds the landmarks' gradients of no parameter; the "
                f"smallest takes {least} bytes. Give more memory, or fewer landmarks than {self.count}."
            )


def record(
    projector: LandmarkProjector,
    engine: Engine,
    batches: Callable[[], Iterable[Batch]],
    count: int,
    together: bool = False,
) -> Recorder:
    """Return the gradients of `count` samples, recorded for `projector`.

    Parameters
    ----------
    projector
        What will compare gradients with them.
    engine
        The model.
    batches
        Yields the samples, each time it is called.
    count
        How many there are.
    together
        Embed batches as they are, which is faster, where the engine does not split them. Otherwise samples are embedded
        one at a time, so that the numbers do not depend on the others of a batch.

    Raises
    ------
    ValueError
        If the memory is too small for any parameter.
    RuntimeError
        If gradients keep coming in other forms.
    """
    for attempt in range(3):  # anew if the engine changes its ways on a sample
        recorder = Recorder(projector, count)
        whole = together and attempt == 0
        if all(_record_batch(recorder, engine, batch, len(batch) if whole else 1) for batch in batches()):
            return recorder
    raise RuntimeError("The model's gradients come in another form for every sample: landmarks cannot be kept.")


def _record_batch(recorder: Recorder, engine: Engine, batch: Batch, size: int) -> bool:
    for begin in range(0, len(batch), size):
        some = batch.select(slice(begin, begin + size))
        engine.embed(some.x, some.y, recorder)
        if not recorder.take(len(some)):
            return False
    return True


def _rows(part: Any) -> int:
    return len(part[0] if isinstance(part, tuple) else part)  # of factors, and of touched rows


def _formed(part: Any) -> NDArray[np.float32]:
    """Return gradients (b, size) of formed ones, or of the factors (b, out), (b, in) of one position."""
    if not isinstance(part, tuple):
        return np.asarray(part, np.float32)
    rows, columns = part
    formed: NDArray[np.float32] = (rows[:, :, None] * columns[:, None, :]).reshape(len(rows), -1)
    return formed
