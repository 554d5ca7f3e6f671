"""TracIn (Pruthi et al. 2020, https://arxiv.org/abs/2002.08484): influence along training.

The influence of a training sample x on z over checkpoints c with learning rates η_c is Σ_c η_c ⟨g_c(x), g_c(z)⟩.
That is ONE inner product, of the gradients of all checkpoints concatenated with weights √η_c. So here the
checkpoints become an engine of C·P parameters, and building, searching, exact checks, audits and self-influence
(Σ_c η_c ‖g_c‖², the squared norm) are those of any other engine, with the kernel ``grad_dot``.

A checkpoint may bring a preconditioner d, as Adam's 1/(√v̂ + ε): then its term is η_c ⟨g_c(x), d ∘ g_c(z)⟩, and its
part of the concatenated gradient is weighted by √(η_c d).

The sketch adds all checkpoints into one vector, as it adds all layers: the copies of a parameter have places, and
therefore hashes, of their own. See ``benchmarks/tracin.py`` for why not beside each other.
"""

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Device, Leaf, Model
from gradindex.data.source import Tree
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import CHECKPOINT_STRIDE, Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.gradients.results import Embedded, PerSample
from gradindex.gradients.training.checkpoints import check_checkpoints, load_state, restored

_one_at_a_time = threading.RLock()


