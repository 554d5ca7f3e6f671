"""How an index is built: what belongs together in a call of `gradindex.build`."""

from dataclasses import dataclass, field
from numbers import Integral

from gradindex.data.names import Tree
from gradindex.defaults import INDEX, SEED, WHITENED_DIMS, WHITENED_LANDMARKS
from gradindex.sketch import Landmark, Sketch
from gradindex.sketch.hashing import check_seed
from gradindex.store.codes import RowType

ROW_TYPES = tuple(map(str, RowType))
WHITENED_SKETCH = Landmark(landmarks=WHITENED_LANDMARKS, dims=WHITENED_DIMS, draw="norm")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How `gradindex.build` makes an index of a job's rows.

    Parameters
    ----------
    sketch
        The projection; None: ``CountSketch(1024)``, and none for a metric's rows of at most 1,024 numbers.
    index
        ``'auto'`` (exact up to 100,000 rows, then ``IVF…,SQ8`` on the folded sketch) or a FAISS factory string.
    index_memory
        Bytes that an index chosen by ``'auto'`` may take, see `gradindex.choose_index`; None: as many as it likes.
    seed
        Seed of the projection and of FAISS's training sample.
    batch_size
        Samples at once; None finds a size that takes about 1 GiB, at most 128 (512 of small samples).
    shard_rows
        Rows of a shard; None: as many as 128 MiB hold.
    row_type
        How the numbers of a row are kept: ``'int8'``, 8 bits and a scale of each row; ``'float16'``; or ``'int4'``, 4
        bits, which cost some recall. None: 8 bits of rows that are random projections, whose own error is far above
        that of the rounding, and float16 of all others: of landmarks, since every proof bounds what was rounded, and of
        rows that nothing was projected away of.
    overwrite
        Replace an index that is already there. The new one is built beside it (in ``.<name>.building``) and takes
        its place when finished, so that a build that fails or is killed leaves the old one as it was.
    progress
        Show a progress bar; None: only on a terminal.
    whiten
        Whiten the rows when they are there, see `gradindex.Index.whiten`, for the kernels ``white_dot`` and
        ``white_cos``, which predict what removing samples would do. The projection is then, for None, landmarks drawn
        by the norms of their gradients (`WHITENED_SKETCH`), whose rows do so best and take longer to make.
    calibrate
        Held-out queries, inputs and labels (None: predicted ones), that ``explain(recall=…)`` is calibrated on when the
        index is there, see `gradindex.Index.calibrate`.

    Raises
    ------
    ValueError
        If `batch_size` or `shard_rows` is no positive integer, `seed` no integer in [0, 2⁶⁴), `row_type` none of these,
        or `calibrate` no tuple of two.
    """

    sketch: Sketch | None = None
    index: str = INDEX
    index_memory: int | None = None
    seed: int = SEED
    batch_size: int | None = None
    shard_rows: int | None = None
    row_type: str | None = None
    overwrite: bool = False
    progress: bool | None = None
    whiten: bool = False
    calibrate: tuple[Tree, Tree] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_rows"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        if self.row_type is not None and self.row_type not in ROW_TYPES:
            raise ValueError(f"row_type must be one of {', '.join(map(repr, ROW_TYPES))}, got {self.row_type!r}.")
        if self.calibrate is not None and not (isinstance(self.calibrate, tuple) and len(self.calibrate) == 2):
            raise ValueError(
                "calibrate takes (x, y), a tuple of held-out inputs and labels, or (x, None) for predicted labels."
            )
        check_seed(self.seed)
