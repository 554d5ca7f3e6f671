"""The whitened rows of a store, open: what the kernels `white_dot` and `white_cos` search."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gradindex.ann import files as index_files
from gradindex.ann.searcher import Searcher
from gradindex.ann.selection import Selection
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.search.row_search import LocalRows
from gradindex.sketch.whitening import Spectrum, Whitener
from gradindex.store import Store, side_files
from gradindex.store.codes import BITS, RowType
from gradindex.store.layout import WHITENED_ROWS
from gradindex.store.location import Location, exists, listing
from gradindex.store.store import HEADER

_ASSET = "whitening"


@dataclass(frozen=True)
class Whitened:
    """Whitened rows of one state of a store, with their FAISS index.

    Parameters
    ----------
    parent
        The store that they were made from.
    store
        Their own: unit-norm rows of 8 or 4 bits a number, and norms ‖w‖. Ids are those of `parent`.
    searcher
        Its FAISS index.
    spectrum
        The second moment that they were whitened by.
    dampings
        λ, in the unit of squared gradients; of every checkpoint, if there are several.
    """

    parent: Store
    store: Store
    searcher: Searcher
    spectrum: Spectrum
    dampings: tuple[float, ...]

    @classmethod
    def open(cls, parent: Store) -> Self:
        """Open the whitened rows of a store.

        Raises
        ------
        ValueError
            If it has none.
        MismatchError
            If they are those of another store.
        DamagedIndexError
            If they are damaged.
        """
        place = place_of(parent)
        if not finished(parent):
            raise ValueError(
                f"{parent.path} has no whitened rows: make them by index.whiten() or the command gradindex whiten."
            )
        store, searcher = index_files.open_last(place)
        if store.header.sketch.get("of") != parent.header.seal:
            raise MismatchError(f"{place} holds the whitened rows of another store: whiten this one again.")
        return cls(parent, store, searcher, *_read(store))

    @cached_property
    def whitener(self) -> Whitener:
        """What made the rows."""
        return self.spectrum.whitener(self.dampings, self.store.header.dim)

    @property
    def damping(self) -> float:
        """λ, in the unit of squared gradients; its mean over the checkpoints, if there are several."""
        return float(np.mean(self.dampings))

    @property
    def moment_rows(self) -> int:
        """Rows that the second moment was taken from."""
        return self.spectrum.rows

    @property
    def rows(self) -> LocalRows:
        """The rows, as searches take them."""
        return LocalRows(self.store, self.searcher)

    @property
    def added(self) -> int:
        """Rows that came after the second moment was taken."""
        return max(0, self.store.state.positions - self.store.header.rows)

    @cached_property
    def missing(self) -> int:
        """Samples of the store that are not whitened yet: the process that added them did not come to it."""
        ids = self.parent.ids if self.parent.alive is None else self.parent.ids[self.parent.alive]
        return 0 if self._same else int((~self.store.holds(ids)).sum())

    def selection(self, wanted: Selection | None) -> Selection | None:
        """Return the whitened rows of those that are `wanted` of the store's; None for all.

        Raises
        ------
        ValueError
            If none of them is whitened.
        """
        if wanted is None and self._same:
            return None
        if self._same and wanted is not None:
            return wanted
        ids = self.parent.ids if wanted is None else self.parent.ids[wanted.mask]
        mask = np.isin(self.store.ids, ids)
        if not mask.any():
            raise ValueError("None of the samples asked for is whitened: whiten the index again.")
        return None if mask.all() else Selection(mask, everywhere=wanted is None or wanted.everywhere)

    @cached_property
    def _same(self) -> bool:
        return np.array_equal(self.store.ids, self.parent.ids)

    def refuse_missing(self) -> None:
        """Raise ValueError if some samples of the store are not whitened yet."""
        if self.missing:
            raise ValueError(f"{self.missing} samples are not whitened yet: whiten the index again.")

    def to_json(self) -> dict[str, int | float | str]:
        """Return what there is to know of them, JSON-ready."""
        return {
            "dims": self.store.header.dim,
            "bits": BITS[RowType(self.store.header.row_type)],
            "damping": self.damping,
            "moment_rows": self.moment_rows,
            "largest_share": self.spectrum.largest_share,
            "added": self.added,
            "missing": self.missing,
            "index": self.searcher.factory,
            "store_bytes": self.store.bytes,
            "index_bytes": self.searcher.bytes,
        }

    def check(self) -> None:
        """Compare the sha256 of every file; raises DamagedIndexError."""
        self.store.check()
        index_files.check(self.store)
        index_files.check_extra(self.store)


def place_of(parent: Store) -> Location:
    """Return where the whitened rows of a store lie, if it has some."""
    return parent.path / WHITENED_ROWS


def finished(parent: Store) -> bool:
    """Whether a store has whitened rows, with their FAISS index, which is written last."""
    place = place_of(parent)
    manifests = (one for one in listing(place / index_files.DIRECTORY) if one.name.endswith(".json"))
    return exists(place / HEADER) and any(manifests)


def write_spectrum(store: Store, found: Spectrum, dampings: tuple[float, ...]) -> None:
    """Keep a second moment's decomposition, and the dampings, beside whitened rows."""
    about = {"scale": found.scale, "rows": found.rows, "share": found.largest_share, "damping": list(dampings)}
    arrays: dict[str, NDArray[np.generic]] = {"values": found.values, "vectors": found.vectors, "blocks": found.blocks}
    side_files.write(store.path, store.header.seal, _ASSET, arrays, about)


def whitener_of(store: Store) -> Whitener:
    """Return what makes the rows of a store of whitened rows."""
    found, dampings = _read(store)
    return found.whitener(dampings, store.header.dim)


def _read(store: Store) -> tuple[Spectrum, tuple[float, ...]]:
    """Return the second moment that rows were whitened by, and the dampings.

    Raises
    ------
    DamagedIndexError
        If they are not there, or no such arrays.
    """
    arrays, about = side_files.read(store.path, store.header.seal, _ASSET, {"values", "vectors", "blocks"})
    values, vectors, blocks = arrays["values"], arrays["vectors"], arrays["blocks"]
    dampings = about["damping"] if isinstance(about.get("damping"), list) else []
    numbers = [about.get("scale"), about.get("rows"), about.get("share"), *dampings]
    fits = values.ndim == 1 and vectors.shape[1:] == blocks.shape == values.shape and len(values) >= store.header.dim
    fits = fits and [str(one.dtype) for one in (values, vectors, blocks)] == ["float64", "float32", "int64"]
    fits = fits and all(isinstance(one, int | float) and 0 <= one < np.inf for one in numbers)
    if not fits or not (values > 0).all() or not ((blocks >= 0) & (blocks < len(dampings))).all():
        raise DamagedIndexError(f"{side_files.manifest_path(store.path, _ASSET)} is not of these whitened rows.")
    found = Spectrum(
        values, vectors, blocks, len(dampings), int(about["rows"]), float(about["scale"]), float(about["share"])
    )
    return found, tuple(map(float, dampings))
