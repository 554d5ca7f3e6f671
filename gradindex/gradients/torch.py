"""PyTorch: per-sample gradients factored or by ``vmap(grad)``, directional derivatives by forward mode."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from gradindex.batches import Tree, index, leaves, length, map_leaves
from gradindex.gradients import torch_outputs, torch_parts, torch_signals
from gradindex.gradients.base import Embedded, Engine, Floats, Parameter, PathFailed, PerSample, Projector, log
from gradindex.gradients.call import bind_inputs, select
from gradindex.gradients.joining import joined
from gradindex.gradients.layers.torch_use import Workspace
from gradindex.gradients.oracle_torch import TorchOracle
from gradindex.gradients.signals import FACTORED, Signal
from gradindex.gradients.torch_factored import Finish, Plan, Rows, Sketches, backward, plan
from gradindex.gradients.torch_model import channels_last, has_inputs_first, inference
from gradindex.gradients.torch_outputs import LABEL_FORMS, as_array, label_form, main_tensor, map_tensors, to_numpy
from gradindex.sketch.countsketch import CountSketch

_COMPARED = 256  # numbers of the sketches that tell whether gradients changed


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

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Any],
        parameters: str | Sequence[str] | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        if device is not None and not isinstance(device, str | int | torch.device):
            raise TypeError(
                f"`device` must be None, a string, an integer or a torch.device, got {type(device).__name__}."
            )
        model = getattr(model, "_orig_mod", model)
        if not isinstance(model, nn.Module):
            raise TypeError(f"Expected a torch.nn.Module, got {type(model).__module__}.{type(model).__name__}.")
        self.model = model.module if isinstance(model, nn.DataParallel) else model
        self.loss_fn = loss_fn
        if device is not None:
            self.model.to(device)
        named = dict(self.model.named_parameters())
        trainable = [name for name, value in named.items() if value.requires_grad]
        self.frozen = tuple(name for name, value in named.items() if not value.requires_grad)
        chosen = select(trainable, parameters)
        self.parameters = tuple(
            Parameter(
                name=name,
                position=trainable.index(name),
                shape=tuple(named[name].shape),
                dtype=str(named[name].dtype).removeprefix("torch."),
                outputs_first=not has_inputs_first(self.model, name),
            )
            for name in chosen
        )
        complex_ones = [name for name in chosen if named[name].is_complex()]
        if complex_ones:
            raise TypeError(
                f"Expected real parameters, got complex ones: {', '.join(complex_ones)}. Select others by `parameters`."
            )
        first = named[chosen[0]]
        self.device = first.device
        self.deterministic = self.device.type == "cpu"
        self._torch_dtype = first.dtype
        self.dtype = np.dtype(np.float64 if first.dtype == torch.float64 else np.float32)
        self.oracle = TorchOracle(self.model, loss_fn, chosen, self._tensors)
        self._label_form: str | None = None
        self._plan: Plan | None = None
        self._channels_last = self.device.type == "cpu" and any(
            isinstance(module, nn.Conv2d) for module in self.model.modules()
        )
        self._losses_together = True
        self._workspaces = [Workspace()]
        self._separable: bool | None = None  # whether parts of a batch may be computed at once; None: not tried

    def outputs(self, x: Tree) -> Floats:
        """Return the model's outputs (b, …) in inference mode."""
        with self._inference():
            array = as_array(self._call({}, self._tensors(x)))
        if array is None:
            raise TypeError("The model's output is not one tensor, so it has no predicted label. Pass Y.")
        return array

    def losses(self, outputs: Floats, y: Tree) -> Floats:
        """Return the loss of each sample (b,) given the model's outputs (b, …)."""
        with self._inference():
            out = torch.as_tensor(outputs, device=self.device, dtype=self._torch_dtype)
            targets = self._tensors(y)
            each = [self._loss(out[i : i + 1], index(targets, slice(i, i + 1))) for i in range(len(outputs))]
            return to_numpy(torch.stack(each)) if each else np.empty(0, self.dtype)

    def output_gradients(self, outputs: Floats, y: Tree) -> Floats:
        """Return the derivatives (b, …) of each sample's loss by the model's outputs (b, …)."""
        with self._inference(), torch.enable_grad():
            out = self._tensor(outputs).requires_grad_()
            losses = self._sample_losses(out, None if y is None else self._tensors(y))
            return to_numpy(torch.autograd.grad(losses.sum(), out)[0])

    def batched_gradients(self, x: Tree, y: Tree) -> PerSample:
        """Return per-sample gradients by ``vmap(grad)``; memory is b × P."""
        return self.some_gradients(x, y, [parameter.name for parameter in self.parameters])

    def some_gradients(self, x: Tree, y: Tree, names: Sequence[str]) -> PerSample:
        """Return per-sample gradients (b, ·) of some parameters by ``vmap(grad)``."""
        if length(x) == 0:
            size = sum(parameter.size for parameter in self.parameters if parameter.name in set(names))
            return PerSample(np.empty((0, size), self.dtype), np.empty(0, self.dtype), None)
        inputs, targets = self._tensors(x), None if y is None else self._tensors(y)

        def sample_loss(weights: dict[str, torch.Tensor], one: Tree, target: Tree) -> tuple[Any, Any]:
            output = self._call(weights, map_leaves(lambda leaf: leaf[None], one))
            target = None if target is None else map_leaves(lambda leaf: leaf[None], target)
            loss, main = self._loss(output, target), main_tensor(output)
            return loss, (loss.detach(),) if main is None else (loss.detach(), main)  # vmap refuses None

        with self._inference():
            per_sample = vmap(grad(sample_loss, has_aux=True), in_dims=(None, 0, None if y is None else 0))
            grads, (losses, *outputs) = per_sample(self._weights(names), inputs, targets)
            rows = torch.cat([grads[name].reshape(length(x), -1) for name in names], dim=1)
            return PerSample(to_numpy(rows), to_numpy(losses), to_numpy(outputs[0][:, 0]) if outputs else None)

    def factored_names(self, x: Tree) -> frozenset[str]:
        """Return the names of parameters all uses of which have a rule."""
        inputs = self._tensors(x)

        def forward(samples: int) -> Any:
            rows = torch.arange(samples) % length(x)
            return self._call({}, self._laid_out(map_leaves(lambda leaf: leaf[rows], inputs)))

        try:
            with self._inference(fused=True):
                try:
                    self._plan = plan(forward, self._selected())
                except RuntimeError:  # a `view` that only knows channels first
                    if not self._channels_last:
                        raise
                    self._channels_last = False
                    self._plan = plan(forward, self._selected())
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
        return PerSample(rows.gradients, to_numpy(losses), as_array(output))

    def factored_embed(self, x: Tree, y: Tree, names: Sequence[str], projector: Projector) -> Embedded:
        """Return sketches and norms of some parameters' gradients, without holding b × P numbers."""
        inputs, targets = self._tensors(x), None if y is None else self._tensors(y)
        threads = torch.get_num_threads() if self._separable else 1
        parts = torch_parts.split(length(x), threads)
        models = [self.model]
        self._workspaces += [Workspace() for _ in range(len(parts) - len(self._workspaces))]

        def embed(number: int) -> Embedded:
            some = parts[number]
            found = Sketches(some.stop - some.start, self.parameters, projector, self.device)
            part, labels = index(inputs, some), None if targets is None else index(targets, some)
            output, losses = self._run(part, labels, names, found, models[number], self._workspaces[number])
            return Embedded(found.sketches, found.norms, to_numpy(losses), as_array(output))

        with self._inference(fused=True):
            if len(parts) == 1:
                return embed(0)
            models += [torch_parts.replica(self.model) for _ in parts[1:]]
            found = torch_parts.at_once(embed, len(parts), threads)
        return joined([(np.arange(some.start, some.stop), one) for some, one in zip(parts, found, strict=True)])

    def _factored(self, x: Tree, y: Tree, names: Sequence[str], finish: Finish) -> tuple[Any, torch.Tensor]:
        inputs, targets = self._tensors(x), None if y is None else self._tensors(y)
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
    ) -> tuple[Any, torch.Tensor]:
        if self._plan is None:
            raise RuntimeError("The paths have not been chosen yet: call gradients or embed.")
        return backward(
            lambda: _call(model, self._laid_out(inputs)),
            lambda output: self._sample_losses(output, targets),
            self._selected(),
            length(inputs),
            frozenset(names),
            self._plan,
            finish,
            workspace,
        )

    def _decide(self, x: Tree, y: Tree) -> None:
        super()._decide(x, y)
        if self._separable is None and torch.get_num_threads() > 1:
            self._separable = self._find_separable(x, y)
            if self._separable is not None:
                log.info("parts of a batch are computed %s", "at once" if self._separable else "together")

    def _find_separable(self, x: Tree, y: Tree) -> bool | None:
        """Return whether parts of a batch may be computed at once; None if these samples cannot tell.

        Gradients of a few samples must not change when the model is called with others in between.
        """
        names = self._groups().get(FACTORED)
        if self.device.type != "cpu" or names is None or not torch_parts.can_be_copied(self.model):
            return False
        head = slice(0, 3)
        x, y = index(x, head), None if y is None else index(y, head)
        inputs = self._tensors(x)
        others = map_leaves(lambda leaf: leaf.flip(0) * 0.5 if leaf.is_floating_point() else leaf.flip(0), inputs)
        if all(torch.equal(one, other) for one, other in zip(leaves(inputs), leaves(others), strict=True)):
            return None
        projector = CountSketch(_COMPARED).bind(self.parameters, 0)

        def sketches() -> Floats:
            found = Sketches(length(x), self.parameters, projector, self.device)
            self._factored(x, y, names, found)
            return found.sketches

        with self._inference(fused=True):
            other = torch_parts.replica(self.model)

            def interrupt() -> None:
                with torch.no_grad():
                    _call(other, self._laid_out(others))

            return torch_parts.is_undisturbed(sketches, interrupt)

    def sample_gradient(self, x: Tree, y: Tree) -> PerSample:
        """Return the gradient (1, P) of one sample by one training step: the oracle's."""
        found = self.oracle.step(x, y)
        self.plain_outputs = isinstance(found.output, torch.Tensor)
        loss = np.array([found.loss], self.dtype)
        return PerSample(found.gradient[None].astype(self.dtype, copy=False), loss, as_array(found.output))

    def unused(self, x: Tree, y: Tree) -> list[str]:
        """Return the names of selected parameters on which this sample's loss does not depend."""
        return list(self.oracle.step(x, y).unused)

    def find_signals(self, x: Tree, y: Tree) -> tuple[Signal, ...]:
        """Return what hooks and a watched pass of a batch of ONE sample show."""
        inputs, targets = self._tensors(x), None if y is None else self._tensors(y)
        selected = self._selected()
        found = list(torch_signals.of_hooks(self.model, selected))
        with self._inference(fused=True):
            found += torch_signals.of_pass(
                lambda: self._call({}, inputs), lambda output: self._loss(output, targets), selected, inputs
            )
        return tuple(found)

    def batch_loss(self, x: Tree, y: Tree, rows: Sequence[int]) -> float | None:
        """Return the loss of some samples of a batch together, of outputs that are computed one by one."""
        inputs, targets = self._tensors(x), None if y is None else self._tensors(y)
        try:
            with self._inference(fused=True):
                outputs = [self._call({}, index(inputs, slice(row, row + 1))) for row in rows]
                parts: list[list[torch.Tensor]] = [[] for _ in outputs]
                for output, found in zip(outputs, parts, strict=True):
                    map_tensors(found.append, output)
                joined_parts = iter([torch.cat(some) for some in zip(*parts, strict=True)])
                output = map_tensors(lambda _: next(joined_parts), outputs[0])
                target = None if targets is None else index(targets, np.array(rows))
                if (
                    self._label_form is not None
                    and isinstance(output, torch.Tensor)
                    and isinstance(target, torch.Tensor)
                ):
                    target = LABEL_FORMS[self._label_form](output, target)
                loss = self.loss_fn(output, target)
                return float(loss) if loss.dim() == 0 else None
        except Exception as error:  # outputs that cannot be joined, a loss that takes batches of one alone
            log.debug("the loss of a batch cannot be told: %s", error)
            return None

    def directional(self, x: Tree, y: Tree, direction: Floats) -> tuple[Floats, Floats]:
        """Return ⟨direction, g_i⟩ (b,) and losses (b,) by one forward-mode pass over the batch."""
        inputs, targets = self._tensors(x), None if y is None else self._tensors(y)
        flat = torch.as_tensor(direction, device=self.device, dtype=self._torch_dtype)
        tangents = {p.name: flat[place].reshape(p.shape) for p, place in self.slices()}
        with self._inference():
            dots, losses = torch_outputs.along(
                lambda weights: self._call(weights, inputs),
                lambda output: self._sample_losses(output, targets),
                self._weights(),
                tangents,
            )
        return to_numpy(dots.to(self._torch_dtype)), to_numpy(losses)

    def state_hashes(self) -> dict[str, str]:
        """Return the sha256 of every parameter and buffer by name."""
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {
            name: hashlib.sha256(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            ).hexdigest()
            for name, value in tensors.items()
        }

    def _selected(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        named = dict(self.model.named_parameters())
        wanted = None if names is None else set(names)
        return {p.name: named[p.name] for p in self.parameters if wanted is None or p.name in wanted}

    def _weights(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        return {name: value.detach() for name, value in self._selected(names).items()}

    def _sample_losses(self, output: Any, targets: Tree) -> torch.Tensor:
        """Return the loss of each sample (b,) given the outputs of the whole batch."""
        parts: list[torch.Tensor] = []
        map_tensors(parts.append, output)
        if any(part.dim() == 0 for part in parts):
            raise PathFailed("the model's output has a number that belongs to no one sample")

        def sample_loss(one: list[torch.Tensor], target: Tree) -> torch.Tensor:
            rows = iter(one)
            out = map_tensors(lambda _: next(rows)[None], output)
            return self._loss(out, None if target is None else map_leaves(lambda leaf: leaf[None], target))

        if self._losses_together:
            try:
                return vmap(sample_loss, in_dims=(0, None if targets is None else 0))(parts, targets)
            except RuntimeError as error:  # an operation that vmap does not know, such as masked_select
                log.info("the loss is taken sample by sample: %s", error)
                self._losses_together = False
        losses = [
            sample_loss([part[i] for part in parts], None if targets is None else _one(targets, i))
            for i in range(len(parts[0]) if parts else 0)
        ]
        return torch.stack(losses) if losses else torch.zeros(0, device=self.device)

    def _call(self, weights: dict[str, torch.Tensor], x: Tree) -> Any:
        if not weights:
            return _call(self.model, x)
        args, kwargs = bind_inputs(self.model.forward, x)
        return functional_call(self.model, weights, args, kwargs)

    def _loss(self, output: Any, target: Any) -> torch.Tensor:
        """Return the loss of a batch of one, summed to a scalar."""
        if self._label_form is None:
            self._label_form = label_form(self.loss_fn, output, target)
        if isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor):
            target = LABEL_FORMS[self._label_form](output, target)
        loss = self.loss_fn(output, target)
        if not isinstance(loss, torch.Tensor):
            raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}.")
        return loss.sum()

    def _laid_out(self, inputs: Tree) -> Tree:
        """Return images with their channels last in memory, which convolutions and pooling are faster with."""
        return map_leaves(channels_last, inputs) if self._channels_last else inputs

    def _tensors(self, tree: Tree) -> Tree:
        return map_leaves(self._tensor, tree)

    def _tensor(self, leaf: Any) -> Any:
        if isinstance(leaf, list):
            arrays = all(isinstance(item, np.ndarray | torch.Tensor) for item in leaf)
            return self._tensor(leaf[0])[None] if arrays and len(leaf) == 1 else leaf
        value = leaf if isinstance(leaf, torch.Tensor) else torch.tensor(np.asarray(leaf))
        if value.is_floating_point():
            return value.detach().to(self.device, self._torch_dtype)
        if value.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
            return value.to(self.device, torch.int64)
        return value.to(self.device)

    def _inference(self, fused: bool = False) -> AbstractContextManager[None]:
        return inference(self.model, self.device, fused)


def _call(model: nn.Module, x: Tree) -> Any:
    args, kwargs = bind_inputs(model.forward, x)
    return model(*args, **kwargs)


def _one(tree: Tree, row: int) -> Tree:
    return map_leaves(lambda leaf: leaf[row], tree)
