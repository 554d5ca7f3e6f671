"""Running the tests over repeats."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex import relevance
from gradindex.compute import queries
from gradindex.data.source import length, take_rows
from gradindex.defaults import LABELS, NEIGHBOURS, REPEATS, SEED
from gradindex.evaluation import criteria, verdict
from gradindex.evaluation.experiment import Experiment, Split
from gradindex.evaluation.randomize import randomized
from gradindex.evaluation.result import Result
from gradindex.evaluation.selected import selected
from gradindex.job import Job
from gradindex.relevance.base import Metric, Rows
from gradindex.relevance.faiss_index import MetricIndex
from gradindex.runtime.log import log

TESTS = ("class", "subclass", "randomization")
OWN, FIXED = "randomization", "randomization (fixed)"
FORMS = {"own": [OWN], "fixed": [FIXED], "both": [OWN, FIXED]}
Values = dict[str, dict[str, list[float]]]


def identical_class(experiment: Experiment, metrics: Sequence[str], **options: Any) -> Result:
    """Run the identical class test and its top-k form; options are those of `evaluate`."""
    return evaluate(experiment, metrics, ("class",), **options)


def identical_subclass(experiment: Experiment, metrics: Sequence[str], **options: Any) -> Result:
    """Run the identical subclass test and its top-k form; options are those of `evaluate`."""
    return evaluate(experiment, metrics, ("subclass",), **options)


def model_randomization(experiment: Experiment, metrics: Sequence[str], **options: Any) -> Result:
    """Run the model randomization test; options are those of `evaluate`."""
    return evaluate(experiment, metrics, ("randomization",), **options)


def evaluate(
    experiment: Experiment,
    metrics: Sequence[str],
    tests: Sequence[str] = TESTS,
    *,
    repeats: int = REPEATS,
    seed: int = SEED,
    k: int = NEIGHBOURS,
    top: int | None = None,
    labels: str = LABELS,
    through_index: bool = False,
    options: dict[str, Any] | None = None,
) -> Result:
    """Run tests on metrics: split, train, ask, `repeats` times.

    Parameters
    ----------
    experiment
        Data and training.
    metrics
        Names, see `gradindex.relevance.METRICS`.
    tests
        Of ``"class"``, ``"subclass"``, ``"randomization"``.
    repeats, seed
        Repeat r uses seed + r for split, merging, training and initialisation.
    k
        Of the top-k tests, which come with the class and subclass tests.
    top
        Randomize only that many layers from the output down; None: all.
    labels
        Of the queries that the random model of the randomization test is asked about. ``"own"``: its own predictions,
        a test that is called ``randomization``. ``"fixed"``: the trained model's predictions, as definition 2 of the
        study has it, where z = (x, ŷ) is one query for both models: ``randomization (fixed)``. ``"both"``: both tests.
        The gradients of a class's samples are alike under any model, so that with fixed labels part of the
        correlation is that of the labels, which both models are given.
    through_index
        Answer class and subclass tests with a FAISS index as well, as ``class (index)`` and so on; for dot and
        cosine metrics.
    options
        Of `gradindex.relevance.metric`.

    Raises
    ------
    ValueError
        For unknown tests, metrics or labels, or numbers below 1.
    """
    _check(metrics, tests, labels, repeats, k)
    found = _Found()
    accuracy: dict[str, list[float]] = {}
    solvers: dict[str, str] = {}
    remarks: dict[str, str] = {}
    parameters = 0
    for repeat in range(seed, seed + repeats):
        log.info("repeat with seed %d", repeat)
        split = experiment.split(repeat)
        for what in ("class", "subclass"):
            wanted = [test for test in tests if (test == "subclass") == (what == "subclass")]
            if not wanted:
                continue
            trial = _Trial(experiment, split, repeat, what, metrics, options or {})
            accuracy.setdefault(what, []).append(trial.accuracy)
            parameters = max(parameters, trial.job.engine.size)
            for test in wanted:
                if test == "randomization":
                    trial.randomization(found, top, FORMS[labels])
                else:
                    trial.success(found, k, through_index)
            remarks |= {name: one.remark for name, one in trial.metrics.items() if one.remark}
            solvers |= {name: one.solver for name, one in trial.metrics.items() if one.solver != "none"}
    meta = {
        "metrics": list(metrics),
        "tests": list(tests),
        "repeats": repeats,
        "seeds": list(range(seed, seed + repeats)),
        "queries": min(experiment.queries, length(split.x_test)),
        "train": length(split.x_train),
        "parameters": parameters,
        "k": k,
        "randomized_layers": "all" if top is None else top,
        "labels": labels,
        "selected": found.selected,
        "options": options or {},
        "solvers": solvers,
        "remarks": remarks,
        "versions": _versions(),
    }
    return Result(found.values, accuracy, meta, found.null())


class _Found:
    """What the tests have found so far."""

    def __init__(self) -> None:
        self.values: Values = {}
        self.selected: dict[str, dict[str, list[dict[str, float | None]]]] = {}
        self._chances: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
        self._deviations: Values = {}

    def add(self, test: str, name: str, passes: NDArray[np.bool_], chances: NDArray[np.float64]) -> None:
        """Add which queries of a repeat pass a test, and how likely a random ranking is to."""
        self.values.setdefault(test, {}).setdefault(name, []).append(float(np.mean(passes)))
        self._chances.setdefault(test, {}).setdefault(name, []).append(chances)

    def correlate(self, test: str, name: str, one: Rows, other: Rows) -> None:
        """Add the rank correlation of two models' scores, and how far chance takes it."""
        self.values.setdefault(test, {}).setdefault(name, []).append(criteria.rank_correlation(one, other))
        self._deviations.setdefault(test, {}).setdefault(name, []).append(criteria.permuted_deviation(one, other))

    def select(self, labels: str, metric: Metric, nearest: NDArray[np.int64]) -> None:
        """Add what the most relevant samples of a repeat's queries are."""
        feature = "grad" if metric.feature in ("IF", "FK") else metric.feature
        norms = np.linalg.norm(metric.space.train(feature), axis=1)
        told = selected(nearest, len(norms), norms).to_dict()
        self.selected.setdefault(labels, {}).setdefault(metric.name, []).append(told)

    def null(self) -> dict[str, dict[str, verdict.Interval]]:
        """Return the null interval of each test and metric."""
        binomial = {
            test: {name: verdict.binomial_interval(np.concatenate(parts)) for name, parts in rows.items()}
            for test, rows in self._chances.items()
        }
        normal = {
            test: {name: verdict.normal_interval(parts) for name, parts in rows.items()}
            for test, rows in self._deviations.items()
        }
        return {test: (binomial | normal)[test] for test in self.values}


