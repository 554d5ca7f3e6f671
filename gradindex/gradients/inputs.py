"""How a model is called, and which of its parameters are meant: shared by the frameworks."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence

from gradindex.data.names import Tensor
from gradindex.data.samples import describe
from gradindex.data.source import Tree, leaves
from gradindex.data.text import TokenLoss

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def bind_inputs(forward: Callable[..., Tree], x: Tree) -> tuple[tuple[Tree, ...], dict[str, Tree]]:
    """Return the positional and keyword arguments for `forward` that `x` stands for.

    A dict whose keys are all names of arguments becomes keywords (Hugging Face); a tuple becomes positional
    arguments if `forward` takes that many; anything else is one argument.

    Raises
    ------
    TypeError
        If `x` is a dict with other names than those that `forward` needs.
    """
    if not isinstance(x, dict | tuple):
        return (x,), {}
    arguments = inspect.signature(forward).parameters
    kinds = [argument.kind for argument in arguments.values()]
    if isinstance(x, dict):
        spread = inspect.Parameter.VAR_KEYWORD in kinds and all(isinstance(key, str) for key in x)
        required = [name for name, one in arguments.items() if one.default is one.empty and one.kind in _BY_NAME]
        named = (spread and set(required) <= set(x)) or set(x) <= set(arguments)
        if not named and len(required) > 1:
            raise TypeError(
                f"The model takes {', '.join(required)}, but the input is {describe(x)}. Give its parts these names."
            )
        return ((), x) if named else ((x,), {})
    positional = sum(
        kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds
    )
    fits = len(x) <= positional or inspect.Parameter.VAR_POSITIONAL in kinds
    return (x, {}) if fits else ((x,), {})


def call_loss(loss_fn: Callable[..., Tensor], *given: Tree, labels: Tree) -> Tensor:
    """Return what the loss makes of `given`; where it fails with labels that are no numbers, say so.

    Raises
    ------
    TypeError
        If the loss fails and a label is a text, None, or a number that no array holds.
    """
    try:
        return loss_fn(*given)
    except Exception as error:
        odd = [one for leaf in leaves(labels) if isinstance(leaf, list) for one in leaf[:1]]
        if not any(one is None or isinstance(one, str | bytes | int | float) for one in odd):
            raise
        raise TypeError(
            f"The loss does not take the label {odd[0]!r}: expected numbers. Give numbers of classes, such as those of "
            f"np.unique(labels, return_inverse=True), or a loss that takes such labels. It says: {error}"
        ) from error


def per_token(loss_fn: Callable[..., Tensor]) -> Callable[[Tree, Tree], Tensor]:
    """Return the method of a loss that gives the losses of tokens.

    Raises
    ------
    TypeError
        If it has none.
    """
    if isinstance(loss_fn, TokenLoss):
        return loss_fn.per_token
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    raise TypeError(
        f"The loss {name} says nothing of single tokens: expected a method per_token with the arguments of the loss, "
        "which returns what each token gives to it, (b, t). Give such a loss; see gradindex.data.text.TokenLoss."
    )


def select(trainable: Sequence[str], wanted: str | Sequence[str] | None) -> list[str]:
    """Return the chosen parameter names, in the model's order.

    Parameters
    ----------
    trainable
        Names of all trainable parameters, in the model's order.
    wanted
        None (all), a regular expression (searched for in each name), a list of names, or ``"last_layer"``
        (the parameters of the module that owns the last one).

    Raises
    ------
    ValueError
        If there is nothing trainable, a name is unknown, or nothing is chosen.
    """
    if not trainable:
        raise ValueError(
            "The model has no trainable parameters, so there is no gradient to compare. "
            "Make at least one trainable (torch: requires_grad_(True); Keras: layer.trainable = True)."
        )
    if wanted is None:
        return list(trainable)
    if wanted == "last_layer":
        owner = re.split(r"[./](?=[^./]+$)", trainable[-1])[0]
        return [name for name in trainable if re.split(r"[./](?=[^./]+$)", name)[0] == owner]
    if isinstance(wanted, str):
        chosen = [name for name in trainable if re.search(wanted, name)]
    else:
        unknown = sorted(set(wanted) - set(trainable))
        if unknown:
            raise ValueError(f"Unknown parameters {unknown}. The trainable ones are: {', '.join(trainable)}.")
        chosen = [name for name in trainable if name in set(wanted)]
    if not chosen:
        raise ValueError(f"{wanted!r} selects none of the trainable parameters: {', '.join(trainable)}.")
    return chosen


def check_layers(names: Sequence[str], there: Mapping[str, object]) -> Sequence[str]:
    """Return names of layers; raises ValueError if one is not among those `there`."""
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(f"There is no layer {missing[0]!r}. Expected some of: {', '.join(filter(None, there))}.")
    return names
