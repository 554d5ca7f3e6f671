"""What a pass over the samples adds up for each parameter, exactly once a sample.

An engine hands out a batch in parts, tries some samples twice while it finds its paths, and starts again where a path
fails. So what a batch comes to is kept apart until it is known to hold each of its samples once.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Batch, Ids
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector

Places = NDArray[np.intp] | None
_TRIES = 3  # of a batch: the first may find the paths, the second another one


class FormChanged(Exception):
    """A parameter's gradients come in another form than before; the pass starts again."""


@dataclass
class Total:
    """Sums over samples: arrays (…) float64, how many samples and positions they hold, and from which form."""

    arrays: list[NDArray[np.float64]]
    samples: int
    positions: int
    form: str

    def add(self, other: "Total") -> None:
        """Add another total of the same form, in place."""
        if self.form != other.form or any(a.shape != b.shape for a, b in zip(self.arrays, other.arrays, strict=True)):
            raise FormChanged(f"{self.form}, then {other.form}")
        for mine, others in zip(self.arrays, other.arrays, strict=True):
            mine += others
        self.samples += other.samples
        self.positions += other.positions


class Sums(Projector):
    """A projector that keeps sums over samples instead of sketching them."""

    dim = 1
    any_order: ClassVar[bool] = True
    one_row: ClassVar[bool] = False
    own_norms: ClassVar[bool] = True

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = {parameter.name: parameter for parameter in parameters}
        self.totals: dict[str, Total] = {}
        self._batch: dict[str, Total] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def of_formed(self, parameter: Parameter, gradients: Floats) -> Total:
        """Return what formed gradients (b, size), in the parameter's own order, come to."""

    @abstractmethod
    def of_factors(self, parameter: Parameter, rows: Floats | Ids, columns: Floats, places: Places) -> Total:
        """Return what Σ_t r_t c_tᵀ come to; `places` are the columns' in the parameter's own order, None for as is."""

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Take formed gradients (b, size)."""
        self.add_measured(out, parameter, gradients)

    def add_measured(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> NDArray[np.float64]:
        """Take formed gradients (b, size); return zeros."""
        if parameter.name in self.parameters:
            own = self.parameters[parameter.name]
            self._keep(parameter.name, self.of_formed(own, in_order(gradients, own, parameter)))
        return np.zeros(len(out))

    def add_factors(
        self, out: NDArray[np.float32], parameter: Parameter, rows: NDArray[Any], columns: Floats
    ) -> NDArray[np.float64]:
        """Take factors; return zeros."""
        if parameter.name in self.parameters:
            own = self.parameters[parameter.name]
            self._keep(parameter.name, self.of_factors(own, rows, columns, column_places(own, parameter)))
        return np.zeros(len(out))

    def _keep(self, name: str, found: Total) -> None:
        with self._lock:
            if name in self._batch:
                self._batch[name].add(found)
            else:
                self._batch[name] = found

    def take(self, engine: Engine, batch: Batch) -> None:
        """Add what a batch comes to.

        Raises
        ------
        FormChanged
            If a parameter's gradients come in another form than those of the batches before.
        RuntimeError
            If the engine hands out samples more than once, again and again.
        """
        for _ in range(_TRIES):
            self._batch = {}
            engine.embed(batch.x, batch.y, self)
            if all(total.samples == len(batch) for total in self._batch.values()):
                break
        else:
            raise RuntimeError("The engine hands out some samples' gradients more than once.")
        found, self._batch = self._batch, {}
        for name, total in found.items():
            if name in self.totals:
                self.totals[name].add(total)
            else:
                self.totals[name] = total


def column_places(own: Parameter, given: Parameter) -> Places:
    """Return where each column of `given` lies in the parameter's own memory; None if they lie alike."""
    if own.input_order == given.input_order and own.shape == given.shape:
        return None
    return np.argsort(own.input_index())[given.input_index()]


def in_order(gradients: Floats, own: Parameter, given: Parameter) -> Floats:
    """Return gradients (b, size) in the parameter's own order."""
    places = column_places(own, given)
    if places is None:
        return gradients
    matrices = gradients.reshape(len(gradients), *own.matrix_shape)
    ordered = np.empty_like(matrices)
    ordered[:, :, places] = matrices
    return ordered.reshape(len(gradients), -1)


def passed(make: Callable[[], Sums], engine: Engine, batches: Callable[[], Iterable[Batch]]) -> dict[str, Total]:
    """Return the totals of a pass over batches, started again if the engine changes a parameter's form.

    Raises
    ------
    RuntimeError
        If it keeps changing.
    """
    for _ in range(_TRIES):
        sums = make()
        try:
            for batch in batches():
                sums.take(engine, batch)
        except FormChanged:
            continue
        return sums.totals
    raise RuntimeError("The model's gradients come in another form for every batch: no factors can be added up.")
