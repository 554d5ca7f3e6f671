"""What a loss holds besides the model's outputs: prototypes, a teacher, an average that it updates.

Training steps run the loss, too, and must leave what belongs to it as it was.
"""

from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType

from gradindex.data.names import LossFunction

_DEPTH = 4  # of objects within objects
_MANY = 64  # entries of a list that are looked at; a longer one is data
_NO_STATE = (BuiltinFunctionType, CodeType, ModuleType, type, str, bytes, int, float)


def of_loss(loss_fn: LossFunction, has_state: Callable[[object], bool]) -> list[object]:
    """Return what a loss is, or reaches, that `has_state`, and the plain objects on the way there.

    It reaches what its attributes, a ``functools.partial``, a bound method and the variables of enclosing functions
    hold; of global variables, what has state itself.
    """
    found: dict[int, object] = {}
    _gather(loss_fn, has_state, found, _DEPTH)
    return list(found.values())


def _gather(value: object, has_state: Callable[[object], bool], found: dict[int, object], depth: int) -> None:
    if has_state(value):
        found[id(value)] = value
        return
    is_array = hasattr(value, "dtype") and hasattr(value, "shape")
    if value is None or not depth or id(value) in found or is_array or isinstance(value, _NO_STATE):
        return
    if isinstance(value, FunctionType):
        known = (value.__globals__.get(name) for name in _names(value.__code__))
        found.update((id(one), one) for one in known if has_state(one))
    elif hasattr(value, "__dict__") and not isinstance(value, partial | MethodType):
        found[id(value)] = value
    for part in _parts(value):
        _gather(part, has_state, found, depth - 1)


def _parts(value: object) -> list[object]:
    """Return what an object holds."""
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        return [_content(cell) for cell in value.__closure__ or ()]
    if isinstance(value, list | tuple | dict):
        entries = value.values() if isinstance(value, dict) else value
        return list(entries) if len(value) <= _MANY else []
    return list(getattr(value, "__dict__", {}).values())


def _content(cell: CellType) -> object:
    try:
        content: object = cell.cell_contents
    except ValueError:  # not filled yet
        return None
    return content


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that a function and those within it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
