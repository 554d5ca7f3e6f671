"""Two indexes compared: what changed in the neighbours of the same queries between two models, or two states of one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradindex.data.names import Tree
from gradindex.defaults import NEIGHBOURS, PERSISTENCE
from gradindex.search.answer import check_k

if TYPE_CHECKING:
    from gradindex.data.source import Ids
    from gradindex.index.index import Index

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SideChange:
    """How one side (proponents or opponents) of m queries differs between the indexes A and B.

    Parameters
    ----------
    before, after
        Dataset positions (m, k) that A and B name, best first, −1 for none.
    overlap
        The share of the k that both name, (m,).
    rank_biased
        The rank-biased overlap of the two lists, (m,), 1 for equal ones; see `rank_biased_overlap`.
    """

    before: "Ids"
    after: "Ids"
    overlap: Floats
    rank_biased: Floats

    def gone(self, query: int) -> list[int]:
        """Return the samples that A names for a query and B does not, best first."""
        return _without(self.before[query], self.after[query])

    def came(self, query: int) -> list[int]:
        """Return the samples that B names for a query and A does not, best first."""
        return _without(self.after[query], self.before[query])


@dataclass(frozen=True)
class Comparison:
    """What changed in the neighbours of m queries between the indexes A and B.

    Parameters
    ----------
    proponents, opponents
        Each side.
    predictions_before, predictions_after
        What the two models predict for the queries, (m,); None where that is no class.
    names
        What the queries are called.
    k, kernel, persistence
        What was asked.
    """

    proponents: SideChange
    opponents: SideChange
    predictions_before: NDArray[np.generic] | None
    predictions_after: NDArray[np.generic] | None
    names: tuple[str, ...]
    k: int
    kernel: str
    persistence: float

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sides(self) -> dict[str, SideChange]:
        """The sides by name."""
        return {"proponents": self.proponents, "opponents": self.opponents}

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON-ready values: means, and for each query what stayed, came and went."""
        means = {
            name: {"overlap": float(side.overlap.mean()), "rank_biased_overlap": float(side.rank_biased.mean())}
            for name, side in self.sides.items()
        }
        queries = []
        for i, title in enumerate(self.names):
            one: dict[str, object] = {"query": title}
            for name, given in (("before", self.predictions_before), ("after", self.predictions_after)):
                if given is not None:
                    one[f"prediction_{name}"] = given[i].item()
            for name, side in self.sides.items():
                one[name] = {
                    "overlap": float(side.overlap[i]),
                    "rank_biased_overlap": float(side.rank_biased[i]),
                    "before": _named(side.before[i]),
                    "after": _named(side.after[i]),
                    "came": side.came(i),
                    "gone": side.gone(i),
                }
            queries.append(one)
        about = {"k": self.k, "kernel": self.kernel, "persistence": self.persistence, "queries": len(self)}
        return about | {"mean": means, "by_query": queries}


def compare(
    before: "Index",
    after: "Index",
    x: Tree = None,
    y: Tree = None,
    *,
    ids: ArrayLike | None = None,
    k: int = NEIGHBOURS,
    kernel: str | None = None,
    persistence: float = PERSISTENCE,
) -> Comparison:
    """Compare the neighbours that two indexes name for the same queries.

    Both must have been built over the same samples in the same order, so that an id means the same sample; one may lack
    some of them, as after `Index.remove`. Scores are not compared: gradients of two models lie in different spaces.

    Parameters
    ----------
    before, after
        Indexes opened with their jobs.
    x, y, ids
        The queries, as `Index.explain` takes them. With `y` None, each model explains its own prediction.
    k
        Neighbours of each side.
    kernel
        As in `Index.explain`.
    persistence
        Of rank-biased overlap, between 0 and 1, see `rank_biased_overlap`.

    Raises
    ------
    ValueError
        As `Index.explain`; if k is larger than one of the indexes, `persistence` is not between 0 and 1, or the jobs
        have other numbers of samples.
    """
    if not 0 < persistence < 1:
        raise ValueError(f"persistence must lie between 0 and 1, got {persistence}.")
    sizes = [len(index.job.source) for index in (before, after)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The jobs have {sizes[0]:,} and {sizes[1]:,} samples, so an id need not mean the same sample: compare "
            "indexes of one dataset. Train without what was removed, but leave its rows in the dataset of the job; "
            "then: gradindex remove OUT --decisions FILE for both indexes."
        )
    for index in (before, after):
        check_k(k, len(index))
    found = [index.explain(x, y, ids=ids, k=k, kernel=kernel) for index in (before, after)]
    sides = {}
    for name in ("ordered_indices", "opponent_indices"):
        a, b = (np.asarray(one.data[name]) for one in found)
        sides[name] = SideChange(a, b, overlap(a, b), rank_biased_overlap(a, b, persistence))
    predictions: list[NDArray[np.generic] | None] = [one.data.get("query_predictions") for one in found]
    given = None if ids is None else np.atleast_1d(np.asarray(ids)).tolist()
    count = len(sides["ordered_indices"].before)
    names = tuple(f"query {i}" if given is None else f"sample {given[i]}" for i in range(count))
    return Comparison(
        proponents=sides["ordered_indices"],
        opponents=sides["opponent_indices"],
        predictions_before=predictions[0],
        predictions_after=predictions[1],
        names=names,
        k=k,
        kernel=str(found[0].meta["params"]["kernel"]),
        persistence=persistence,
    )


def overlap(before: "Ids", after: "Ids") -> Floats:
    """Return the share of ids that two lists have in common, (m,), of lists (m, k) without repetitions; −1 is none."""
    common = [len(set(_named(a)) & set(_named(b))) for a, b in zip(before, after, strict=True)]
    return np.asarray(np.array(common) / before.shape[1])


def rank_biased_overlap(before: "Ids", after: "Ids", persistence: float = PERSISTENCE) -> Floats:
    """Return the rank-biased overlap of two ranked lists, (m,), of lists (m, k) without repetitions; −1 is none.

    It is that of Webber, Moffat and Zobel (2010, "A Similarity Measure for Indefinite Rankings", eq. 32), extrapolated
    from the k that are there: (X_k / k) pᵏ + ((1 − p) / p) Σ_d (X_d / d) pᵈ, d from 1 to k, with X_d the number of ids
    that the first d of both lists share, and p the persistence. Where a list is shorter than k, its places behind the
    last share nothing.

    Parameters
    ----------
    before, after
        Ids (m, k), best first.
    persistence
        p: the chance that a reader goes on from one place to the next. With .9 the first ten have 86 % of the weight.
    """
    count = before.shape[1]
    depths = np.arange(1, count + 1)
    out = np.empty(len(before))
    for row, (a, b) in enumerate(zip(before, after, strict=True)):
        common = np.array([len(set(_named(a[:d])) & set(_named(b[:d]))) for d in depths])
        weights = persistence**depths
        agreed = common / depths
        out[row] = agreed[-1] * weights[-1] + (1 - persistence) / persistence * (agreed * weights).sum()
    return out


def _named(ids: "Ids") -> list[int]:
    return [int(i) for i in ids if i >= 0]


def _without(ids: "Ids", others: "Ids") -> list[int]:
    there = set(_named(others))
    return [i for i in _named(ids) if i not in there]
