"""Inputs and labels as the tensors that a model is called with: on its device, in a type that it takes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from gradindex.data.names import Leaf
from gradindex.data.source import Tree, leaves, map_leaves, take_rows
from gradindex.gradients.inputs import bind_inputs
from gradindex.gradients.torch.model import inference
from gradindex.runtime.log import log

_OTHER_INTEGERS = (torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32)


class Conversion:
    """Makes tensors of inputs and labels. Changes types and devices alone, so that engine and oracle can share it.

    Floating inputs of a model whose parameters have one type are given that type. Where parameters have several, as a
    float32 head on a bfloat16 body has, inputs of one of these types stay as they are if the model takes them; else
    they get the widest type that it takes, tried on the first sample. Labels keep a type that the model has; others
    become float32, or float64 where the model has that. Small integers become int64.

    Parameters
    ----------
    model
        The module.
    device
        Where it is.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model, self._device = model, device
        types = {value.dtype for value in model.parameters() if value.is_floating_point()}
        self._types = sorted(types, key=lambda one: torch.finfo(one).eps)  # the most precise first
        self._chosen: dict[tuple[torch.dtype, ...], tuple[bool, torch.dtype]] = {}  # by the types that were given

    def inputs(self, x: Tree) -> Tree:
        """Return inputs as tensors; lists of objects stay as they are."""
        tensors = map_leaves(self._tensor, x)
        given = tuple(leaf.dtype for leaf in leaves(tensors) if _is_floating(leaf))
        if not given or not self._types:
            return tensors
        if len(self._types) == 1:
            return self._cast(tensors, False, self._types[0])
        if given not in self._chosen:
            self._chosen[given] = self._find(tensors)
        return self._cast(tensors, *self._chosen[given])

    def labels(self, y: Tree) -> Tree:
        """Return labels as tensors; None if there are none."""
        return None if y is None else map_leaves(lambda leaf: self._label(self._tensor(leaf)), y)

    def _label(self, leaf: Leaf) -> Leaf:
        if not _is_floating(leaf) or leaf.dtype in self._types:
            return leaf
        return leaf.to(torch.float64 if torch.float64 in self._types else torch.float32)

    def _cast(self, tensors: Tree, keeps: bool, dtype: torch.dtype) -> Tree:
        def cast(leaf: Leaf) -> Leaf:
            stays = not _is_floating(leaf) or (keeps and leaf.dtype in self._types)
            return leaf if stays else leaf.to(dtype)

        return map_leaves(cast, tensors)

    def _find(self, tensors: Tree) -> tuple[bool, torch.dtype]:
        """Return whether types that the model has stay, and the type of the others: the first that the model takes."""
        one = take_rows(tensors, slice(0, 1))
        for keeps, dtype in self._ways():
            args, kwargs = bind_inputs(self._model.forward, self._cast(one, keeps, dtype))
            try:
                with inference(self._model, self._device, fused=True):
                    self._model(*args, **kwargs)
            except (RuntimeError, TypeError, ValueError) as error:
                log.debug("inputs as %s: %s", dtype, error)
                continue
            log.info("inputs of %s as %s", "other types" if keeps else "any floating type", dtype)
            return keeps, dtype
        return True, self._types[0]  # the model itself will say what is wrong

    def _ways(self) -> Iterator[tuple[bool, torch.dtype]]:
        for keeps in (True, False):
            for dtype in self._types:
                yield keeps, dtype

    def _tensor(self, leaf: Leaf) -> Leaf:
        if isinstance(leaf, list):
            arrays = all(isinstance(item, np.ndarray | torch.Tensor) for item in leaf)
            return self._tensor(leaf[0])[None] if arrays and len(leaf) == 1 else leaf
        value = leaf if isinstance(leaf, torch.Tensor) else torch.tensor(np.asarray(leaf))
        if value.dtype in _OTHER_INTEGERS:
            return value.to(self._device, torch.int64)
        return value.detach().to(self._device)


def _is_floating(leaf: Leaf) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
