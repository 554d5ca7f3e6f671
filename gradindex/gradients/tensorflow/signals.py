"""What a trace of a Keras model and a loss tells before the first batch.

Model and loss are traced once, never run. The graph then says what the loss depends on besides the model's outputs,
and which operations of the model treat a batch otherwise than its samples one by one.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.python.framework import ops

from gradindex.data.source import Tree, leaves, map_leaves
from gradindex.gradients.engine import PathFailed
from gradindex.gradients.parameter import Floats
from gradindex.gradients.signals import BACKWARD, BATCHED, FORWARD, VMAP, Signal
from gradindex.gradients.tensorflow.outputs import Seen, to_numpy
from gradindex.gradients.tensorflow.state import stateless

if TYPE_CHECKING:
    import keras

_NOT_ALONE = BATCHED - {VMAP}  # ways in which the model sees a batch, and the loss its samples
_ALONG = frozenset({FORWARD, BACKWARD})
_SIZES = frozenset({"Shape", "ShapeN", "Size", "Rank"})
_BRANCHES = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
_LOOPS = frozenset({"While", "StatelessWhile"})
_REDUCTIONS = frozenset({"All", "Any", "ArgMax", "ArgMin", "EuclideanNorm", "Max", "Mean", "Min", "Prod", "Sum"})
_DRAWS = ("Multinomial", "Random", "Rng", "TruncatedNormal")
_TRUE_DERIVATIVES = "tensorflow.python.ops.nn_impl"  # custom gradients, as silu's, that only save memory

_PAST = "past the outputs"
_WHAT = {
    "custom gradient": "a custom gradient, which forward mode ignores, need not be the derivative",
    _PAST: "the loss reads more of the samples than the model's outputs, such as an activity regularizer",
    "another axis": "the loss reads an output whose first axis is not that of the samples",
    "branch": "the model branches on the data, perhaps on what all samples of a batch have in common",
    "reduction": "the model reduces over the samples of a batch",
    "updated variable": "the model reads a variable that it updates in the same call",
    "Python": "the model calls Python code, which may treat a batch otherwise than its samples",
    "random numbers": "the model draws random numbers in evaluation mode: every sample gets those of the first draw",
    "assigned variable": "the model assigns to variables that Keras does not know",
    "variable as it is": "the model or the loss reads weights past Keras, which cannot be replaced by values",
    "no graph": "the model or the loss cannot be traced as a graph",
}
_ARITHMETIC = "Add AddV2 Cast Identity IdentityN Mul Neg RealDiv SelectV2 StopGradient Sub ZerosLike"
_BOUNDS = "Abs ClipByValue Greater GreaterEqual Less LessEqual LogicalAnd Maximum Minimum Sign"
_CURVES = "Exp Sigmoid Sqrt Square Tanh"
_ELEMENTWISE = frozenset(f"{_ARITHMETIC} {_BOUNDS} {_CURVES}".split())


@dataclass(frozen=True)
class Look:
    """What a trace told.

    `signals`; `read`, for each of the outputs' values whether the loss reads it (None: unknown); `penalties`, the
    places of the selected variables that the loss reads itself, alike for every sample; `penalty` returns the
    derivatives of the loss by these alone.
    """

    signals: tuple[Signal, ...]
    read: tuple[bool, ...] | None = None
    penalties: tuple[int, ...] = ()
    penalty: Callable[[], Sequence[Any]] | None = None


class Trace:
    """Traces a model and a loss.

    Parameters
    ----------
    model
        The model.
    chosen
        Selected variables.
    run
        Calls the model.
    loss
        Returns the loss of a batch of one, given output and label.
    """

    def __init__(
        self,
        model: "keras.Model",
        chosen: "Sequence[keras.Variable]",
        run: Callable[[Tree], Tree],
        loss: Callable[[Tree, Tree], tf.Tensor],
    ) -> None:
        self._model, self._chosen, self._run, self._loss = model, chosen, run, loss
        self._found: dict[str, frozenset[str]] = {}
        self._read: tuple[bool, ...] | None = None
        self._penalties: tuple[int, ...] = ()

    def look(self, x: Tree, y: Tree) -> Look:
        """Return what the trace for samples like these (tensors) tells."""
        function = tf.function(self._traced, autograph=False)
        specs = (map_leaves(_batch_of(None), x), None if y is None else map_leaves(_batch_of(1), y))
        traced = function.get_concrete_function(*specs)
        signals = tuple(Signal(name, _WHAT[name], blocks) for name, blocks in self._found.items())
        one = map_leaves(lambda leaf: leaf[:1], x)
        return Look(signals, self._read, self._penalties, partial(traced, one, y) if self._penalties else None)

    def _traced(self, x: Tree, y: Tree) -> list[tf.Tensor]:
        """Trace the model for any number of samples, then model and loss for one; return what is a penalty's."""
        graph = tf.compat.v1.get_default_graph()
        values = {id(v): tf.convert_to_tensor(v._value) for v in self._model.weights}
        with stateless(self._model, values) as scope:
            before = dict(scope.state_mapping)
            output = self._run(x)
        body = graph.get_operations()
        updated = [value for key, value in scope.state_mapping.items() if value is not before.get(key)]
        one = map_leaves(lambda leaf: tf.ensure_shape(leaf[:1], [1, *leaf.shape[1:]]), x)
        result = self._look_at_loss(one, y)
        if Seen.fits(output):
            self._look_at_model(body, leaves(x), Seen(output), [value for value in updated if _in(value, graph)])
        self._look_everywhere(graph)
        return result

    def _look_at_model(
        self, body: Sequence[tf.Operation], data: Sequence[tf.Tensor], seen: Seen, updated: Sequence[tf.Tensor]
    ) -> None:
        """Look at those of the model's operations that make what the loss reads."""
        read = [value for value, own in zip(seen.values, self._read or (), strict=True) if own]
        if any(value.shape.rank is not None and value.shape[:1] != [None] for value in read):
            self._found["another axis"] = _NOT_ALONE
        needed = made_of([*read, *seen.masks])
        reach = reached(data) | {id(tensor.op) for tensor in data}
        body = [op for op in body if id(op) in needed]
        inner = list(_inner(body))
        if any(_branches(op, reach) for op in body) or any(op.type in _BRANCHES for op in inner):
            self._found["branch"] = _NOT_ALONE
        if any(_reduces_samples(op) for op in (*(op for op in body if id(op) in reach), *inner)):
            self._found["reduction"] = _NOT_ALONE
        if any(id(op) in needed for value in updated for op in (value.op, *value.consumers())):
            self._found["updated variable"] = BATCHED
        if any(name in op.type for op in (*body, *inner) for name in _DRAWS):
            self._found["random numbers"] = BATCHED

    def _look_everywhere(self, graph: tf.Graph) -> None:
        """Look at operations that matter wherever they are, also inside functions."""
        inner = [op for one in _functions(graph) for op in one.get_operations()]
        every = [*graph.get_operations(), *inner]
        custom = [op for op in every if _custom_gradient(op) is not None]
        if custom:
            apart = all(op.graph is graph and _is_elementwise(op) for op in custom)
            self._found["custom gradient"] = _ALONG if apart else _NOT_ALONE
        if any("PyFunc" in op.type for op in every):
            self._found["Python"] = _NOT_ALONE
        if any(op.type.startswith(("Assign", "ResourceScatter", "ResourceApply")) for op in every):
            self._found["assigned variable"] = BATCHED

    def _look_at_loss(self, x: Tree, y: Tree) -> list[tf.Tensor]:
        """Return the derivatives of the loss of one sample by the variables that it reads itself."""
        raw = [variable._value for variable in self._chosen]
        weights = {id(v): tf.identity(v._value) for v in self._model.weights}
        with stateless(self._model, weights):
            output = self._run(x)
            if not Seen.fits(output):  # nothing but a batched loop of single samples takes it
                self._loss(output, y)
                return []
            seen = Seen(output)
            held, masks = [tf.identity(v) for v in seen.values], [tf.identity(v) for v in seen.masks]
            loss = self._loss(seen.rebuild(held, masks), y)
        self._read = tuple(id(loss.op) in reached([value], sizes=True) for value in held)
        held = [*held, *masks]
        if _reads_raw(loss, raw, list(weights.values())):
            self._found["variable as it is"] = BATCHED
        if id(loss.op) in reached(leaves(x), without=held):
            self._found[_PAST] = _NOT_ALONE
            return []
        smooth = [value for value in held if value.dtype.is_floating]
        fixed = tf.gradients(loss, [weights[id(v)] for v in self._chosen], stop_gradients=smooth)
        own = [i for i, gradient in enumerate(fixed) if gradient is not None]
        flat = [tf.reshape(tf.convert_to_tensor(fixed[i]), [-1]) for i in own]
        labels = [] if y is None else leaves(y)
        varying = reached([*held, *leaves(x), *labels])
        if any(id(gradient.op) in varying for gradient in flat):
            self._found[_PAST] = _NOT_ALONE
            return []
        self._penalties = tuple(own)
        return flat