class _Trial:
    """A model trained in one repeat, its metrics and its queries."""

    def __init__(
        self,
        experiment: Experiment,
        split: Split,
        seed: int,
        labels: str,
        names: Sequence[str],
        options: dict[str, object],
    ) -> None:
        self.experiment, self.split, self.seed, self.labels, self.options = experiment, split, seed, labels, options
        self.y, y_test = split.y_train, split.y_test
        if labels == "subclass":
            every, _ = criteria.merge_classes(np.concatenate([split.y_train, split.y_test]), seed)
            self.y, y_test = every[: len(self.y)], every[len(self.y) :]
        self.classes = int(max(self.y.max(), y_test.max())) + 1
        self.job: Job = experiment.job(split, self.y, self.classes, seed)
        predicted = np.asarray(queries.predicted(self.job.engine, split.x_test, self.y))
        self.accuracy = float((predicted == y_test).mean())
        chosen = np.random.default_rng(seed).permutation(len(y_test))
        if labels == "subclass":
            chosen = chosen[(predicted == y_test)[chosen]]
            if not len(chosen):
                raise ValueError("The model predicts no test sample correctly, so the subclass test has no queries.")
        chosen = chosen[: experiment.queries]
        self.x, self.predicted, self.subclass = take_rows(split.x_test, chosen), predicted[chosen], split.y_test[chosen]
        self.metrics: dict[str, Metric] = relevance.metrics(names, self.job, **options)

    def success(self, found: _Found, k: int, through_index: bool) -> None:
        """Add the success rates of all metrics, and what they select."""
        merged = self.labels == "subclass"
        train, wanted = (self.split.y_train, self.subclass) if merged else (self.y, self.predicted)
        tests = [
            (test, count, criteria.chances(train, wanted, count))
            for test, count in ((self.labels, 1), (f"top-{k} {self.labels}", k))
        ]
        for name, metric in self.metrics.items():
            scores = metric.scores(self.x, self.predicted)
            for test, count, chances in tests:
                found.add(test, name, criteria.passes(scores, train, wanted, count), chances)
            found.select(self.labels, metric, np.argsort(-scores, axis=1, kind="stable")[:, :k])
            if through_index and metric.similarity != "l2":
                ids, _ = MetricIndex(metric).top(self.x, self.predicted, k)
                for test, count, chances in tests:
                    found.add(f"{test} (index)", name, criteria.agrees(ids[:, :count], train, wanted), chances)

    def randomization(self, found: _Found, top: int | None, forms: Sequence[str]) -> None:
        """Add the rank correlations with a model of random weights, in one or both forms of the test."""
        fresh = self.experiment.fresh
        seed = self.seed + 1_000_003  # not the weights that training began from
        model = fresh(self.classes, seed) if fresh and top is None else randomized(self.job.model, seed, top)
        job = self.experiment.job_of(model, self.split, self.y)
        others = relevance.metrics(list(self.metrics), job, **self.options)
        own = np.asarray(queries.predicted(job.engine, self.x, self.y))
        for form in forms:
            labels = own if form == OWN else self.predicted
            for name, metric in self.metrics.items():
                found.correlate(form, name, metric.scores(self.x, self.predicted), others[name].scores(self.x, labels))


def _check(metrics: Sequence[str], tests: Sequence[str], labels: str, repeats: int, k: int) -> None:
    for name in metrics:
        relevance.parse(name)
    for test in tests:
        if test not in TESTS:
            options = " | ".join(f"'{one}'" for one in TESTS)
            raise ValueError(f"Unknown test {test!r}. Expected some of: {options}.")
    if labels not in FORMS:
        raise ValueError(f"Unknown labels {labels!r}. Expected one of: {' | '.join(map(repr, FORMS))}.")
    for what, number in (("repeats", repeats), ("k", k), ("number of metrics", len(metrics))):
        if number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}.")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("gradindex", "numpy", "scipy", "torch", "keras", "tensorflow", "tensorflow-cpu", "faiss-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
