"""One batched forward and one backward pass in one graph; then every parameter is dealt with in turn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import DTypeLike, NDArray

from gradindex.compiled.squares import squares
from gradindex.data.names import Leaf
from gradindex.data.source import Tree, leaves, length, map_leaves
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.gradients.tensorflow import rules  # noqa: F401  (they register themselves)
from gradindex.gradients.tensorflow.capture import Layout, NoRule, Recipe, Tap, reached, taps
from gradindex.gradients.tensorflow.graph import BatchGraph
from gradindex.gradients.tensorflow.outputs import main_tensor
from gradindex.gradients.tensorflow.use import Constant, Outer, Scratch, Touched, Use, squared_norms
from gradindex.runtime.log import log

if TYPE_CHECKING:
    import keras

_BLOCK_BYTES = 4 << 20  # working memory of formed gradients, so small that it stays in the cache
_CANCELS = 0.1  # share of the squares' sum below which a sum of two gradients is formed
_LANES = 16  # samples that the sketch takes at once, in two threads

Finish = Callable[[str, Sequence[Use]], None]


class FactoredGraph:
    """The graph of a model's outputs, losses and the factors of per-sample gradients.

    Parameters
    ----------
    variables
        Selected variables by name.
    call
        Calls the model with other values for variables, given by their ids.
    losses_of
        Returns the loss of each sample (b,), given the outputs and labels of a batch.
    """

    def __init__(
        self,
        variables: "Mapping[str, keras.Variable]",
        call: Callable[[dict[int, tf.Tensor], Tree], Tree],
        losses_of: Callable[[Tree, Tree], tf.Tensor],
    ) -> None:
        self._variables, self._call, self._losses_of = variables, call, losses_of
        self._counts: dict[str, int] = {}  # of uses
        self.captured = 0
        self._recipes: dict[Any, dict[str, list[Recipe]]] = {}
        self._graphs: dict[tuple[str, ...], BatchGraph] = {}

    def plan(self, x: Tree) -> frozenset[str]:
        """Return the names of parameters all uses of which have a rule.

        How many rows of an operation's output belong to one sample shows when 3 samples and then 2 are run.
        """
        graph = BatchGraph(lambda x, y: self._shapes(x), any_shape=False)
        three, two = (graph(map_leaves(partial(_resized, n), x), None) for n in (3, 2))
        self._counts = {}
        self.captured = sum(int(np.prod(b.numpy())) for shapes in two.values() for b, _ in shapes) // 2
        for name, shapes in three.items():
            pairs = [(a.numpy(), b.numpy(), bool(can)) for (a, can), (b, _) in zip(shapes, two[name], strict=True)]
            if all(_fits(a, b, can) for a, b, can in pairs):
                self._counts[name] = len(pairs)
            else:
                log.debug("%s has no rule: no axis of samples", name)
        return frozenset(self._counts)

    def run(
        self, x: Tree, y: Tree, names: Sequence[str], finish: Finish, penalty: Mapping[str, Floats]
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Run the graph; call `finish` with each used parameter's name and uses. Returns losses and output.

        `penalty`: gradients (size,) that every sample has besides, by the parameters' names.
        """
        key = tuple(names)
        graph = self._graphs.setdefault(key, BatchGraph(lambda x, y: self._all_factors(x, y, key)))
        if not graph.is_safe(x, y):
            raise NotImplementedError("The model contains a matrix product that TensorFlow gets wrong.")
        traced, (losses, output, factors) = graph.run(x, y)
        for name, uses in _made(self._recipes[traced], factors):
            alike = [Constant(penalty[name])] if name in penalty else []
            if uses or alike:
                finish(name, [*uses, *alike])
        return losses, output

    def _shapes(self, x: Tree) -> dict[str, list[tuple[tf.Tensor, tf.Tensor]]]:
        _, found = self._taps(x, list(self._variables))
        return {name: [(tf.shape(tap.output), tf.constant(tap.foldable)) for tap in found[name]] for name in found}

    def _all_factors(
        self, x: Tree, y: Tree, names: Sequence[str]
    ) -> tuple[tf.Tensor, tf.Tensor | None, dict[str, list[tuple[tf.Tensor, ...]]]]:
        output, found = self._taps(x, names)
        if any(len(found.get(name, [])) != self._counts[name] for name in names):
            raise RuntimeError("The model makes other operations than before.")
        losses = self._losses_of(output, y)
        wanted = {id(tap.output): tap.output for some in found.values() for tap in some}
        deltas = dict(zip(wanted, tf.gradients(tf.reduce_sum(losses), list(wanted.values())), strict=True))
        samples = tf.shape(leaves(x)[0])[0]
        recipes = {
            name: _joined(
                [
                    tap.make(tf.convert_to_tensor(deltas[id(tap.output)]), Layout(samples))
                    for tap in found[name]
                    if deltas[id(tap.output)] is not None
                ]
            )
            for name in names
        }
        self._recipes[tf.compat.v1.get_default_graph()] = recipes
        main = main_tensor(output)
        tensors = {name: [recipe.tensors for recipe in some] for name, some in recipes.items()}
        return losses, main, tensors

    def _taps(self, x: Tree, names: Sequence[str]) -> tuple[Tree, dict[str, list[Tap]]]:
        """Call the model, and return its output and the taps of those parameters that have rules."""
        values = {name: tf.identity(self._variables[name].value) for name in names}
        output = self._call({id(self._variables[name]): value for name, value in values.items()}, x)
        data, outputs = reached(leaves(x)), {id(part) for part in tf.nest.flatten(output)}
        found = {}
        for name, value in values.items():
            try:
                found[name] = taps(value, data, outputs)
            except NoRule as reason:
                log.debug("%s has no rule: %s", name, reason)
        return output, found


