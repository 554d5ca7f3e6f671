"""The retraining bank: models trained on random subsets of a training set, which say what data do to predictions.

>>> bank = Bank.build(fit, len(x), "runs/bank", queries=(x_test, y_test), loss_fn=loss_fn)  # doctest: +SKIP
>>> bank.lds(scores)  # scores (m, n) of any kernel: larger says more helpful  # doctest: +SKIP
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import LossFunction, Tree
from gradindex.defaults import SEED
from gradindex.evaluation import bank_store, design, leave_one_out, removal
from gradindex.evaluation.asked import Asked, ask, sha256_of_dataset
from gradindex.evaluation.bank_store import MODELS, Header, Trained
from gradindex.evaluation.comparison import Comparison
from gradindex.evaluation.lds import FEWEST_SUBSETS, LDS, Truth, is_trained
from gradindex.evaluation.rank_agreement import Scores, Values
from gradindex.evaluation.removal import Removal, Results
from gradindex.evaluation.training import Cluster, Fit, How, Ids, Task, fill
from gradindex.store.location import Location, locate


@dataclass(frozen=True)
class Failure:
    """A model that is left out: the `subset` it was to be trained on, its `seed`, and why."""

    subset: int
    seed: int
    error: str


class Bank:
    """A finished retraining bank; made by `build`, opened by `open`.

    `header` says what it holds; `masks` (S, n) bool, who is in which subset; `losses` (S, M, m) float64 of every
    subset's models, NaN for those that failed; `failures`, which those are.
    """

    def __init__(
        self, path: Location, header: Header, masks: NDArray[np.bool_], models: list[Trained], asked: Asked | None
    ) -> None:
        self.path, self.header, self.masks = path, header, masks
        losses = bank_store.losses_of(models, header.queries)
        self.losses: Values = losses.reshape(header.subsets, header.models, header.queries)
        self.failures = [
            Failure(number // header.models, model.seed, model.error)
            for number, model in enumerate(models)
            if model.error is not None
        ]
        self.seconds = sum(model.seconds for model in models)
        """Training took so long, summed over models."""
        self._asked = asked
        if is_trained(self.losses).any(axis=1).sum() < FEWEST_SUBSETS:
            raise ValueError(
                f"{len(self.failures)} of {len(models)} models failed, so that fewer than {FEWEST_SUBSETS} subsets are "
                f"left. The first: {self.failures[0].error}"
            )

    @classmethod
    def build(
        cls,
        fit: Fit,
        n: int,
        path: str | Path,
        *,
        queries: Tree,
        loss_fn: LossFunction | None = None,
        dataset: Tree = None,
        subsets: int = 60,
        fraction: float = 0.5,
        models: int = 3,
        seed: int = SEED,
        workers: int = 1,
        engine: Cluster | None = None,
        retry: bool = False,
        progress: bool | None = None,
    ) -> "Bank":
        """Train a bank, or what is left of one that was stopped, and return it.

        Every finished model is a sealed file below `path`, so a bank that was killed goes on where it was; several
        machines that see `path` may build it together.

        Parameters
        ----------
        fit
            ``fit(ids, seed)`` trains a fresh model on the training samples `ids`, (k,) int64 in increasing order, and
            returns it. With several workers a function that other processes can import. A model that raises, or whose
            losses are not finite, is logged, listed in `failures`, and left out of all means.
        n
            Number of training samples.
        path
            Directory of the bank, or a URL.
        queries
            ``(X, Y)`` of m samples; without `loss_fn`, whatever the model's ``loss`` takes, in arrays, tuples or dicts
            of m entries.
        loss_fn
            As in `gradindex.Job`, for torch and Keras models. None: models have a method ``loss(queries) -> (m,)``
            and, if they predict classes, ``predict(queries) -> (m,)``.
        dataset
            The training samples, in any form that a `gradindex.Job` takes: a bank is then not mistaken for one of
            another dataset, and `removal` knows the classes. Not needed for `lds`.
        subsets, fraction
            So many subsets, of this share of the samples each, every one drawn by itself without replacement.
        models
            Trained on each subset, with seeds of their own; two at least for a noise ceiling.
        seed
            Of subsets and models.
        workers
            Processes that train; 1: this one. More need a script with ``if __name__ == "__main__"``.
        engine
            ``gradindex.Ray(…)``, to train on a cluster that sees `path`.
        retry
            Train models again that failed before.
        progress
            Show a bar; None: on a terminal.

        Raises
        ------
        MismatchError
            If there is a bank of other samples, queries, subsets or seeds at `path`.
        ValueError
            If a number makes no sense, or so many models fail that fewer than 4 subsets are left.
        """
        how, asked = How(workers, engine, retry, progress), ask(queries, loss_fn, dataset, n)
        header = design.header(n, subsets, fraction, models, seed, asked, dataset)
        place = locate(path)
        masks = bank_store.begin(place, header, design.draw_subsets)
        fill(place, header, fit, asked, design.tasks(header, masks), how)
        return cls._read(place, header, masks, asked)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        queries: Tree = None,
        loss_fn: LossFunction | None = None,
        dataset: Tree = None,
    ) -> "Bank":
        """Open a finished bank.

        Parameters
        ----------
        path
            Its directory or URL.
        queries, loss_fn, dataset
            As in `build`; compared with what the bank was built from. `lds` and `compare` need none of them, `removal`
            and `loo` need what `build` was given.

        Raises
        ------
        FileNotFoundError
            If there is no bank.
        MismatchError
            If it was built with other queries or another dataset.
        DamagedIndexError
            If a file is not what was written.
        ValueError
            If models are missing: build it again to go on.
        """
        place = locate(path)
        header, masks = bank_store.read(place)
        asked = None if queries is None else ask(queries, loss_fn, dataset, header.n)
        given = {
            "queries": header.queries if asked is None else asked.count,
            "queries_sha256": header.queries_sha256 if asked is None else asked.sha256,
            "dataset_sha256": header.dataset_sha256 if dataset is None else sha256_of_dataset(dataset, header.n),
        }
        header.compare(Header(**{**vars(header), **given}), place)
        return cls._read(place, header, masks, asked)

    @classmethod
    def _read(cls, place: Location, header: Header, masks: NDArray[np.bool_], asked: Asked | None) -> "Bank":
        names = design.names(header)
        if missing := set(names) - bank_store.published(place, MODELS):
            raise ValueError(
                f"The bank at {place} is not finished: {len(missing)} of {len(names)} models are missing. Call "
                "Bank.build with the same arguments to go on."
            )
        models = [bank_store.read_model(place, name, header.seal, header.queries) for name in names]
        return cls(place, header, masks, models, asked)

    @cached_property
    def truth(self) -> Truth:
        """What happened to all queries, as `lds` needs it."""
        return Truth(self.masks, self.losses, self.header.seed)

    def lds(self, scores: Scores, queries: Ids | None = None) -> LDS:
        """Return the linear datamodeling score of a kernel, with its interval and the noise ceiling.

        The formulas are in `gradindex.evaluation.lds`.

        Parameters
        ----------
        scores
            (m, n): for each query, how helpful each training sample is said to be.
        queries
            Judge by these queries alone, positions (q,); None: all.

        Raises
        ------
        ValueError
            If scores have another shape, or are not finite.
        """
        return self._judge({"scores": scores}, queries)["scores"]

    def _judge(self, scores: Mapping[str, Scores], queries: Ids | None = None) -> dict[str, LDS]:
        given = {name: np.asarray(one) for name, one in scores.items()}
        if queries is None:
            return self.truth.judge(given)
        self._check_shapes(given)
        truth = Truth(self.masks, self.losses[:, :, queries], self.header.seed)
        return truth.judge({name: one[queries] for name, one in given.items()})

    def _check_shapes(self, scores: Mapping[str, Scores]) -> None:
        shape = (self.header.queries, self.header.n)
        for name, one in scores.items():
            if one.shape != shape:
                raise ValueError(
                    f"The scores of {name!r} have shape {one.shape}; expected (queries, samples) = {shape}."
                )

    def compare(
        self,
        scores: Mapping[str, Scores],
        *,
        reference: str | None = None,
        bytes_per_row: Mapping[str, int] | None = None,
        removal: Removal | None = None,
        queries: Ids | None = None,
    ) -> Comparison:
        """Return kernels side by side, judged in the same queries and subsets.

        Parameters
        ----------
        scores
            By the name of each kernel, (m, n) as in `lds`.
        reference
            The kernel that others are compared with; None: the first.
        bytes_per_row
            What a row of a kernel costs, where that is known.
        removal
            What `Bank.removal` returned, to be shown beside.
        queries
            As in `lds`.

        Raises
        ------
        ValueError
            If there are no scores, or none of the reference.
        """
        if not scores:
            raise ValueError("There are no scores to compare.")
        reference = next(iter(scores)) if reference is None else reference
        if reference not in scores:
            raise ValueError(f"The reference {reference!r} is none of the kernels {sorted(scores)}.")
        header = self.header
        meta = {**vars(header), "failures": [vars(one) for one in self.failures], "training_seconds": self.seconds}
        return Comparison(self._judge(scores, queries), reference, bytes_per_row or {}, removal, meta)

    def removal(
        self,
        fit: Fit,
        scores: Mapping[str, Scores] | Scores,
        k: Sequence[int],
        *,
        queries: int | Sequence[int] = 20,
        models: int = 3,
        workers: int = 1,
        engine: Cluster | None = None,
        retry: bool = False,
        progress: bool | None = None,
    ) -> Removal:
        """Train without the top k samples of some queries, without k random ones, and without k of the query's class.

        Models are kept below the bank by what was removed, so the same set is trained once, and a stopped run goes on.

        Parameters
        ----------
        fit
            As in `build`; it gets the ids that are left.
        scores
            Of one kernel (m, n), or of several by name.
        k
            How many samples to remove.
        queries
            How many queries, drawn by the bank's seed, or which.
        models
            Trained for every removed set, and on all samples; model j has the same seed in each.
        workers, engine, retry, progress
            As in `build`.

        Raises
        ------
        ValueError
            If the bank was opened without queries, k makes no sense, or a class has fewer samples.
        """
        asked = self._needs_queries()
        given = {name: np.asarray(one) for name, one in _named(scores).items()}
        self._check_shapes(given)
        chosen = self._choose(queries)
        seed = self.header.seed
        sets = removal.sets_to_remove(given, chosen, k, seed, asked.classes)
        tasks = {key: removal.tasks_without(one, self.header.n, seed, models) for key, one in sets.items()}
        whole = removal.tasks_without(removal.NOTHING, self.header.n, seed, models)
        results = self._trained([whole, *tasks.values()], fit, asked, How(workers, engine, retry, progress))
        names = {key: some[0].name for key, some in tasks.items()}
        return removal.summarised(sets, results, names, whole[0].name, models)

    def loo(
        self,
        fit: Fit,
        *,
        ids: Sequence[int] | None = None,
        models: int = 3,
        workers: int = 1,
        engine: Cluster | None = None,
        retry: bool = False,
        progress: bool | None = None,
    ) -> leave_one_out.LeaveOneOut:
        """Train without one sample at a time: n × `models` trainings, for small n.

        Parameters
        ----------
        fit
            As in `removal`.
        ids
            Only these samples; None: every one.
        models, workers, engine, retry, progress
            As in `removal`.
        """
        asked, n = self._needs_queries(), self.header.n
        chosen = np.arange(n) if ids is None else np.asarray(ids, np.int64)
        tasks = [removal.tasks_without(np.array([one]), n, self.header.seed, models) for one in chosen]
        whole = removal.tasks_without(removal.NOTHING, n, self.header.seed, models)
        results = self._trained([whole, *tasks], fit, asked, How(workers, engine, retry, progress))
        return leave_one_out.summarised(chosen, [some[0].name for some in tasks], results, whole[0].name)

    def _needs_queries(self) -> Asked:
        if self._asked is None:
            raise ValueError("This bank was opened without its queries. Give Bank.open(path, queries=…, loss_fn=…).")
        return self._asked

    def _choose(self, queries: int | Sequence[int]) -> Ids:
        m = self.header.queries
        if isinstance(queries, int):
            if queries < 1:
                raise ValueError(f"queries must be at least 1, got {queries}.")
            return np.sort(np.random.default_rng(self.header.seed).permutation(m)[:queries]).astype(np.int64)
        chosen = np.asarray(queries, np.int64)
        if not len(chosen) or (chosen < 0).any() or (chosen >= m).any():
            raise ValueError(f"queries must be positions between 0 and {m - 1}, got {chosen.tolist()[:10]}.")
        return chosen

    def _trained(self, tasks: list[list[Task]], fit: Fit, asked: Asked, how: How) -> Results:
        """Return losses and predictions (models, m) of each removed set, by the name of its first model's file."""
        header = self.header
        every = {task.name: task for some in tasks for task in some}
        fill(self.path, header, fit, asked, list(every.values()), how)
        found = {}
        for some in tasks:
            models = [bank_store.read_model(self.path, one.name, header.seal, header.queries) for one in some]
            losses = bank_store.losses_of(models, header.queries)
            found[some[0].name] = losses, bank_store.predictions_of(models, header.queries)
        return found


def _named(scores: Mapping[str, Scores] | Scores) -> Mapping[str, Scores]:
    return scores if isinstance(scores, Mapping) else {"proponents": scores}