class TracInEngine(Engine):
    """The gradients at all checkpoints, times √η_c, one after the other: C·P numbers a sample.

    Losses and outputs are those of the last checkpoint. The model's own weights are put back after every call.

    Parameters
    ----------
    engine
        The engine of the model at one set of weights.
    model
        The model whose weights the checkpoints are.
    checkpoints
        ``[(state, learning rate), …]``, see `gradindex.influence.Checkpoint`.
    find
        Returns the file of a state that is a path, see `check_checkpoints`.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        As `check_checkpoints`.
    """

    fast_path = "vmap"

    def __init__(
        self, engine: Engine, model: Model, checkpoints: Any, find: Callable[[str | Path], Path] = Path
    ) -> None:
        super().__init__()
        self._engine, self._model = engine, model
        self._checkpoints = check_checkpoints(model, checkpoints, find)
        self._scales = [checkpoint.learning_rate**0.5 for checkpoint in self._checkpoints]
        self.backend, self.class_axis = engine.backend, engine.class_axis  # type: ignore[misc]
        self.dtype, self.frozen = engine.dtype, engine.frozen
        self._copies = [{p.name: _copy(p, place) for p in engine.parameters} for place in range(len(self._scales))]
        self.parameters = tuple(copy for copies in self._copies for copy in copies.values())
        self._roots = [self._root(checkpoint.preconditioner) for checkpoint in self._checkpoints]

    @property
    def paths(self) -> dict[str, str]:
        """How each parameter's gradient is computed, at every checkpoint alike."""
        paths = self._engine.paths
        return {copy.name: paths[name] for copies in self._copies for name, copy in copies.items()}

    def settle(self, x: Tree, y: Tree) -> None:
        """Choose the paths by a few samples, at the first checkpoint."""
        with self._borrowed():
            load_state(self._model, self._checkpoints[0].state)
            self._engine.settle(x, y)
        self.signals, self.loss_unit = self._engine.signals, self._engine.loss_unit

    def lower(self) -> bool:
        """Go one rung down at every checkpoint; False if all takes the loop already."""
        return self._engine.lower()

    @contextmanager
    def paths_kept(self) -> Iterator[None]:
        """Put back at the end what `lower` changes within it."""
        with self._engine.paths_kept():
            yield

    @property
    def is_half(self) -> bool:
        """Whether a part of the model computes in half precision."""
        return self._engine.is_half

    @property
    def late_scales(self) -> dict[str, float]:
        """√η of every checkpoint's copies of the parameters."""
        pairs = zip(self._copies, self._scales, strict=True)
        return {copy.name: scale for copies, scale in pairs for copy in copies.values()}

    @property
    def bytes_per_sample(self) -> int:
        """About how many bytes of working memory `embed` takes for a sample: one checkpoint at a time."""
        formed = any(root is not None for root in self._roots)
        return self._engine.bytes_per_sample + 3 * formed * self._engine.size * self.dtype.itemsize

    def outputs(self, x: Tree) -> Floats:
        """Return the last checkpoint's outputs (b, …) in inference mode."""
        with self._borrowed():
            load_state(self._model, self._checkpoints[-1].state)
            return self._engine.outputs(x)

    def losses(self, outputs: Floats, y: Tree) -> Floats:
        """Return the loss of each sample (b,) given the model's outputs (b, …)."""
        return self._engine.losses(outputs, y)

    def gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return per-sample gradients (b, C·P), and the losses and outputs of the last checkpoint."""
        return self._concatenated(self._engine.gradients, x, y)

    def batched_gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return per-sample gradients (b, C·P) of a whole batch at once."""
        return self._concatenated(self._engine.batched_gradients, x, y)

    def sample_gradient(self, x: Tree, y: Tree) -> PerSample:
        """Return the gradient (1, C·P) of one sample by a backward pass at every checkpoint."""
        return self._concatenated(self._engine.sample_gradient, x, y)

    def embed(self, x: Tree, y: Tree, projector: Projector) -> Embedded:
        """Return sketches, exact norms √(Σ_c η_c ‖g_c‖²), and the losses and outputs of the last checkpoint."""
        sketches: Any = 0.0
        squares: Any = 0.0
        with self._borrowed():
            for place in self._visit():
                found = self._embed_at(place, x, y, projector)
                sketches = sketches + np.float32(self._scales[place]) * found.sketches
                squares = squares + self._scales[place] ** 2 * found.norms**2
        return Embedded(sketches, np.sqrt(squares), found.losses, found.outputs)

    def unused(self, x: Tree, y: Tree) -> list[str]:
        """Return the names of parameters on which this sample's loss does not depend, checkpoint by checkpoint."""
        with self._borrowed():
            return [self._copies[place][name].name for place in self._visit() for name in self._engine.unused(x, y)]

    def directional(self, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
        """Return Σ_c √η_c ⟨direction_c, g_c⟩ (b,) by a forward-mode pass at every checkpoint, and the losses (b,)."""
        total: Any = 0.0
        with self._borrowed():
            for place in self._visit():
                part = direction[place * self._engine.size : (place + 1) * self._engine.size]
                if self._roots[place] is not None:
                    part = part * self._roots[place]
                dots, losses = self._engine.directional(x, y, part)
                total = total + self._scales[place] * np.asarray(dots, np.float64)
        return total, losses

    def token_products(self, x: Tree, y: Tree, directions: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what `directional` does of each token's loss, along one direction or several."""
        every = np.atleast_2d(directions)
        total = np.zeros(())
        with self._borrowed():
            for place in self._visit():
                part = every[:, place * self._engine.size : (place + 1) * self._engine.size]
                if self._roots[place] is not None:
                    part = part * self._roots[place]
                products, losses = self._engine.token_products(x, y, part)
                total = total + self._scales[place] * products
        return (total[0] if np.ndim(directions) == 1 else total), losses

    def token_gradient(self, x: Tree, y: Tree, token: int) -> PerSample:
        """Return the gradient (1, C·P) of one token's loss in a sample by a backward pass at every checkpoint."""
        return self._concatenated(lambda x, y: self._engine.token_gradient(x, y, token), x, y)

    def token_losses(self, x: Tree, y: Tree) -> NDArray[np.float64]:
        """Return what each token gives to the loss of a sample at the last checkpoint, (t,)."""
        with self._borrowed():
            load_state(self._model, self._checkpoints[-1].state)
            return self._engine.token_losses(x, y)

    def state_hashes(self) -> dict[str, str]:
        """Return the sha256 of every weight and statistic, and of the learning rate, of every checkpoint by name."""
        found: dict[str, str] = {}
        with self._borrowed():
            for place in self._visit():
                found |= {_name(place, name): digest for name, digest in self._engine.state_hashes().items()}
                rate = repr(self._checkpoints[place].learning_rate).encode()
                found[_name(place, "learning rate")] = hashlib.sha256(rate).hexdigest()
                if self._roots[place] is not None:
                    digest = hashlib.sha256(np.ascontiguousarray(self._roots[place]).tobytes()).hexdigest()
                    found[_name(place, "preconditioner")] = digest
        return found

    def _root(self, factors: Leaf) -> Any:
        """Return √d of the selected parameters, (P,), or None."""
        if factors is None:
            return None
        return np.sqrt(np.concatenate([factors[p.position].ravel() for p in self._engine.parameters]))

    def _embed_at(self, place: int, x: Tree, y: Tree, projector: Projector) -> Embedded:
        """Return sketches and norms at one checkpoint, but for √η; formed gradients where coordinates have weights."""
        if self._roots[place] is None:
            return self._engine.embed(x, y, _Renamed(projector, self._copies[place]))
        found = self._engine.gradients(x, y)
        rows = found.gradients * self._roots[place].astype(found.gradients.dtype)
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        copies = list(self._copies[place].values())
        return Embedded(projector(copies, rows), norms, found.losses, found.outputs)

    def _concatenated(self, gradients: Leaf, x: Tree, y: Tree) -> PerSample:
        parts = []
        with self._borrowed():
            for place in self._visit():
                found: PerSample = gradients(x, y)
                rows = found.gradients * self.dtype.type(self._scales[place])
                parts.append(rows if self._roots[place] is None else rows * self._roots[place].astype(rows.dtype))
        return PerSample(np.concatenate(parts, axis=1), found.losses, found.outputs)

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        """Take the model for this thread alone, and put its own weights back at the end."""
        with _one_at_a_time, restored(self._model):
            yield

    def _visit(self) -> Iterator[int]:
        """Yield checkpoints' places with their weights in the model, in order."""
        for place, checkpoint in enumerate(self._checkpoints):
            load_state(self._model, checkpoint.state)
            yield place


class _Renamed(Projector):
    """A projector to which a parameter is its copy at one checkpoint."""

    def __init__(self, projector: Any, copies: dict[str, Parameter]) -> None:
        self._projector, self._copies = projector, copies
        self.dim = projector.dim

    def add(self, out: Any, parameter: Parameter, gradients: Leaf) -> None:
        """Add the sketch of the copy's gradients (b, size) to `out` (b, dim), in place."""
        self._projector.add(out, self._copies[parameter.name], gradients)

    def add_measured(self, out: Any, parameter: Parameter, gradients: Leaf) -> Any:
        """Do `add`, and return the gradients' squared norms (b,)."""
        return self._projector.add_measured(out, self._copies[parameter.name], gradients)

    def add_factors(self, out: Any, parameter: Parameter, rows: NDArray[Any], columns: Any) -> None:
        """Add the sketch of the copy's Σ_t r_t c_tᵀ to `out`."""
        self._projector.add_factors(out, self._copies[parameter.name], rows, columns)

    def on_device(self, device: Device) -> Any:
        """Return a twin that takes tensors on that device, if the projector has one."""
        twin = self._projector.on_device(device)
        return None if twin is None else _Renamed(twin, self._copies)

    def cost(self, parameter: Parameter) -> float:
        """Return about how many nanoseconds `add` takes for one sample."""
        return float(self._projector.cost(self._copies[parameter.name]))

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return about how many nanoseconds `add_factors` takes for one sample of T positions."""
        return float(self._projector.factor_cost(self._copies[parameter.name], positions, touched))


def _copy(parameter: Parameter, place: int) -> Parameter:
    position = place * CHECKPOINT_STRIDE + parameter.position  # the hashes' key
    return dataclasses.replace(parameter, name=_name(place, parameter.name), position=position)


def _name(place: int, name: str) -> str:
    return f"checkpoint{place}/{name}"