class Looks:
    """What traces for the first two shapes of samples told; see `Trace` for the parameters."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts
        self._looks: dict[str, Look] = {}

    def at(self, x: Tree, y: Tree) -> None:
        """Trace samples like these (y: the label of one), unless they, or two other shapes, were traced before."""
        if len(self._looks) > 1:
            return
        shape = repr([tuple(leaf.shape[1:]) for leaf in leaves(x)])
        if shape in self._looks:
            return
        try:
            look = Trace(*self._parts).look(x, y)
        except Exception as error:
            if self._looks:  # what could be traced before: the ways of a batch fail with the same error
                raise
            reason = f"{_WHAT['no graph']} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            look = Look((Signal("no graph", reason, BATCHED),))
        if any(other.penalties != look.penalties for other in self._looks.values()):
            look = replace(look, signals=(*look.signals, Signal(_PAST, _WHAT[_PAST], _NOT_ALONE)))
        self._looks[shape] = look

    @property
    def signals(self) -> tuple[Signal, ...]:
        """What was found."""
        return tuple({signal.name: signal for look in self._looks.values() for signal in look.signals}.values())

    def refuse(self, way: str) -> None:
        """Raise `PathFailed` if this way must not be used."""
        reasons = [signal.what for signal in self.signals if way in signal.blocks]
        if reasons:
            raise PathFailed("; ".join(reasons))

    def read(self, values: Sequence[tf.Tensor]) -> list[int]:
        """Return the places of the outputs' values that the loss reads; all of them where that is not known."""
        known = [look.read for look in self._looks.values() if look.read is not None]
        if len(known) < len(self._looks) or any(len(one) != len(values) for one in known) or not known:
            return list(range(len(values)))
        return [i for i in range(len(values)) if any(one[i] for one in known)]

    def penalty(self) -> dict[int, Floats]:
        """Return the derivatives of what the loss reads of weights itself, by the places of the selected variables."""
        for look in self._looks.values():
            if look.penalty is not None:
                return dict(zip(look.penalties, map(to_numpy, look.penalty()), strict=True))
        return {}


