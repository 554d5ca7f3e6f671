"""What belongs to a torch model and its loss, but is no module of the model: see `gradindex.gradients.beside`."""

from collections.abc import Iterator

from torch import Tensor, nn

from gradindex.data.names import LossFunction
from gradindex.gradients import beside


def of_job(model: nn.Module, loss_fn: LossFunction) -> list[object]:
    """Return the modules, objects and leaf tensors of a loss, and the modules that a model holds in lists and dicts."""
    return [*beside.of_loss(loss_fn, _has_state), *_of_model(model)]


def holders(things: list[object]) -> list[object]:
    """Return those of some things that have state: modules and objects."""
    return [one for one in things if not isinstance(one, Tensor)]


def leaves(things: list[object]) -> list[Tensor]:
    """Return the tensors of some things that a backward pass may give a gradient to."""
    of_modules = [value for one in things if isinstance(one, nn.Module) for value in one.parameters()]
    return [*of_modules, *(one for one in things if isinstance(one, Tensor))]


def _has_state(value: object) -> bool:
    return isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.is_leaf and value.requires_grad)


def _of_model(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules in a model's lists, tuples and dicts, which are none of its own."""
    own = {id(module) for module in model.modules()}
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in (list, tuple, dict):
                for entry in value.values() if isinstance(value, dict) else value:
                    if isinstance(entry, nn.Module) and id(entry) not in own:
                        yield entry
