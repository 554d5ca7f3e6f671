"""How it is drawn: a page of picture cells and bar charts, in inches."""

import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradindex.errors import missing
from gradindex.plots.read import Chart, Picture, Side, class_name, short_number
from gradindex.store import location

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue and vermilion are told apart by every common kind of colour vision, and in print.
_SAME, _OTHER, NEUTRAL, _PALE = "#0072B2", "#D55E00", "#444444", "#C4C4C4"
# In inches: a picture; the space between two, and between groups; a line of text; head and foot of the figure.
_CELL, _GAP, _GROUP_GAP, _LINE, _HEAD, _FOOT = 1.0, 0.2, 0.44, 0.14, 0.3, 0.34
FONT = 8.0
_COLUMNS, _LINES = 22, 8  # of a text in a cell


def save_figure(figure: "Figure", path: Path, dpi: int = 120) -> None:
    """Draw a figure into a file of the kind that its name ends in (PNG without one), all of it or nothing."""
    file = io.BytesIO()
    path = path if path.suffix else path.with_suffix(".png")
    figure.savefig(file, format=path.suffix[1:], dpi=dpi)
    location.save(path, file.getvalue())


class Shades:
    """One range of values for all pictures of a figure, so that equal values look equal."""

    def __init__(self, pictures: Iterable[Picture | None], cmap: str) -> None:
        ranges = [(np.nanmin(p), np.nanmax(p)) for p in pictures if isinstance(p, np.ndarray)]
        low, high = min((r[0] for r in ranges), default=0.0), max((r[1] for r in ranges), default=1.0)
        if low >= 0:  # the usual ranges of pictures as they are; anything else from its least to its greatest
            low, high = 0.0, 1.0 if 0.5 < high <= 1 else 255.0 if 128 < high <= 255 else float(high) or 1.0
        self.low, self.high = low, high
        self.cmap = cmap

    def draw(self, axes: "Axes", picture: Picture) -> None:
        """Draw one picture, scaled over the range of all of them; or write a text as far as it fits."""
        if isinstance(picture, str):
            write(axes, picture)
            return
        if picture.ndim == 3:
            scaled = np.clip((picture - self.low) / (self.high - self.low), 0, 1)
            axes.imshow(scaled, interpolation="nearest")
        else:
            axes.imshow(picture, cmap=self.cmap, vmin=self.low, vmax=self.high, interpolation="nearest")


class Page:
    """Where things stand on a figure of `plot_similar`: groups of square cells, one row a query, no overlaps."""

    def __init__(self, rows: int, widths: Sequence[int], lines: int, figure: "Figure | None", make_figure: Any) -> None:
        self._above = _LINE * lines + 0.06
        self._pitch = self._above + _CELL + _LINE + 0.14
        spans = [width * _CELL + (width - 1) * _GAP for width in widths]
        starts = np.cumsum([_GAP, *(span + _GROUP_GAP for span in spans)])
        self._starts, self._spans = starts.tolist(), spans
        self._width = starts[-1] - _GROUP_GAP + _GAP
        self._height = _HEAD + rows * self._pitch + _FOOT
        self.figure = make_figure(figsize=(self._width, self._height)) if figure is None else figure
        box = self.figure.bbox
        scale = min(box.width / self._width, box.height / self._height) / self.figure.dpi
        self.font = FONT * float(scale)
        for start in self._starts[1:-1]:
            self._rule(start - _GROUP_GAP / 2)

    def cell(self, group: int, row: int, column: int, label: str) -> "Axes":
        """Return the axes of one picture or chart."""
        left = self._starts[group] + column * (_CELL + _GAP)
        bottom = self._height - _HEAD - row * self._pitch - self._above - _CELL
        place = (*self._fraction(left, bottom), *self._fraction(_CELL, _CELL))
        axes: Axes = self.figure.add_axes(place, label=label)
        return axes

    def title(self, group: int, text: str, detail: str = "") -> None:
        """Write the heading of a group of columns."""
        x, y = self._fraction(self._starts[group] + self._spans[group] / 2, self._height - 0.08)
        if detail and self._spans[group] > 2.9:
            text = f"{text} ({detail})"
        self.figure.text(x, y, text, ha="center", va="top", fontsize=self.font * 1.2, fontweight="bold")

    def legend(self, sides: Sequence[Side], own: Sequence[object]) -> None:
        """Explain the frames and marks that the figure has."""
        from matplotlib.patches import Patch

        places = [(side, *place) for side in sides for place in np.ndindex(*side.ids.shape)]
        used = {_frame(side.label(row, column), own[row]) for side, row, column in places}
        texts = {_SAME: "label of the query", _OTHER: "another label"}
        handles = [
            Patch(facecolor="none", edgecolor=colour, linestyle=style, linewidth=1.6, label=texts[colour])
            for colour, style in sorted(used)
            if colour in texts
        ]
        if any((~side.exact & (side.ids >= 0)).any() for side in sides):
            handles.append(Patch(facecolor="none", edgecolor="none", label="≈ estimated score"))
        if handles:
            self.figure.legend(
                handles=handles,
                loc="lower center",
                ncols=len(handles),
                frameon=False,
                fontsize=self.font,
                borderpad=0.2,
            )

    def _fraction(self, x: float, y: float) -> tuple[float, float]:
        return x / self._width, y / self._height

    def _rule(self, x: float) -> None:
        from matplotlib.lines import Line2D

        (x, top), (_, bottom) = self._fraction(x, self._height - 0.1), self._fraction(x, _FOOT)
        transform = getattr(self.figure, "transSubfigure", None)
        self.figure.add_artist(Line2D([x, x], [bottom, top], color=_PALE, linewidth=1, transform=transform))


