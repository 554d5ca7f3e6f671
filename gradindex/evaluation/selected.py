"""Which samples are selected: whether always the same few, of which norms, and what two factors a cosine has.

Hanawa et al. (2021, section 5) show by these why the cosine of gradients is right more often than their inner product:
the latter selects the few samples of extreme norm, whatever is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradindex.compute import queries
from gradindex.data.names import Tree
from gradindex.data.source import Batch, length
from gradindex.defaults import NEIGHBOURS, QUERIES, SEED
from gradindex.job import Job
from gradindex.kernels import KernelName
from gradindex.relevance.features import flatten
from gradindex.relevance.hidden import Hidden
from gradindex.words import Task

if TYPE_CHECKING:
    from gradindex.index.index import Index

COMMONEST = 10
"""Of so many samples it is said for how many queries one of them is the nearest."""
_PRODUCT_ERROR = 1e-3  # of a last layer's gradient, that is not the product r hᵀ: single precision leaves 1e-6
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Selected:
    """What the k most relevant samples of m queries are, of n samples.

    `counts` (n,) int64: in how many queries' k nearest a sample is, its k-occurrence; `skew`: of the counts (see
    `skewness`); `won`: share of the queries whose nearest is one of the ten samples that are most often the nearest;
    `norm`: the median norm of the nearest over the median norm of all samples, None where norms were not given.
    """

    counts: NDArray[np.int64]
    skew: float
    won: float
    norm: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the three numbers as JSON has them: None for NaN."""
        numbers = {"skew": self.skew, "won": self.won, "norm": self.norm}
        return {name: one if one is not None and np.isfinite(one) else None for name, one in numbers.items()}


def occurrences(positions: ArrayLike, n: int) -> NDArray[np.int64]:
    """Return in how many queries' lists (m, k) each of n samples is, (n,): its k-occurrence.

    Positions below 0 are places that stayed empty.
    """
    found = np.asarray(positions, np.int64).ravel()
    return np.bincount(found[found >= 0], minlength=n).astype(np.int64)


def skewness(counts: ArrayLike) -> float:
    """Return E[(N − μ)³] / σ³ of k-occurrences (n,), the hubness of Radovanović et al. (2010, "Hubs in space").

    0: no sample is near more queries than chance has it; far above 0: few hubs are near many. NaN if all are equal.
    """
    values = np.asarray(counts, np.float64)
    centred = values - values.mean()
    spread = float(np.sqrt(np.mean(centred**2)))
    return float(np.mean(centred**3)) / spread**3 if spread > 0 else float("nan")


def won_by_commonest(nearest: ArrayLike, n: int, commonest: int = COMMONEST) -> float:
    """Return the share of m queries whose nearest sample (m,) is one of those that are most often the nearest."""
    counts = occurrences(nearest, n)
    return float(np.sort(counts)[::-1][:commonest].sum() / max(counts.sum(), 1))


def selected(positions: ArrayLike, n: int, norms: ArrayLike | None = None) -> Selected:
    """Return what `positions` (m, k) of the most relevant of n samples say, best first; `norms` (n,) of all samples.

    Raises
    ------
    ValueError
        If positions are not two axes, or are not below n, or there are not n norms.
    """
    found = np.asarray(positions, np.int64)
    if found.ndim != 2 or found.size == 0 or found.max() >= n:
        raise ValueError(f"positions must be (m, k) below {n}, got shape {found.shape}.")
    ratio = None
    if norms is not None:
        lengths = np.asarray(norms, np.float64)
        if lengths.shape != (n,):
            raise ValueError(f"norms must be ({n},), got shape {lengths.shape}.")
        every = float(np.median(lengths))
        nearest = found[:, 0][found[:, 0] >= 0]
        ratio = float(np.median(lengths[nearest])) / every if every > 0 and len(nearest) else float("nan")
    counts = occurrences(found, n)
    return Selected(counts, skewness(counts), won_by_commonest(found[:, 0], n), ratio)


def selected_by(
    index: "Index",
    *,
    kernel: KernelName | str = KernelName.COS,
    queries: int = QUERIES,
    k: int = NEIGHBOURS,
    seed: int = SEED,
) -> Selected:
    """Return what an index selects for stored samples as queries, each without itself, by estimated scores.

    Cosines need the stored rows alone; other kernels run the model on the samples that are drawn.

    Parameters
    ----------
    index
        For kernels other than the cosine one that was opened with its job.
    kernel
        As in `Index.explain`.
    queries
        How many stored samples are drawn; all, if there are fewer.
    k
        Samples of each.
    seed
        Of the draw.

    Raises
    ------
    ValueError
        If the index holds a single sample, or a number is less than 1.
    """
    store = index.store
    alive = np.arange(len(store.norms)) if store.alive is None else np.flatnonzero(store.alive)
    if len(alive) < 2 or min(queries, k) < 1:
        raise ValueError(f"There must be 2 samples and more, 1 query and 1 neighbour; got {len(alive)} samples.")
    drawn = np.random.default_rng(seed).permutation(alive)[:queries]
    ids = store.ids[drawn]
    many = min(k + 1, len(alive))
    if kernel == KernelName.COS:
        _, found = index.search(store.gather(drawn), many)
    else:
        found = index.explain(ids=ids, k=many, kernel=kernel, rerank=0).ordered_indices
    itself = found == ids[:, None]
    itself[~itself.any(axis=1), -1] = True  # it is not found among its nearest: the last one is one too many
    others = found[~itself].reshape(len(found), -1)
    place = np.full(len(store.norms), -1, np.int64)
    place[alive] = np.arange(len(alive))
    positions = np.where(others >= 0, place[store.rows_of(np.maximum(others, 0))], -1)
    return selected(positions, len(alive), store.norms[alive])


