"""What a forward pass changes besides its outputs: weights, buffers, and what is kept as attributes.

Counters, running averages, caches and weights that are clamped must not drift from call to call: every pass starts from
the same state.
"""

import sys
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from gradindex.data.names import Tree
from gradindex.runtime.log import log

_SMALL = 1 << 16  # bytes of a tensor that is copied before every pass; a larger one if a pass was seen to write it
_LOOKS = 3  # passes that are compared by value: writes through ``.data`` leave a tensor's version as it is
_LOOKED_AT = 1 << 30  # bytes of the weights of a model, of which copies are made for that
_MANY = 1000  # entries of a container; a longer one is data
_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)
_OWN = {*vars(nn.Module()), "training"}  # attributes of every module that are torch's
_written: "weakref.WeakKeyDictionary[nn.Module, _Written]" = weakref.WeakKeyDictionary()

Attributes: TypeAlias = dict[str, Any]
Owner: TypeAlias = Any
"""What tensors are kept in: a module's parameters, buffers or attributes, or a container among these."""
Name: TypeAlias = tuple[str, object]
"""The owner's name, and the key of what it owns."""


class _Written:
    """What earlier passes of a model were seen to write."""

    def __init__(self) -> None:
        self.names: set[Name] = set()
        self.passes = 0


class _Kept(NamedTuple):
    """A tensor as it was: where it lay in memory, its version there, and a copy if one was made."""

    name: Name
    owner: Owner
    tensor: Tensor
    place: Tensor
    version: int
    copy: Tensor | None


class _State:
    """What a model, and what belongs to it, holds before a pass."""

    def __init__(self, known: _Written) -> None:
        self._known, self._looks = known, known.passes < _LOOKS
        self._tensors: list[_Kept] = []
        self._weights: list[tuple[Name, Tensor, int, int]] = []
        self._attributes: list[tuple[Attributes, Attributes, set[str]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()

    def keep(self, path: str, owner: object) -> None:
        """Remember the state of a module with its submodules, or of an object."""
        if not isinstance(owner, nn.Module):
            self._keep_attributes(path, vars(owner))
            return
        looks = self._looks and sum(value.nbytes for value in owner.parameters()) <= _LOOKED_AT
        for inside, module in owner.named_modules(prefix=path):
            if id(module) in self._seen:
                continue
            self._seen.add(id(module))
            self._keep_all(inside, _owned(module, "_buffers"), _SMALL)
            self._keep_weights(inside, _owned(module, "_parameters"), looks)
            if not type(module).__module__.startswith("torch.nn."):
                self._keep_attributes(inside, vars(module))

    def put_back(self) -> None:
        """Put back what was remembered."""
        self._known.passes += 1
        for values, before, names in self._attributes:
            _put_back_attributes(values, before, names)
        for container, before in self._containers:
            _put_back_entries(container, before)
        for one in self._tensors:
            self._put_back_tensor(one)
        for name, weight, version, place in self._weights:
            if weight._version != version or weight.data_ptr() != place:
                self._missed(name)

    def _keep_weights(self, path: str, weights: Attributes, looks: bool) -> None:
        """Remember weights: whole if that is looked at, or was seen to change; else whether they are the same."""
        if looks:
            self._keep_all(path, weights, sys.maxsize)
            return
        for name, weight in weights.items():
            if (path, name) in self._known.names:
                self._keep_all(path, {name: weight}, sys.maxsize, owner=weights)
            elif type(weight) is nn.Parameter and weight.layout == torch.strided:
                self._weights.append(((path, name), weight, weight._version, weight.data_ptr()))

    def _keep_attributes(self, path: str, attributes: Attributes) -> None:
        values = {name: value for name, value in attributes.items() if name not in _OWN and _is_value(value)}
        self._keep_all(path, values, _SMALL, owner=attributes)
        self._attributes.append((attributes, values, set(attributes)))
        for name, value in attributes.items():
            if name not in _OWN and type(value) in _CONTAINERS and len(value) <= _MANY and id(value) not in self._seen:
                self._seen.add(id(value))
                self._containers.append((value, value.copy()))
                if not isinstance(value, set):
                    entries = value if isinstance(value, dict) else dict(enumerate(value))
                    self._keep_all(f"{path}.{name}", entries, _SMALL, owner=value)

    def _keep_all(
        self,
        path: str,
        values: Attributes | dict[int, Tree],
        small: int,
        owner: Owner | None = None,
    ) -> None:
        for name, tensor in values.items():
            if not isinstance(tensor, Tensor) or not _is_plain_memory(tensor):
                continue
            copied = tensor.nbytes <= small or self._looks or (path, name) in self._known.names
            copy = tensor.detach().clone() if copied else None
            found = _Kept(
                (path, name), values if owner is None else owner, tensor, tensor.detach(), tensor._version, copy
            )
            self._tensors.append(found)

    def _put_back_tensor(self, one: _Kept) -> None:
        name = one.name[1]
        try:
            there = one.owner[name]
        except LookupError:
            there = None
        if there is not one.tensor:
            one.owner[name] = one.tensor
        moved = one.tensor.data_ptr() != one.place.data_ptr() or one.tensor.shape != one.place.shape
        if moved:
            one.tensor.data = one.place
        changed = one.place._version != one.version
        if not changed and one.copy is not None and (self._looks or one.name in self._known.names):
            changed = not torch.equal(one.place, one.copy)
        if moved or changed:
            self._known.names.add(one.name)
        if changed and one.copy is None:
            self._missed(one.name)
        elif changed and one.copy is not None:
            with torch.no_grad():
                one.place.copy_(one.copy)

    def _missed(self, name: Name) -> None:
        self._known.names.add(name)
        log.warning("%s was changed by this pass for the first time, and keeps what it wrote", ".".join(map(str, name)))


@contextmanager
def kept(model: nn.Module, beside: Sequence[object] = ()) -> Iterator[None]:
    """Put back, at the end, what runs within has changed in a model, and in modules and objects `beside` it.

    That is weights and buffers, and of the attributes tensors, numbers, and entries of lists, dicts and sets. (The
    attributes of modules that torch brings along do not change.)
    """
    state = _State(_written.setdefault(model, _Written()))
    state.keep("", model)
    for number, other in enumerate(beside):
        state.keep(f"beside {number}", other)
    try:
        yield
    finally:
        state.put_back()


def _owned(module: nn.Module, name: str) -> Attributes:
    """Return the module's dict of buffers or parameters; a copy of what there is of scripted modules."""
    found = getattr(module, name)
    named = module.named_buffers if name == "_buffers" else module.named_parameters
    return found if isinstance(found, dict) else dict(named(recurse=False))


def _is_plain_memory(tensor: Tensor) -> bool:
    if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        return False
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_inference())


def _is_value(value: Tree) -> bool:
    return value is None or isinstance(value, bool | int | float | Tensor)


def _put_back_attributes(values: Attributes, before: Attributes, names: set[str]) -> None:
    for name, value in before.items():
        if name in values and values[name] is not value and _is_value(values[name]):
            values[name] = value
    for name in set(values) - names:
        if _is_value(values[name]) or type(values[name]) in _CONTAINERS:
            del values[name]


def _put_back_entries(container: Tree, before: Tree) -> None:
    if isinstance(container, dict):
        same = len(container) == len(before) and all(container.get(key, container) is before[key] for key in before)
    else:
        same = len(container) == len(before) and all(map(lambda a, b: a is b, container, before))
    if same:
        return
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(before)
