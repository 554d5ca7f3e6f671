"""Watching one forward pass: which call used which parameter, and the gradient of what came out.

A ``TorchFunctionMode`` sees every torch function that the model calls, with its arguments. That is simpler and
more general than hooks on modules: `F.linear(x, self.weight)`, tied weights, a layer called twice, attention's
projections and a subclass with its own `forward` are all just calls, and since EVERY call is seen, a parameter
is known to be factored only if each of its uses had a rule. What has none is reported, never missed.

Calls whose result depends on parameters alone (its shape does not follow the number of samples) are kept apart:
see `gradindex.gradients.torch.shared`.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradindex.data.names import Tree
from gradindex.gradients.engine import PathFailed
from gradindex.gradients.torch.model import MAKE_LEAVES
from gradindex.gradients.torch.shared import Shared, replace, tensors
from gradindex.gradients.torch.use import Use, Workspace

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

_SET_DATA = Tensor.data.__set__  # of a parameter itself, not of what stands for it
Rule = Callable[["Capture", Callable[..., Any], dict[str, Any]], Any]
RULES: dict[Callable[..., Any], tuple[Rule, inspect.Signature]] = {}


class NoRule(Exception):
    """A call is beyond the rule; the parameters in it take the next rung."""


class Changed(PathFailed):
    """The model did not make the calls it made before, or changed a layer's input in place."""


def rule(signature: str, *functions: Callable[..., Tree]) -> Callable[[Rule], Rule]:
    """Register the rule of torch functions whose arguments are named by `signature`, as in a ``def``."""
    bound = inspect.Signature([_argument(part.strip()) for part in signature.split(",")])

    def register(function: Rule) -> Rule:
        for torch_function in functions:
            RULES[torch_function] = function, bound
        return function

    return register


def _argument(text: str) -> inspect.Parameter:
    """Return one argument: `name`, `name=` (None unless given), `*name` or `**name`."""
    stars, name = text.count("*"), text.strip("*=")
    if stars:
        return inspect.Parameter(
            name, inspect.Parameter.VAR_POSITIONAL if stars == 1 else inspect.Parameter.VAR_KEYWORD
        )
    default = None if text.endswith("=") else inspect.Parameter.empty
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)


@dataclass(frozen=True)
class Layout:
    """Where the samples are in a layer's output: on `axis`, `folded` rows of it a sample.

    Folded rows of one sample follow each other unless `minor` (attention's own (time × batch) layout).
    """

    axis: int
    folded: int = 1
    minor: bool = False

    def samples_first(self, tensor: Tensor) -> Tensor:
        """Return `tensor` with the samples on the first axis, (b, folded, …) if folded."""
        tensor = tensor.movedim(self.axis, 0) if self.axis else tensor
        if self.folded == 1:
            return tensor
        if self.minor:
            return tensor.unflatten(0, (self.folded, -1)).transpose(0, 1)
        return tensor.unflatten(0, (-1, self.folded))

    def positions(self, tensor: Tensor, trailing: int = 1) -> Tensor:
        """Return `tensor` as (b, T, …), the last `trailing` axes kept."""
        first = self.samples_first(tensor)
        kept = first.shape[first.dim() - trailing :]
        return first.reshape(len(first), -1, *kept)


