"""Inputs and labels as the tensors that a model is called with: on its device, in a type that it takes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gradindex.data.names import Leaf, LossFunction
from gradindex.data.source import Tree, leaves, length, map_leaves, take_rows
from gradindex.gradients.inputs import bind_inputs
from gradindex.gradients.torch import beside
from gradindex.gradients.torch.model import inference
from gradindex.gradients.torch.outputs import map_tensors
from gradindex.runtime.log import log

_WHOLE = (torch.int64, torch.bool)


class Conversion:
    """Makes tensors of inputs and labels. Changes types and devices alone, so that engine and oracle can share it.

    What the model, or the loss, takes as it is keeps its type, which both may ask for: a division by the largest number
    of the type, a difference of times in double precision. That is tried on the first sample of each combination of
    types. Where it fails, small integers become int64, and floating numbers the type of the parameters. Where these
    have several, as a float32 head on a bfloat16 body has, inputs get the widest type that the model takes. Labels
    become float32, or float64 where the model has that.

    Tensors are copies: a forward pass, or a loss, that writes into them does not reach the dataset.

    Parameters
    ----------
    model
        The module.
    device
        Where it is.
    loss_fn
        ``loss_fn(output, y)``.
    """

    def __init__(self, model: nn.Module, device: torch.device, loss_fn: LossFunction) -> None:
        self._model, self._device, self._loss_fn = model, device, loss_fn
        self._beside = beside.holders(beside.of_job(model, loss_fn))
        types = {value.dtype for value in model.parameters() if value.is_floating_point()}
        self._types = sorted(types, key=lambda one: torch.finfo(one).eps)  # the most precise first
        self._label_type = torch.float64 if torch.float64 in types else torch.float32
        self._chosen: dict[tuple[torch.dtype, ...], _Cast | None] = {}  # by the types that were given
        self._takes: dict[tuple[torch.dtype, ...], bool] = {}  # whether the loss takes labels of types that were given
        self._first: Tree = None  # sample of the inputs that came last

    def inputs(self, x: Tree) -> Tree:
        """Return inputs as tensors; lists of objects stay as they are."""
        tensors = map_leaves(self._tensor, x)
        given, usual = _types_of(tensors), (*_WHOLE, *(self._types if len(self._types) == 1 else ()))
        if self._types and length(tensors) and not all(one in usual or one.is_complex for one in given):
            if given not in self._chosen:
                self._chosen[given] = self._find(tensors)
            cast = self._chosen[given]
            tensors = tensors if cast is None else map_leaves(cast, tensors)
        self._first = map_leaves(_copy, take_rows(tensors, slice(0, 1)))  # a copy, which does not hold the batch
        return tensors

    def labels(self, y: Tree) -> Tree:
        """Return the labels of the inputs that were converted last, as tensors; None if there are none."""
        if y is None:
            return None
        tensors = map_leaves(self._tensor, y)
        given, usual = _types_of(tensors), (*_WHOLE, *self._types, self._label_type)
        if all(one in usual or one.is_complex for one in given):
            return tensors
        if given not in self._takes and self._first is not None and length(tensors) and length(self._first):
            self._takes[given] = self._is_taken(tensors)
        return tensors if self._takes.get(given) else map_leaves(self._cast_label, tensors)

    def _cast_label(self, leaf: Leaf) -> Leaf:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not leaf.is_floating_point():
            return _whole(leaf)
        return leaf if leaf.dtype in self._types else leaf.to(self._label_type)

    def _is_taken(self, labels: Tree) -> bool:
        """Whether the loss takes the first label as it is, and has a derivative there."""
        first = slice(0, 1)
        label = take_rows(labels, first)
        try:
            with self._alone(), warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # such as that of shapes that are broadcast
                found: list[torch.Tensor] = []
                output = map_tensors(lambda part: _leaf(part, found), self._run(self._first))
                loss = self._loss_fn(output, label).sum()
                if loss.requires_grad and found:
                    torch.autograd.grad(loss, found, allow_unused=True)
        except Exception as error:
            log.debug("labels as given: %s", error)
            return False
        return True

    def _find(self, tensors: Tree) -> "_Cast | None":
        """Return what makes inputs of these types such that the model takes: the first way that it does."""
        one, ways = take_rows(tensors, slice(0, 1)), list(self._ways())
        for way in (None, *ways):
            if way is not None and len(ways) == 1:
                return way
            try:
                with self._alone():
                    self._run(one if way is None else map_leaves(way, one))
            except Exception as error:
                log.debug("inputs as %s: %s", way or "given", error)
                continue
            log.info("inputs as %s", way or "given")
            return way
        return _Cast(tuple(self._types), self._types[0])  # the model itself will say what is wrong

    def _ways(self) -> "Iterator[_Cast]":
        for kept in (self._types, ()) if len(self._types) > 1 else ((),):
            for dtype in self._types:
                yield _Cast(tuple(kept), dtype)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with inference(self._model, self._device, fused=True, beside=self._beside), torch.enable_grad():
            yield

    def _run(self, inputs: Tree) -> Tree:
        args, kwargs = bind_inputs(self._model.forward, map_leaves(_copy, inputs))
        return self._model(*args, **kwargs)

    def _tensor(self, leaf: Leaf) -> Leaf:
        if isinstance(leaf, list):
            arrays = all(isinstance(item, np.ndarray | torch.Tensor) for item in leaf)
            return self._tensor(leaf[0])[None] if arrays and len(leaf) == 1 else leaf
        with torch.inference_mode(False):
            if isinstance(leaf, torch.Tensor):
                return leaf.detach().to(self._device, copy=True)
            return torch.tensor(np.asarray(leaf)).to(self._device)


@dataclass(frozen=True)
class _Cast:
    """Makes floating tensors those of a type, but for types that are kept, and integers int64."""

    kept: tuple[torch.dtype, ...]
    dtype: torch.dtype

    def __call__(self, leaf: Leaf) -> Leaf:
        if not isinstance(leaf, torch.Tensor) or leaf.is_complex():
            return leaf
        if not leaf.is_floating_point():
            return _whole(leaf)
        return leaf if leaf.dtype in self.kept else leaf.to(self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}, {self.kept} kept"


def _whole(leaf: torch.Tensor) -> torch.Tensor:
    return leaf if leaf.dtype in _WHOLE else leaf.to(torch.int64)


def _types_of(tree: Tree) -> tuple[torch.dtype, ...]:
    return tuple(leaf.dtype for leaf in leaves(tree) if isinstance(leaf, torch.Tensor))


def _copy(leaf: Leaf) -> Leaf:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def _leaf(part: torch.Tensor, found: list[torch.Tensor]) -> torch.Tensor:
    if not part.is_floating_point():
        return part
    found.append(part.detach().requires_grad_())
    return found[-1]