def _resized(samples: int, leaf: Leaf) -> tf.Tensor:
    return tf.gather(leaf, tf.range(samples) % length(leaf))


def _fits(three: NDArray[np.integer], two: NDArray[np.integer], foldable: bool) -> bool:
    """Whether the first axis, and no other, follows the number of samples."""
    same = len(three) == len(two) > 0 and (three[1:] == two[1:]).all() and 2 * three[0] == 3 * two[0] > 0
    return bool(same) and (foldable or three[0] == 3)


def _joined(recipes: list[Recipe]) -> list[Recipe]:
    """Return the recipes with all that are of outer products as one, with all their positions."""
    outer = [recipe for recipe in recipes if recipe.kind is Outer]
    if len(outer) < 2:
        return recipes
    sides = zip(*(recipe.tensors for recipe in outer), strict=True)
    whole = Recipe(Outer, tuple(tf.concat(side, 1) for side in sides), {})
    return [whole, *(recipe for recipe in recipes if recipe.kind is not Outer)]


def _made(
    recipes: dict[str, list[Recipe]], factors: dict[str, list[tuple[tf.Tensor, ...]]]
) -> Iterator[tuple[str, list[Use]]]:
    """Yield each parameter's uses; factors are let go of as they are used."""
    for name, some in recipes.items():
        parts = factors.pop(name)
        uses = [one.kind(*tensors, **one.options) for one, tensors in zip(some, parts, strict=True)]
        yield name, uses


class Rows:
    """Collects formed gradients (b, P) of the given parameters."""

    def __init__(self, samples: int, parameters: Sequence[Parameter], dtype: DTypeLike) -> None:
        self.gradients: Floats = np.zeros((samples, sum(parameter.size for parameter in parameters)), dtype)
        self._places: dict[str, slice] = {}
        self._scratch = Scratch()
        begin = 0
        for parameter in parameters:
            self._places[parameter.name] = slice(begin, begin + parameter.size)
            begin += parameter.size

    def __call__(self, name: str, uses: Sequence[Use]) -> None:
        """Take the uses of one parameter."""
        out = self.gradients[:, self._places[name]]
        for block in _blocks(len(out), _formed_bytes(out.shape[1], uses)):
            out[block] = _formed(uses, block, self._scratch)