def draw_side(
    page: Page, group: int, side: Side, captions: Sequence[str], own: Sequence[object], shades: Shades
) -> None:
    """Draw the neighbours of all queries on one side: pictures, captions, scores, frames."""
    columns = side.ids.shape[1]
    for row, column in np.ndindex(*side.ids.shape):
        place = row * columns + column
        axes = page.cell(group, row, column, f"{side.title.lower()} {row} {column}")
        picture = side.pictures[place]
        if picture is None:
            axes.set_box_aspect(1)
            axes.text(0.5, 0.5, "none", ha="center", va="center", fontsize=page.font, color=NEUTRAL)
            annotate(axes, "", "", page.font, _PALE, "dotted")
            continue
        shades.draw(axes, picture)
        mark = "" if side.exact[row, column] else "≈"
        score = mark + short_number(float(side.scores[row, column]))
        annotate(axes, captions[place], score, page.font, *_frame(side.label(row, column), own[row]), width=2.2)


def annotate(axes: "Axes", above: str, below: str, font: float, colour: str, style: str, width: float = 0.8) -> None:
    """Write above and below a cell and draw its frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(above, fontsize=font, pad=4, linespacing=1.1, parse_math=False)  # "$" in a class's name
    axes.set_xlabel(below, fontsize=font, labelpad=3)
    for spine in axes.spines.values():
        spine.set(color=colour, linestyle=style, linewidth=0.8 if colour == NEUTRAL else width)


def draw_bars(axes: "Axes", chart: Chart, row: int, names: Sequence[str] | None, named: bool) -> None:
    """Draw the mean scores of one query by class, its own class marked."""
    classes, means = chart.classes[row], chart.means[row]
    own = classes == chart.own[row] if chart.own[row] is not None else np.zeros(len(classes), bool)
    places = np.arange(len(classes))
    axes.barh(places, means, height=0.78, color=np.where(own, _SAME, _PALE))
    axes.axvline(0, color=NEUTRAL, linewidth=0.6)
    for place in np.flatnonzero(own & ~np.isnan(means)):
        value, side = float(means[place]), -1 if means[place] < 0 else 1
        axes.annotate(
            short_number(value),
            (value, place),
            (2 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=FONT - 1,
            color=_SAME,
            fontweight="bold",
        )
    axes.set_yticks(places, [class_name(names, c) for c in classes] if named else [""] * len(places), parse_math=False)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xlim(*chart.limits[row])
    axes.tick_params(labelsize=FONT - 1, length=0, axis="y", pad=2)
    axes.tick_params(labelsize=FONT - 1, length=2, axis="x", pad=2)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if named:
        for label, bold in zip(axes.get_yticklabels(), own, strict=True):
            label.set_fontweight("bold" if bold else "normal")


def _frame(label: object, own: object) -> tuple[str, str]:
    """Return colour and line style of the frame of a sample with `label` for a query of class `own`."""
    if label is None or own is None:
        return NEUTRAL, "solid"
    return (_SAME, "solid") if label == own else (_OTHER, "dashed")


def write(axes: "Axes", text: str) -> None:
    """Write a text into a cell, in lines of 22 characters, eight of them."""
    axes.set_box_aspect(1)
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, _COLUMNS) or [""]]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][: _COLUMNS - 1] + "…"]
    size = axes.get_window_extent().width / axes.get_figure(root=True).dpi * 72 / (_COLUMNS * 0.66)  # type: ignore[union-attr]
    axes.text(
        0.04,
        0.96,
        "\n".join(lines),
        transform=axes.transAxes,
        ha="left",
        va="top",
        fontsize=size,
        family="monospace",
        clip_on=True,
        parse_math=False,
    )


def load_figure_class() -> "type[Figure]":
    """Import matplotlib's Figure; raises ImportError saying what to type."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing("matplotlib", "gradindex[plots]", "Drawing") from error
    return Figure