@dataclass(frozen=True)
class Factors:
    """The cosine of two samples' gradients of a last linear layer, and its factors, (m, n) float64 each.

    `cosine` = `residual` · `hidden`: the cosine of the loss's gradients by the layer's output, which for the
    cross-entropy is p − e_y, and the cosine of what the layer receives, with a 1 for a bias.
    """

    cosine: Floats
    residual: Floats
    hidden: Floats


def last_layer_factors(job: Job, x: Tree, y: Tree = None, ids: ArrayLike | None = None) -> Factors:
    """Return the factors of `grad_cos` restricted to a model's last layer, between queries and training samples.

    With r = ∂loss/∂output and h the layer's input (with a 1 appended for a bias), its gradient is r hᵀ, so that
    cos(r hᵀ, r' h'ᵀ) = cos(r, r') · cos(h, h') (Hanawa et al. 2021, appendix C).

    Parameters
    ----------
    job
        Whose model ends in a linear layer that is used once.
    x, y
        m queries and their labels; None: the model's own predictions.
    ids
        Of n training samples; None: all.

    Raises
    ------
    ValueError
        If the gradient of the last layer is no such product.
    """
    last = replace(job, parameters="last_layer", checkpoints=None)
    chosen = np.arange(len(job.source), dtype=np.int64) if ids is None else np.asarray(ids, np.int64)
    train = job.source.take(chosen)
    example = job.source.take(np.arange(min(len(job.source), 10_000), dtype=np.int64))
    asked = queries.with_labels(last.engine, Task(job.task), *queries.match_shapes(x, y, example), example.y)
    (r, h), (r_train, h_train) = (
        _split(last, Batch(np.arange(length(one.x), dtype=np.int64), one.x, one.y)) for one in (asked, train)
    )
    residual, hidden = _cosines(r, r_train), _cosines(h, h_train)
    return Factors(residual * hidden, residual, hidden)


def _split(job: Job, batch: Batch) -> tuple[Floats, Floats]:
    """Return r (b, c) and h (b, d), with r hᵀ the gradients of the last layer; h has a 1 for a bias."""
    alone = job.engine.size == replace(job, parameters=None).engine.size  # what it receives is x
    h = flatten(batch.x) if alone else Hidden(job, None).last(batch.x)
    if h.ndim != 2:
        raise ValueError(f"The last layer receives an array {h.shape[1:]} of each sample, and not one row.")
    shapes = [tuple(one.shape) for one in job.engine.parameters]
    parts: Sequence[Floats] = np.split(
        job.engine.gradients(batch.x, batch.y).gradients.astype(np.float64),
        np.cumsum([one.size for one in job.engine.parameters])[:-1],
        axis=1,
    )
    matrices = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True) if len(shape) == 2]
    biases = [part for part, shape in zip(parts, shapes, strict=True) if len(shape) == 1]
    if len(matrices) != 1 or len(biases) > 1:
        raise ValueError(f"The last layer is not linear: it has parameters of the shapes {shapes}.")
    rows = matrices[0] if job.backend == "torch" else matrices[0].transpose(0, 2, 1)  # (b, c, d)
    if rows.shape[2] == h.shape[1]:
        r = np.einsum("bcd,bd->bc", rows, h) / np.maximum(np.square(h).sum(axis=1, keepdims=True), np.finfo(float).tiny)
        r = biases[0] if biases else r
        if np.linalg.norm(rows - r[:, :, None] * h[:, None]) <= _PRODUCT_ERROR * np.linalg.norm(rows):
            return r, np.c_[h, np.ones(len(h))] if biases else h
    raise ValueError("The gradient of the last layer is no product of its output's gradient and its input.")


def _cosines(one: Floats, other: Floats) -> Floats:
    lengths = np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    return np.divide(one @ other.T, lengths, out=np.zeros(lengths.shape), where=lengths > 0)


__all__ = [
    "Factors",
    "Selected",
    "last_layer_factors",
    "occurrences",
    "selected",
    "selected_by",
    "skewness",
    "won_by_commonest",
]
