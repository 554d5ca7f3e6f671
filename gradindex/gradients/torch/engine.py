"""PyTorch: per-sample gradients factored or by ``vmap(grad)``, directional derivatives by forward mode."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from gradindex.data.names import Device, LossFunction
from gradindex.data.source import Tree, leaves, length, map_leaves, take_rows
from gradindex.gradients.engine import Engine
from gradindex.gradients.inputs import bind_inputs, select
from gradindex.gradients.parameter import Floats
from gradindex.gradients.paths import LOOP
from gradindex.gradients.projector import Projector
from gradindex.gradients.results import Embedded, PerSample, joined
from gradindex.gradients.signals import Signal
from gradindex.gradients.torch import beside, costs, outputs, second_order, signals, tokens, vmap
from gradindex.gradients.torch import model as torch_model
from gradindex.gradients.torch import parts as torch_parts
from gradindex.gradients.torch.experts import in_token_order
from gradindex.gradients.torch.inputs import Conversion
from gradindex.gradients.torch.losses import SampleLosses
from gradindex.gradients.torch.model import HALF, NoLeaves, Seen, channels_last, inference
from gradindex.gradients.torch.oracle import TorchOracle
from gradindex.gradients.torch.outputs import as_array, to_numpy
from gradindex.gradients.torch.passes import Finish, Plan, Rows, Sketches, backward, plan
from gradindex.gradients.torch.state import kept
from gradindex.gradients.torch.use import Workspace
from gradindex.runtime.log import log


class TorchEngine(Engine):
    """Per-sample gradients of a ``torch.nn.Module``.

    Parameters
    ----------
    model
        The module; ``torch.compile`` and ``DataParallel`` wrappers are looked through.
    loss_fn
        ``loss_fn(output, y)``, any reduction; called with batches of one.
    parameters
        None for all trainable ones, a regular expression, a list of names, or ``"last_layer"``.
    device
        Where to compute; the model is moved there. None: where the model is.

    Raises
    ------
    ValueError
        If nothing is trainable, or `parameters` selects nothing.
    TypeError
        If `device` is not None, a string, an integer or a ``torch.device``.
    """

    backend = "torch"
    class_axis = 1
    fast_path = "vmap"
    directional_twice = second_order.directional_twice
    hessian_product = second_order.hessian_product
    gauss_newton_product = second_order.gauss_newton_product
    token_products = tokens.token_products
    loss_at_zero = outputs.loss_at_zero

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        parameters: str | Sequence[str] | None = None,
        device: Device | None = None,
    ) -> None:
        super().__init__()
        torch_model.check_device(device)
        model = getattr(model, "_orig_mod", model)
        if not isinstance(model, nn.Module):
            raise TypeError(f"Expected a torch.nn.Module, got {type(model).__module__}.{type(model).__name__}.")
        self.model = torch_model.differentiable(model.module if isinstance(model, nn.DataParallel) else model)
        self.loss_fn = loss_fn
        if device is not None:
            self.model.to(device)
        named = dict(self.model.named_parameters())
        torch_model.check_values(named)
        trainable = [name for name, value in named.items() if value.requires_grad]
        self.frozen = tuple(name for name, value in named.items() if not value.requires_grad)
        chosen = select(trainable, parameters)
        self.parameters = torch_model.describe(self.model, trainable, chosen)
        torch_model.check_real({name: named[name] for name in chosen})
        first = named[chosen[0]]
        self.device = first.device
        self.deterministic = self.device.type == "cpu"
        double = any(named[name].dtype == torch.float64 for name in chosen)
        self.dtype = np.dtype(np.float64 if double else np.float32)
        self._output_dtype: torch.dtype | None = None
        self._weighed = self._makes_leaves = False
        self._half = any(value.dtype in HALF for value in named.values())
        self._conversion = Conversion(self.model, self.device, loss_fn)
        self.oracle = TorchOracle(self.model, loss_fn, chosen, self._conversion)
        self._losses = SampleLosses(loss_fn)
        self._beside = beside.holders(beside.of_job(self.model, loss_fn))
        self._plan: Plan | None = None
        self._channels_last = self.device.type == "cpu" and any(
            isinstance(module, nn.Conv2d) for module in self.model.modules()
        )
        self._workspaces = [Workspace()]
        self._separable: bool | None = None  # whether parts of a batch may be computed at once; None: not tried

    def outputs(self, x: Tree) -> Floats:
        """Return the model's outputs (b, …) in inference mode."""
        with self._inference():
            array = as_array(self._call({}, self._tensors(x)), length(x))
        if array is None:
            raise TypeError("The model's output is not one tensor of samples, so it has no predicted label. Pass Y.")
        return array

    def losses(self, outputs: Floats, y: Tree) -> Floats:
        """Return the loss of each sample (b,) given the model's outputs (b, …)."""
        with self._inference():
            out, targets = self._outputs(outputs), self._targets(y)
            each = [self._losses.one(out[i : i + 1], take_rows(targets, slice(i, i + 1))) for i in range(len(outputs))]
            return to_numpy(torch.stack(each)) if each else np.empty(0, self.dtype)

    def output_gradients(self, outputs: Floats, y: Tree) -> Floats:
        """Return the derivatives (b, …) of each sample's loss by the model's outputs (b, …)."""
        with self._inference(), torch.enable_grad():
            out = self._outputs(outputs).requires_grad_()
            losses = self._losses.of_batch(out, self._targets(y), len(outputs))
            return to_numpy(torch.autograd.grad(losses.sum(), out)[0])

    def batched_gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return per-sample gradients by ``vmap(grad)``; memory is b × P."""
        return self.some_gradients(x, y, [parameter.name for parameter in self.parameters])

    def some_gradients(self, x: Tree, y: Tree, names: Sequence[str]) -> PerSample:
        """Return per-sample gradients (b, ·) of some parameters by ``vmap(grad)``."""
        if length(x) == 0:
            size = sum(parameter.size for parameter in self.parameters if parameter.name in set(names))
            return PerSample(np.empty((0, size), self.dtype), np.empty(0, self.dtype), None)
        with self._inference():
            rows, losses, main = vmap.gradients(
                self._call, self._losses.one, self._weights(names), self._tensors(x), self._targets(y)
            )
        found = to_numpy(rows).astype(self.dtype, copy=False)
        return PerSample(found, to_numpy(losses), None if main is None else to_numpy(main))

    def factored_names(self, x: Tree) -> frozenset[str]:
        """Return the names of parameters all uses of which have a rule."""
        inputs = self._tensors(x)

        def forward(samples: int) -> Tree:
            rows = torch.arange(samples) % length(x)
            with self._losses.taken_apart(samples):
                return self._call({}, self._laid_out(map_leaves(lambda leaf: leaf[rows], inputs)))

        try:
            with self._inference(fused=True):
                try:
                    self._plan = plan(forward, self._losses.reads, self._selected())
                except RuntimeError:  # a `view` that only knows channels first
                    if not self._channels_last:
                        raise
                    self._channels_last = False
                    self._plan = plan(forward, self._losses.reads, self._selected())
        except Exception as error:
            log.warning("no layer is factored: %s", error)
            return frozenset()
        self.captured = self._plan.captured
        return self._plan.factored

    def factored_gradients(self, x: Tree, y: Tree, names: Sequence[str]) -> PerSample:
        """Return per-sample gradients (b, ·) of some parameters, formed from the layers' factors."""
        wanted = [parameter for parameter in self.parameters if parameter.name in set(names)]
        rows = Rows(length(x), wanted, self.dtype)
        output, losses = self._factored(x, y, names, rows)
        return PerSample(rows.gradients, to_numpy(losses), self._main(output, length(x)))

    def factored_embed(self, x: Tree, y: Tree, names: Sequence[str], projector: Projector) -> Embedded:
        """Return sketches and norms of some parameters' gradients, without holding b × P numbers."""
        inputs, targets = self._tensors(x), self._targets(y)
        parts = torch_parts.split(length(x), threads := torch.get_num_threads())
        if len(parts) > 1 and not self._is_separable(x, y, names, projector):
            parts = torch_parts.split(length(x), 1)
        models = [self.model]
        self._workspaces += [Workspace() for _ in range(len(parts) - len(self._workspaces))]

        def embed(number: int) -> Embedded:
            some = parts[number]
            found = Sketches(some.stop - some.start, self.parameters, projector, self.device)
            part, labels = take_rows(inputs, some), None if targets is None else take_rows(targets, some)
            output, losses = self._run(part, labels, names, found, models[number], self._workspaces[number])
            return Embedded(found.sketches, found.norms, to_numpy(losses), self._main(output, length(part)))

        with self._inference(fused=True):
            if len(parts) == 1:
                return embed(0)
            models += [torch_parts.replica(self.model) for _ in parts[1:]]
            found = torch_parts.at_once(embed, len(parts), threads)
        return joined([(np.arange(some.start, some.stop), one) for some, one in zip(parts, found, strict=True)])

    def _factored(self, x: Tree, y: Tree, names: Sequence[str], finish: Finish) -> tuple[Tree, torch.Tensor]:
        inputs, targets = self._tensors(x), self._targets(y)
        with self._inference(fused=True):
            return self._run(inputs, targets, names, finish, self.model, self._workspaces[0])

    def _run(
        self,
        inputs: Tree,
        targets: Tree,
        names: Sequence[str],
        finish: Finish,
        model: nn.Module,
        workspace: Workspace,
    ) -> tuple[Tree, torch.Tensor]:
        if self._plan is None:
            raise RuntimeError("The paths have not been chosen yet: call gradients or embed.")
        samples = length(inputs)

        def forward() -> Tree:
            with self._losses.taken_apart(samples):
                return _call(model, self._laid_out(inputs))

        return backward(
            forward,
            lambda output: self._losses.of_batch(output, targets, samples),
            self._selected(),
            samples,
            frozenset(names),
            self._plan,
            finish,
            workspace,
        )

    def _decide(self, x: Tree, y: Tree) -> None:
        self._look(self._tensors(x), self._targets(y))
        super()._decide(x, y)
        self._weigh(x, y)

    def _weigh(self, x: Tree, y: Tree) -> None:
        """Leave `vmap` for the loop where it does more; decided once."""
        names = self._groups().get(self.fast_path)
        if names is None or self._weighed or self.device.type != "cpu":
            return
        self._weighed = True
        some, one = (
            (take_rows(x, head), y if y is None else take_rows(y, head)) for head in (slice(0, 8), slice(0, 1))
        )
        batched = partial(self.some_gradients, *some, names)
        if not costs.pays(batched, length(some[0]), partial(self.oracle.step, *one)):
            self._paths.update(dict.fromkeys(names, LOOP))
            log.info("the loop is faster than vmap here")

    def _is_separable(self, x: Tree, y: Tree, names: Sequence[str], projector: Projector) -> bool:
        """Whether parts of a batch may be computed at once, found out by the first batch that can tell."""
        if self._separable is None:
            self._separable = self._find_separable(x, y, names, projector)
            if self._separable is not None:
                log.info("parts of a batch are computed %s", "at once" if self._separable else "together")
        return bool(self._separable)

    def _find_separable(self, x: Tree, y: Tree, names: Sequence[str], projector: Projector) -> bool | None:
        """Return whether parts of a batch may be computed at once; None if these samples cannot tell.

        Sketches of a few samples must not change when the model is called with others in between.
        """
        if self.device.type != "cpu" or not torch_parts.can_be_copied(self.model):
            return False
        x, y = take_rows(x, slice(0, 3)), None if y is None else take_rows(y, slice(0, 3))
        others = torch_parts.others(self._tensors(x))
        if others is None:
            return None

        def sketches() -> Floats:
            found = Sketches(length(x), self.parameters, projector, self.device)
            self._factored(x, y, names, found)
            return found.sketches

        with self._inference(fused=True):
            other = torch_parts.replica(self.model)
            interrupt = torch.no_grad()(lambda: _call(other, self._laid_out(others)))
            return torch_parts.is_undisturbed(sketches, interrupt)

    def sample_gradient(self, x: Tree, y: Tree) -> PerSample:
        """Return the gradient (1, P) of one sample by one training step: the oracle's."""
        found = self.oracle.step(x, y)
        self.plain_outputs = isinstance(found.output, torch.Tensor)
        row, loss = found.gradient[None].astype(self.dtype, copy=False), np.array([found.loss], self.dtype)
        return PerSample(row, loss, self._main(found.output, 1))

    def find_signals(self, x: Tree, y: Tree) -> tuple[Signal, ...]:
        """Return what hooks and a watched pass of a batch of ONE sample show."""
        inputs, target, selected = self._tensors(x), self._targets(y), self._selected()
        found = list(signals.of_hooks(self.model, selected))
        with self._inference(fused=True):
            forward, loss = partial(self._call, {}, inputs), partial(self._losses.one, target=target)
            return (*found, *signals.of_pass(forward, loss, selected, inputs, partial(kept, self.model, self._beside)))

    def output_of_one(self, x: Tree) -> Tree:
        """Return the model's output for a batch of ONE sample."""
        with self._inference(fused=True):
            return self._call({}, self._tensors(x))

    def loss_of(self, outputs: Sequence[Tree], y: Tree) -> float | None:
        """Return the loss of samples together, given their outputs one by one; None if it is no single number."""
        with self._inference():
            return self._losses.together(outputs, self._targets(y))

    def directional(self, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
        """Return ⟨direction, g_i⟩ (b,) and losses (b,) by one forward-mode pass over the batch."""
        inputs, targets = self._tensors(x), self._targets(y)
        self._look(inputs, targets)
        samples, named = length(inputs), self._weights()
        flat = torch.as_tensor(direction, device=self.device)
        tangents = {p.name: flat[place].reshape(p.shape).to(named[p.name].dtype) for p, place in self.slices()}

        def rows(weights: dict[str, torch.Tensor]) -> tuple[Sequence[torch.Tensor], Tree]:
            output = self._call_batch(weights, inputs)
            return self._losses.rows(output, samples), output

        with self._inference():
            dots, losses = outputs.along(
                rows, lambda parts, output: self._losses.of_rows(parts, output, targets, samples), named, tangents
            )
        return to_numpy(dots).astype(self.dtype), to_numpy(losses)

    def state_hashes(self) -> dict[str, str]:
        """Return the sha256 of every parameter and buffer by name."""
        return torch_model.state_hashes(self.model)

    def _selected(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        named = dict(self.model.named_parameters())
        wanted = None if names is None else set(names)
        return {p.name: named[p.name] for p in self.parameters if wanted is None or p.name in wanted}

    def _weights(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        return {name: value.detach() for name, value in self._selected(names).items()}

    def _sample_losses(self, weights: dict[str, torch.Tensor], inputs: Tree, targets: Tree) -> torch.Tensor:
        """Return the loss of each sample (b,) of a batch that `_look` knows, with these weights."""
        return self._losses.of_batch(self._call_batch(weights, inputs), targets, length(inputs))

    def _look(self, inputs: Tree, targets: Tree) -> None:
        """Find out what the loss reads of the model's outputs, on the first samples that come."""
        objects = any(isinstance(leaf, list) for leaf in leaves(inputs))
        if self._losses.known or objects or not length(inputs):
            return

        def run(samples: int) -> Tree:
            rows = torch.arange(samples) % length(inputs)
            with seen:
                return self._call({}, map_leaves(lambda leaf: leaf[rows], inputs))

        seen = Seen()
        with self._inference(fused=True), torch.enable_grad():
            target = None if targets is None else take_rows(targets, slice(0, 1))
            self._losses.look(run, target, distinct=length(inputs) > 1)
        self._half, self._makes_leaves = self._half or seen.half, seen.makes_leaves

    def _call_batch(self, weights: dict[str, torch.Tensor], x: Tree) -> Tree:
        with self._losses.taken_apart(length(x)):
            return self._call(weights, x)

    def _call(self, weights: dict[str, torch.Tensor], x: Tree) -> Tree:
        if not weights:
            return _call(self.model, x)
        args, kwargs = bind_inputs(self.model.forward, x)
        with NoLeaves() if self._makes_leaves else nullcontext():
            return functional_call(self.model, weights, args, kwargs)

    def _laid_out(self, inputs: Tree) -> Tree:
        """Return images with their channels last in memory, which convolutions and pooling are faster with."""
        return map_leaves(channels_last, inputs) if self._channels_last else inputs

    def _tensors(self, x: Tree) -> Tree:
        return self._conversion.inputs(x)

    def _targets(self, y: Tree) -> Tree:
        return self._conversion.labels(y)

    def _main(self, output: Tree, samples: int) -> Floats | None:
        main = self._losses.main(output, samples)
        if main is None:
            return None
        self._output_dtype = main.dtype
        return to_numpy(main)

    def _outputs(self, outputs: Floats) -> torch.Tensor:
        """Return the model's outputs, given as an array, as the tensor they were."""
        return torch.as_tensor(outputs, device=self.device, dtype=self._output_dtype)

    @contextmanager
    def _inference(self, fused: bool = False) -> Iterator[None]:
        alone = inference(self.model, self.device, fused, self._beside)
        with alone, torch_model.without_checkpoints(), in_token_order(self.model):
            yield


def _call(model: nn.Module, x: Tree) -> Tree:
    args, kwargs = bind_inputs(model.forward, x)
    return torch_model.with_derivatives(lambda: model(*args, **kwargs))
