"""Options that choose a sketch, with the words of `gradindex.sketch`."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from gradindex.defaults import LANDMARK_DIMS, LANDMARK_RESIDUAL, LANDMARKS, SKETCH_DIM

if TYPE_CHECKING:
    from gradindex.sketch import Sketch


class SketchName(StrEnum):
    """Kinds of sketches, as `gradindex.sketch` calls them."""

    COUNTSKETCH = "countsketch"
    GAUSSIAN = "gaussian"
    RADEMACHER = "rademacher"
    SJLT = "sjlt"
    IDENTITY = "identity"
    LANDMARK = "landmark"


SketchOption = Annotated[
    str | None,
    typer.Option(
        "--sketch",
        metavar=f"[{'|'.join(SketchName)}]",
        autocompletion=lambda: list(SketchName),
        help="How gradients are compressed; or a plugin's kind.  [default: countsketch; landmark if its options are]",
    ),
]
Dim = Annotated[
    int | None,
    typer.Option(min=1, help=f"Width of the sketch, all but landmark and identity.  [default: {SKETCH_DIM}]"),
]
Landmarks = Annotated[int | None, typer.Option(min=1, help=f"With landmark: training samples.  [default: {LANDMARKS}]")]
Dims = Annotated[int | None, typer.Option(min=1, help=f"With landmark: coordinates kept.  [default: {LANDMARK_DIMS}]")]
Residual = Annotated[
    int | None,
    typer.Option(min=0, help=f"With landmark: numbers for what coordinates leave out.  [default: {LANDMARK_RESIDUAL}]"),
]


def sketch_of(
    kind: str | None, dim: int | None, landmarks: int | None, dims: int | None, residual: int | None
) -> "Sketch | None":
    """Return the sketch that options choose; None: the default.

    Raises
    ------
    BadParameter
        If they do not go together.
    """
    asked = {"landmarks": landmarks, "dims": dims, "residual": residual}
    own = {name: value for name, value in asked.items() if value is not None}
    kind = kind or (SketchName.LANDMARK if own else SketchName.COUNTSKETCH if dim is not None else None)
    if own and kind != SketchName.LANDMARK:
        raise typer.BadParameter(f"--{next(iter(own))} is for --sketch landmark, not {kind}.")
    if dim is not None and kind in (SketchName.LANDMARK, SketchName.IDENTITY):
        raise typer.BadParameter(
            "The width of landmark rows follows from --dims and --residual."
            if kind == SketchName.LANDMARK
            else "An identity keeps the whole gradient: it has no --dim."
        )
    from gradindex.sketch import from_json

    if kind is None:
        return None
    try:
        return from_json({"kind": str(kind), **own, **({} if dim is None else {"dim": dim})})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
