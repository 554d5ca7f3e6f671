"""One hidden vector a sample: what plain embedding similarity compares, the baseline of gradients.

It is what the model's last layer receives. Where that is a vector for each token, the mean over the tokens, each
weighted by its position (Muennighoff 2022, https://arxiv.org/abs/2202.08904): in a causal model later tokens have read
more.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gradindex.compute.blocks import default_batch_size
from gradindex.data.labels import as_array
from gradindex.data.source import Ids, Tree, leaves, length, rectangles
from gradindex.data.text import IGNORED
from gradindex.job import Job
from gradindex.relevance.hidden import Hidden
from gradindex.runtime.turns import Turn, at_once

_MASK = "attention_mask"
_FEWEST = 1e-30  # of a norm


class Pooled:
    """Reads the pooled hidden vectors of a job's model as it is, without its checkpoints.

    Parameters
    ----------
    job
        The job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job if job.checkpoints is None else replace(job, checkpoints=None)
        self._hidden = Hidden(self._job, None)

    def __call__(self, x: Tree, y: Tree = None) -> NDArray[np.float32]:
        """Return unit-norm vectors (m, d) of samples; of zeros stay zero.

        Raises
        ------
        ValueError
            If the model has no hidden layer.
        """
        size = default_batch_size(self._job.engine)
        out: NDArray[np.float32] | None = None
        for rows, some, labels in rectangles(x, y, size):
            found = pooled(self._hidden.last(some), some, labels)
            out = np.empty((length(x), found.shape[1]), np.float32) if out is None else out
            norms = np.linalg.norm(found, axis=1, keepdims=True)
            out[rows] = found / np.maximum(norms, _FEWEST)
        assert out is not None  # there are no empty queries, nor datasets
        return out

    def of_samples(self, ids: Ids, turn: Turn = at_once) -> NDArray[np.float32]:
        """Return the vectors (n, d) of samples of the dataset, read a few hundred at a time, each in a `turn`."""
        return np.concatenate([turn(partial(self._of, ids[begin : begin + 256])) for begin in range(0, len(ids), 256)])

    def _of(self, ids: Ids) -> NDArray[np.float32]:
        batch = self._job.source.take(ids)
        return self(batch.x, batch.y)


def pooled(states: NDArray[np.float64], x: Tree, y: Tree) -> NDArray[np.float64]:
    """Return what the last layer receives (b, …) as vectors (b, d).

    Parameters
    ----------
    states
        Of texts (b, t, d): they are pooled over the t tokens of `x`'s ``attention_mask``, or else of the labels that
        are not -100, or else over all.
    x, y
        Inputs and labels of the samples; numbers of tokens are integers (b, t).
    """
    if states.ndim != 3:
        return states.reshape(len(states), -1)
    shape = states.shape[:2]
    tokens = [leaf for leaf in leaves(x) if _is_tokens(leaf, shape)]
    written = [leaf for leaf in leaves(y) if _is_tokens(leaf, shape)] if y is not None else []
    if not tokens and not written:
        return states.reshape(len(states), -1)
    mask = np.ones(shape)
    given = x.get(_MASK) if isinstance(x, Mapping) else None
    if given is not None and tuple(given.shape) == shape:
        mask = (as_array(given) != 0).astype(np.float64)
    elif written:
        mask = (as_array(written[0]) != IGNORED).astype(np.float64)
    weights = np.cumsum(mask, axis=1) * mask
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    found: NDArray[np.float64] = np.einsum("bt,btd->bd", weights / total, states)
    return found


def _is_tokens(leaf: object, shape: tuple[int, ...]) -> bool:
    return tuple(getattr(leaf, "shape", ())) == shape and as_array(leaf).dtype.kind in "iu"
