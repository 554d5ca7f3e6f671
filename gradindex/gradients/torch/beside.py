"""What a loss holds besides the model's outputs: prototypes, a teacher, an average that it updates.

Training steps run the loss, too, and must leave what belongs to it as it was.
"""

from collections.abc import Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from gradindex.data.names import Tree

_DEPTH = 4  # of objects within objects
_NOT_STATE = (Tensor, np.ndarray, type, ModuleType, str, bytes, int, float, torch.dtype, torch.device)


def of_loss(loss_fn: object) -> tuple[object, ...]:
    """Return the modules, objects and tensors that a loss is, or reaches through what it is made of.

    That is through its attributes, what a ``functools.partial`` or a bound method holds, and variables of enclosing
    functions; of global variables, modules and tensors.
    """
    found: dict[int, object] = {}
    _gather(loss_fn, found, _DEPTH)
    return tuple(found.values())


def of_model(model: nn.Module) -> tuple[object, ...]:
    """Return the modules that a model holds in lists, tuples and dicts, so that they are none of its own."""
    own = {id(module) for module in model.modules()}
    found: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in (list, tuple, dict):
                for entry in value.values() if isinstance(value, dict) else value:
                    if isinstance(entry, nn.Module) and id(entry) not in own:
                        found[id(entry)] = entry
    return tuple(found.values())


def holders(things: tuple[object, ...]) -> tuple[object, ...]:
    """Return those of some things that hold others: modules and objects."""
    return tuple(one for one in things if not isinstance(one, Tensor))


def leaves(things: tuple[object, ...]) -> Iterator[Tensor]:
    """Yield the tensors of some things that a backward pass may give a gradient to."""
    for one in things:
        if isinstance(one, nn.Module):
            yield from one.parameters()
        elif isinstance(one, Tensor):
            yield one
        else:
            yield from (value for value in vars(one).values() if _is_leaf(value))


def _is_leaf(value: Tree) -> bool:
    return isinstance(value, Tensor) and value.is_leaf and value.requires_grad


def _gather(value: object, found: dict[int, object], depth: int) -> None:
    if _is_leaf(value) or isinstance(value, nn.Module):
        found[id(value)] = value
    elif not depth or id(value) in found or isinstance(value, _NOT_STATE) or value is None:
        return
    elif isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            _gather(part, found, depth - 1)
    elif isinstance(value, MethodType):
        _gather(value.__self__, found, depth - 1)
        _gather(value.__func__, found, depth - 1)
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            _gather(_content(cell), found, depth - 1)
        for name in _names(value.__code__):
            known = value.__globals__.get(name)
            if _is_leaf(known) or isinstance(known, nn.Module):
                found[id(known)] = known
    elif type(value) in (list, tuple, dict):
        entries = list(value.values() if isinstance(value, dict) else value)[: 1 << 6]  # type: ignore[call-overload]
        for entry in entries:
            if _is_leaf(entry) or isinstance(entry, nn.Module):
                found[id(entry)] = entry
    elif hasattr(value, "__dict__"):
        found[id(value)] = value
        for part in list(vars(value).values()):
            _gather(part, found, depth - 1)


def _content(cell: Tree) -> object:
    try:
        content: object = cell.cell_contents
    except ValueError:  # not filled yet
        return None
    return content


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
