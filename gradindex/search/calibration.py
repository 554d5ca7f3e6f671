"""What `recall=` promises: margins calibrated on held-out queries, so that answers hold that share of the true k.

Conformal risk control (Angelopoulos et al. 2024, https://arxiv.org/abs/2208.02814): the loss of a query is 1 − recall@k
of its answer with a margin, and never grows with the margin. Over n calibration queries, the smallest margin with

    (n · mean loss + 1) / (n + 1) ≤ 1 − recall

has an expected loss of at most 1 − recall over queries that are exchangeable with those of the calibration, whatever
their distribution. That is an average over queries (and over calibrations), no promise for each single one; it covers
the whole path: what FAISS misses and what the estimates hide counts as lost.

Two more choices leave that as it is. Queries of unlike difficulty get margins of their own, where there are enough: the
groups are bounded by order statistics of the calibration queries' difficulty, and those between two of them are
exchangeable with a new query that falls there; the bounding ones are left out. FAISS's operating point is chosen on a
fifth of the queries, which then do not count for the margins; where it does not serve, the widest one is taken, and
everything that it finds is checked.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradindex._version import __version__
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.kernels import Kernel
from gradindex.search.stopping import FEW_MORE
from gradindex.store import Store, changes, side_files

_MOST_GROUPS = 5
_PER_GROUP = 4  # times as many queries as the least that a recall takes
_KINDS = {"margins", "missed", "checks", "difficulty", "errors"}
_VERSION = 1
PREFIX = "recall."
"""How the names of side files begin that hold calibrations."""
FIFTHS = 5
PROPONENTS, OPPONENTS = 0, 1


@dataclass(frozen=True)
class Limits:
    """How far one side is checked: margins (G,) of groups of queries, between the `edges` (G − 1,) of difficulty.

    `recalls` (G,) are what answers hold on average, at least; `first` (G,) is how many candidates to begin with.
    """

    edges: NDArray[np.float64]
    margins: NDArray[np.float64]
    recalls: NDArray[np.float64]
    first: NDArray[np.int64]

    def of(self, difficulty: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return margins, recalls and first blocks (m,) of queries."""
        group = np.searchsorted(self.edges, difficulty, "right")
        return self.margins[group], self.recalls[group], self.first[group]


@dataclass(frozen=True)
class Promise:
    """A recall that is promised: FAISS's operating point, `candidates` of each side, and how far they are checked."""

    recall: float
    point: str
    candidates: int
    proponents: Limits
    opponents: Limits

    @property
    def sides(self) -> tuple[Limits, Limits]:
        """Proponents' and opponents'."""
        return self.proponents, self.opponents

    def unpromised(self) -> "Promise":
        """Return the same margins for queries of which nothing is promised."""
        proponents, opponents = (replace(side, recalls=np.full_like(side.recalls, np.nan)) for side in self.sides)
        return replace(self, proponents=proponents, opponents=opponents)


def unlimited(k: int, candidates: int) -> Promise:
    """Return what checks every candidate, and promises nothing."""
    limits = Limits(np.empty(0), np.array([math.inf]), np.array([math.nan]), np.array([k + FEW_MORE]))
    return Promise(math.nan, "", candidates, limits, limits)


@dataclass(frozen=True)
class About:
    """What a calibration belongs to.

    `kernel`, `k` and the `candidates` of each side that it is for; `queries` it was measured on, with their own labels
    if `labelled`, else with predicted ones; FAISS's operating `points`, from the fastest, each with the `seconds` of a
    search, and `seconds_per_check`; the FAISS index's `file`, and how many samples of its `rows` were `removed`.
    """

    kernel: str
    k: int
    candidates: int
    queries: int
    labelled: bool
    points: tuple[str, ...]
    seconds: tuple[float, ...]
    seconds_per_check: float
    file: str
    rows: int
    removed: int


