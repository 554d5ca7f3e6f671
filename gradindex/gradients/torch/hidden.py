"""Hidden representations of a torch module: what its layers with parameters receive, or outputs of named layers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from gradindex.data.source import Tree
from gradindex.gradients.inputs import check_layers

if TYPE_CHECKING:
    from gradindex.gradients.torch.engine import TorchEngine


class Hidden:
    """Reads the hidden representations of an engine's model.

    Parameters
    ----------
    engine
        The engine.
    layers
        Names of layers whose outputs are wanted. None: the input of each layer that has parameters, in the order they
        are called, the first (which receives x) excepted; so activations and pooling are included, however the model
        applies them.

    Raises
    ------
    ValueError
        If there is no layer of a name.
    """

    def __init__(self, engine: "TorchEngine", layers: Sequence[str] | None) -> None:
        self._engine = engine
        modules = dict(engine.model.named_modules())
        self._named = None if layers is None else [modules[name] for name in check_layers(layers, modules)]

    def __call__(self, x: Tree) -> list[Tensor]:
        """Return the representations (b, …) of a batch, one for each layer."""
        found: list[Tensor] = []
        if self._named is None:
            modules = self._engine.model.modules()
            owners = [m for m in modules if next(m.parameters(recurse=False), None) is not None]
            hooks = [m.register_forward_pre_hook(lambda _, args: found.append(_tensor(args))) for m in owners]
        else:
            hooks = [m.register_forward_hook(lambda _m, _a, out: found.append(_tensor(out))) for m in self._named]
        try:
            self._engine.outputs(x)
        except TypeError:  # the output is not one array, as of a loss without labels
            if not found:
                raise
        finally:
            for hook in hooks:
                hook.remove()
        return found if self._named is not None else found[1:]


def _tensor(value: Tree) -> Tensor:
    while isinstance(value, tuple | list):
        value = value[0]
    return value.detach()
