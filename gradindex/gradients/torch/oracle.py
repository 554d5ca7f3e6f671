"""PyTorch's oracle: forward, loss, ``.backward()``, as in a training loop. Reads nothing of the engine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradindex.data.names import LossFunction
from gradindex.data.source import Tree
from gradindex.gradients.inputs import bind_inputs, call_loss, per_token
from gradindex.gradients.oracle import Oracle, Step
from gradindex.gradients.parameter import Floats
from gradindex.gradients.torch import beside
from gradindex.gradients.torch.inputs import Conversion
from gradindex.gradients.torch.model import inference
from gradindex.gradients.torch.outputs import LABEL_FORMS, label_form
from gradindex.gradients.torch.state import kept


class TorchOracle(Oracle):
    """Training steps of single samples of a ``torch.nn.Module``.

    Parameters
    ----------
    model
        The module.
    loss_fn
        ``loss_fn(output, y)``, any reduction.
    names
        Names of the selected parameters, in the order of the gradient.
    convert
        Makes what the model and the loss are called with from inputs and labels: tensors on the right device.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        names: Sequence[str],
        convert: Conversion,
    ) -> None:
        self._model, self._loss_fn, self._names, self._convert = model, loss_fn, tuple(names), convert
        self._label_form: str | None = None
        things = beside.of_job(model, loss_fn)
        self._beside, self._others = beside.holders(things), beside.leaves(things)

    def step(self, x: Tree, y: Tree) -> Step:
        """Return the training step of a batch of ONE sample."""
        return self._step(x, y, self._loss)

    def token_step(self, x: Tree, y: Tree, token: int) -> Step:
        """Return the training step of a batch of ONE sample whose loss is that of one of its tokens."""
        return self._step(x, y, lambda output, target: self._tokens(output, target)[0, token])

    def token_losses(self, x: Tree, y: Tree) -> NDArray[np.float64]:
        """Return what each token gives to the loss of a batch of ONE sample, (t,)."""
        inputs, target = self._convert.inputs(x), self._convert.labels(y)
        with self._alone(), torch.no_grad():
            args, kwargs = bind_inputs(self._model.forward, inputs)
            found: NDArray[np.float64] = self._tokens(self._model(*args, **kwargs), target)[0].double().cpu().numpy()
            return found

    def _step(self, x: Tree, y: Tree, loss_of: Callable[[Tree, Tree], torch.Tensor]) -> Step:
        inputs, target = self._convert.inputs(x), self._convert.labels(y)
        with self._alone(), _without_gradients((*self._model.parameters(), *self._others)):
            args, kwargs = bind_inputs(self._model.forward, inputs)
            output = self._model(*args, **kwargs)
            loss = loss_of(output, target)
            if loss.requires_grad:
                with _weights_kept(self._model):
                    loss.backward()
            named = dict(self._model.named_parameters())
            gradients = [named[name].grad for name in self._names]
            flat = [
                torch.zeros(named[name].numel()) if gradient is None else gradient.detach().to_dense().flatten().cpu()
                for name, gradient in zip(self._names, gradients, strict=True)
            ]
        unused = tuple(name for name, gradient in zip(self._names, gradients, strict=True) if gradient is None)
        return Step(_floats(torch.cat([part.to(_widest(flat)) for part in flat])), float(loss.detach()), output, unused)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        device = next(self._model.parameters()).device
        with inference(self._model, device, fused=True, beside=self._beside), torch.enable_grad():
            yield

    def _loss(self, output: Tree, target: Tree) -> torch.Tensor:
        if self._label_form is None:
            with kept(self._model, self._beside):
                self._label_form = label_form(self._loss_fn, output, target)
        if isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor):
            target = LABEL_FORMS[self._label_form](output, target)
        loss = call_loss(self._loss_fn, output, target, labels=target)
        if not isinstance(loss, torch.Tensor):
            raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}.")
        return loss.sum()

    def _tokens(self, output: Tree, target: Tree) -> torch.Tensor:
        return per_token(self._loss_fn)(output, target)


@contextmanager
def _without_gradients(leaves: Sequence[torch.Tensor]) -> Iterator[None]:
    """Set every ``.grad`` to None, and put back what was there at the end."""
    before = [(leaf, leaf.grad) for leaf in leaves]
    try:
        for leaf, _ in before:
            leaf.grad = None
        yield
    finally:
        for leaf, gradient in before:
            leaf.grad = gradient


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[None]:
    """Refuse a backward pass that changes weights, as an optimizer's step in a hook does, and undo what it did."""
    hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters()) or any(
        module._backward_hooks or module._backward_pre_hooks for module in model.modules()
    )
    watched = [
        (name, parameter, parameter._version, parameter.detach().clone())
        for name, parameter in (model.named_parameters() if hooked else ())
    ]
    try:
        yield
    finally:
        changed = [(name, value, before) for name, value, version, before in watched if value._version != version]
        for _, value, before in changed:
            value.detach().copy_(before)
    if changed:
        raise ValueError(
            f"A hook changes the weights of {', '.join(repr(name) for name, *_ in changed[:5])} in the backward pass "
            f"(an optimizer's step?). The weights were put back. Remove the hook: gradients are those of a fixed model."
        )


def _widest(parts: Sequence[torch.Tensor]) -> torch.dtype:
    return torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32


def _floats(tensor: torch.Tensor) -> Floats:
    found: Floats = tensor.numpy()
    return found if found.dtype == np.float64 else found.astype(np.float32, copy=False)
