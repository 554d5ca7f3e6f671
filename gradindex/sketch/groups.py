"""A sketch made of a block for each group of parameters, so that a query may ask about some groups of a store alone.

The blocks lie side by side, so the row as a whole is a sketch of the whole gradient like any other, and one block is
one of the group's part of it. What the blocks of two rows have as inner product estimates that of the groups' parts,
and the length of a block estimates the part's norm.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gradindex.defaults import SKETCH_DIM
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.sketch.base import Sketch, from_json
from gradindex.sketch.countsketch import CountSketch
from gradindex.sketch.dense import Gaussian, Rademacher
from gradindex.sketch.hashing import check_seed
from gradindex.sketch.sjlt import SJLT

BLOCKS, OTHERS = "blocks", "others"
"""Groups by the number in parameters' names, as of a transformer's layers; and the group of what no other has."""
_LAYER = re.compile(r"^(.*?[./_](\d+))[./_]")


@dataclass(frozen=True, init=False)
class Groups(Sketch):
    """A sketch of `dim` numbers that are shared out among groups of parameters, for ``explain(groups=…)``.

    Parameters
    ----------
    groups
        Names of groups and regular expressions, searched for in parameters' names; a parameter belongs to the first
        that fits, and to ``"others"`` if none does. ``"blocks"``: a group for each layer, by the first number in the
        names, such as ``"transformer.h.3"``.
    sketch
        What sketches each group; its `dim` is shared out evenly. None: `CountSketch` of `dim`.
    dim
        Numbers of a row, where no `sketch` is given.

    Raises
    ------
    ValueError
        If there are no groups, a name is ``"others"``, `groups` is another word than ``"blocks"``, or `sketch` has no
        numbers to share out.
    TypeError
        If `groups` is no mapping of names to regular expressions.
    """

    groups: str | Mapping[str, str] = BLOCKS
    sketch: Sketch = field(default_factory=CountSketch)
    kind: ClassVar[str] = "groups"

    def __init__(
        self,
        groups: str | Mapping[str, str],
        sketch: Sketch | dict[str, object] | None = None,
        dim: int | None = None,
    ) -> None:
        inner = from_json(sketch) if isinstance(sketch, dict) else sketch or CountSketch(dim or SKETCH_DIM)
        if not isinstance(inner, CountSketch | SJLT | Gaussian | Rademacher):
            raise ValueError(f"Groups shares out a CountSketch's, SJLT's, Gaussian's or Rademacher's dim, got {inner}.")
        if isinstance(groups, str) and groups != BLOCKS:
            raise ValueError(f"groups must be {BLOCKS!r} or a mapping of names to regular expressions, got {groups!r}.")
        if not isinstance(groups, str):
            _check(groups)
        object.__setattr__(self, "groups", groups if isinstance(groups, str) else dict(groups))
        object.__setattr__(self, "sketch", inner)
        object.__setattr__(self, "dim", inner.dim)
        super().__post_init__()

    def __hash__(self) -> int:
        return hash((str(self.groups), self.sketch))

    def bind(self, parameters: Sequence[Parameter], seed: int) -> "GroupsProjector":
        """Return the projection for these parameters and seed.

        Raises
        ------
        ValueError
            If a group has no parameters, or there are more groups than numbers.
        """
        return GroupsProjector(self, parameters, check_seed(seed))

    def to_json(self) -> dict[str, object]:
        """Return the options as JSON-ready values."""
        return {"kind": self.kind, "dim": self.dim, "groups": self.groups, "sketch": self.sketch.to_json()}


class GroupsProjector(Projector):
    """A projector for each group of parameters, whose numbers lie side by side."""

    def __init__(self, options: Groups, parameters: Sequence[Parameter], seed: int) -> None:
        self.dim = options.dim
        self.members = members(options.groups, [parameter.name for parameter in parameters])
        """Names of the parameters of each group."""
        if len(self.members) > self.dim:
            raise ValueError(
                f"There are {len(self.members)} groups for {self.dim} numbers: give more, or fewer groups."
            )
        ends = np.arange(len(self.members) + 1) * self.dim // len(self.members)
        self.places = {name: slice(int(ends[i]), int(ends[i + 1])) for i, name in enumerate(self.members)}
        """The numbers of each group in a row."""
        self._group = {name: group for group, names in self.members.items() for name in names}
        saved = options.sketch.to_json()
        self._projectors = {
            group: from_json({**saved, "dim": place.stop - place.start}).bind(
                [parameter for parameter in parameters if self._group[parameter.name] == group], seed
            )
            for group, place in self.places.items()
        }

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add the sketch of formed gradients (b, size) to `out` (b, dim), in place."""
        self.add_measured(out, parameter, gradients)

    def add_measured(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> NDArray[np.float64]:
        """Do `add`, and return the gradients' squared norms (b,)."""
        place, projector = self._of(parameter)
        part = np.zeros((len(out), projector.dim), np.float32)
        squares = projector.add_measured(part, parameter, gradients)
        out[:, place] += part
        return squares

    def add_factors(
        self, out: NDArray[np.float32], parameter: Parameter, rows: NDArray[np.generic], columns: Floats
    ) -> None:
        """Add the sketch of Σ_t r_t c_tᵀ to `out`."""
        place, projector = self._of(parameter)
        part = np.zeros((len(out), projector.dim), np.float32)
        projector.add_factors(part, parameter, rows, columns)
        out[:, place] += part

    def cost(self, parameter: Parameter) -> float:
        """Return about how many nanoseconds `add` takes for one sample."""
        return self._of(parameter)[1].cost(parameter)

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return about how many nanoseconds `add_factors` takes for one sample of T positions."""
        return self._of(parameter)[1].factor_cost(parameter, positions, touched)

    def weights(self, groups: Mapping[str, float]) -> tuple[NDArray[np.float32], dict[str, float]]:
        """Return by what the numbers of a row (dim,), and the parameters by name, count for a query; 0 if not named.

        Raises
        ------
        ValueError
            If a group is unknown.
        """
        if unknown := sorted(groups.keys() - self.members.keys()):
            raise ValueError(f"There is no group {unknown[0]!r}. Expected some of: {', '.join(self.members)}.")
        numbers = np.zeros(self.dim, np.float32)
        for group, weight in groups.items():
            numbers[self.places[group]] = weight
        return numbers, {name: groups.get(group, 0.0) for name, group in self._group.items()}

    def _of(self, parameter: Parameter) -> tuple[slice, Projector]:
        group = self._group[parameter.name]
        return self.places[group], self._projectors[group]


def members(groups: str | Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the parameters of each group, in the order of the groups; raises ValueError if one has none."""
    if isinstance(groups, str):
        found: dict[str, list[str]] = {}
        for name in names:
            layer = _LAYER.match(name)
            found.setdefault(OTHERS if layer is None else layer[1], []).append(name)
        return found
    found = {group: [] for group in (*groups, OTHERS)}
    for name in names:
        found[next((group for group, form in groups.items() if re.search(form, name)), OTHERS)].append(name)
    for group, form in groups.items():
        if not found[group]:
            raise ValueError(
                f"The group {group!r} ({form!r}) has none of the parameters (each belongs to the first that fits): "
                f"{', '.join(names)}."
            )
    return {group: some for group, some in found.items() if some}


def _check(groups: Mapping[str, str]) -> None:
    if not isinstance(groups, Mapping) or not all(isinstance(one, str) for pair in groups.items() for one in pair):
        raise TypeError(f"groups must be a mapping of names to regular expressions, or {BLOCKS!r}, got {groups!r}.")
    if not groups or OTHERS in groups:
        raise ValueError(f"groups must have at least one name, and none may be {OTHERS!r}, got {sorted(groups)}.")
    for form in groups.values():
        re.compile(form)