@dataclass(frozen=True)
class Calibration:
    """How answers of an index lose recall as the margin shrinks, measured on n held-out queries; see this module.

    Parameters
    ----------
    about
        What it belongs to.
    margins
        Of P operating points and both sides, g margins, ascending: (P, 2, g).
    missed
        How many of its true k each query misses, (P, 2, n, g).
    checks
        How many candidates it checks, (P, 2, n, g).
    difficulty
        What tells queries apart before anything is checked, (P, 2, n).
    errors
        Estimated minus exact cosines of the true k that were found, of both sides, at the widest operating point: the
        0th to 100th percentile in each fifth of the queries by difficulty, (2, 5, 101).
    """

    about: About
    margins: NDArray[np.float64]
    missed: NDArray[np.int64]
    checks: NDArray[np.int64]
    difficulty: NDArray[np.float64]
    errors: NDArray[np.float64]

    @cached_property
    def _promises(self) -> dict[float, Promise]:
        return {}

    def promise(self, recall: float) -> Promise:
        """Return the operating point and margins that promise a recall, at the least cost.

        Raises
        ------
        ValueError
            If `recall` is not in (0, 1), or cannot be certified: says how many queries that takes, or what can be.
        """
        if not 0 < recall < 1:
            raise ValueError(
                f"recall must be above 0 and below 1, got {recall}: no number of queries certifies more. Ask for "
                "proofs instead (certify=True)."
            )
        if recall not in self._promises:
            self._promises[recall] = self._find(recall)
        return self._promises[recall]

    def _find(self, recall: float) -> Promise:
        n, most, needed = self.about.queries, len(self.about.points) - 1, least_queries(recall)
        if n < needed:
            raise ValueError(
                f"recall={recall:g} cannot be certified by {n} queries: it takes {needed} or more. Calibrate with "
                f"more, or ask for at most {n / (n + 1):.4g}."
            )
        chosen = slice(0, 0)
        if most:
            chosen = slice(0, max(0, min(n // 5, n - needed)))
        rest, point = slice(chosen.stop, n), self._point(recall, chosen) if chosen.stop else most
        sides = [self._limits(point, side, recall, rest) for side in (PROPONENTS, OPPONENTS)]
        if None in sides and point != most:
            point = most
            sides = [self._limits(point, side, recall, rest) for side in (PROPONENTS, OPPONENTS)]
        if None in sides:
            sides = [self._unlimited(side, recall, rest) for side in (PROPONENTS, OPPONENTS)]
        proponents, opponents = sides
        assert proponents is not None and opponents is not None
        return Promise(recall, self.about.points[point], self.about.candidates, proponents, opponents)

    def _point(self, recall: float, some: slice) -> int:
        """Return the operating point that costs least by some of the queries."""
        best, most = (math.inf, len(self.about.points) - 1), len(self.about.points) - 1
        for point, seconds in enumerate(self.about.seconds):
            cost = seconds
            for side in (PROPONENTS, OPPONENTS):
                missed = self.missed[point, side, some] / self.about.k
                enough = np.flatnonzero(missed.mean(axis=0) <= (1 - recall) / 2)  # the other half: what the rest shows
                if not len(enough) or not self._found(point, side, recall, some):
                    break
                cost += self.about.seconds_per_check * float(self.checks[point, side, some, enough[0]].mean())
            else:
                best = min(best, (cost, point))
        return best[1] if math.isfinite(best[0]) else most

    def _found(self, point: int, side: int, recall: float, some: slice) -> bool:
        """Whether FAISS finds enough for each group of queries: what it misses, no margin brings back."""
        group = np.searchsorted(group_edges(self.difficulty[point, side], recall), self.difficulty[point, side, some])
        missed = self.missed[point, side, some, -1] / self.about.k
        return all(missed[group == number].mean() <= (1 - recall) / 2 for number in np.unique(group))

    def _limits(self, point: int, side: int, recall: float, some: slice) -> Limits | None:
        """Return the margins of a side's groups at an operating point; None if some have none."""
        difficulty, missed = self.difficulty[point, side, some], self.missed[point, side, some]
        checks = self.checks[point, side, some]
        edges = group_edges(difficulty, recall)
        group = np.searchsorted(edges, difficulty, "right")
        margins, recalls, first = [], [], []
        for number in range(len(edges) + 1):
            within = (group == number) & ~np.isin(difficulty, edges)
            found = smallest(missed[within] / self.about.k, recall)
            if found is None:
                return None
            place, expected = found
            margins.append(self.margins[point, side, place])
            recalls.append(expected)
            first.append(self._first(checks[within, place]))
        return Limits(edges, np.array(margins), np.array(recalls), np.array(first))

    def _unlimited(self, side: int, recall: float, some: slice) -> Limits:
        """Return what checks all that the widest operating point finds; raises ValueError if that is too little."""
        missed = self.missed[-1, side, some, -1] / self.about.k
        expected = certified(missed[:, None])[0]
        if expected < recall:
            raise ValueError(
                f"recall={recall:g} is more than this index can promise: with all {self.about.candidates} candidates "
                f"checked, {len(missed)} queries certify {max(expected, 0.0):.4f}. Calibrate with more candidates=… or "
                "more queries, or ask for proofs (certify=True)."
            )
        first = self._first(self.checks[-1, side, some, -1])
        return Limits(np.empty(0), np.array([math.inf]), np.array([expected]), np.array([first]))

    def _first(self, checks: NDArray[np.int64]) -> int:
        """Return how many candidates to begin with: as many as half of the queries need."""
        return int(np.median(checks)) if len(checks) else self.about.k + FEW_MORE

    def to_json(self) -> dict[str, object]:
        """Return what it belongs to, and the percentiles of estimated minus exact cosines, as JSON-ready values."""
        return asdict(self.about) | {"errors": self.errors.tolist()}

    def __str__(self) -> str:
        about = self.about
        lines = [f"recall@{about.k} of {about.kernel} on {about.queries} held-out queries, {about.rows:,} rows"]
        for recall in (0.9, 0.95, 0.99, 0.999):
            try:
                promise = self.promise(recall)
            except ValueError as error:
                lines.append(str(error))
                continue
            lines.append(f"recall={recall:g}: {self._said(promise)}")
        return "\n".join(lines)

    def _said(self, promise: Promise) -> str:
        point = self.about.points.index(promise.point)
        counts = []
        for side, limits in enumerate(promise.sides):
            margins, _, _ = limits.of(self.difficulty[point, side])
            place = np.searchsorted(self.margins[point, side], margins)
            counts.append(float(np.median(self.checks[point, side, np.arange(self.about.queries), place])))
        setting = f", FAISS at {promise.point}" if promise.point else ""
        return f"{counts[0]:.0f} and {counts[1]:.0f} exact checks in the median{setting}"


def least_queries(recall: float) -> int:
    """Return how many queries certify a recall at the least, if none of them loses anything."""
    return math.ceil(1 / (1 - recall) - 1 - 1e-9)


def certified(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the recall (g,) that losses (n, g) in [0, 1] of n queries certify for another one."""
    n = len(losses)
    recall: NDArray[np.float64] = 1 - (losses.sum(axis=0) + 1) / (n + 1)
    return recall


def smallest(losses: NDArray[np.float64], recall: float) -> tuple[int, float] | None:
    """Return the place of the smallest margin whose losses (n, g) certify a recall, with what they certify; or None."""
    found = certified(losses)
    enough = np.flatnonzero(found >= recall - 1e-12)
    return (int(enough[0]), float(found[enough[0]])) if len(enough) else None


def group_edges(difficulty: NDArray[np.float64], recall: float) -> NDArray[np.float64]:
    """Return the edges between groups of queries with margins of their own, ascending; none if they are too few."""
    count = min(_MOST_GROUPS, len(difficulty) // (_PER_GROUP * (least_queries(recall) + 1)))
    if count < 2:
        return np.empty(0)
    ordered = np.sort(difficulty)
    return np.unique(ordered[np.arange(1, count) * len(ordered) // count])


def name(kernel: str, k: int) -> str:
    """Return the name of the side file of a kernel's calibration for k results."""
    return f"{PREFIX}{kernel}.{k}"


def save(store: Store, found: Calibration) -> None:
    """Keep a calibration beside a store, in the place of one for the same kernel and k.

    Raises
    ------
    MismatchError
        If another index was built there meanwhile.
    """
    arrays = {
        "margins": found.margins,
        "missed": found.missed.astype(_small(found.missed)),
        "checks": found.checks.astype(_small(found.checks)),
        "difficulty": found.difficulty,
        "errors": found.errors,
    }
    about = asdict(found.about) | {"version": _VERSION, "written_by": __version__}
    with changes.in_place(store.path, store.header):
        side_files.write(
            store.path, store.header.seal, name(found.about.kernel, found.about.k), arrays, about, replace=True
        )


def exists(store: Store, kernel: str, k: int) -> bool:
    """Whether a store has a calibration for a kernel and k results."""
    return side_files.exists(store.path, name(kernel, k))


def load(store: Store, kernel: str, k: int, file: str) -> Calibration:
    """Return the calibration of a store for a kernel, k results and the FAISS index in `file`.

    Raises
    ------
    DamagedIndexError
        If it is damaged, or that of another store.
    MismatchError
        If it was measured on other rows or another FAISS index.
    """
    path = side_files.manifest_path(store.path, name(kernel, k))
    arrays, saved = side_files.read(store.path, store.header.seal, name(kernel, k), _KINDS)
    try:
        if saved["version"] != _VERSION:
            raise ValueError(f"version {saved['version']}")
        about = About(
            kernel=str(saved["kernel"]),
            k=int(saved["k"]),
            candidates=int(saved["candidates"]),
            queries=int(saved["queries"]),
            labelled=bool(saved["labelled"]),
            points=tuple(map(str, saved["points"])),
            seconds=tuple(map(float, saved["seconds"])),
            seconds_per_check=float(saved["seconds_per_check"]),
            file=str(saved["file"]),
            rows=int(saved["rows"]),
            removed=int(saved["removed"]),
        )
        _check(about, arrays, kernel, k)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedIndexError(f"{path} is damaged: it holds no calibration ({error}); calibrate again.") from None
    if about.file != file:
        raise MismatchError(
            f"recall= for {kernel}, k={k} was calibrated for the FAISS index {about.file}, but the index is {file}: "
            "rows were added or left out, or it was built anew. Calibrate again."
        )
    missed, checks = (arrays[kind].astype(np.int64) for kind in ("missed", "checks"))
    return Calibration(about, arrays["margins"], missed, checks, arrays["difficulty"], arrays["errors"])


def _check(about: About, arrays: dict[str, NDArray[np.generic]], kernel: str, k: int) -> None:
    """Raise ValueError unless arrays have the shapes that a calibration has."""
    if (about.kernel, about.k) != (kernel, k) or Kernel(about.kernel) is None:
        raise ValueError(f"of {about.kernel}, k={about.k}")
    points, n = len(about.points), about.queries
    width = arrays["margins"].shape[-1] if arrays["margins"].ndim else 0
    shapes: dict[str, Sequence[int]] = {
        "margins": (points, 2, width),
        "missed": (points, 2, n, width),
        "checks": (points, 2, n, width),
        "difficulty": (points, 2, n),
        "errors": (2, FIFTHS, 101),
    }
    for kind, shape in shapes.items():
        if arrays[kind].shape != tuple(shape) or min(shape) < 1 or arrays[kind].dtype.kind not in "fiu":
            raise ValueError(f"{kind} of shape {arrays[kind].shape}, not {tuple(shape)}")
    if len(about.seconds) != points or not (1 <= about.k <= about.candidates):
        raise ValueError("sizes that disagree")
    if np.isnan(arrays["margins"]).any() or (np.diff(arrays["margins"], axis=-1) < 0).any():
        raise ValueError("margins that do not ascend")
    if arrays["missed"].min() < 0 or arrays["missed"].max() > about.k:
        raise ValueError("more missed than there are")


def _small(counts: NDArray[np.int64]) -> type[np.uint8] | type[np.uint16] | type[np.int64]:
    largest = int(counts.max(initial=0))
    return np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.int64
