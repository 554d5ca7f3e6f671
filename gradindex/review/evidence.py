"""What a store, a model and the data say of every sample: neighbours in three spaces, and signs of a wrong label."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex import relevance
from gradindex.ann.vectors import nearest_others, without_own
from gradindex.data.names import Tree
from gradindex.data.source import Ids
from gradindex.defaults import NEIGHBOURS, SEED
from gradindex.kernels import Kernel
from gradindex.relevance.features import flatten
from gradindex.relevance.pooled import Pooled
from gradindex.review import out_of_sample, votes
from gradindex.runtime.turns import Turn, at_once
from gradindex.words import Task

if TYPE_CHECKING:
    from gradindex.index.index import Index
    from gradindex.job import Job

Floats = NDArray[np.float64]
_BATCH = 256
_NUMBERS = 1 << 28  # of inputs that are held, as float32: 1 GiB
_CLASSES = 1000
SMALLEST = 1e-4  # of a probability, before its logarithm is taken


@dataclass(frozen=True)
class Near:
    """The k nearest others of each sample: cosines (n, k), descending, and places (n, k), −1 for none."""

    cosines: Floats
    places: NDArray[np.int64]

    def mean_cosine(self, place: int) -> float:
        """Return the mean cosine of a sample with its neighbours."""
        return float(self.cosines[place][self.places[place] >= 0].mean())


@dataclass
class Evidence:
    """What is known of the samples of an index that are not removed.

    Parameters
    ----------
    index
        An index opened with its job.
    k
        Neighbours of a sample.
    seed
        Of cross-validation.
    turn
        Runs each piece of what uses the model or the dataset, a batch at a time: where others use them, too.
    """

    index: "Index"
    k: int = NEIGHBOURS
    seed: int = SEED
    turn: Turn = at_once
    left_out: list[str] = field(default_factory=list)
    """Sentences on what could not be looked at, and why."""

    def __post_init__(self) -> None:
        store = self.index.store
        alive = np.ones(len(store), bool) if store.alive is None else store.alive
        self.rows: NDArray[np.int64] = np.flatnonzero(alive)
        self.ids: Ids = store.ids[self.rows]
        if len(self.rows) < 3:
            raise ValueError(f"A review compares samples with each other; the index holds {len(self.rows)}.")
        self.k = min(self.k, len(self.rows) - 1)
        self.by_gradient = relevance.kernel_of(store.header.metric) in list(Kernel) and store.header.metric is None
        if not self.by_gradient:
            self.left_out.append(
                "Rows of a metric are no gradients: self-influence and opponents are left out. Build the index "
                "without --metric for them."
            )
        self._classes()

    def _classes(self) -> None:
        """Read labels and predictions; `labels` is None where there are no classes."""
        columns, task = self.index.store.columns, self.index.job.task
        self.labels: NDArray[np.int64] | None = None
        self.classes: NDArray[np.generic] = np.empty(0)
        self.predictions = columns["prediction"][self.rows] if "prediction" in columns else None
        why = ""
        if task != Task.CLASSIFICATION:
            why = "The job's task is regression"
        elif "label" not in columns:
            why = "The samples have no single label each"
        else:
            given = columns["label"][self.rows]
            classes, labels = np.unique(given, return_inverse=True)
            if given.dtype.kind == "f" and (given % 1 != 0).any():
                why = "The labels are no whole numbers"
            elif not 2 <= len(classes) <= min(_CLASSES, len(given) // 2):
                why = f"{len(classes)} classes of {len(given)} samples are too few or too many to compare"
            else:
                self.labels, self.classes = labels.astype(np.int64), classes
        if why:
            self.left_out.append(
                f"{why}: wrong labels, samples that oppose correct predictions and confused classes are left out; "
                "duplicates and outliers are not."
            )

    @cached_property
    def vectors(self) -> dict[str, NDArray[np.float32]]:
        """Vectors (n, d) by space: what the last layer receives, of unit norm, and the standardised inputs."""
        found: dict[str, NDArray[np.float32]] = {}
        self._try(found, "hidden", self._hidden)
        if self.index.job.texts is not None:
            self.left_out.append("The inputs are texts: their tokens are not compared as numbers, hidden vectors are.")
        else:
            self._try(found, "inputs", self._inputs)
        return found

    def _try(self, found: dict[str, NDArray[np.float32]], name: str, make: Callable[[], NDArray[np.float32]]) -> None:
        try:
            found[name] = make()
        except (ValueError, TypeError) as error:
            self.left_out.append(f"No vectors of {name}: {' '.join(str(error).split())}")

    def _hidden(self) -> NDArray[np.float32]:
        if self.turn is at_once:
            return self.index.made.hidden(self.index.store, self._plain)[self.rows]
        return Pooled(self._plain).of_samples(self.ids, self.turn)  # `made` would keep others out meanwhile

    @property
    def _plain(self) -> "Job":
        return self.index.job.with_metric(None)

    def _inputs(self) -> NDArray[np.float32]:
        source = self.index.job.source
        parts: list[NDArray[np.float32]] = []
        for begin in range(0, len(self.ids), _BATCH):
            batch = self.turn(partial(source.take, self.ids[begin : begin + _BATCH]))
            parts.append(flatten(batch.x).astype(np.float32))
            if parts[0].shape[1] * len(self.ids) > _NUMBERS:
                raise ValueError(f"{len(self.ids):,} inputs of {parts[0].shape[1]:,} numbers are more than are held.")
        every = np.concatenate(parts)
        self.standard = out_of_sample.Standard.of(every)
        return self.standard(every).astype(np.float32)

    def vectors_of(self, x: Tree, y: Tree) -> dict[str, NDArray[np.float32]]:
        """Return the vectors (m, d) of samples that are not in the dataset, in the spaces that `vectors` has."""
        made = {
            "hidden": lambda: Pooled(self._plain)(x, y),
            "inputs": lambda: self.standard(flatten(x).astype(np.float32)).astype(np.float32),
        }
        return {name: self.turn(made[name]) for name in self.vectors}

    @cached_property
    def near(self) -> dict[str, Near]:
        """The nearest others of each sample by cosine: of ``hidden`` and ``inputs``, and of stored ``gradients``."""
        found = {name: Near(*nearest_others(unit(rows), self.k)) for name, rows in self.vectors.items()}
        return found | {"gradients": self._by_rows(1)}

    @cached_property
    def opponents(self) -> Near:
        """The samples whose stored gradients oppose each sample's most; cosines are those with −g."""
        return self._by_rows(-1)

    def _by_rows(self, sign: int) -> Near:
        store = self.index.store
        places = np.full(len(store), -1, np.int64)
        places[self.rows] = np.arange(len(self.rows))
        cosines, near = [], []
        for begin in range(0, len(self.rows), _BATCH * 4):
            rows = self.rows[begin : begin + _BATCH * 4]
            own = store.ids[rows][:, None]
            scores, ids = without_own(*self.index.search(sign * store.gather(rows), self.k + 1), own, self.k)
            found = store.rows_of(np.where(ids < 0, own, ids).ravel()).reshape(ids.shape)
            cosines.append(scores)
            near.append(np.where(ids < 0, -1, places[found]))
        return Near(np.concatenate(cosines), np.concatenate(near))

    @cached_property
    def probabilities(self) -> dict[str, Floats]:
        """Probabilities of classes (n, c) by space, of models that did not see the sample; none without classes."""
        if self.labels is None:
            return {}
        return {
            name: out_of_sample.probabilities(rows, self.labels, len(self.classes), self.seed)
            for name, rows in self.vectors.items()
        }

    @cached_property
    def signs(self) -> dict[str, Floats]:
        """Signs of a wrong label by name, each (n,), larger for what is rather wrong; none without classes.

        ``loss`` and ``self-influence`` as the store has them; ``… neighbours`` by how much another class leads among
        the k nearest, in shares; ``opponents`` the share of another class among the k largest cosines of either sign;
        ``… model`` by how much another class leads in cross-validated log-probability.
        """
        if self.labels is None:
            return {}
        store, labels, classes = self.index.store, self.labels, len(self.classes)
        found = {"loss": store.columns["loss"][self.rows].astype(np.float64)}
        if self.by_gradient:
            found["self-influence"] = store.norms[self.rows].astype(np.float64) ** 2
            found["opponents"] = self.disagreement
        for name in self.vectors:
            found[f"{name} neighbours"] = votes.lead(votes.shares(self.near[name].places, labels, classes), labels)
            found[f"{name} model"] = votes.lead(np.log(np.maximum(self.probabilities[name], SMALLEST)), labels)
        return found

    @cached_property
    def disagreement(self) -> Floats:
        """The share (n,) of another class among the k largest cosines of either sign with each sample's gradient."""
        assert self.labels is not None
        sides = self.near["gradients"], self.opponents
        cosines, places = (np.hstack([getattr(side, name) for side in sides]) for name in ("cosines", "places"))
        best = np.argsort(-cosines, axis=1, kind="stable")[:, : self.k]
        places = np.take_along_axis(places, best, 1)
        differs = (self.labels[places] != self.labels[:, None]) & (places >= 0)
        return np.asarray(differs.sum(axis=1) / np.maximum((places >= 0).sum(axis=1), 1))

    @property
    def space(self) -> str:
        """Where neighbours are named from: the hidden vectors, or what there is of inputs and gradients."""
        return next(iter(self.vectors), "gradients")

    @cached_property
    def guessed(self) -> NDArray[np.int64]:
        """The class (n,) with the most votes: of the nearest vectors and the cross-validated models, all the same."""
        assert self.labels is not None
        spaces = list(self.vectors) or ["gradients"]
        total = [votes.shares(self.near[space].places, self.labels, len(self.classes)) for space in spaces]
        return np.asarray(np.sum([*total, *self.probabilities.values()], axis=0).argmax(axis=1))

    def class_of(self, number: int) -> int:
        """Return a class as the store has it."""
        return int(self.classes[number])

    def prediction(self, place: int) -> int | None:
        """Return what the model predicts for a sample, where that is a class."""
        if self.predictions is None or self.labels is None:
            return None
        return int(self.predictions[place])

    def cosines(self, one: int, other: int) -> str:
        """Return how near two samples are in each space."""
        words = []
        for name, rows in self.vectors.items():
            first, second = unit(rows[[one, other]])
            words.append(f"{name} {float(first @ second):.4f}")
        first, second = self.index.store.gather(self.rows[[one, other]])
        return "cosines: " + ", ".join([*words, f"gradients ≈ {float(first @ second):.4f}"])


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows (n, d) scaled to length 1; of zeros stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0))
