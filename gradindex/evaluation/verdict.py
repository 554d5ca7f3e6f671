"""What chance alone would give in the tests of metrics, which metrics pass, and which one can be trusted."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Share of random rankings that lie within a null interval."""
FAILED_CORRELATION = 0.7
"""A metric that ranks a random model's samples this much alike fails the randomization test: the study's own mark."""
COLOURED = 5
"""The study's table 1 marks the metrics with the five highest success rates."""
RIGHT = 0.5
"""A metric that passes is right about more queries than it is wrong about."""
TABLE_1 = ("class", "subclass", "randomization", "randomization (fixed)")
"""The tests of the study's table 1, the last in both forms."""
Interval = list[float]
Means = Mapping[str, float]


def binomial_interval(chances: NDArray[np.float64]) -> Interval:
    """Return the shares of queries that pass in 95 % of random rankings, [low, high], exactly.

    Rankings are independent between queries, so that the number that pass is a sum of independent trials, each with
    its own probability in `chances` (m,); at most 2.5 % of the distribution lie below `low`, and above `high`.
    """
    from scipy.stats import binom

    distribution = np.ones(1)
    for chance, count in zip(*np.unique(chances, return_counts=True), strict=True):
        distribution = np.convolve(distribution, binom.pmf(np.arange(count + 1), count, chance))
    tail, below = (1 - LEVEL) / 2, np.cumsum(distribution)
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail - 1e-12))
    return [low / len(chances), min(high, len(chances)) / len(chances)]


def normal_interval(deviations: Sequence[float]) -> Interval:
    """Return the means of r independent numbers around 0 in 95 % of cases, [low, high].

    `deviations` are their r standard deviations; the distribution of each is taken for normal.
    """
    from scipy.stats import norm

    half = float(norm.ppf((1 + LEVEL) / 2) * np.linalg.norm(deviations) / len(deviations))
    return [-half, half]


def is_randomization(test: str) -> bool:
    """Return whether a test is a form of the model randomization test: nearer 0 is better."""
    return test.startswith("randomization")


def passed(test: str, means: Means, null: Mapping[str, Interval]) -> dict[str, bool]:
    """Return which metrics pass a test, as in the study's table 1.

    Model randomization: the mean correlation is less than `FAILED_CORRELATION` away from 0. The other tests: the
    success rate is above the null interval and above one half, and among the five highest.

    Parameters
    ----------
    test
        Its name in a `Result`.
    means
        Metric to mean over the repeats.
    null
        Metric to null interval.
    """
    if is_randomization(test):
        return {name: abs(mean) < FAILED_CORRELATION for name, mean in means.items()}
    least = sorted(means.values(), reverse=True)[:COLOURED][-1]
    return {name: mean > max(null[name][1], RIGHT) and mean >= least for name, mean in means.items()}


def trusted(means: Mapping[str, Means], passes: Mapping[str, Mapping[str, bool]]) -> str | None:
    """Return the metric that passes all tests of table 1 that were run, a class test among them; None if none does.

    Of several the one with the highest mean success rate, then with the highest mean rate in the top-k tests.
    """
    judged = [test for test in TABLE_1 if test in passes]
    rates = [test for test in judged if not is_randomization(test)]
    if not rates:
        return None
    common = [name for name in means[rates[0]] if all(passes[test].get(name, False) for test in judged)]
    further = [test for test in means if test.startswith("top-") and "index" not in test]

    def rank(name: str) -> tuple[float, float]:
        first, then = ([means[test][name] for test in tests] for tests in (rates, further))
        return float(np.mean(first)), float(np.mean(then)) if then else 0.0

    return max(common, key=rank, default=None)


def sentence(
    means: Mapping[str, Means],
    null: Mapping[str, Mapping[str, Interval]],
    passes: Mapping[str, Mapping[str, bool]],
) -> str:
    """Return one sentence that names the metric to trust and the evidence, or says that there is none and why."""
    judged = [test for test in TABLE_1 if test in passes]
    if not any(not is_randomization(test) for test in judged):
        return "No metric can be named: neither the class nor the subclass test was judged."
    name = trusted(means, passes)
    missing = [one for one in ("class", "subclass", "randomization") if not any(t.startswith(one) for t in judged)]
    left_out = f"; not tested: {', '.join(missing)}" if missing else ""
    if name is None:
        failures = [
            f"{one} fails {', '.join(test for test in judged if not passes[test].get(one, False))}"
            for one in means[judged[0]]
        ]
        return f"None of these metrics can be trusted: {'; '.join(failures)}{left_out}."
    evidence = []
    for test in judged:
        numbers, limit, digits = (means[test][name], *null[test][name]), "", 2
        if is_randomization(test):
            limit, digits = f"failed from {FAILED_CORRELATION} on, ", 3
        mean, low, high = (f"{number:.{digits}f}" for number in numbers)
        evidence.append(f"{test} {mean} ({limit}by chance {low} to {high})")
    return f"{name} can be trusted: it passes every test that was run, {', '.join(evidence)}{left_out}."
