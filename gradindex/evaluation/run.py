"""Running the tests over repeats."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from gradindex import relevance
from gradindex.compute import queries
from gradindex.data.source import length, take_rows
from gradindex.defaults import NEIGHBOURS, REPEATS, SEED
from gradindex.evaluation import criteria
from gradindex.evaluation.experiment import Experiment, Split
from gradindex.evaluation.randomize import randomized
from gradindex.evaluation.result import Result
from gradindex.job import Job
from gradindex.relevance.base import Metric
from gradindex.relevance.faiss_index import MetricIndex
from gradindex.runtime.log import log

TESTS = ("class", "subclass", "randomization")
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
    through_index
        Answer class and subclass tests with a FAISS index as well, as ``class (index)`` and so on; for dot and
        cosine metrics.
    options
        Of `gradindex.relevance.metric`.

    Raises
    ------
    ValueError
        For unknown tests or metrics, or numbers below 1.
    """
    _check(metrics, tests, repeats, k)
    values: Values = {}
    accuracy: dict[str, list[float]] = {}
    solvers: dict[str, str] = {}
    parameters = 0
    for repeat in range(seed, seed + repeats):
        log.info("repeat with seed %d", repeat)
        split = experiment.split(repeat)
        for labels in ("class", "subclass"):
            wanted = [test for test in tests if (test == "subclass") == (labels == "subclass")]
            if not wanted:
                continue
            trial = _Trial(experiment, split, repeat, labels, metrics, options or {})
            accuracy.setdefault(labels, []).append(trial.accuracy)
            parameters = max(parameters, trial.job.engine.size)
            for test in wanted:
                if test == "randomization":
                    trial.randomization(values, top)
                else:
                    trial.success(values, k, through_index)
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
        "options": options or {},
        "solvers": solvers,
        "versions": _versions(),
    }
    return Result(values, accuracy, meta)


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

    def success(self, values: Values, k: int, through_index: bool) -> None:
        """Add the success rates of all metrics."""
        merged = self.labels == "subclass"
        train, wanted = (self.split.y_train, self.subclass) if merged else (self.y, self.predicted)
        for name, metric in self.metrics.items():
            scores = metric.scores(self.x, self.predicted)
            for test, count in ((self.labels, 1), (f"top-{k} {self.labels}", k)):
                _add(values, test, name, criteria.passes(scores, train, wanted, count))
            if through_index and metric.similarity != "l2":
                ids, _ = MetricIndex(metric).top(self.x, self.predicted, k)
                for test, count in ((self.labels, 1), (f"top-{k} {self.labels}", k)):
                    _add(values, f"{test} (index)", name, criteria.agrees(ids[:, :count], train, wanted))

    def randomization(self, values: Values, top: int | None) -> None:
        """Add the rank correlations with a model of random weights, queries labelled by the model that is asked."""
        fresh = self.experiment.fresh
        seed = self.seed + 1_000_003  # not the weights that training began from
        model = fresh(self.classes, seed) if fresh and top is None else randomized(self.job.model, seed, top)
        job = self.experiment.job_of(model, self.split, self.y)
        others = relevance.metrics(list(self.metrics), job, **self.options)
        labels = np.asarray(queries.predicted(job.engine, self.x, self.y))
        for name, metric in self.metrics.items():
            one = metric.scores(self.x, self.predicted)
            _add(values, "randomization", name, criteria.rank_correlation(one, others[name].scores(self.x, labels)))


def _add(values: Values, test: str, name: str, value: Any) -> None:
    values.setdefault(test, {}).setdefault(name, []).append(float(np.mean(value)))


def _check(metrics: Sequence[str], tests: Sequence[str], repeats: int, k: int) -> None:
    for name in metrics:
        relevance.parse(name)
    for test in tests:
        if test not in TESTS:
            options = " | ".join(f"'{one}'" for one in TESTS)
            raise ValueError(f"Unknown test {test!r}. Expected some of: {options}.")
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