class Sketches:
    """Collects sketches (b, k) and squared norms (b,), by each parameter's cheaper path."""

    def __init__(self, samples: int, parameters: Sequence[Parameter], projector: Projector) -> None:
        self.squares: NDArray[np.float64] = np.zeros(samples, np.float64)
        self.sketches: NDArray[np.float32] = np.zeros((samples, projector.dim), np.float32)
        self._parameters = {parameter.name: parameter for parameter in parameters}
        self._projector = projector
        self._scratch = Scratch()

    def __call__(self, name: str, uses: Sequence[Use]) -> None:
        """Take the uses of one parameter."""
        parameter = self._parameters[name]
        own = [use for use in uses if not isinstance(use, Constant)]
        alike = next((use for use in uses if isinstance(use, Constant)), None)
        whole = not own or (alike is not None and not self._projector.one_row)
        by_factors, ghost = (False, False) if whole else self._cheapest(parameter, own)
        needed = sum(use.bytes_per_sample for use in own) if by_factors else 0
        alone = self._projector.own_norms and max((use.positions or 2 for use in own), default=2) == 1
        if not (by_factors and (ghost or alone)):  # of one position no gradient is formed
            needed += _formed_bytes(parameter.size, uses)
        for block in _blocks(len(self.squares), needed):
            out = self.sketches[block]
            if by_factors and self._projector.own_norms:
                parts = [use.factors(block, Scratch()) for use in own]
                rows, columns = (
                    parts[0] if len(parts) == 1 else (np.concatenate(s, 1) for s in zip(*parts, strict=True))
                )
                found = self._projector.add_factors(out, parameter, rows, columns)
                self.squares[block] += 0.0 if found is None else found
            elif by_factors:
                for use in own:
                    self._projector.add_factors(out, parameter, *use.factors(block, self._scratch))
                found = squared_norms(own, block) if ghost else squares(_formed(own, block, self._scratch))
                if alike is not None:
                    found = self._with_penalty(out, parameter, own, alike, block, found)
                self.squares[block] += found
            else:
                formed = _formed(uses, block, self._scratch)
                measured = self._projector.add_measured(out, parameter, formed)
                exact = formed.dtype == np.float32 or self._projector.own_norms
                self.squares[block] += measured if exact else squares(formed)

    def _with_penalty(
        self,
        out: NDArray[np.float32],
        parameter: Parameter,
        own: Sequence[Use],
        alike: Constant,
        block: slice,
        found: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Add the sketch of a gradient c that all samples have; return ‖g + c‖² (b,), given ‖g‖² from the factors."""
        row = np.zeros((1, self._projector.dim), np.float32)
        self._projector.add(row, parameter, alike.gradient[None])
        out += row
        products = sum(use.along(alike.gradient.reshape(parameter.matrix_shape), block, self._scratch) for use in own)
        both = found + squares(alike.gradient[None])
        total: NDArray[np.float64] = both + 2 * products
        if (total < _CANCELS * both).any():  # rounding would show
            return squares(_formed([*own, alike], block, self._scratch))
        return total

    def _cheapest(self, parameter: Parameter, uses: Sequence[Use]) -> tuple[bool, bool]:
        """Return whether the sketch, and whether the norm, had better come from the factors."""
        if any(use.positions is None for use in uses):
            return False, False
        columns = parameter.matrix_shape[1]
        if any(isinstance(use, Outer) and use.width != columns for use in uses):
            return False, False  # a matrix, but not the one that is sketched
        form = sum(use.form_cost for use in uses)
        ghost = len(uses) ** 2 * sum(use.ghost_cost() for use in uses)
        sketch = sum(
            self._projector.factor_cost(parameter, use.positions or 0, isinstance(use, Touched)) for use in uses
        )
        if self._projector.own_norms:
            together = len({isinstance(use, Touched) for use in uses}) == 1
            return together and sketch < form + self._projector.cost(parameter), False
        by_factors = sketch + min(ghost, form) < form + self._projector.cost(parameter)
        return by_factors, by_factors and ghost < form


def _side_by_side(uses: Sequence[Use], block: slice) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the factors of several uses as one, with all their positions."""
    if len(uses) == 1:
        return uses[0].factors(block, Scratch())
    rows, columns = zip(*(use.factors(block, Scratch()) for use in uses), strict=True)
    return np.concatenate(rows, 1), np.concatenate(columns, 1)


def _formed_bytes(size: int, uses: Sequence[Use]) -> int:
    return 4 * size * min(2, len(uses))


def _blocks(samples: int, bytes_per_sample: int) -> list[slice]:
    """Return slices of as many samples as fit the working memory, a multiple of the sketch's lanes if possible."""
    size = max(1, _BLOCK_BYTES // max(1, bytes_per_sample))
    size = size // _LANES * _LANES if size >= _LANES else size
    return [slice(begin, min(begin + size, samples)) for begin in range(0, samples, size)]


def _formed(uses: Sequence[Use], block: slice, scratch: Scratch) -> Floats:
    total = uses[0].form(block, scratch)
    for use in uses[1:]:
        total = total + use.form(block, Scratch())
    return total
