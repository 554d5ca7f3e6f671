"""The interface of a sketch: frozen options that bind to parameters and a seed."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gradindex.defaults import SKETCH_DIM
from gradindex.gradients.parameter import Parameter
from gradindex.gradients.projector import Projector
from gradindex.runtime import plugins

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
        if cls.__name__.startswith("_"):
            return
        other = _KINDS.get(cls.kind)
        if other is not None and other.__module__ != cls.__module__:
            raise TypeError(
                f"{cls.__module__}.{cls.__name__} has the kind {cls.kind!r} of {other.__module__}.{other.__name__}."
            )
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

    A kind that gradindex has not is looked for in the entry points ``gradindex.sketches`` of installed packages.

    Raises
    ------
    ValueError
        If its kind or an option is unknown, or several packages have it.
    ImportError, TypeError
        If the package that has the kind cannot be imported, or has something else under its name.
    """
    options = dict(saved)
    kind = options.pop("kind", None)
    known = _class_of(kind)
    if known is None:
        kinds = sorted({*_KINDS, *plugins.names(plugins.SKETCHES)})
        raise ValueError(f"Unknown sketch {kind!r}. Expected one of: {' | '.join(map(repr, kinds))}.")
    try:
        return known(**options)
    except TypeError as error:
        raise ValueError(f"Bad options for sketch {kind!r}: {error}.") from None


def bounds_cosine(saved: dict[str, object]) -> bool:
    """Whether rows of the sketch whose `to_json` is `saved` bound cosines; not so for kinds that are unknown here."""
    known = _class_of(saved.get("kind"))
    return known is not None and known.bounds_cosine


def blocks(saved: dict[str, Any], width: int) -> tuple[int, ...]:
    """Return `Sketch.blocks` of the sketch whose `to_json` is `saved`; one of all numbers for rows made elsewhere."""
    return (width,) if _class_of(saved.get("kind")) is None else from_json(saved).blocks(width)


def _class_of(kind: object) -> type[Sketch] | None:
    """Return the class of a kind, of gradindex or of a plugin; None if there is none."""
    if kind in _KINDS or not isinstance(kind, str):
        return _KINDS.get(str(kind))
    plugin = plugins.load(plugins.SKETCHES, kind)
    if plugin is None:
        return None
    value = plugin.value
    if not (isinstance(value, type) and issubclass(value, Sketch)) or getattr(value, "kind", None) != kind:
        raise TypeError(f"{plugin.described} is no subclass of gradindex.sketch.Sketch with that kind: {value!r}.")
    return value
