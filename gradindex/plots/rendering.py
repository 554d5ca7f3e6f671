"""Samples as people see them: what `Job.render` returns, or what the inputs themselves look like."""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.labels import as_array
from gradindex.data.source import Tree, is_ragged, take_rows
from gradindex.errors import missing
from gradindex.job import Job
from gradindex.runtime.log import log

_SHADED_BY = 64  # samples that fix the range of values of all pictures
_FEATURES = 64  # shown of a vector


@dataclass(frozen=True)
class Rendered:
    """A sample to look at.

    `value` is a picture (h, w) or (h, w, 3) float64 for kind ``'image'``, a string for ``'text'``, and a dict of
    names to numbers or strings for ``'table'``.
    """

    kind: str
    value: Any
    failed: bool = False
    """Whether `value` says why there is nothing to see."""


def as_rendered(value: object) -> Rendered:
    """Return what a renderer gave, or a sample itself, as one of the three kinds.

    Parameters
    ----------
    value
        A string; a mapping; a PIL image; an array or tensor shaped like a picture, (h, w), (h, w, 1), (1, h, w),
        (h, w, 3) or (3, h, w); or any other numbers, which become a table of the first 64.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    if isinstance(value, Rendered):
        return value
    if isinstance(value, str):
        return Rendered("text", printable(value))
    if isinstance(value, Mapping):
        return Rendered("table", {printable(str(name)): _entry(entry) for name, entry in value.items()})
    if hasattr(value, "convert") and hasattr(value, "mode"):  # a PIL image
        value = np.asarray(value.convert("L" if value.mode in ("1", "L", "I", "F") else "RGB"))
    array = as_array(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"Cannot show a {type(value).__name__}: a renderer returns a picture, a string or a dict "
            "(Job(..., render=lambda i: ...))."
        )
    picture = as_picture(array)
    if picture is not None:
        return Rendered("image", picture)
    flat = array.ravel()
    shown = {str(i): _entry(number) for i, number in enumerate(flat[:_FEATURES])}
    return Rendered("table", shown | ({"…": f"{len(flat) - _FEATURES:,} more"} if len(flat) > _FEATURES else {}))


def as_picture(array: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return an array as a picture (h, w) or (h, w, 3) float64; None if it is not shaped like one."""
    if array.dtype.kind not in "biuf" or 0 in array.shape:
        return None
    array = array.astype(np.float64)
    if array.ndim == 3:
        if array.shape[-1] not in (1, 3) and array.shape[0] in (1, 3):
            array = np.moveaxis(array, 0, -1)
        return array[..., 0] if array.shape[-1] == 1 else array if array.shape[-1] == 3 else None
    return array if array.ndim == 2 and array.shape[0] > 1 else None


class Renderer:
    """Shows the samples of a job, and queries that are like them.

    Parameters
    ----------
    job
        Its `render` is asked first; without one, inputs are shown as they are.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, i: int) -> Rendered | None:
        """Return training sample `i`; None where it has no form to show. Where making one fails, the sample says so."""
        try:
            value = None if self.job.render is None else self.job.render(int(i))
            x = None if self.job.render is not None else self.job.source.take(np.array([i], np.int64)).x
        except Exception as error:  # the user's function or dataset: one file that is gone is not to take down the rest
            log.warning("sample %d cannot be shown: %s: %s", i, type(error).__name__, error)
            return Rendered("text", f"sample {i} cannot be shown ({type(error).__name__})", failed=True)
        return self._plain(x, 0) if self.job.render is None else as_rendered(value)

    def query(self, x: Tree, row: int) -> Rendered | None:
        """Return row `row` of inputs `x` that are not in the dataset.

        `Job.render` takes positions in the dataset, so it cannot show them; where it makes pictures of as many numbers
        as an input has, the query is reshaped to such a picture.
        """
        if self.picture_shape is not None and not isinstance(x, dict | tuple | list):
            sample = as_array(x[row])
            if sample.size == int(np.prod(self.picture_shape)):
                return as_rendered(sample.reshape(self.picture_shape))
        return self._plain(x, row)

    @cached_property
    def picture_shape(self) -> tuple[int, ...] | None:
        """The shape of the pictures that `Job.render` makes; None if it makes none."""
        if self.job.render is None:
            return None
        shown = next((one for one in self._first if one is not None and not one.failed), None)
        return shown.value.shape if shown is not None and shown.kind == "image" else None

    @cached_property
    def shades(self) -> tuple[float, float]:
        """The values drawn black and white, the same for all pictures: the range of the first 64 samples."""
        return shade_range([one.value for one in self._first if one is not None and one.kind == "image"])

    @property
    def _first(self) -> Iterator[Rendered | None]:
        return map(self, range(min(_SHADED_BY, len(self.job.source))))

    def _plain(self, x: Tree, row: int) -> Rendered | None:
        if isinstance(x, dict | tuple):
            parts = x.items() if isinstance(x, dict) else enumerate(x)
            shown = {printable(str(name)): self._plain(part, row) for name, part in parts}
            pictures = [one for one in shown.values() if one is not None and one.kind in ("image", "text")]
            if len(pictures) == 1:
                return pictures[0]
            return Rendered("table", {name: _short(one) for name, one in shown.items()})
        sample = x[row] if is_ragged(x) or isinstance(x, list) else take_rows(x, slice(row, row + 1))[0]
        try:
            return as_rendered(sample)
        except (TypeError, ValueError):
            return Rendered("text", printable(str(sample)[:2000]))


def shade_range(pictures: list[NDArray[np.float64]]) -> tuple[float, float]:
    """Return the values to draw black and white: 0 to 1 or 0 to 255 for such pictures, else their range."""
    finite = [picture[np.isfinite(picture)] for picture in pictures]
    finite = [values for values in finite if values.size]
    low = min((float(values.min()) for values in finite), default=0.0)
    high = max((float(values.max()) for values in finite), default=1.0)
    if low >= 0:
        low, high = 0.0, 1.0 if 0.5 < high <= 1 else 255.0 if 128 < high <= 255 else high
    return low, high if high > low else low + 1


def png(picture: NDArray[np.float64], low: float, high: float) -> bytes:
    """Return a picture as the bytes of a PNG file, black at `low` and white at `high`; needs Pillow."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing("Pillow", "gradindex[serve]", "A picture") from error
    scaled = np.clip((np.nan_to_num(picture) - low) / (high - low), 0, 1)
    file = io.BytesIO()
    Image.fromarray((scaled * 255).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def data_uri(picture: NDArray[np.float64], low: float, high: float) -> str:
    """Return a picture as a ``data:`` address, which a page shows without asking for anything."""
    return "data:image/png;base64," + base64.b64encode(png(picture, low, high)).decode()


def printable(text: str) -> str:
    """Return a text that can be written as UTF-8: half a surrogate pair, of broken data, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _entry(value: object) -> Any:
    if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "size", None) == 1):
        value = value.item()
    return value if isinstance(value, bool | int | float) else printable(str(value))


def _short(shown: Rendered | None) -> str:
    if shown is None:
        return ""
    if shown.kind == "image":
        return f"picture {'×'.join(map(str, shown.value.shape[:2]))}"
    text = shown.value if shown.kind == "text" else ", ".join(str(value) for value in shown.value.values())
    return text if len(text) <= 200 else text[:199] + "…"
