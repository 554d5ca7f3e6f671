"""A retraining bank on disk: ``bank.json``, the members of its subsets, and one sealed file for each trained model.

A model's file is written once, whole, by an exclusive publish (`gradindex.store.publish`), so a bank that was stopped
at any moment holds all models that were finished, and several processes may fill one bank.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.store import location
from gradindex.store.location import Location
from gradindex.store.manifest import FileEntry, keep, publish, read_json, seal

HEADER, FORMAT, VERSION = "bank.json", "gradindex retraining bank", 1
FOLDERS = MODELS, REMOVALS = "models", "removals"
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Header:
    """What a bank is a bank of.

    `n` training samples; `subsets` of `size` samples each, with `models` trained on each of them; `queries` m;
    `queries_sha256` of all queries and `dataset_sha256` of up to 16 training samples (None: no dataset was given).
    """

    n: int
    subsets: int
    size: int
    models: int
    seed: int
    queries: int
    queries_sha256: str
    dataset_sha256: str | None

    @property
    def seal(self) -> str:
        """Hash of the header, by which model files name the bank they belong to."""
        return seal(dataclasses.asdict(self))

    def compare(self, wanted: "Header", path: Location) -> None:
        """Raise MismatchError, which names the difference, if another bank is wanted."""
        for name, title in _TITLES.items():
            there, given = getattr(self, name), getattr(wanted, name)
            if there != given:
                said = "" if name.endswith("sha256") else f" ({there}, not {given})"
                raise MismatchError(
                    f"The bank at {path} was begun with other {title}{said}. Give those, or another path."
                )


_TITLES = {
    "n": "numbers of training samples",
    "queries": "numbers of queries",
    "queries_sha256": "queries",
    "dataset_sha256": "training samples",
    "subsets": "numbers of subsets",
    "size": "sizes of subsets",
    "models": "numbers of models",
    "seed": "seeds",
}


def begin(path: Location, header: Header, draw: Callable[[Header], Masks]) -> Masks:
    """Write the header and the members that `draw` gives, unless they are there; return the members (subsets, n).

    Raises
    ------
    MismatchError
        If a bank with another header is there.
    """
    if not location.exists(path / HEADER):
        location.make_directory(path / MODELS)
        location.make_directory(path / REMOVALS)
        with location.temporary(path) as part:
            with part.open("wb") as file:
                np.save(file, np.packbits(draw(header), axis=1), allow_pickle=False)
            entry = keep(part, path, "members.<tag>.npy")
        value = {"format": FORMAT, "version": VERSION, "bank": dataclasses.asdict(header), "members": vars(entry)}
        with contextlib.suppress(FileExistsError):  # another process began the same moment
            publish(path / HEADER, value)
    there, masks = read(path)
    there.compare(header, path)
    return masks


def read(path: Location) -> tuple[Header, Masks]:
    """Return a bank's header and its subsets' members (subsets, n).

    Raises
    ------
    FileNotFoundError
        If there is no bank.
    DamagedIndexError
        If its files are not what was written.
    """
    if not location.exists(path / HEADER):
        raise FileNotFoundError(f"There is no retraining bank at {path}.")
    saved = read_json(path / HEADER)
    if saved.get("format") != FORMAT or saved.get("version") != VERSION:
        raise DamagedIndexError(f"{path / HEADER} is no retraining bank of version {VERSION}.")
    try:
        header, entry = Header(**saved["bank"]), FileEntry(**saved["members"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedIndexError(f"{path / HEADER} is damaged: {error}") from None
    packed = np.load(entry.local(path), allow_pickle=False)
    masks = np.unpackbits(packed, axis=1, count=header.n).astype(bool)
    if masks.shape != (header.subsets, header.n):
        raise DamagedIndexError(f"{path / entry.name} is damaged: expected {header.subsets} subsets of {header.n}.")
    return header, masks


@dataclass(frozen=True)
class Trained:
    """What is kept of one trained model.

    `losses` of the m queries, `predictions` their predicted classes where outputs are classes; or, of a model that
    failed, the `error` and neither.
    """

    seed: int
    losses: list[float] | None
    predictions: list[int] | None
    error: str | None
    seconds: float


def save_model(path: Location, name: str, bank: str, model: Trained, *, replace: bool = False) -> None:
    """Publish a model's file; what another process has published stands, unless `replace`."""
    with contextlib.suppress(FileExistsError):
        publish(path / name, {"bank": bank, "model": dataclasses.asdict(model)}, replace=replace)


def read_model(path: Location, name: str, bank: str, queries: int) -> Trained:
    """Return what is kept of a model.

    Raises
    ------
    DamagedIndexError
        If the file is missing, damaged, or of another bank.
    """
    saved = read_json(path / name)
    try:
        model = Trained(**saved["model"])
    except (KeyError, TypeError) as error:
        raise DamagedIndexError(f"{path / name} is damaged: {error}") from None
    lengths = {len(values) for values in (model.losses, model.predictions) if values is not None}
    if saved.get("bank") != bank or lengths - {queries} or (model.losses is None) == (model.error is None):
        raise DamagedIndexError(f"{path / name} is not of this bank.")
    return model


def published(path: Location, folder: str) -> set[str]:
    """Return the names of the models' files in a folder, as `save_model` takes them."""
    found = location.listing(path / folder)
    return {f"{folder}/{one.name}" for one in found if one.name.endswith(".json") and not location.is_temporary(one)}


def losses_of(models: Sequence[Trained], queries: int) -> NDArray[np.float64]:
    """Return losses (models, queries) float64, a row of NaN for each model that failed."""
    missing = [float("nan")] * queries
    return np.array([missing if one.losses is None else one.losses for one in models], np.float64).reshape(-1, queries)


def predictions_of(models: Sequence[Trained], queries: int) -> NDArray[np.int64] | None:
    """Return predicted classes (models, queries), −1 for models that failed; None if a model has none."""
    if any(one.predictions is None and one.error is None for one in models):
        return None
    missing = [-1] * queries
    rows: Iterator[Any] = (one.predictions or missing for one in models)
    return np.array(list(rows), np.int64).reshape(-1, queries)
