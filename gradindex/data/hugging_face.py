"""A Hugging Face `datasets.Dataset` as a job's dataset."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradindex.data.samples import as_columns
from gradindex.data.source import Batch, Ids, Source

if TYPE_CHECKING:
    import datasets

LABELS = "labels", "label"


class _Dataset(Source):
    """A ``datasets.Dataset``, read by named columns; see `source`."""

    def __init__(self, dataset: "datasets.Dataset", x: str | Sequence[str] | None = None, y: str | None = None) -> None:
        names = list(dataset.column_names)
        self.y = label_column(names, y)
        rest = [name for name in names if name != self.y]
        self.x = x if isinstance(x, str) else list(rest if x is None else x)
        if isinstance(self.x, list) and x is None and len(self.x) == 1:
            self.x = self.x[0]
        wanted = [self.x] if isinstance(self.x, str) else self.x
        if missing := [name for name in (*wanted, self.y) if name not in names]:
            raise ValueError(f"There is no column {missing[0]!r}; the dataset has {names}.")
        self._dataset = dataset if dataset.format["type"] is not None else dataset.with_format("numpy")

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions."""
        self._check(ids)
        found = self._dataset[ids.tolist()]
        x = found[self.x] if isinstance(self.x, str) else {name: found[name] for name in self.x}
        return Batch(ids, as_columns(x, "X"), as_columns(found[self.y], "Y"))


def source(dataset: "datasets.Dataset", x: str | Sequence[str] | None = None, y: str | None = None) -> Source:
    """Return a ``datasets.Dataset`` as the dataset of a `gradindex.Job`.

    Columns come as NumPy arrays, unless the dataset has a format or a transform of its own (``with_format``,
    ``with_transform``). A job takes the dataset as it is, too, if its labels are in a column ``"labels"`` or
    ``"label"`` and all others are the model's inputs.

    Parameters
    ----------
    dataset
        The dataset.
    x
        The column of the inputs, or several for a model that takes a dict. None: all but the labels.
    y
        The column of the labels. None: ``"labels"`` or ``"label"``.

    Raises
    ------
    ValueError
        If there is no such column.
    """
    return _Dataset(dataset, x, y)


def label_column(names: Sequence[str], y: str | None = None) -> str:
    """Return the column of the labels: `y`, or what is called so; raises ValueError if there is none."""
    found = y if y is not None else next((name for name in LABELS if name in names), None)
    if found is None:
        raise ValueError(f"Which column holds the labels? Give y, one of {list(names)}.")
    return found


def is_dataset(value: object) -> bool:
    """Whether `value` is a ``datasets.Dataset`` (which is not imported to find out)."""
    kind = type(value)
    return kind.__module__.partition(".")[0] == "datasets" and kind.__name__ == "Dataset"