def layouts(shapes: Sequence[torch.Size], fewer: Sequence[torch.Size], minor: set[int]) -> list[Layout | None]:
    """Return where the samples are in each call's output, from its shapes with 3 samples and with 2.

    Comparing two sizes tells the batch from any other axis that happens to be as long. None: no axis, or more
    than one, follows the number of samples.
    """
    if len(shapes) != len(fewer):
        raise Changed("the number of layer calls depends on the samples")
    found: list[Layout | None] = []
    for number, (three, two) in enumerate(zip(shapes, fewer, strict=True)):
        axes = [axis for axis, (m, n) in enumerate(zip(three, two, strict=False)) if m != n]
        fits = len(three) == len(two) and len(axes) == 1 and three[axes[0]] * 2 == two[axes[0]] * 3
        found.append(Layout(axes[0], three[axes[0]] // 3, number in minor) if fits else None)
    return found


Make = Callable[[Tensor, Layout], Use]


Key = tuple[int, int]
"""Names a call that used parameters: how many calls used parameters so far, and how many since then used only
tensors computed from some. The first does not change as more of the latter become known."""


@dataclass(frozen=True)
class Known:
    """What earlier passes found: where the samples are in each tapped output, and which calls have none."""

    layouts: Sequence[Layout | None]
    shared: Collection[Key]


@dataclass
class Call:
    """One tapped call: what it used, to be made into `Use`s once the gradient δ of its output is there."""

    uses: Sequence[tuple[str, Make]]
    layout: Layout | None
    watched: Sequence[Tensor]
    workspace: Workspace | None
    versions: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.versions = [tensor._version for tensor in self.watched]

    def __call__(self, gradient: Tensor) -> Iterator[tuple[str, Use]]:
        """Yield the parameters used and how, given δ."""
        if [tensor._version for tensor in self.watched] != self.versions:
            raise Changed("a layer's input was changed in place after the layer had read it")
        for name, make in self.uses:
            if self.layout is not None:
                use = make(gradient, self.layout)
                use.share(self.workspace)
                yield name, use
        self.uses, self.watched = (), ()  # autograd keeps its hooks, and with them this, to the end


class Capture(TorchFunctionMode):
    """Runs a model's forward pass with the rules in force.

    Parameters
    ----------
    names
        The names of the model's selected parameters by ``id``.
    known
        What earlier passes found, in the order of the calls; while they are looking, only `shared` is heeded.
    receive
        Called during the backward pass with each tapped call and the gradient of its output; None in a pass that
        finds out.
    samples
        How many there are. How many rows of an output belong to a sample may differ from batch to batch, as
        texts' lengths do.
    wanted
        The names that are asked for now; None for all.
    workspace
        Working memory that the uses may share.
    """

    def __init__(
        self,
        names: dict[int, str],
        known: Known,
        receive: Callable[[Call, Tensor], None] | None,
        samples: int,
        wanted: Collection[str] | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        super().__init__()
        self._workspace = workspace
        self._names = names
        self._known = known
        self._receive = receive
        self._samples = samples
        self._wanted = frozenset(names.values() if wanted is None else wanted)
        self.without_rule: set[str] = set()
        self.shapes: list[torch.Size] = []
        self.minor: set[int] = set()
        self.batch_is_minor = False
        self.expected: Counter[str] = Counter()
        self.anchors: dict[torch.device, Tensor] = {}
        self.starts: list[Tensor] = []
        self.captured = 0
        self.results: dict[Key, tuple[torch.Size, ...]] = {}
        self.in_shared_call = False
        self.shared = Shared()
        self._key: Key = (0, 0)
        self._dealt_with: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Tree],
        types: Sequence[type],
        args: tuple[Tree, ...] = (),
        kwargs: dict[str, Tree] | None = None,
    ) -> Tree:
        """Apply the rule of `func` if it has one and a parameter is among its arguments."""
        kwargs = kwargs or {}
        used = [tensor for tensor in tensors((args, kwargs)) if tensor in self.shared]
        if not used or func == _SET_DATA:
            result = func(*args, **kwargs)
            if func in MAKE_LEAVES and args[0].requires_grad and args[0].is_leaf:
                self.starts.append(args[0])  # of the graph, like an anchor: what comes after depends on it
            return result
        before, outside = self._key, self._dealt_with
        self._key = self._next_key(used)
        key, self._dealt_with = self._key, set()
        self.in_shared_call = key in self._known.shared
        try:
            result = self._apply_rule(func, args, kwargs)
        except NoRule:
            result = self._without_rule(func, args, kwargs)
        finally:
            self.in_shared_call = False
        found = tuple(tensor.shape for tensor in tensors(result))
        if not found:
            self._key = before  # a size or a type, which is no use
        else:
            self.results[key] = found
            missed = [tensor for tensor in used if id(tensor) not in self._dealt_with]
            self.without_rule.update(name for tensor in missed for name in self.names(tensor))
        self._dealt_with |= outside
        return result

    def _apply_rule(self, func: Callable[..., Tree], args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> Tree:
        if func not in RULES:
            raise NoRule
        function, signature = RULES[func]
        return function(self, func, _bind(signature, args, kwargs))

    def _without_rule(self, func: Callable[..., Tree], args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> Tree:
        if self.in_shared_call:
            self._dealt_with.update(map(id, tensors((args, kwargs))))
            return self.shared.compute(func, args, kwargs)
        # Without gradients, so that only what depends on the anchor is in autograd's graph.
        return func(*replace(plain, args), **replace(plain, kwargs))

    def _next_key(self, used: Sequence[Tensor]) -> Key:
        major, minor = self._key
        return (major + 1, 0) if any(map(self.shared.is_parameter, used)) else (major, minor + 1)

    def names(self, tensor: Tree) -> list[str]:
        """Return the names of the selected parameters that `tensor` is, is part of, or is computed from."""
        leaves = self.shared.leaves(tensor)
        return [name for leaf in leaves if (name := self._names.get(id(leaf.parameter)))]

    def know_part(self, tensor: Tensor, parameter: Tensor, begin: int) -> None:
        """Remember that `tensor` is the rows of `parameter` from `begin` on."""
        self._dealt_with.add(id(parameter))
        self.shared.add_rows(tensor, parameter, begin)

    def know_lookup(self, tensor: Tensor, parameter: Tensor, numbers: Tensor, padding: int | None) -> None:
        """Remember that `tensor` is the rows `numbers` of `parameter`, shared by all samples."""
        self._dealt_with.add(id(parameter))
        self.shared.add_lookup(tensor, parameter, numbers, padding)

    def tap(
        self, output: Tensor, uses: dict[Tensor, Make], watched: Sequence[Tensor] = (), axis: int | None = None
    ) -> Tensor:
        """Return `output`, whose gradient will reach `receive`.

        Parameters
        ----------
        output
            What the call returned, computed with parameters that need no gradient.
        uses
            For each parameter tensor (or None) how to make its `Use` from the gradient and layout of `output`.
        watched
            Tensors the uses need, which must not change until then.
        axis
            Where the rule needs the samples to be; None if anywhere will do.
        """
        if self.in_shared_call:
            raise NoRule
        self._dealt_with.update(map(id, uses))
        named = [(tensor, make) for tensor, make in uses.items() if self.names(tensor)]
        if not named:
            return output
        number = len(self.shapes)
        self.shapes.append(output.shape)
        self.captured += output.numel()
        if self.batch_is_minor:
            self.minor.add(number)
        if self._receive is None:
            return output
        layout = self._layout(number, output)
        parts = [part for tensor, make in named for part in self.shared.uses(tensor, make)]
        each = [(self._names[id(p)], make) for p, make in parts if id(p) in self._names]
        if layout is None or axis not in (None, layout.axis):
            self.without_rule.update(name for name, _ in each)
            return output
        each = [(name, make) for name, make in each if name in self._wanted]
        if not each:
            return output
        self.expected.update(name for name, _ in each)
        call, receive = Call(each, layout, watched, self._workspace), self._receive
        if output.requires_grad:
            return _hooked(output, lambda gradient: receive(call, gradient))
        output = output.detach()  # not a view, whose base would take part
        return _Start.apply(output, self._anchor(output), lambda g: receive(call, g))

    def _anchor(self, output: Tensor) -> Tensor:
        """Return the scalar that every first tapped output depends on: what autograd is asked for."""
        if output.device not in self.anchors:
            self.anchors[output.device] = torch.zeros((), device=output.device, requires_grad=True)
        return self.anchors[output.device]

    def _layout(self, number: int, output: Tensor) -> Layout | None:
        if number >= len(self._known.layouts):
            raise Changed("the model made more layer calls than before")
        layout = self._known.layouts[number]
        if layout is None:
            return None
        folded, rest = divmod(output.shape[layout.axis], self._samples) if layout.axis < output.dim() else (0, 0)
        if rest or not folded:
            raise Changed("a layer's output has no longer a number of rows for each sample")
        return replace_field(layout, folded=folded)


class _Start(torch.autograd.Function):
    """The identity, in place (no copy, and a later in-place activation is fine), where the graph begins.

    Later taps are hooks, which see the gradient of the value they were registered on even if an activation
    then overwrites it.
    """

    @staticmethod
    def forward(ctx: "FunctionCtx", output: Tensor, anchor: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        """Return `output` itself."""
        ctx.receive = receive
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: "FunctionCtx", gradient: Tensor) -> tuple[None, None, None]:
        """Hand on the gradient, and end here."""
        ctx.receive(gradient)
        return None, None, None


def _hooked(output: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
    """Return `output`, whose gradient will reach `receive` even if it is then overwritten in place.

    Overwriting a view changes the history of its base, so there the hook belongs on the base.
    """
    if not output._is_view():
        output.register_hook(receive)
        return output
    whole: Tensor = output._base
    if whole.numel() != output.numel() or not (whole.is_contiguous() and output.is_contiguous()):
        whole = output = output.clone()
    shape = output.shape
    whole.register_hook(lambda gradient: receive(gradient.reshape(shape)))
    return output


def plain(tensor: Tree) -> Tree:
    """Return a parameter without its gradient, so that autograd builds no graph for it."""
    return tensor.detach() if isinstance(tensor, torch.nn.Parameter) else tensor


def _bind(signature: inspect.Signature, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> dict[str, Tree]:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        raise NoRule from None
    bound.apply_defaults()
    return dict(bound.arguments)
