"""How much of a model its rows speak of: the share of its numbers that have a gradient there, by groups of modules."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gradindex.data.names import Model
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats


@dataclass(frozen=True)
class Share:
    """One group of modules, which differ in their numbers alone, such as ``layers.*.mlp.experts``.

    `numbers` scalars, of which `trainable` may be trained and `attributed` are in the rows; `silent` of those were zero
    in every gradient that was looked at.
    """

    group: str
    numbers: int
    trainable: int
    attributed: int
    silent: int = 0

    @property
    def left_out(self) -> bool:
        """Whether something of it is trained, but not in the rows."""
        return self.attributed < self.trainable


def shares(model: Model, engine: Engine, gradients: Floats | None = None) -> list[Share]:
    """Return the shares of a model's groups of modules, in the model's order.

    Parameters
    ----------
    model
        The model of `engine`.
    engine
        What makes the rows.
    gradients
        Some gradients (n, P), to tell what of the rows is silent; None: not told.
    """
    chosen = {parameter.name for parameter in engine.parameters}
    zeros = _zeros(engine, gradients)
    found: dict[str, list[int]] = {}
    for name, size, trains in _parameters(model):
        counts = found.setdefault(group(name), [0, 0, 0, 0])
        counts[0] += size
        counts[1] += size * (trains or name in chosen)
        counts[2] += size * (name in chosen)
        counts[3] += zeros.get(name, 0)
    return [Share(name, *counts) for name, counts in found.items()]


def group(name: str) -> str:
    """Return the group of a parameter: its module's name, with a star for every number."""
    owner = re.split(r"[./](?=[^./]+$)", name)[0] if re.search("[./]", name) else name
    return re.sub(r"(?<=[./_])\d+(?=[./]|$)|^\d+(?=[./]|$)", "*", owner)


def _parameters(model: Model) -> Iterator[tuple[str, int, bool]]:
    """Yield the name and size of every parameter of a model, and whether it may be trained."""
    model = getattr(model, "_orig_mod", model)
    named = getattr(model, "named_parameters", None)
    if named is not None:
        yield from ((name, int(value.numel()), bool(value.requires_grad)) for name, value in named())
        return
    from gradindex.gradients.tensorflow.model import weight_names, weight_owners

    trains, names, owners = {id(one) for one in model.trainable_variables}, weight_names(model), weight_owners(model)
    for one in model.weights:
        if id(one) in owners:
            yield names[id(one)], int(np.prod(one.shape)), id(one) in trains


def _zeros(engine: Engine, gradients: Floats | None) -> dict[str, int]:
    """Return how many numbers of each parameter are zero in all of some gradients."""
    if gradients is None:
        return {}
    silent = (gradients == 0).all(axis=0)
    found: dict[str, int] = {}
    for parameter, place in engine.slices():
        found[parameter.name] = int(silent[place].sum())
    return found


def warnings_of(found: Sequence[Share]) -> list[str]:
    """Return sentences on what is trained but not in the rows, and on what is but has no gradient."""
    said = []
    if out := [share for share in found if share.left_out]:
        numbers = sum(share.trainable - share.attributed for share in out)
        few = ", ".join(share.group for share in out[:5]) + (", …" if len(out) > 5 else "")
        said.append(
            f"{numbers:,} numbers that may be trained are left out of the rows, in {few}. Rows say nothing of what "
            "these learnt: select them, too (parameters=None), or know why not."
        )
    if still := [share for share in found if share.silent and share.silent == share.attributed]:
        few = ", ".join(share.group for share in still[:5]) + (", …" if len(still) > 5 else "")
        said.append(f"Nothing in {few} had a gradient in the samples that were compared. Does the model use it?")
    return said
