"""Signals of a torch model and loss, found by one plain pass of one sample that is watched."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules import module as global_hooks
from torch.overrides import TorchFunctionMode

from gradindex.data.names import Tree
from gradindex.gradients import batch_loss
from gradindex.gradients.signals import BACKWARD, BATCHED, FORWARD, Signal
from gradindex.gradients.torch.outputs import map_tensors

_READS = {
    *("__bool__", "__int__", "__float__", "__index__", "__contains__", "__format__", "__array__", "__dlpack__"),
    *("item", "tolist", "numpy", "equal", "allclose", "is_nonzero"),
}
_SELECTIONS = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive"}  # as long as values have it
_SIZES = {Tensor.shape.__get__: "shape", Tensor.size: "size", Tensor.numel: "numel", Tensor.__len__: "len"}
_DRAWS = 8  # losses that are compared with the first, where random numbers are drawn: they may agree by chance
_CHECKS = {"isnan", "isinf", "isfinite"}  # which are alike for all samples, or an error is near
_WEIGHTED = {"cross_entropy", "nll_loss"}  # whose mean divides by the weights
# Forward mode looks through hooks. Double backward runs them on gradients of size zero, which a hook that clips leaves.
_ALONG = frozenset({FORWARD, BACKWARD})


def of_hooks(model: nn.Module, named: Mapping[str, torch.Tensor]) -> Iterator[Signal]:
    """Yield signals of hooks that are attached to selected parameters or to modules.

    Raises
    ------
    ValueError
        If a layer normalises by the statistics of the batch, or a parameter has no values.
    """
    empty = [name for name, value in named.items() if value.is_meta]
    if empty:
        raise ValueError(
            f"{_few(empty)} has no values, as it is on the device 'meta': load the model's weights "
            "(load_state_dict(..., assign=True), or from_pretrained without device_map)."
        )
    of_batch = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    ]
    if of_batch:
        raise ValueError(
            f"{_few(of_batch)} has no running statistics, so that it takes those of the batch in evaluation mode, too: "
            "the gradient of ONE sample has no meaning. Give it track_running_stats=True, or normalise each sample."
        )
    hooked = [
        name
        for name, value in named.items()
        if value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None)
    ]
    if hooked:
        yield Signal("parameter hook", f"gradients of {_few(hooked)} pass through a hook", BATCHED)
    modules = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if module._backward_hooks or module._backward_pre_hooks
    ]
    if modules or global_hooks._global_backward_hooks or global_hooks._global_backward_pre_hooks:
        where = _few(modules) if modules else "all modules"
        yield Signal("module hook", f"a backward hook of {where} may change gradients", _ALONG, True)


def of_pass(
    forward: Callable[[], Tree],
    loss_of: Callable[[Tree], torch.Tensor],
    named: Mapping[str, torch.Tensor],
    inputs: Tree = None,
    kept: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Signal]:
    """Yield signals of one sample's forward pass and loss.

    Parameters
    ----------
    forward
        Calls the model with a batch of one sample.
    loss_of
        Returns the loss, a scalar, of its output.
    named
        The selected parameters by name.
    inputs
        The tensors that `forward` calls the model with.
    kept
        Puts back, at the end, the state that calls within it change.

    Raises
    ------
    ValueError
        If the output, or the loss of the same output, depends on random numbers.
    """
    with torch.enable_grad():
        before = torch.get_rng_state()
        with _Watch(inputs) as seen:
            output = forward()
        if not torch.equal(before, torch.get_rng_state()):
            _check_fixed(output, forward())
        yield from seen.signals()
        yield from _of_graph(output)
        inside = map_tensors(_leaf, output)

        def twice() -> torch.Tensor:
            """Return the loss of the second call, with what the first one left; that may have tried forms of labels."""
            with kept():
                return (loss_of(inside), loss_of(inside))[1]

        try:
            second = twice()
        except Exception as error:
            inside = output
            second = twice()  # or this says what is wrong with the loss
            what = f"the loss takes derivatives, or reads how the output was computed ({' '.join(str(error).split())})"
            yield Signal("loss reads graph", what, BATCHED)
        before = torch.get_rng_state()
        with kept(), _Watch() as seen:
            loss = loss_of(inside)
        for _ in range(1 if torch.equal(before, torch.get_rng_state()) else _DRAWS):
            with kept():
                batch_loss.check_same(float(loss.detach()), float(loss_of(inside).detach()))
        if not torch.allclose(loss, second, rtol=1e-4, atol=0, equal_nan=True):
            yield Signal("loss remembers", "the loss is another one after it was called before", BATCHED)
        if seen.weighted:
            yield Signal(
                "class weights cancel",
                f"{seen.weighted} with `weight` and reduction='mean' divides the loss of ONE sample by its own weight; "
                "use reduction='sum' for gradients with the weights",
            )
        direct = [name for name, value in named.items() if id(value) in _leaves(loss)]
    if direct:
        yield Signal(
            "loss reads weights",
            f"the loss depends on {_few(direct)} by another way than the model's output (a penalty?)",
            BATCHED,
        )


def _check_fixed(output: Tree, again: Tree) -> None:
    """Raise ValueError if the random numbers that two forward passes of a sample drew show in their outputs."""
    pairs: list[list[torch.Tensor]] = [[], []]
    for found, one in zip(pairs, (output, again), strict=True):
        map_tensors(found.append, one)
    if not all(torch.equal(first, second) for first, second in zip(*pairs, strict=True)):
        raise ValueError(
            "The model draws random numbers in evaluation mode, so its gradients are others each time. Leave them out "
            "there: F.dropout(..., training=self.training), noise only `if self.training`."
        )


def _tensors(value: Tree) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _named(inputs: Tree) -> list[tuple[str, Tree]]:
    """Return the inputs that have names."""
    return [(str(name), part) for name, part in inputs.items()] if isinstance(inputs, Mapping) else []


def _picks(name: str, args: Tree) -> bool:
    """Whether a call takes the entries of a tensor where a mask holds."""
    return name == "__getitem__" and any(tensor.dtype == torch.bool for tensor in _tensors(args[0][1:]))


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    found = tensor.detach()
    return found.requires_grad_() if tensor.is_floating_point() or tensor.is_complex() else found


class _Watch(TorchFunctionMode):
    """Notes calls of torch functions that say something about the ways of computing gradients.

    What derives from the `inputs` is told from what derives from weights alone, and of the former what derives from
    floating numbers, so that a branch on it may go another way in a batch, from masks and lengths. An input by the name
    of a mask (``attention_mask``) is one also where its zeros and ones are floating numbers.
    """

    def __init__(self, inputs: Tree = None) -> None:
        super().__init__()
        self.hooks, self.reads, self.branches, self.hidden, self.weighted = 0, "", "", "", ""
        self.scaled, self._padded = False, set[int]()  # embeddings' weights
        self._used: set[int] = set()  # by anything else
        self._of_batch: dict[int, torch.Tensor] = {}  # the tensors are kept, so that ids stay theirs
        self._of_numbers: set[int] = set()
        self._selected: set[int] = set()  # whose size depends on values
        masks = {id(one) for name, part in _named(inputs) if name.endswith("mask") for one in _tensors(part)}
        for tensor in _tensors(inputs):
            self._know(tensor)
        self._of_numbers -= masks

    def _know(self, tensor: torch.Tensor, of_numbers: bool = False) -> None:
        self._of_batch[id(tensor)] = tensor
        if of_numbers or tensor.is_floating_point():
            self._of_numbers.add(id(tensor))

    def _follow(self, func: Callable[..., Tree], name: str, args: Tree, result: Tree) -> None:
        """Know the result of a call as derived from the batch, if one of the arguments is."""
        ids = {id(tensor) for tensor in _tensors(args)}
        if not ids & self._of_batch.keys():
            return
        if ids & self._selected and func in _SIZES:
            self.reads = self.reads or f"{_SIZES[func]} of what is selected by value"
        if name in _SELECTIONS or (name == "where" and isinstance(result, tuple)) or _picks(name, args):
            self._selected |= {id(tensor) for tensor in _tensors(result)}
        of_numbers = bool(ids & self._of_numbers)
        if name in _READS and of_numbers:
            self.branches = self.branches or name
        for tensor in _tensors(result):
            self._know(tensor, of_numbers and name not in _CHECKS)

    def __torch_function__(
        self,
        func: Callable[..., Tree],
        types: Sequence[type],
        args: tuple[Tree, ...] = (),
        kwargs: dict[str, Tree] | None = None,
    ) -> Tree:
        """Call `func`, and note what it is."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        self._follow(func, name, (args, tuple(kwargs.values())), result)
        if name in ("embedding", "embedding_bag"):
            self._look_up(args, kwargs)
        elif name != "__get__":
            self._used |= {id(one) for one in (*args, *kwargs.values()) if isinstance(one, torch.nn.Parameter)}
        if name == "register_hook":
            self.hooks += 1
        elif name in _READS:
            self.reads = self.reads or name
        elif name in _WEIGHTED and kwargs.get("reduction", "mean") == "mean":
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            self.weighted = self.weighted or (name if isinstance(weight, torch.Tensor) else "")
        elif not torch.is_grad_enabled() and name not in ("__get__", "_set_grad_enabled"):
            tracked = any(
                isinstance(value, torch.Tensor) and value.requires_grad for value in (*args, *kwargs.values())
            )
            if tracked and isinstance(result, torch.Tensor) and result.is_floating_point():
                self.hidden = self.hidden or name
        return result

    def _look_up(self, args: Tree, kwargs: Tree) -> None:
        """Note what the backward pass of an embedding does to its gradient, which forward mode does not know of."""
        self.scaled = self.scaled or bool(kwargs.get("scale_grad_by_freq"))
        if kwargs.get("padding_idx") is not None:
            self._padded |= {id(one) for one in (*args, *kwargs.values()) if isinstance(one, torch.nn.Parameter)}

    def signals(self) -> Iterator[Signal]:
        """Yield what was noted of a forward pass."""
        if self._padded & self._used:
            what = "an embedding with a padding_idx shares its weight, and forward mode gives the padding a gradient"
            yield Signal("tied padding", what, frozenset({FORWARD}))
        if self.scaled:
            what = "an embedding scales its gradient by frequency, which forward mode does not know of"
            yield Signal("scale_grad_by_freq", what, _ALONG)
        if self.hooks:
            yield Signal("tensor hook", "forward registers a hook on a tensor", _ALONG, True)
        if self.hidden:
            yield Signal(
                "no_grad in forward",
                f"forward calls {self.hidden} under torch.no_grad(), which forward mode looks through",
                frozenset({FORWARD}),
            )
        if self.branches:
            what = f"forward reads a value of the batch ({self.branches}), and may go another way in another batch"
            yield Signal("branch", what, BATCHED, True)
        elif self.reads:
            what = f"forward reads a tensor's value ({self.reads}), which may depend on the batch"
            yield Signal("reading", what, varies=True)


def _of_graph(output: Tree) -> Iterator[Signal]:
    """Yield a signal of custom autograd functions behind an output."""
    names: set[str] = set()
    for node in _nodes(_roots(output)):
        if isinstance(node, BackwardCFunction) and not type(node).__module__.startswith("torch."):
            names.add(type(node).__name__.removesuffix("Backward"))
    if names:
        yield Signal("custom gradient", f"{_few(sorted(names))} has a gradient of its own", _ALONG, True)


def _leaves(loss: torch.Tensor) -> set[int]:
    """Return the ids of the leaf tensors that a loss depends on."""
    return {id(node.variable) for node in _nodes([loss.grad_fn]) if hasattr(node, "variable")}


def _roots(output: Tree) -> list[torch.autograd.graph.Node]:
    found: list[Any] = []
    map_tensors(lambda tensor: found.append(tensor.grad_fn), output)
    return found


def _nodes(roots: list[torch.autograd.graph.Node]) -> Iterator[torch.autograd.graph.Node]:
    """Yield every node of the graph behind some roots."""
    seen, left = set(), [root for root in roots if root is not None]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        left += [following for following, _ in node.next_functions if following is not None]


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
