"""Pictures moved by a pixel: near-duplicates that no number of the input tells."""

from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from gradindex.ann.vectors import nearest_to, without_own
from gradindex.data.labels import as_array
from gradindex.data.names import Tree
from gradindex.plots.rendering import Renderer, as_picture
from gradindex.relevance.features import flatten
from gradindex.review.evidence import Evidence, Near, unit

_SMALLEST = 6  # pixels a side: of less hardly anything is left without the border
_DRAWN = 1000  # training samples that say how near others usually are
_BATCH = 256
_NUMBERS = 1 << 25  # of windows that are compared at once: each search copies the training pictures into an index
_EVERYWHERE = 10_000  # samples of which all pairs are compared


class Moved:
    """Compares pictures, moved by a pixel in each of the eight directions or not at all, with training samples.

    What is compared is the training picture without the pixels of its border, and each window of that size in the
    other picture, so that it does not matter what has come in at the edge. Of all the mean training picture is taken;
    pixels keep their scale, unlike `inputs`, where a little noise in a pixel that is nearly always dark counts as much
    as a stroke.

    Parameters
    ----------
    evidence
        Of the training samples; it has vectors of inputs.
    columns
        Which number of an input is which pixel, (h, w) or (h, w, 3).
    """

    def __init__(self, evidence: Evidence, columns: NDArray[np.int64]) -> None:
        height, width = columns.shape[0] - 2, columns.shape[1] - 2
        windows = [columns[a : a + height, b : b + width].ravel() for a in range(3) for b in range(3)]
        self._windows = np.stack(windows)
        self._evidence, ids = evidence, evidence.ids
        take = evidence.index.job.source.take
        batches = (evidence.turn(partial(take, ids[i : i + _BATCH])) for i in range(0, len(ids), _BATCH))
        self._inputs = np.concatenate([flatten(batch.x).astype(np.float32) for batch in batches])
        rows = self._inputs[:, self._windows[4]]
        self._mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._rows = unit(rows - self._mean)

    @classmethod
    def of(cls, evidence: Evidence) -> "Moved | None":
        """Return what compares the pictures of some evidence; None where inputs are no pictures."""
        columns = pixels(evidence)
        return None if columns is None else cls(evidence, columns)

    def near(self, x: Tree) -> Near:
        """Return the k nearest training samples of each of m inputs, by the best of the nine windows."""
        return self._near(flatten(x).astype(np.float32), self._evidence.k)

    @cached_property
    def usual(self) -> Near:
        """The nearest other of 1,000 drawn training samples, found in the same way."""
        rows = len(self._inputs)
        drawn = np.random.default_rng(self._evidence.seed).choice(rows, min(_DRAWN, rows), replace=False)
        drawn = np.sort(drawn)
        found = self._near(self._inputs[drawn], 2)
        return Near(*without_own(found.cosines, found.places, drawn[:, None], 1))

    def of_training(self) -> Near:
        """Return the k nearest others of each training sample, compared as `near` does.

        Of more than 10,000 samples only the neighbours in hidden vectors and inputs are compared.
        """
        if len(self._inputs) > _EVERYWHERE:
            return self._of_neighbours()
        found = self._near(self._inputs, self._evidence.k + 1)
        own = np.arange(len(found.places))[:, None]
        return Near(*without_own(found.cosines, found.places, own, self._evidence.k))

    def _of_neighbours(self) -> Near:
        evidence = self._evidence
        candidates = np.concatenate([evidence.near[space].places for space in evidence.vectors], axis=1)
        cosines = np.full(candidates.shape, -np.inf)
        for begin in range(0, len(candidates), _BATCH):
            some = slice(begin, begin + _BATCH)
            others = self._rows[np.maximum(candidates[some], 0)]  # (b, c, d)
            products = self._shown(self._inputs[some]) @ others.transpose(0, 2, 1)
            cosines[some] = np.where(candidates[some] >= 0, products.max(axis=1), -np.inf)
        return Near(*_each_once(cosines, candidates, candidates.shape[1]))

    def _near(self, inputs: NDArray[np.float32], k: int) -> Near:
        cosines, places = [], []
        step = max(1, _NUMBERS // self._windows.size)
        for begin in range(0, len(inputs), step):
            windows = self._shown(inputs[begin : begin + step])
            best, named = nearest_to(windows.reshape(-1, windows.shape[2]), self._rows, k)
            best, named = _each_once(best.reshape(len(windows), -1), named.reshape(len(windows), -1), k)
            cosines.append(best)
            places.append(named)
        return Near(np.concatenate(cosines), np.concatenate(places))

    def _shown(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the nine windows of some inputs, (b, 9, d), less the mean and of unit norm."""
        windows = inputs[:, self._windows] - self._mean
        return unit(windows.reshape(-1, windows.shape[2])).reshape(windows.shape)


def _each_once(
    cosines: NDArray[np.float64], places: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the k largest cosines (m, k) and their places, each place of a row once; −inf and −1 for none left."""
    order = np.argsort(-cosines, axis=1, kind="stable")
    cosines, places = np.take_along_axis(cosines, order, 1), np.take_along_axis(places, order, 1)
    by_place = np.argsort(places, axis=1, kind="stable")  # the largest of each place first
    sorted_places = np.take_along_axis(places, by_place, 1)
    again = np.zeros(places.shape, bool)
    np.put_along_axis(again, by_place[:, 1:], sorted_places[:, 1:] == sorted_places[:, :-1], 1)
    best = np.where(again, -np.inf, cosines)
    order = np.argsort(-best, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(best, order, 1)
    return best, np.where(np.isfinite(best), np.take_along_axis(places, order, 1), np.int64(-1))


def pixels(evidence: Evidence) -> NDArray[np.int64] | None:
    """Return which number of an input is which pixel, (h, w) or (h, w, 3); None where inputs are no pictures.

    Flat inputs are pictures where `Job.render` makes pictures of as many numbers.
    """
    x = evidence.index.example.x
    if "inputs" not in evidence.vectors or isinstance(x, dict | tuple | list):
        return None
    shape = as_array(x).shape[1:]
    numbers = int(np.prod(shape))
    if len(shape) < 2:
        shape = Renderer(evidence.index.job).picture_shape or ()
    if int(np.prod(shape)) != numbers:
        return None
    columns = as_picture(np.arange(numbers).reshape(shape))
    return None if columns is None or min(columns.shape[:2]) < _SMALLEST else columns.astype(np.int64)
