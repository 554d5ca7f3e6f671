"""What every gradient engine offers, whatever the framework behind it.

The gradient of one sample is the derivative of ITS loss with respect to the selected trainable parameters,
flattened and concatenated in the model's own order: P numbers. A loss that reduces over the batch sees a batch
of one, so a mean does not rescale.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Tree, has_ragged, leaves, length, rectangles, take_rows
from gradindex.gradients import batch_loss, loop, paths
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.paths import LOOP
from gradindex.gradients.projector import Projector
from gradindex.gradients.results import Embedded, PerSample, joined
from gradindex.gradients.signals import FACTORED, Signal
from gradindex.gradients.tokens import ByToken
from gradindex.gradients.ways import Ways
from gradindex.runtime.log import log

_Result = TypeVar("_Result")


class PathFailed(Exception):
    """A path that served the first batch does not serve this one."""


class Engine(ByToken, ABC):
    """Per-sample gradients of one model, loss and selection of parameters.

    The model leaves every call as it came: weights, mode of every submodule, ``.grad``, statistics, random
    state. BatchNorm and dropout run in inference mode.

    A framework fills in the abstract methods; this class holds the ladder: samples of the first batch are compared with
    the oracle, and what does not agree (or does not run) goes through the loop, with a warning.
    """

    backend: ClassVar[str]
    class_axis: ClassVar[int]
    """Axis of the outputs that holds the classes."""
    fast_path: ClassVar[str]
    """Name of the batched path in `paths`."""
    parameters: tuple[Parameter, ...]
    frozen: tuple[str, ...]
    """Names of the model's parameters that are not trainable and therefore have no gradient."""
    dtype: np.dtype[Any]
    """The model's floating type, which is that of gradients, losses and outputs."""
    deterministic: bool = True
    """Whether the same batch gives the same bits again; not promised on accelerators."""
    _half: bool = False
    plain_outputs: bool = False
    """Whether the model's output is one array, and no object that holds it; known once a sample was seen."""
    loss_unit: float = 1.0
    """The loss beside which one counts as small; known once a sample was seen."""
    captured: int = 0
    """Numbers of a sample's layer outputs that the factored path holds on to; known once the paths are."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}  # of each parameter, decided by the first batch
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()  # of samples, the first two that were seen
        self._before: dict[str, str] | None = None  # what `lower` changed
        self._running = LOOP  # the path last taken
        self.signals: tuple[Signal, ...] | None = None
        """What was seen that some way of computing misses; None before the first batch."""
        self.compared: set[tuple[Any, ...]] = set()
        """Questions whose rows were compared with training steps before, see `gradindex.compute.blocks.embed`."""

    @cached_property
    def ways(self) -> Ways:
        """Which ways of computing exact products agree with training steps."""
        return Ways(self)

    @property
    def blocked(self) -> frozenset[str]:
        """The ways of computing that are not to be used, as `signals` say."""
        return frozenset[str]().union(*(signal.blocks for signal in self.signals or ()))

    @property
    def suspect(self) -> bool:
        """Whether something was seen that may make the gradients in a batch depend on the batch."""
        return any(signal.varies for signal in self.signals or ())

    @property
    def is_half(self) -> bool:
        """Whether a part of the model computes in half precision."""
        return self._half or any(parameter.dtype in ("bfloat16", "float16") for parameter in self.parameters)

    @property
    def of_queries(self) -> "Engine":
        """The engine of the queries' side of a product, where that is not the training samples'; itself here."""
        return self

    @property
    def late_scales(self) -> dict[str, float]:
        """By what `embed` multiplies parameters' gradients only once a projector has had them; 1 where not named."""
        return {}

    @property
    def bytes_per_sample(self) -> int:
        """About how many bytes of working memory `embed` takes for a sample.

        An output that is held comes with its input, its gradient and what lies between layers; a gradient that
        has to be formed whole, with two working copies.
        """
        formed = sum(p.size for p in self.parameters if self.paths[p.name] != FACTORED)
        return (4 * self.captured + 3 * formed) * self.dtype.itemsize

    @property
    def size(self) -> int:
        """P, the number of selected scalars."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def paths(self) -> dict[str, str]:
        """How each parameter's gradient is computed: 'factored', 'vmap', 'loop' or 'undecided'."""
        return {parameter.name: self._paths.get(parameter.name, "undecided") for parameter in self.parameters}

    @abstractmethod
    def outputs(self, x: Tree) -> Floats:
        """Return the model's outputs (b, …) in inference mode.

        Raises
        ------
        TypeError
            If the output is not one array (nor an object whose ``logits`` is).
        """

    @abstractmethod
    def losses(self, outputs: Floats, y: Tree) -> Floats:
        """Return the loss of each sample (b,) given the model's outputs (b, …)."""

    @abstractmethod
    def batched_gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return per-sample gradients of a whole batch at once; may fail on models it does not understand."""

    @abstractmethod
    def sample_gradient(self, x: Tree, y: Tree) -> PerSample:
        """Return the gradient of a batch of ONE sample, (1, P), by one plain backward pass."""

    def unused(self, x: Tree, y: Tree) -> list[str]:
        """Return the names of selected parameters on which the loss of this one sample does not depend."""
        return list(self.oracle.step(x, y).unused)

    @abstractmethod
    def directional(self, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
        """Return ⟨direction, g_i⟩ (b,) for a direction (P,), by one forward-mode pass, and the losses (b,).

        May fail where the model has an operation without forward mode.
        """

    def directional_twice(self, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
        """Return what `directional` does by differentiating twice, where an operation has no forward mode.

        With v (b,) the weights of the samples' losses ℓ, G(v) = ∇θ Σ_i v_i ℓ_i is linear in v, and the derivative of
        ⟨q, G(v)⟩ in v_i is ⟨q, ∇θ ℓ_i⟩: two backward passes for a whole batch.

        Raises
        ------
        PathFailed
            If the engine is none of a framework's own.
        """
        raise PathFailed(f"{type(self).__name__} has no double backward")

    def hessian_product(self, x: Tree, y: Tree, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the products (k, P) of vectors with the Hessian of the summed loss of a batch.

        Raises
        ------
        PathFailed
            If the engine is none of a framework's own.
        """
        raise PathFailed(f"{type(self).__name__} has no Hessian")

    def gauss_newton_product(self, x: Tree, y: Tree, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the products (k, P) of vectors with the Gauss-Newton matrix of the summed loss of a batch.

        Σ_i J_iᵀ H_i J_i, with J the outputs' derivative by the parameters and H the loss's second one by the outputs
        (Schraudolph 2002, https://doi.org/10.1162/08997660260028683).

        Raises
        ------
        PathFailed
            If the engine is none of a framework's own.
        """
        raise PathFailed(f"{type(self).__name__} has no Gauss-Newton matrix")

    @abstractmethod
    def state_hashes(self) -> dict[str, str]:
        """Return the sha256 of every parameter and statistic of the model by name."""

    def output_gradients(self, outputs: Floats, y: Tree) -> Floats:
        """Return the derivatives (b, …) of each sample's loss by the model's outputs (b, …)."""
        raise NotImplementedError

    def factored_names(self, x: Tree) -> frozenset[str]:
        """Return the names of parameters all uses of which have a rule; none in a framework without rules."""
        return frozenset()

    def factored_gradients(self, x: Tree, y: Tree, names: Sequence[str]) -> PerSample:
        """Return per-sample gradients (b, ·) of some parameters, formed from the layers' factors."""
        raise NotImplementedError

    def factored_embed(self, x: Tree, y: Tree, names: Sequence[str], projector: Projector) -> Embedded:
        """Return sketches and norms of some parameters' gradients, without holding b × P numbers."""
        raise NotImplementedError

    def some_gradients(self, x: Tree, y: Tree, names: Sequence[str]) -> PerSample:
        """Return `batched_gradients` of some parameters, (b, ·)."""
        found = self.batched_gradients(x, y)
        return PerSample(self._columns(found.gradients, names), found.losses, found.outputs)

    def gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return per-sample gradients (b, P), losses and outputs, by the paths that the first batch chose."""
        if length(x) == 0:
            return self.batched_gradients(x, y)
        if has_ragged(x, y):
            return joined([(rows, self.gradients(part, labels)) for rows, part, labels in rectangles(x, y)])
        return self._with_ladder(x, y, lambda groups: self._gradients(x, y, groups))

    def settle(self, x: Tree, y: Tree) -> None:
        """Choose the paths by a few samples, so that `paths` and `bytes_per_sample` are known."""
        if has_ragged(x, y):
            for _, part, labels in rectangles(x, y):
                self.settle(part, labels)
            return
        self._look_for_signals(x, y)
        if not any(isinstance(leaf, list) for leaf in leaves(x)):  # objects take the loop
            self._decide(x, y)

    def find_signals(self, x: Tree, y: Tree) -> tuple[Signal, ...]:
        """Return what a batch of ONE sample shows that some way of computing misses."""
        return ()

    def output_of_one(self, x: Tree) -> Tree:
        """Return the model's output, as it gives it, for a batch of ONE sample."""
        raise NotImplementedError(f"{type(self).__name__} has no outputs of single samples.")

    def loss_of(self, outputs: Sequence[Tree], y: Tree) -> float | None:
        """Return the loss of samples as the user's loss sees them together, of outputs that were computed one by one.

        None if it is no single number.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss of samples together.")

    def loss_at_zero(self, x: Tree, y: Tree) -> float:
        """Return the loss of a batch of ONE sample, with zeros in the place of the model's outputs."""
        raise NotImplementedError(f"{type(self).__name__} has no loss of other outputs.")

    def lower(self) -> bool:
        """Go one rung down: what takes the fastest path takes the next; False if all takes the loop already."""
        for path, lower in ((FACTORED, self.fast_path), (self.fast_path, LOOP)):
            if path in self._paths.values():
                self._before = self._before or self._paths
                self._paths = {name: lower if taken == path else taken for name, taken in self._paths.items()}
                return True
        return False

    @contextmanager
    def paths_kept(self) -> Iterator[None]:
        """Put back at the end what `lower` changes within it."""
        outside, self._before = self._before, None
        try:
            yield
        finally:
            self._paths, self._before = self._before or self._paths, outside

    def _gradients(self, x: Tree, y: Tree, groups: dict[str, list[str]]) -> PerSample:
        parts = {path: self.by(path, x, y, names) for path, names in groups.items()}
        first = next(iter(parts.values()))
        if len(parts) == 1:
            return first
        rows = np.empty((length(x), self.size), first.gradients.dtype)
        for path, names in groups.items():
            begin, wanted = 0, set(names)
            for parameter, place in self.slices():
                if parameter.name in wanted:
                    rows[:, place] = parts[path].gradients[:, begin : begin + parameter.size]
                    begin += parameter.size
        return PerSample(rows, first.losses, first.outputs)

    def embed(self, x: Tree, y: Tree, projector: Projector) -> Embedded:
        """Return sketches, exact norms, losses and outputs of a batch."""
        if length(x) == 0:
            found = self.batched_gradients(x, y)
            empty = np.zeros((0, projector.dim), np.float32)
            return Embedded(empty, np.zeros(0, np.float64), found.losses, found.outputs)
        if has_ragged(x, y):
            return joined([(rows, self.embed(part, labels, projector)) for rows, part, labels in rectangles(x, y)])
        return self._with_ladder(x, y, lambda groups: self._embed(x, y, projector, groups))

    def _embed(self, x: Tree, y: Tree, projector: Projector, groups: dict[str, list[str]]) -> Embedded:
        found: list[Embedded | PerSample] = []
        sketches = np.zeros((length(x), projector.dim), np.float32)
        squares = np.zeros(length(x), np.float64)
        for path, names in groups.items():
            self._running = path
            if path == FACTORED:
                embedded = self.factored_embed(x, y, names, projector)
                sketches += embedded.sketches
                squares += embedded.norms**2
                found.append(embedded)
            else:
                part = self.by(path, x, y, names)
                wanted = set(names)
                squares += projector.add_all(sketches, [p for p in self.parameters if p.name in wanted], part.gradients)
                found.append(part)
        return Embedded(sketches, np.sqrt(squares), found[0].losses, found[0].outputs)

    def _with_ladder(self, x: Tree, y: Tree, work: Callable[[dict[str, list[str]]], _Result]) -> _Result:
        """Do `work` with the parameters' names by path; what the factored path fails to do takes the next.

        What fails on every path is the samples' fault: nothing is learnt from it.
        """
        if any(isinstance(leaf, list) for leaf in leaves(x)):  # objects cannot be batched
            return work({LOOP: [parameter.name for parameter in self.parameters]})
        self._decide(x, y)
        before, failures = self._paths, []
        while True:
            try:
                result = work(self._groups())
                break
            except Exception as error:
                failed = self._running
                if failed == LOOP or failed not in self._paths.values() or paths.is_out_of_memory(error):
                    self._paths = before
                    raise
                lower = self.fast_path if failed == FACTORED else LOOP
                failures.append((failed, lower, error))
                self._paths = {name: lower if path == failed else path for name, path in self._paths.items()}
        for failure in failures:
            log.warning("the %s path fails from here on, using the %s: %s", *failure)
        return result

    def _decide(self, x: Tree, y: Tree) -> None:
        """Choose the paths on the first batch, and look again at the first whose samples have another shape."""
        shape = tuple(tuple(leaf.shape[1:]) for leaf in leaves(x))
        if shape in self._shapes or len(self._shapes) > 1:
            return
        self._look_for_signals(x, y)
        found, rungs = paths.choose(self, x, y), (FACTORED, self.fast_path, LOOP)
        self._shapes.add(shape)
        self._paths = {name: max(path, self._paths.get(name, path), key=rungs.index) for name, path in found.items()}
        log.info("gradient paths: %s", self._paths)

    def _look_for_signals(self, x: Tree, y: Tree) -> None:
        if self.signals is not None:
            return
        first = slice(0, 1)
        found: tuple[Signal, ...] = ()
        try:
            found = self.find_signals(take_rows(x, first), None if y is None else take_rows(y, first))
        except TypeError:
            if not any(isinstance(leaf, list) for leaf in leaves(x)):  # objects are in no graph, and take the loop
                raise
        batch_loss.check(batch_loss.of(self, x, y), length(x), paths.tolerances(self)[0])
        self.loss_unit = paths.loss_unit(self, x, y)
        self.signals = found  # last: what was refused is refused again
        for signal in found:
            log.log(logging.WARNING if signal.remark else logging.INFO, "%s", signal)

    def _groups(self) -> dict[str, list[str]]:
        """Return the names of the parameters that take each path, in the model's order."""
        groups: dict[str, list[str]] = {}
        for parameter in self.parameters:
            groups.setdefault(self._paths[parameter.name], []).append(parameter.name)
        return groups

    def by(self, path: str, x: Tree, y: Tree, names: Sequence[str]) -> PerSample:
        """Return per-sample gradients (b, ·) of some parameters by one path."""
        self._running = path
        if path == FACTORED:
            return self.factored_gradients(x, y, names)
        if path == self.fast_path and length(x) > 1:  # of one sample, a batched loop in TensorFlow fails
            return self.some_gradients(x, y, names)
        found = loop.gradients(self, x, y)
        return PerSample(self._columns(found.gradients, names), found.losses, found.outputs)

    def _columns(self, gradients: Floats, names: Sequence[str]) -> Floats:
        if len(names) == len(self.parameters):
            return gradients
        wanted = set(names)
        return np.concatenate([gradients[:, at] for p, at in self.slices() if p.name in wanted], axis=1)

    def slices(self) -> Iterator[tuple[Parameter, slice]]:
        """Yield each parameter with its place in the flattened gradient."""
        begin = 0
        for parameter in self.parameters:
            yield parameter, slice(begin, begin + parameter.size)
            begin += parameter.size
