"""The loss of each sample of a batch, from the outputs of the whole batch: what of them it reads, and where they are.

An output may hold what no loss reads: a cache of keys and values, a mean loss, states with the samples on another axis.
Only what the loss reads has to be told apart by samples, so that is found out first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor
from torch.func import vmap

from gradindex.data.names import Leaf, LossFunction
from gradindex.data.source import Tree, map_leaves
from gradindex.gradients.engine import PathFailed
from gradindex.gradients.inputs import call_loss, per_token
from gradindex.gradients.torch.apart import Apart
from gradindex.gradients.torch.capture import Layout, layouts
from gradindex.gradients.torch.model import with_derivatives
from gradindex.gradients.torch.outputs import LABEL_FORMS, label_form, main_tensor, map_tensors
from gradindex.gradients.torch.shared import tensors
from gradindex.runtime.log import log


class Kind(Enum):
    """What a tensor of an output is, if it has no axis of samples."""

    UNREAD = "the loss does not read it"
    SHARED = "the same for all samples"
    NUMBER = "one number a sample, which a batch of one has without an axis"


Place = Layout | Kind
"""Where the samples are in one tensor of an output."""


class Unread(Tensor):
    """Stands for a tensor that the loss does not read; to use it together with others, or its values, is an error."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Tree],
        types: Sequence[type],
        args: tuple[Tree, ...] = (),
        kwargs: dict[str, Tree] | None = None,
    ) -> Tree:
        """Let a change of its type or shape pass, and a question about its type."""
        kwargs = kwargs or {}
        found = super().__torch_function__(func, types, args, kwargs)
        used = list(tensors((args, kwargs)))
        if all(isinstance(one, Unread) for one in used) and (isinstance(found, Unread) or func in _ABOUT):
            return found
        raise PathFailed("the loss reads a part of the model's output that it did not read at first")


_ABOUT = {
    torch.is_tensor,
    torch.is_floating_point,
    torch.is_complex,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.dim,
    Tensor.dtype.__get__,
    Tensor.device.__get__,
    Tensor.ndim.__get__,
    Tensor.requires_grad.__get__,
}


@dataclass(frozen=True)
class Reading:
    """Where the samples are in each tensor of an output, in order.

    `apart`: losses that the model takes of the whole batch are to be taken of each sample (see `Apart`).
    """

    places: Sequence[Place]
    apart: bool = False


