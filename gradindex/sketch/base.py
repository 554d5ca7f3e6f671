"""The interface of a sketch: frozen options that bind to parameters and a seed."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradindex.defaults import SKETCH_DIM
from gradindex.gradients.parameter import Parameter
from gradindex.gradients.projector import Projector

_KINDS: dict[str, type["Sketch"]] = {}


@dataclass(frozen=True)
class Sketch(ABC):
    """A linear map of gradients to `dim` numbers with E⟨Sx, Sy⟩ = ⟨x, y⟩ over seeds."""

    dim: int = SKETCH_DIM
    kind: ClassVar[str]
    foldable: ClassVar[bool] = False
    """Whether adding up buckets modulo dim/2 gives the sketch of half the size."""
    is_random: ClassVar[bool] = False
    """Whether inner products of rows are estimates, off by some 1/√dim of the norms' product."""
    bounds_cosine: ClassVar[bool] = False
    """Whether two rows bound the cosine of their gradients, so that answers can be proved."""

    def blocks(self, width: int) -> tuple[int, ...]:
        """Return how many of a row's `width` numbers, from the first on, are linear in the gradient of unit norm.

        Block by block: those of one block are of the same checkpoint. What follows them is not linear.
        """
        return (width,)

    def __init_subclass__(cls) -> None:
        if not cls.__name__.startswith("_"):
            _KINDS[cls.kind] = cls

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or self.dim < 1:
            raise ValueError(f"dim must be a positive integer, got {self.dim!r}.")

    @abstractmethod
    def bind(self, parameters: Sequence[Parameter], seed: int) -> Projector:
        """Return the projection of gradients with respect to `parameters`, the same for the same `seed`."""

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON-ready values."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def from_json(saved: dict[str, Any]) -> Sketch:
    """Return the sketch whose `to_json` is `saved`.

    Raises
    ------
    ValueError
        If its kind or an option is unknown.
    """
    options = dict(saved)
    kind = options.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"Unknown sketch {kind!r}. Expected one of: {' | '.join(map(repr, sorted(_KINDS)))}.")
    try:
        return _KINDS[kind](**options)
    except TypeError as error:
        raise ValueError(f"Bad options for sketch {kind!r}: {error}.") from None


def bounds_cosine(saved: dict[str, object]) -> bool:
    """Whether rows of the sketch whose `to_json` is `saved` bound cosines; not so for kinds that are unknown here."""
    kind = _KINDS.get(str(saved.get("kind")))
    return kind is not None and kind.bounds_cosine


def blocks(saved: dict[str, Any], width: int) -> tuple[int, ...]:
    """Return `Sketch.blocks` of the sketch whose `to_json` is `saved`; one of all numbers for rows made elsewhere."""
    return from_json(saved).blocks(width) if saved.get("kind") in _KINDS else (width,)
