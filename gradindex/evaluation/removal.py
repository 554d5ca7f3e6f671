"""Retraining without a query's proponents: what its loss and its prediction do.

The loss change is the query's loss after training without some samples minus that after training on all of them, of
models of the same seed; the share of flips is how often the predicted class changes ("brittleness", Ilyas et al. 2022).
Removing as many random samples, and as many of the query's class, says what any removal does.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex.evaluation.bank_store import REMOVALS
from gradindex.evaluation.design import seed_of
from gradindex.evaluation.lds import Estimate
from gradindex.evaluation.rank_agreement import RESAMPLES, Resamples, Scores, Values
from gradindex.evaluation.training import Ids, Task

if TYPE_CHECKING:
    from rich.table import Table

RANDOM, OF_CLASS = "random", "random of the class"
_STREAM = 1  # of seeds for models that are not those of subsets
NOTHING: Ids = np.empty(0, np.int64)
Results = dict[str, tuple[Values, NDArray[np.int64] | None]]
"""By name of a removed set, losses (seeds, m), NaN of models that failed, and predictions (seeds, m), −1 of those."""


@dataclass(frozen=True)
class Removal:
    """What happened to queries when samples were removed and models trained anew.

    `queries` (q,) positions of the queries; `k`, how many samples were removed; `changes`: by what was removed (a
    kernel's proponents, ``"random"``, ``"random of the class"``), the loss change (len(k), q), mean over seeds, NaN
    where all models failed; `flips` likewise, the share of seeds whose prediction changed, None where models predict no
    class; `seeds` a removed set; `failed`: how many models failed and are left out.
    """

    queries: Ids
    k: tuple[int, ...]
    changes: dict[str, Values]
    flips: dict[str, Values] | None
    seeds: int
    failed: int

    @property
    def control(self) -> str:
        """What kernels are compared with: random samples of the class, or random ones where there are no classes."""
        return OF_CLASS if OF_CLASS in self.changes else RANDOM

    def change(self, name: str, k: int, minus: str | None = None) -> Estimate:
        """Return the mean loss change with its interval over queries; the paired difference to that of `minus`."""
        return self._mean(self.changes, name, k, minus, (-np.inf, np.inf))

    def flipped(self, name: str, k: int, minus: str | None = None) -> Estimate:
        """Return the share of predictions that change, with its interval over queries; or the paired difference.

        Raises
        ------
        ValueError
            If the models predict no classes.
        """
        if self.flips is None:
            raise ValueError("These models predict no classes, so nothing can flip.")
        return self._mean(self.flips, name, k, minus, (0 if minus is None else -1, 1))

    def _mean(
        self, values: dict[str, Values], name: str, k: int, minus: str | None, bounds: tuple[float, float]
    ) -> Estimate:
        row = self.k.index(k)
        found = values[name][row] - (0 if minus is None else values[minus][row])
        found = found[np.isfinite(found)]
        if not len(found):
            raise ValueError(f"All models without {k} samples by {name} failed.")
        draws = Resamples.draw(len(found), 1, RESAMPLES).queries
        return Estimate.of(found.mean(), draws @ found / len(found), *bounds)

    def to_dict(self) -> dict[str, object]:
        """Return means, intervals, paired differences to the control, and every value, as JSON's types."""
        rows = []
        for name, k in product(self.changes, self.k):
            row: dict[str, Any] = {"removed": name, "k": k, "change": vars(self.change(name, k))}
            if name not in (RANDOM, OF_CLASS):
                row["change_minus_control"] = vars(self.change(name, k, self.control))
            if self.flips is not None:
                row["flips"] = vars(self.flipped(name, k))
            row["changes"] = [None if np.isnan(one) else float(one) for one in self.changes[name][self.k.index(k)]]
            rows.append(row)
        about = {"queries": self.queries.tolist(), "seeds": self.seeds, "failed": self.failed, "control": self.control}
        return {**about, "rows": rows}

    def table(self) -> "Table":
        """Return a table: a row a kernel and k, loss change, paired difference to the control, share of flips."""
        from rich import box
        from rich.table import Table

        table = Table(
            title=f"Trained without proponents: {len(self.queries)} queries, {self.seeds} seed(s), 95 % intervals",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            title_style="bold",
        )
        table.add_column("removed")
        for title in ("k", "loss change", f"minus {self.control}", "predictions flipped"):
            table.add_column(title, justify="right")
        for name, k in product(self.changes, self.k):
            own = name in (RANDOM, OF_CLASS)
            flips = "–" if self.flips is None else str(self.flipped(name, k))
            paired = "–" if own else str(self.change(name, k, self.control))
            table.add_row(name, f"{k:,}", str(self.change(name, k)), paired, flips)
        return table


def tasks_without(removed: Ids, n: int, seed: int, models: int) -> list[Task]:
    """Return the models to train on all but some of n samples; their files are named by what was removed.

    Model j has the same seed whatever is removed, so that differences are paired.
    """
    removed = np.unique(removed).astype("<i8")
    digest = hashlib.sha256(removed.tobytes()).hexdigest()[:32]
    ids = np.setdiff1d(np.arange(n, dtype=np.int64), removed)
    seeds = [seed_of(seed, _STREAM, number) for number in range(models)]
    return [Task(f"{REMOVALS}/{digest}-{one}.json", ids, one) for one in seeds]


def sets_to_remove(
    scores: Mapping[str, Scores],
    queries: Ids,
    k: Sequence[int],
    seed: int,
    classes: tuple[NDArray[Any], NDArray[Any]] | None,
) -> dict[tuple[str, int, int], Ids]:
    """Return the samples to remove, by (what, k, query): each kernel's top k (ties to the smaller id), and random ones.

    Parameters
    ----------
    scores
        Of each kernel (m, n).
    queries
        Positions (q,).
    k
        How many samples.
    seed
        Of the random ones.
    classes
        Of the training samples (n,) and of all queries (m,); None: nothing is removed by class.

    Raises
    ------
    ValueError
        If k is not between 1 and n − 1, or a query's class has fewer samples.
    """
    n = next(iter(scores.values())).shape[1]
    found: dict[tuple[str, int, int], Ids] = {}
    for count in k:
        if not 1 <= count < n:
            raise ValueError(f"k must be between 1 and {n - 1}, got {count}.")
        for query in queries.tolist():
            for name, values in scores.items():
                found[name, count, query] = np.argsort(-values[query], kind="stable")[:count]
            rng = np.random.default_rng([seed, query, count])
            found[RANDOM, count, query] = rng.choice(n, count, replace=False)
            if classes is not None:
                members = np.flatnonzero(classes[0] == classes[1][query])
                if len(members) < count:
                    raise ValueError(
                        f"Query {query} is of class {classes[1][query]}, of which there are {len(members)} training "
                        f"samples, so {count} cannot be removed. Choose smaller k."
                    )
                found[OF_CLASS, count, query] = rng.choice(members, count, replace=False)
    return found


def summarised(
    sets: Mapping[tuple[str, int, int], Ids],
    results: Results,
    names: Mapping[tuple[str, int, int], str],
    whole: str,
    seeds: int,
) -> Removal:
    """Return the result for removed sets.

    Parameters
    ----------
    sets
        As `sets_to_remove` gives them.
    results
        Of all removed sets, and of the empty one.
    names
        Of each set.
    whole
        Name of the models of all samples.
    seeds
        Models a set.
    """
    titles, k = _distinct(key[0] for key in sets), tuple(_distinct(key[1] for key in sets))
    queries = _distinct(key[2] for key in sets)
    before, predicted = results[whole]
    changes = {title: np.full((len(k), len(queries)), np.nan) for title in titles}
    flips = {title: np.full((len(k), len(queries)), np.nan) for title in titles}
    with_classes = all(one[1] is not None for one in results.values())
    for (title, count, query), name in names.items():
        losses, classes = results[name]
        place = k.index(count), queries.index(query)
        both = np.isfinite(losses[:, query]) & np.isfinite(before[:, query])
        if not both.any():
            continue
        changes[title][place] = (losses[both, query] - before[both, query]).mean()
        if classes is not None and predicted is not None:
            flips[title][place] = (classes[both, query] != predicted[both, query]).mean()
    return Removal(
        np.array(queries, np.int64), k, changes, flips if with_classes else None, seeds, count_failed(results)
    )


def count_failed(results: Results) -> int:
    """Return how many models failed."""
    return sum(int(np.isnan(losses).all(axis=1).sum()) for losses, _ in results.values())


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
