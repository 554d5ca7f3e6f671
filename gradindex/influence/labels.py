"""Mislabelled and atypical samples, found from an index alone.

Self-influence is the squared gradient norm (with checkpoints Σ_c η_c ‖g_c‖²), which every store holds exactly. A
cosine index cannot tell by itself, a sample's cosine with itself being 1; its neighbours' labels can.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradindex.ann.vectors import without_own
from gradindex.data.labels import as_classes
from gradindex.defaults import NEIGHBOURS

if TYPE_CHECKING:
    from gradindex.index.index import Index
    from gradindex.store import Store

Floats = NDArray[np.float64]


def self_influence(store: "Store") -> Floats:
    """Return the self-influence of every sample of a store, (n,) in the order of ``store.ids``; reads no gradient."""
    return store.norms.astype(np.float64) ** 2


def label_disagreement(
    index: "Index", k: int = NEIGHBOURS, *, opponents: bool = True, labels: ArrayLike | None = None
) -> Floats:
    """Return the share of each sample's k gradient neighbours that have another label, (n,) in the order of the store.

    A mislabelled sample pulls the weights the way other samples of its wrong class do, so among its nearest
    neighbours it looks at home; but against it pull those of its true class, which have other labels. So the k
    largest cosines of either sign count.

    Parameters
    ----------
    index
        An index of a classifier; no job is needed.
    k
        How many neighbours, less than the number of samples. The sample itself is left out.
    opponents
        Whether neighbours of −g count as well; else the nearest ones alone.
    labels
        Classes (n,) by dataset position; None: those in the store.

    Raises
    ------
    ValueError
        If k is not between 1 and n − 1, or labels are missing or of another number.
    """
    store = index.store
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k < len(store):
        raise ValueError(f"k must be an integer between 1 and {len(store) - 1}, got {k!r}.")
    own = _labels(store, labels)
    out = np.empty(len(store))
    for begin, rows in store.blocks(1024):
        part = slice(begin, begin + len(rows))
        ids = store.ids[part, None]
        found = [without_own(*index.search(rows, k + 1), ids, k)]
        if opponents:
            found.append(without_own(*index.search(-rows, k + 1), ids, k))
        scores, near = (np.hstack(parts) for parts in zip(*found, strict=True))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        near = np.take_along_axis(near, best, 1)
        classes = own[store.rows_of(np.where(near < 0, ids, near).ravel()).reshape(near.shape)]
        differs = (classes != own[part, None]) & (near >= 0)
        out[part] = differs.sum(axis=1) / np.maximum((near >= 0).sum(axis=1), 1)
    return out


def _labels(store: "Store", given: ArrayLike | None) -> NDArray[Any]:
    if given is None:
        if "label" not in store.columns:
            raise ValueError("The store holds no labels: give them, one class for each sample of the dataset.")
        return store.columns["label"]
    found = as_classes(given)
    if found is None or len(found) != len(store):
        raise ValueError(f"Expected labels of shape ({len(store)},), got {np.shape(given)}.")
    return found[store.ids]
