"""What a forward pass changes in a module besides its outputs: buffers, and tensors and numbers kept as attributes.

Counters, running averages and caches must not drift from call to call: every pass starts from the same state.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradindex.data.names import Tree
from gradindex.runtime.log import log

_SMALL = 1 << 16  # bytes of a tensor that is copied before every pass; a larger one if a pass was seen to write it
_LOOKS = 3  # passes that are compared by value: writes through ``.data`` leave a tensor's version as it is
_MODES = {"training"}
_written: "weakref.WeakKeyDictionary[nn.Module, _Written]" = weakref.WeakKeyDictionary()


class _Written:
    """What earlier passes of a model were seen to write, by the owner's name and the tensor's."""

    def __init__(self) -> None:
        self.names: set[tuple[str, str]] = set()
        self.passes = 0


class _Kept(NamedTuple):
    name: tuple[str, str]
    owner: dict[str, Any]
    tensor: Tensor
    version: int
    copy: Tensor | None


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Put back, at the end, the buffers, tensors and numbers that what runs within has changed in a model.

    Tensors that are attributes, and numbers, are those of modules that torch does not bring along.
    """
    known = _written.setdefault(model, _Written())
    looks = known.passes < _LOOKS
    tensors, attributes = [], []
    for path, module in model.named_modules():
        buffers = module._buffers if isinstance(module._buffers, dict) else dict(module.named_buffers(recurse=False))
        tensors += [_keep(known, looks, path, buffers, name) for name in buffers]
        if not type(module).__module__.startswith("torch.nn."):
            values = {name: value for name, value in vars(module).items() if _is_plain(name, value)}
            tensors += [
                _keep(known, looks, path, vars(module), name)
                for name, value in values.items()
                if isinstance(value, Tensor)
            ]
            attributes.append((vars(module), values, set(vars(module))))
    try:
        yield
    finally:
        known.passes += 1
        for values, before, names in attributes:
            _put_back_attributes(values, before, names)
        for one in tensors:
            if one is not None:
                _put_back(known, looks, one)


def _is_plain(name: str, value: Tree) -> bool:
    return (value is None or isinstance(value, bool | int | float | Tensor)) and name not in _MODES


def _keep(known: _Written, looks: bool, path: str, owner: dict[str, Tensor | None], name: str) -> _Kept | None:
    tensor = owner[name]
    if tensor is None or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_inference():
        return None
    small = tensor.numel() * tensor.element_size() <= _SMALL
    copy = tensor.detach().clone() if small or looks or (path, name) in known.names else None
    return _Kept((path, name), owner, tensor, tensor._version, copy)


def _put_back(known: _Written, looks: bool, one: _Kept) -> None:
    path, name = one.name
    if one.owner.get(name) is not one.tensor:
        one.owner[name] = one.tensor
    changed = one.tensor._version != one.version
    if not changed and one.copy is not None and (looks or one.name in known.names):
        changed = not torch.equal(one.tensor, one.copy)
    if not changed:
        return
    known.names.add(one.name)
    if one.copy is None:
        log.warning("%s was changed by this pass for the first time, and keeps what it wrote", f"{path}.{name}")
    else:
        with torch.no_grad():
            one.tensor.detach().copy_(one.copy)


def _put_back_attributes(values: dict[str, object], before: dict[str, object], names: set[str]) -> None:
    for name, value in before.items():
        if name in values and values[name] is not value and _is_plain(name, values[name]):
            values[name] = value
    for name in set(values) - names:
        if _is_plain(name, values[name]):
            del values[name]
