"""A file that a user gives as a query, in the form of a training sample: a picture (PNG, JPEG) or an array (.npy).

Files are read by nothing that could run what they hold, and their headers are compared with limits before memory is
taken for what they claim.
"""

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.data.labels import as_array
from gradindex.data.names import Tree
from gradindex.data.source import is_ragged, take_rows
from gradindex.errors import missing
from gradindex.job import Job
from gradindex.plots.rendering import Renderer
from gradindex.serve.inputs import BadInput, parse_inputs

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 1 << 25
"""Of a picture that is given: as many as a camera makes."""
_COMPARED = 8  # samples whose pictures must be their inputs
_PNG, _JPEG, _NPY = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY"


@dataclass(frozen=True)
class PictureForm:
    """How pictures and inputs of a job go together.

    `shape` is that of a picture, (h, w) or (h, w, 3), whose values from `low` to `high` an input holds in their order,
    or with channels first. `why_not` says why pixels do not make an input; empty if they do.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    why_not: str


def picture_form(renderer: Renderer, x: Tree) -> PictureForm | None:
    """Return how pictures become inputs like the training inputs `x`; None where samples are no pictures."""
    shown = None if isinstance(x, dict | tuple | list) or is_ragged(x) else renderer.query(x, 0)
    if shown is None or shown.kind != "image":
        return None
    (low, high), shape = renderer.shades, shown.value.shape
    why = ""
    if not all(_is_input(renderer, x, i) for i in range(min(_COMPARED, len(as_array(x))))):
        why = "Samples are shown as pictures whose values are not those that the model takes"
    elif low < 0 and (low, high) != (-1, 1):
        why = f"The model takes values from {low:g} to {high:g}, which do not say what black and white are"
    return PictureForm(shape, low, high, f"{why}: give the job prepare=…, a function from a picture." if why else "")


def _is_input(renderer: Renderer, x: Tree, i: int) -> bool:
    """Whether the picture of sample i shows its input's values as they are."""
    shown, own = renderer(i), renderer.query(x, i)
    if shown is None or own is None or shown.kind != "image" or own.kind != "image":
        return False
    return shown.value.shape == own.value.shape and np.allclose(shown.value, own.value)


@dataclass(frozen=True)
class Read:
    """A file as a query: `pixels` (bytes, row by row, channels last) where the form says what they are, or `sample`."""

    pixels: bytes | None
    sample: object
    note: str


def read(data: bytes, job: Job, example: Tree, form: PictureForm | None) -> Read:
    """Return what a file holds in the form of a training sample.

    Parameters
    ----------
    data
        The file.
    job
        Whose `prepare` makes inputs of pictures, if it has one.
    example
        Some training inputs.
    form
        What `picture_form` returns.

    Raises
    ------
    BadInput
        If it is of another kind, damaged, too large, or no such input; the sentence says what is expected.
    """
    if not data:
        raise BadInput("The file is empty.")
    if data.startswith(_NPY):
        return Read(None, _as_json(parse_inputs([_npy(data, example)], example, "file")), "")
    if not data.startswith((_PNG, _JPEG)):
        wanted = "a PNG or JPEG picture or an array (.npy)" if form or job.prepare else "an array (.npy)"
        raise BadInput(f"The file is none that is known here: expected {wanted}.")
    if job.prepare is None and form is None:
        raise BadInput("Samples of this job are no pictures: expected an array (.npy).")
    if job.prepare is None and form is not None and form.why_not:
        raise BadInput(form.why_not)
    picture = _picture(data)
    if job.prepare is not None:
        try:
            made = job.prepare(picture)
        except Exception as error:  # the user's function
            raise BadInput(f"The job's prepare failed: {type(error).__name__}: {error}") from None
        try:
            return Read(None, _as_json(parse_inputs([_plain(made)], example, "prepare")), "")
        except BadInput as error:
            raise BadInput(f"{error} Let it scale the picture, and convert its colours: {picture.shape}.") from None
    assert form is not None
    height, width = form.shape[:2]
    note = (
        "" if picture.shape[:2] == (height, width) else f"Scaled from {picture.shape[1]} × {picture.shape[0]} pixels."
    )
    return Read(_resized(picture, form.shape).tobytes(), None, note)


def _picture(data: bytes) -> NDArray[np.uint8]:
    """Return a picture's pixels, (h, w) of a grey one, else (h, w, 3), as its camera was held."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise missing("Pillow", "gradindex[serve]", "A picture") from error
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            upright = ImageOps.exif_transpose(image)
            grey = upright.mode in ("1", "L", "LA", "I", "I;16", "F")
            return np.asarray(_eight_bits(upright).convert("L" if grey else "RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadInput(f"The picture has too many pixels: at most {MOST_PIXELS:,} are read.") from None
    except Exception:  # of a damaged file Pillow raises whatever its parts do
        raise BadInput("The picture cannot be read: its file is damaged or cut off.") from None


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """Return a picture of 16 bits a pixel with 8, which Pillow's own conversion would cut off at white."""
    from PIL import Image

    if image.mode not in ("I", "I;16"):
        return image
    return Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))


def _resized(pixels: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return pixels of a shape (h, w) or (h, w, 3)."""
    from PIL import Image

    image = Image.fromarray(pixels).convert("RGB" if len(shape) == 3 else "L")
    if image.size != (shape[1], shape[0]):
        image = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _npy(data: bytes, example: Tree) -> NDArray[np.generic]:
    """Return the array in a file of NumPy's; its first axis is left out where it alone is too many."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = headers[version](file)
    except Exception as error:  # of a damaged header NumPy raises whatever Python's parser does
        raise BadInput(f"The array cannot be read: {type(error).__name__}.") from None
    size = math.prod(shape)
    if dtype.kind not in "biuf" or any(axis < 0 for axis in shape):
        raise BadInput(f"The array holds {dtype}: expected numbers.")
    if len(data) - file.tell() != size * dtype.itemsize:
        raise BadInput(f"The array's file is damaged: {shape} numbers of type {dtype} are not what follows.")
    array = np.frombuffer(data, dtype, size, file.tell()).reshape(shape, order="F" if fortran else "C")
    one = example[0] if is_ragged(example) else None if isinstance(example, dict | tuple | list) else example[:1][0]
    return array[0] if one is not None and array.ndim == as_array(one).ndim + 1 and len(array) == 1 else array


def _plain(made: Tree) -> object:
    """Return what `prepare` made as a request holds it."""
    if isinstance(made, dict):
        return {str(name): _plain(part) for name, part in made.items()}
    if isinstance(made, tuple):
        return [_plain(part) for part in made]
    return made if isinstance(made, str) else as_array(made)


def _as_json(tree: Tree) -> object:
    """Return the one sample of inputs as JSON has it."""
    if isinstance(tree, dict):
        return {str(name): _as_json(part) for name, part in tree.items()}
    if isinstance(tree, tuple):
        return [_as_json(part) for part in tree]
    one = tree[0] if isinstance(tree, list) else take_rows(tree, slice(0, 1))[0]
    return one if isinstance(one, str) else as_array(one).tolist()


def base64_of(pixels: bytes | None) -> str | None:
    """Return pixels as a text."""
    return None if pixels is None else base64.urlsafe_b64encode(pixels).decode().rstrip("=")