class SampleLosses:
    """The losses of single samples, summed to a scalar each.

    Parameters
    ----------
    loss_fn
        ``loss_fn(output, y)``, any reduction.
    """

    def __init__(self, loss_fn: LossFunction) -> None:
        self._loss_fn = loss_fn
        self._label_form: str | None = None
        self._together = True
        self._reading: Reading | None = None
        self._refused: PathFailed | None = None

    @property
    def known(self) -> bool:
        """Whether `look` was called."""
        return self._reading is not None or self._refused is not None

    def one(self, output: Tree, target: Tree) -> Tensor:
        """Return the loss of a batch of one."""
        if self._label_form is None:
            self._label_form = label_form(self._loss_fn, output, target)
        if isinstance(output, Tensor) and isinstance(target, Tensor):
            target = LABEL_FORMS[self._label_form](output, target)
        target = map_leaves(_copied, target)  # a loss may write into its labels
        loss = with_derivatives(lambda: call_loss(self._loss_fn, output, target, labels=target))
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss_fn must return a tensor, got {type(loss).__name__}.")
        if isinstance(loss, Unread):
            raise PathFailed("the loss reads a part of the model's output that it did not read at first")
        return loss.sum()

    def tokens_of_one(self, output: Tree, target: Tree) -> Tensor:
        """Return what each token gives to the loss of a batch of one, (t,)."""
        found = per_token(self._loss_fn)(output, target)
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 1:
            got = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"per_token must return a tensor (b, t), here (1, t), got {got}.")
        return found[0]

    def together(self, outputs: Sequence[Tree], targets: Tree) -> float | None:
        """Return the loss of samples as one batch, given their outputs one by one; None if it is no single number."""
        rows = [_parts(output) for output in outputs]
        left = iter([torch.cat(part) for part in zip(*rows, strict=True)])
        output = map_tensors(lambda _: next(left), outputs[0])
        if isinstance(output, Tensor) and isinstance(targets, Tensor):
            targets = LABEL_FORMS[self._label_form or "as given"](output, targets)
        loss = self._loss_fn(output, targets)
        return float(loss) if loss.dim() == 0 else None

    def look(self, run: Callable[[int], Tree], target: Tree, distinct: bool) -> None:
        """Find out what the loss reads, and where samples are in it.

        Parameters
        ----------
        run
            Returns the outputs of so many samples, the first of which is `target`'s.
        target
            The first sample's label, a batch of one.
        distinct
            Whether these are different samples. One alone may leave the question open.
        """
        try:
            self._reading = self._find(run, target, distinct)
        except PathFailed as error:
            self._refused = error

    def taken_apart(self, samples: int) -> AbstractContextManager[object]:
        """Within it, a model's forward pass takes losses of each sample where that is needed."""
        return Apart(samples) if self._reading is not None and self._reading.apart else nullcontext()

    def reads(self, output: Tree) -> list[Tensor]:
        """Return the tensors of an output that the loss reads."""
        parts = _parts(output)
        return [part for part, place in zip(parts, self._places(parts, 2), strict=True) if place is not Kind.UNREAD]

    def rows(self, output: Tree, samples: int) -> list[Tensor]:
        """Return what the loss reads of an output, each tensor (b, …) with the samples first."""
        parts = _parts(output)
        places = zip(parts, self._places(parts, samples), strict=True)
        return [_split(part, place, samples) for part, place in places if place is not Kind.UNREAD]

    def of_rows(self, rows: Sequence[Tensor], output: Tree, targets: Tree, samples: int) -> Tensor:
        """Return the losses (b,) of `rows` in place of what is in `output`."""
        return self._of_each(self.one, rows, output, targets, samples)

    def tokens_of_rows(self, rows: Sequence[Tensor], output: Tree, targets: Tree, samples: int) -> Tensor:
        """Return what each token gives to its sample's loss, (b, t), of `rows` in place of what is in `output`."""
        return self._of_each(self.tokens_of_one, rows, output, targets, samples)

    def _of_each(
        self,
        loss_of: Callable[[Tree, Tree], Tensor],
        rows: Sequence[Tensor],
        output: Tree,
        targets: Tree,
        samples: int,
    ) -> Tensor:
        places = self._places(_parts(output), samples)

        def sample_loss(one: Sequence[Tensor], target: Tree) -> Tensor:
            left, here = iter(one), iter(places)
            out = map_tensors(lambda part: _of_one(part, next(here), left), output)
            return loss_of(out, None if target is None else map_leaves(lambda leaf: leaf[None], target))

        if self._together and samples > 1:
            try:
                return vmap(sample_loss, in_dims=(0, None if targets is None else 0))(list(rows), targets)
            except RuntimeError as error:  # an operation that vmap does not know, such as masked_select
                log.info("the loss is taken sample by sample: %s", error)
                self._together = False
        losses = [
            sample_loss([row[i] for row in rows], None if targets is None else _sample(targets, i))
            for i in range(samples)
        ]
        return torch.stack(losses) if losses else torch.zeros(0)

    def of_batch(self, output: Tree, targets: Tree, samples: int) -> Tensor:
        """Return the loss of each sample (b,) given the outputs of the whole batch."""
        return self.of_rows(self.rows(output, samples), output, targets, samples)

    def main(self, output: Tree, samples: int) -> Tensor | None:
        """Return the main tensor (b, …) of a batch's outputs; None if there is none, or samples are not first."""
        found = main_tensor(output)
        if found is None or not found.dim() or len(found) != samples:
            return None
        if self._reading is None:
            return found
        places = dict(zip(map(id, _parts(output)), self._reading.places, strict=False))
        place = places.get(id(getattr(output, "logits", output)), Kind.UNREAD)
        fits = place is Kind.UNREAD or (isinstance(place, Layout) and place.axis == 0)
        return found if fits else None

    def _places(self, parts: Sequence[Tensor], samples: int) -> Sequence[Place]:
        if self._refused is not None and samples > 1:
            raise self._refused
        if self._reading is None:
            if samples == 1:
                return [Kind.SHARED] * len(parts)
            if any(part.dim() == 0 for part in parts):
                raise PathFailed("the model's output has a number that belongs to no one sample")
            return [Layout(0)] * len(parts)
        if len(parts) != len(self._reading.places):
            raise PathFailed("the model's output has another number of tensors than before")
        return self._reading.places

    def _find(self, run: Callable[[int], Tree], target: Tree, distinct: bool) -> Reading | None:
        output = run(1)
        self.one(output, target)  # settles the form of labels, and says what is wrong with the loss
        read = self._read(output, target)

        def read_of(samples: int) -> list[Tensor]:
            return [part for part, used in zip(_parts(run(samples)), read, strict=True) if used]

        ones = [part for part, used in zip(_parts(output), read, strict=True) if used]
        try:
            places, apart = _find_places(ones, read_of(3), read_of(2)), False
            if None in places or (Kind.SHARED in places and not distinct):
                with Apart(3):
                    threes = read_of(3)
                with Apart(2):
                    places, apart = _find_places(ones, threes, read_of(2)), True
        except ValueError:
            raise PathFailed("the number of tensors in the model's output depends on the samples") from None
        if Kind.SHARED in places and not distinct:
            return None
        if None in places:
            raise PathFailed("the loss reads a part of the model's output that belongs to the batch as a whole")
        left = iter(places)
        return Reading([next(left) if used else Kind.UNREAD for used in read], apart)  # type: ignore[misc]

    def _read(self, output: Tree, target: Tree) -> list[bool]:
        """Return which tensors of a batch of one the loss reads: those it fails without."""
        parts, main = _parts(output), main_tensor(output)
        if len(parts) == 1:
            return [True]
        others = [main is None or part.data_ptr() != main.data_ptr() for part in parts]
        if not all(others) and self._does_without(output, target, others):
            return [not other for other in others]
        return [not self._does_without(output, target, [n == i for n in range(len(parts))]) for i in range(len(parts))]

    def _does_without(self, output: Tree, target: Tree, unread: Sequence[bool]) -> bool:
        left = iter(unread)
        try:
            self.one(map_tensors(lambda part: _stand_in(part) if next(left) else part, output), target)
        except Exception as error:
            log.debug("what the loss reads: %s", error)
            return False
        return True