def reached(tensors: Iterable[tf.Tensor], without: Iterable[tf.Tensor] = (), sizes: bool = False) -> set[int]:
    """Return the ids of the operations that depend on the values of some tensors (with `sizes`, on their shapes, too).

    What makes the tensors `without` does not count, nor does what depends on it alone.
    """
    found, closed = set(), {id(tensor.op) for tensor in without}
    stack = [op for tensor in tensors for op in tensor.consumers()]
    while stack:
        op = stack.pop()
        if id(op) not in found and id(op) not in closed and (sizes or op.type not in _SIZES):
            found.add(id(op))
            stack += [consumer for output in op.outputs for consumer in output.consumers()]
    return found


def made_of(tensors: Iterable[tf.Tensor]) -> set[int]:
    """Return the ids of the operations that some tensors are made by."""
    found: set[int] = set()
    stack = [tensor.op for tensor in tensors]
    while stack:
        op = stack.pop()
        if id(op) not in found:
            found.add(id(op))
            stack += [tensor.op for tensor in op.inputs]
    return found


def _reads_raw(loss: tf.Tensor, raw: Sequence[tf.Tensor], values: Sequence[tf.Tensor]) -> bool:
    found = tf.gradients(loss, list(raw), stop_gradients=list(values))
    return any(gradient is not None for gradient in found)


