"""TensorFlow (Keras 3): per-sample gradients factored or by ``vectorized_map``, directional ones by forward mode."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from gradindex.data.names import Device, LossFunction
from gradindex.data.source import Tree, leaves, length, take_rows
from gradindex.gradients.engine import Engine
from gradindex.gradients.inputs import call_loss
from gradindex.gradients.parameter import Floats
from gradindex.gradients.projector import Projector
from gradindex.gradients.results import Embedded, PerSample, joined
from gradindex.gradients.signals import FACTORED, FORWARD, VMAP, Signal
from gradindex.gradients.tensorflow import outputs, second_order, tokens
from gradindex.gradients.tensorflow.graph import BatchGraph
from gradindex.gradients.tensorflow.inputs import as_tensors, each
from gradindex.gradients.tensorflow.model import (
    bind_arguments,
    check_device,
    check_model,
    choose,
    describe,
    in_half,
    needs_one_matrix,
    state_hashes,
    unrolled,
    weight_owners,
)
from gradindex.gradients.tensorflow.oracle import TensorFlowOracle
from gradindex.gradients.tensorflow.outputs import (
    LABEL_FORMS,
    Seen,
    as_array,
    joined_outputs,
    label_form,
    main_tensor,
    plain,
    to_numpy,
)
from gradindex.gradients.tensorflow.passes import FactoredGraph, Finish, Rows, Sketches
from gradindex.gradients.tensorflow.signals import Looks
from gradindex.gradients.tensorflow.state import of_loss, state_kept, stateless, unknown_variables
from gradindex.runtime.log import log

if TYPE_CHECKING:
    import keras

_LEAST_PART = 32  # samples
# By `bytes_per_sample`, of the parts a batch is computed in, one after the other. TensorFlow spreads its operations
# over the cores by itself: two at a time were .8 (MLP) to .96 (CNN) times as fast, on two cores with nothing beside.
_PART_BYTES = 4 << 30


class TensorFlowEngine(Engine):
    """Per-sample gradients of a Keras 3 model on TensorFlow.

    Parameters
    ----------
    model
        A built ``keras.Model`` (or layer); called with ``training=False``.
    loss_fn
        ``loss_fn(y, output)``, any reduction; called with batches of one.
    parameters
        None for all trainable ones, a regular expression, a list of names (``variable.path``), or
        ``"last_layer"``.
    device
        Where to compute, such as ``"CPU:0"``. None: TensorFlow's choice.

    Raises
    ------
    ValueError
        If Keras does not run on TensorFlow, the model is not built, nothing is trainable, `parameters` selects
        nothing, or `device` does not exist.
    TypeError
        If `model` is not a Keras 3 model, or `device` is not None or a string (or TensorFlow's own object for
        a device).
    """

    backend = "tensorflow"
    class_axis = -1
    fast_path = "vmap"
    directional_twice = second_order.directional_twice
    hessian_product = second_order.hessian_product
    gauss_newton_product = second_order.gauss_newton_product
    token_products = tokens.token_products
    loss_at_zero = outputs.loss_at_zero

    def __init__(
        self,
        model: "keras.Model",
        loss_fn: LossFunction,
        parameters: str | Sequence[str] | None = None,
        device: Device | None = None,
    ) -> None:
        super().__init__()
        self._device = check_device(device)
        self.deterministic = not tf.config.list_physical_devices("GPU")
        check_model(model)
        self.model = model
        self.loss_fn = loss_fn
        chosen, self.frozen = choose(model, parameters)
        self._variables = list(chosen.values())
        self.parameters = describe(model, chosen)
        self._half = in_half(model)
        self.dtype = np.dtype(np.float64 if any(v.dtype == "float64" for v in self._variables) else np.float32)
        self._label_form: str | None = None
        self._eager_directional = False
        self._copied: list[Any] = []
        self._unknown = unknown_variables(model) + of_loss(model, loss_fn)
        self._graph_gradients: dict[tuple[str, ...], BatchGraph] = {}
        self.oracle = TensorFlowOracle(model, loss_fn, chosen, as_tensors, self._device)
        self._looks = Looks(model, self._variables, self._run, self._loss)
        self._factored = FactoredGraph(chosen, self._call_unrolled, self._sample_losses)
        self._graph_directional = BatchGraph(self._all_directional)
        self._graph_gauss_newton = BatchGraph(lambda x, y, v: second_order.gauss_newton(self, x, y, v))
        self._graph_outputs = BatchGraph(
            lambda out, y: tf.convert_to_tensor(tf.gradients(self._sample_losses(out, y), [out])[0])
        )

    def outputs(self, x: Tree) -> Floats:
        """Return the model's outputs (b, …) in inference mode."""
        with self._on_device(), state_kept(self.model, self._unknown):
            if (array := as_array(self._call({}, as_tensors(x)))) is not None:
                return array
        raise TypeError("The model's output is not one tensor, so it has no predicted label. Pass Y.")

    def losses(self, outputs: Floats, y: Tree) -> Floats:
        """Return the loss of each sample (b,) given the model's outputs (b, …)."""
        with self._on_device():
            out, targets, rows = as_tensors(outputs), as_tensors(y), [slice(i, i + 1) for i in range(len(outputs))]
            each = [self._loss(out[row], None if y is None else take_rows(targets, row)) for row in rows]
            return to_numpy(tf.stack(each)) if each else np.empty(0, self.dtype)

    def output_gradients(self, outputs: Floats, y: Tree) -> Floats:
        """Return the derivatives (b, …) of each sample's loss by the model's outputs (b, …)."""
        with self._on_device():
            return to_numpy(self._graph_outputs(as_tensors(outputs), as_tensors(y)))

    def batched_gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return per-sample gradients by ``vectorized_map``; memory is b × P."""
        return self.some_gradients(x, y, [parameter.name for parameter in self.parameters])

    def some_gradients(self, x: Tree, y: Tree, names: Sequence[str]) -> PerSample:
        """Return per-sample gradients (b, ·) of some parameters by ``vectorized_map``."""
        if length(x) == 0:
            size = sum(parameter.size for parameter in self.parameters if parameter.name in set(names))
            return PerSample(np.empty((0, size), self.dtype), np.empty(0, self.dtype), None)
        with self._on_device():
            ready = self._ready(x, y)
            self._looks.refuse(VMAP)
            rows, losses, *outputs = self._safe_gradients(*ready, tuple(names))
            return PerSample(to_numpy(rows), to_numpy(losses), to_numpy(outputs[0]) if outputs else None)

    def factored_names(self, x: Tree) -> frozenset[str]:
        """Return the names of parameters all uses of which have a rule."""
        try:
            with self._on_device(), state_kept(self.model, self._unknown):
                found = self._factored.plan(as_tensors(x))
                self.captured = self._factored.captured
                return found
        except Exception as error:
            log.warning("no layer is factored: %s", error)
            return frozenset()

    def factored_gradients(self, x: Tree, y: Tree, names: Sequence[str]) -> PerSample:
        """Return per-sample gradients (b, ·) of some parameters, formed from the layers' factors."""
        wanted = [parameter for parameter in self.parameters if parameter.name in set(names)]
        rows = Rows(length(x), wanted, self.dtype)
        losses, outputs = self._run_factored(x, y, names, rows)
        return PerSample(rows.gradients, losses, outputs)

    def factored_embed(self, x: Tree, y: Tree, names: Sequence[str], projector: Projector) -> Embedded:
        """Return sketches and norms of some parameters' gradients, without holding b × P numbers."""

        def embed(some: slice) -> Embedded:
            found = Sketches(some.stop - some.start, self.parameters, projector)
            losses, outputs = self._run_factored(
                take_rows(x, some), None if y is None else take_rows(y, some), names, found
            )
            return Embedded(found.sketches, np.sqrt(found.squares), losses, outputs)

        with self._on_device():
            x, y = self._ready(x, y)
        count = length(x)
        size = max(_LEAST_PART, _PART_BYTES // max(1, self.bytes_per_sample) // _LEAST_PART * _LEAST_PART)
        if count <= size or not self.deterministic:
            return embed(slice(0, count))
        parts = [slice(at, min(at + size, count)) for at in range(0, count, size)]
        return joined([(np.arange(part.start, part.stop), embed(part)) for part in parts])

    def _run_factored(self, x: Tree, y: Tree, names: Sequence[str], finish: Finish) -> tuple[Floats, Floats | None]:
        with self._on_device():
            inputs, targets = self._ready(x, y)
            self._looks.refuse(FACTORED)
            penalty = {self.parameters[i].name: one for i, one in self._looks.penalty().items()}
            losses, output = self._factored.run(inputs, targets, names, finish, penalty)
            return to_numpy(losses), None if output is None else to_numpy(output)

    def find_signals(self, x: Tree, y: Tree) -> tuple[Signal, ...]:
        """Return what a trace of model and loss shows."""
        with self._on_device():
            self._ready(x, y)
        return self._looks.signals

    def output_of_one(self, x: Tree) -> Tree:
        """Return the model's output for a batch of ONE sample."""
        with self._on_device(), state_kept(self.model, self._unknown):  # each has the state that is there now
            return self._call({}, as_tensors(x))

    def loss_of(self, outputs: Sequence[Tree], y: Tree) -> float | None:
        """Return the loss of samples together, given their outputs one by one; None if it is no single number."""
        with self._on_device(), state_kept(self.model, self._unknown):
            output, target = joined_outputs(outputs), None if y is None else as_tensors(y)
            loss = self.loss_fn(LABEL_FORMS[self._label_form or "as given"](output, target), output)
            return float(loss) if loss.shape.rank == 0 else None

    def sample_gradient(self, x: Tree, y: Tree) -> PerSample:
        """Return the gradient (1, P) of one sample by one training step: the oracle's."""
        found = self.oracle.step(x, y)
        self.plain_outputs = isinstance(found.output, tf.Tensor)
        loss = np.array([found.loss], self.dtype)
        return PerSample(found.gradient[None].astype(self.dtype, copy=False), loss, as_array(found.output))

    def directional(self, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
        """Return ⟨direction, g_i⟩ (b,) and losses (b,) by one forward-mode pass over the batch."""
        if length(x) == 0:
            return np.empty(0, self.dtype), np.empty(0, self.dtype)
        with self._on_device():
            inputs, targets = self._ready(x, y)
            self._looks.refuse(FORWARD)
            dots, losses = self._forward(inputs, targets, tf.convert_to_tensor(np.asarray(direction, self.dtype)))
            places = [place for _, place in self.slices()]
            alike = [direction[places[i]] @ one for i, one in self._looks.penalty().items()]
            return to_numpy(dots) + self.dtype.type(sum(alike)), to_numpy(losses)

    def _forward(self, x: Tree, y: Tree, direction: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if not self._eager_directional:
            try:
                return self._graph_directional(x, y, direction)  # type: ignore[no-any-return]
            except (TypeError, ValueError, NotImplementedError, LookupError, tf.errors.OpError) as error:
                log.debug("no forward mode in a graph, running eagerly: %s", error)
                self._eager_directional = True  # graphs have none through loops, such as those of RNNs
        with state_kept(self.model, self._unknown):
            return self._all_directional(x, y, direction)

    def state_hashes(self) -> dict[str, str]:
        """Return the sha256 of every weight and statistic by name."""
        return state_hashes(self.model)

    def _ready(self, x: Tree, y: Tree) -> tuple[Tree, Tree]:
        """Return inputs and labels as tensors, the label form settled, for a graph."""
        inputs, targets = as_tensors(x), as_tensors(y)
        if any(isinstance(leaf, list) for leaf in leaves(inputs)):
            raise TypeError("Objects that are not arrays cannot be batched.")
        label = None if y is None else take_rows(targets, slice(0, 1))
        if self._label_form is None:
            self._settle_labels(take_rows(inputs, slice(0, 1)), label)
        self._looks.at(inputs, label)
        return inputs, targets

    def _safe_gradients(self, x: Tree, y: Tree, names: tuple[str, ...]) -> tuple[tf.Tensor, ...]:
        """Run the graph of gradients, if need be with a copy of each matrix for each sample."""
        if not self._copied and not self._gradient_graph(names).is_safe(x, y):
            owners = weight_owners(self.model)
            self._copied = [v for v in self.model.weights if not needs_one_matrix(owners.get(id(v)), v)]
            self._graph_gradients = {}
        if not self._gradient_graph(names).is_safe(x, y):
            raise NotImplementedError("The model contains a matrix product that TensorFlow gets wrong.")
        return self._gradient_graph(names)(x, y)  # type: ignore[no-any-return]

    def _gradient_graph(self, names: tuple[str, ...]) -> BatchGraph:
        if names not in self._graph_gradients:
            self._graph_gradients[names] = BatchGraph(lambda x, y: self._all_gradients(x, y, set(names)))
        return self._graph_gradients[names]

    def _all_gradients(self, x: Tree, y: Tree, names: set[str]) -> tuple[tf.Tensor, ...]:
        count = tf.shape(leaves(x)[0])[0]
        copies = {
            id(variable): tf.broadcast_to(variable.value, tf.concat([[count], variable.shape], 0))
            for variable in self._copied
        }

        def sample(parts: dict[str, Tree]) -> tuple[tf.Tensor, ...]:
            one, target = each(lambda leaf: leaf[None], parts["x"]), each(lambda leaf: leaf[None], parts.get("y"))
            output, loss, grads = self._backward(one, target, parts["copies"], names)
            main = main_tensor(output)
            flat = self._flat(grads, names)
            return (flat, loss) if main is None else (flat, loss, main[0])

        parts = {"x": x, "copies": copies} | ({} if y is None else {"y": y})
        grads, *rest = tf.vectorized_map(sample, parts, warn=False)
        return (tf.concat(grads, axis=1), *rest)

    def _sample_losses(self, output: Tree, y: Tree) -> tf.Tensor:
        """Return the loss of each sample (b,), given the outputs of a batch, with batches of one."""
        seen = Seen(output)
        read = self._looks.read(seen.values)

        def sample(parts: tuple[Tree, ...]) -> tf.Tensor:
            values, masks, *target = each(lambda leaf: leaf[None], parts)
            return self._loss(seen.rebuild(seen.put(values, read), masks), target[0] if target else None)

        parts = (tuple(seen.values[i] for i in read), tuple(seen.masks)) + (() if y is None else (y,))
        return tf.vectorized_map(sample, parts, warn=False)

    def _all_directional(self, x: Tree, y: Tree, direction: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Forward mode through the model, then the derivative of each sample's loss along its output's change.

        The loss sees batches of one, so its reduction does not rescale.
        """
        weights = [tf.convert_to_tensor(variable.value) for variable in self._variables]
        tangents = [
            tf.cast(tf.reshape(direction[place], p.shape), weight.dtype)
            for (p, place), weight in zip(self.slices(), weights, strict=True)
        ]
        with tf.autodiff.ForwardAccumulator(weights, tangents) as accumulator:
            output = self._call(dict(zip(map(id, self._variables), weights, strict=True)), x)
        seen = Seen(output)
        zero = {"unconnected_gradients": tf.UnconnectedGradients.ZERO}
        read = self._looks.read(seen.values)
        chosen = [seen.values[i] for i in read]
        changes = [accumulator.jvp(value, **zero) for value in seen.smooth(chosen)]

        def sample(parts: tuple[Tree, ...]) -> tuple[tf.Tensor, tf.Tensor]:
            values, masks, ways, *target = each(lambda leaf: leaf[None], parts)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(seen.smooth(values))
                loss = self._loss(seen.rebuild(seen.put(values, read), masks), target[0] if target else None)
            grads = tape.gradient(loss, seen.smooth(values), **zero)
            dots = [tf.reduce_sum(tf.cast(g * w, self.dtype)) for g, w in zip(grads, ways, strict=True)]
            return tf.add_n(dots), loss

        parts = (tuple(chosen), tuple(seen.masks), tuple(changes)) + (() if y is None else (y,))
        return tf.vectorized_map(sample, parts, warn=False)  # type: ignore[no-any-return]

    def _backward(
        self, x: Tree, y: Tree, values: dict[int, tf.Tensor] | None = None, names: set[str] | None = None
    ) -> tuple[Tree, tf.Tensor, list[tf.Tensor | None]]:
        """Return the output, the loss and its derivatives (None where it does not depend) of a batch of one.

        `values` stand in for variables, by their ids; `names` are of parameters, None for all.
        """
        wanted = [v for p, v in zip(self.parameters, self._variables, strict=True) if names is None or p.name in names]
        values = {id(v): tf.convert_to_tensor(v.value) for v in wanted} | (values or {})
        weights = [values[id(variable)] for variable in wanted]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            with stateless(self.model, values):
                output = self._run(x)
                loss = self._loss(tf.nest.map_structure(plain, output), y)
        return output, loss, tape.gradient(loss, weights)

    def _flat(self, grads: list[tf.Tensor | None], names: set[str] | None = None) -> list[tf.Tensor]:
        """Return dense gradients (size,) of one sample, zeros where there is none."""
        wanted = [p for p in self.parameters if names is None or p.name in names]
        return [
            tf.zeros(p.size, self.dtype)
            if g is None
            else tf.cast(tf.reshape(tf.convert_to_tensor(g), [p.size]), self.dtype)
            for p, g in zip(wanted, grads, strict=True)
        ]

    def _call(self, values: dict[int, tf.Tensor], x: Tree) -> Tree:
        """Call the model with other values for some variables, by their ids; nothing of it is assigned to."""
        with stateless(self.model, values):
            return self._run(x)

    def _call_unrolled(self, values: dict[int, tf.Tensor], x: Tree) -> Tree:
        with unrolled(self.model, x):
            return self._call(values, x)

    def _run(self, x: Tree) -> Tree:
        args, kwargs = bind_arguments(self.model, x)
        return self.model(*args, **kwargs)

    def _loss(self, output: Tree, target: Tree) -> tf.Tensor:
        """Return the loss of a batch of one, summed to a scalar."""
        if self._label_form is None:
            self._label_form = label_form(self.loss_fn, output, target)
        target = LABEL_FORMS[self._label_form](output, target)
        loss = call_loss(self.loss_fn, target, output, labels=target)
        if not isinstance(loss, tf.Tensor):
            raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}.")
        return tf.cast(tf.reduce_sum(loss), self.dtype)

    def _settle_labels(self, x: Tree, y: Tree) -> None:
        with state_kept(self.model, self._unknown), stateless(self.model, {}):
            output = self._run(x)
            self.plain_outputs = isinstance(output, tf.Tensor)
            self._loss(output, y)

    def _on_device(self) -> AbstractContextManager[None]:
        return nullcontext() if self._device is None else tf.device(self._device)