def _parts(output: Tree) -> list[Tensor]:
    """Return the tensors of an output, in order."""
    found: list[Tensor] = []
    map_tensors(found.append, output)
    return found


def _stand_in(part: Tensor) -> Unread:
    """Return what stands for a tensor that is not read: of its type and shape, without its values or memory."""
    nothing = torch.zeros((), dtype=part.dtype, device=part.device)
    return nothing.expand(part.shape).as_subclass(Unread)  # type: ignore[no-any-return]


def _find_places(ones: Sequence[Tensor], threes: Sequence[Tensor], twos: Sequence[Tensor]) -> list[Place | None]:
    """Return where the samples are in tensors that 1, 3 and 2 samples gave; None where that cannot be said."""
    found: list[Place | None] = []
    for one, three, two in zip(ones, threes, twos, strict=True):
        if one.shape == three.shape == two.shape:
            same = torch.equal(one, three) and torch.equal(one, two)
            found.append(Kind.SHARED if same else None)
        elif three.shape == (3, *one.shape) and two.shape == (2, *one.shape):
            found.append(Kind.NUMBER)
        else:
            found += layouts([three.shape], [two.shape], set()) if one.dim() == three.dim() else [None]
    return found


def _split(part: Tensor, place: Place, samples: int) -> Tensor:
    """Return a tensor that is read with the samples first, (b, …)."""
    if place is Kind.SHARED:
        return part.expand(samples, *part.shape)
    axis = place.axis if isinstance(place, Layout) else 0
    folded, rest = divmod(part.shape[axis], samples) if axis < part.dim() else (0, 1)
    if rest:
        raise PathFailed("a part of the model's output has no longer a number of rows for each sample")
    return replace(place, folded=folded).samples_first(part) if isinstance(place, Layout) else part


def _of_one(part: Tensor, place: Place, left: Iterator[Tensor]) -> Tensor:
    """Return what the loss of one sample sees in the place of `part`."""
    if place is Kind.UNREAD:
        return _stand_in(part)
    row = next(left)
    if not isinstance(place, Layout):
        return row
    return row.movedim(0, place.axis) if row.dim() == part.dim() else row.unsqueeze(place.axis)


def _copied(leaf: Leaf) -> Leaf:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _sample(tree: Tree, row: int) -> Tree:
    return map_leaves(lambda leaf: leaf[row], tree)