def _branches(op: tf.Operation, reach: set[int]) -> bool:
    """Whether an operation of the model chooses by the data what is computed."""
    if op.type in _BRANCHES:
        return id(op.inputs[0].op) in reach
    return op.type in _LOOPS and any(id(op.inputs[i].op) in reach for i in _deciding(op))


def _deciding(loop: tf.Operation) -> set[int]:
    """Return the places of a loop's variables that decide whether it goes on, and of those that these are made of."""
    condition, body = (loop.graph._get_function(loop.get_attr(name).name).graph for name in ("cond", "body"))
    needed = _used(condition, [0])
    while more := _used(body, needed) - needed:
        needed |= more
    return needed


def _used(graph: tf.Graph, outputs: Iterable[int]) -> set[int]:
    """Return the places of a function's inputs that some of its outputs depend on."""
    wanted = {id(graph.outputs[i].op) for i in outputs}
    found = set()
    for i, tensor in enumerate(graph.inputs):
        if id(tensor.op) in wanted or reached([tensor]) & wanted:
            found.add(i)
    return found


def _reduces_samples(op: tf.Operation) -> bool:
    """Whether an operation reduces over a first axis of any length."""
    if op.type not in _REDUCTIONS or not len(op.inputs):
        return False
    shape = op.inputs[0].shape
    if shape.rank == 0 or (shape.rank is not None and shape[0] is not None):
        return False
    axes = tf.get_static_value(op.inputs[1])
    return axes is None or shape.rank is None or any(int(axis) in (0, -shape.rank) for axis in axes.ravel())


def _custom_gradient(op: tf.Operation) -> Callable[..., tf.Tensor] | None:
    """Return the gradient of an operation that has one of the user's, else None."""
    attributes = op.node_def.attr
    name = attributes["_gradient_op_type"].s.decode() if "_gradient_op_type" in attributes else ""
    if not name.startswith("CustomGradient"):
        return None
    whole: Callable[..., Any] = ops.gradient_registry.lookup(name)
    given = whole
    for inner in ("tape_grad_fn", "grad_fn"):
        given = inspect.getclosurevars(given).nonlocals.get(inner, given)
    return None if given.__module__ == _TRUE_DERIVATIVES else whole


def _is_elementwise(op: tf.Operation) -> bool:
    """Whether a custom gradient treats every number by itself, so that it is the same in a batch."""
    gradient = _custom_gradient(op)
    if gradient is None or not all(output.dtype.is_floating for output in op.outputs):
        return gradient is None
    given = [tf.zeros_like(output) for output in op.outputs]
    before = len(op.graph.get_operations())
    gradient(op, *given)
    made, reach = op.graph.get_operations()[before:], reached(given)
    return all(one.type in _ELEMENTWISE for one in made if id(one) in reach)


def _inner(operations: Iterable[tf.Operation]) -> Iterator[tf.Operation]:
    """Yield the operations inside the functions that some operations call, and inside those that these call."""
    for op in operations:
        for attribute in op.node_def.attr.values():
            for function in (attribute.func, *attribute.list.func):
                if function.name:
                    body = op.graph._get_function(function.name).graph.get_operations()
                    yield from body
                    yield from _inner(body)


def _functions(graph: tf.Graph) -> list[tf.Graph]:
    names = [function.signature.name for function in graph.as_graph_def().library.function]
    return [graph._get_function(name).graph for name in names]


def _in(value: tf.Tensor, graph: tf.Graph) -> bool:
    return getattr(value, "graph", None) is graph


def _batch_of(size: int | None) -> Callable[[tf.Tensor], tf.TensorSpec]:
    return lambda leaf: tf.TensorSpec([size, *leaf.shape[1:]], leaf.dtype)
