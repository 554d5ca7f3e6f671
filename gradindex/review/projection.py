"""A map: stored rows of a drawn sample in two dimensions, near where they are alike."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.defaults import MAPPED, SEED
from gradindex.errors import missing

if TYPE_CHECKING:
    from gradindex.data.source import Ids
    from gradindex.store import Store

WAYS = "tsne", "pca"
_COMPONENTS = 50  # before t-SNE, as van der Maaten and Hinton (2008) do
_PERPLEXITY = 30.0
_FEWEST = 3


@dataclass(frozen=True)
class Projection:
    """Where samples lie on a map.

    Parameters
    ----------
    ids
        Dataset positions (m,) int64, ascending.
    places
        (m, 2) float32 from 0 to 1; the longer side of the map is 1.
    about
        How it was made: `way`, `seed`, `of` how many samples, `explained`: the share of variance that the principal
        components before t-SNE, or the two that are shown, have.
    """

    ids: "Ids"
    places: NDArray[np.float32]
    about: dict[str, object]

    def to_bytes(self) -> bytes:
        """Return it as a NumPy ``.npz`` file."""
        sink = io.BytesIO()
        np.savez(sink, ids=self.ids, places=self.places, about=np.array(json.dumps(self.about)))
        return sink.getvalue()

    @classmethod
    def read(cls, path: Path) -> "Projection":
        """Read what `to_bytes` wrote; raises ValueError for something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = cls(file["ids"], file["places"], json.loads(str(file["about"])))
        except (KeyError, EOFError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{path} holds no map.") from error
        if found.ids.ndim != 1 or found.places.shape != (len(found.ids), 2):
            raise ValueError(f"{path} holds no map.")
        return found


def project(store: "Store", *, most: int = MAPPED, way: str = WAYS[0], seed: int = SEED) -> Projection:
    """Draw samples that are not removed, and lay their stored rows out in two dimensions.

    Rows are unit sketches, so distances on the map follow the gradients' cosines. `"tsne"` takes 50 principal
    components of the rows to t-SNE (van der Maaten and Hinton 2008, "Visualizing Data using t-SNE"), which keeps
    neighbours together and says nothing of large distances; `"pca"` shows the first two, in a fraction of the time.
    Both are scikit-learn's.

    Parameters
    ----------
    store
        The store.
    most
        Samples to draw, or all if there are no more.
    way
        ``"tsne"`` or ``"pca"``.
    seed
        Of the sample and of t-SNE.

    Raises
    ------
    ValueError
        If there are fewer than 3 samples, or `way` is another word.
    ImportError
        If scikit-learn is not installed; says what to type.
    """
    if way not in WAYS:
        raise ValueError(f"A map is made by {' or '.join(WAYS)}, got {way!r}.")
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise missing("scikit-learn", "gradindex[review]", "A map") from error
    alive = np.arange(len(store)) if store.alive is None else np.flatnonzero(store.alive)
    if len(alive) < _FEWEST:
        raise ValueError(f"A map needs {_FEWEST} samples at least; the index holds {len(alive)}.")
    drawn = np.random.default_rng(seed).choice(alive, min(most, len(alive)), replace=False)
    rows = drawn[np.argsort(store.ids[drawn])]
    vectors = np.asarray(store.gather(rows), np.float32)
    vectors = np.pad(vectors, ((0, 0), (0, max(0, 2 - vectors.shape[1]))))
    components = min(2 if way == "pca" else _COMPONENTS, len(rows), vectors.shape[1])
    pca = PCA(components, random_state=seed)
    found = pca.fit_transform(vectors)
    if way == "tsne":
        perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
        found = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(found)
    about: dict[str, object] = {"way": way, "seed": seed, "of": len(alive)}
    about["explained"] = float(np.nan_to_num(pca.explained_variance_ratio_).sum())
    return Projection(store.ids[rows].astype(np.int64), _scaled(found), about)


def _scaled(places: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return places (m, 2) moved and scaled into the unit square, both directions alike."""
    low = places.min(axis=0)
    side = float((places.max(axis=0) - low).max())
    return np.asarray((places - low) / (side or 1.0), np.float32)
