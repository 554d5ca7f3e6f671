"""What a classifier says of samples that it was not trained on: kernel logistic regression, cross-validated."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradindex.errors import missing

FOLDS = 5
_LANDMARKS = 300
_FITTED = 20_000  # samples that a classifier is fitted to, so that a large data set takes minutes
_CLIPPED = 3.0  # standard deviations: a pixel that is rarely lit is not to outweigh all others


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation (d,) of each column of some rows."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.generic]) -> "Standard":
        """Return those of rows (n, d)."""
        rows = np.asarray(x, np.float64)
        return cls(rows.mean(axis=0), rows.std(axis=0))

    def __call__(self, x: NDArray[np.generic]) -> NDArray[np.float64]:
        """Return rows (m, d) less the mean, in standard deviations, cut at three; constant columns are 0."""
        centred = np.asarray(x, np.float64) - self.mean
        scaled = np.divide(centred, self.spread, out=np.zeros_like(centred), where=self.spread > 0)
        return np.asarray(np.clip(scaled, -_CLIPPED, _CLIPPED))


def standardised(x: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return columns (n, d) with mean 0 and variance 1, cut at three standard deviations; constant ones are 0."""
    return Standard.of(x)(x)


def probabilities(x: NDArray[np.generic], labels: NDArray[np.int64], classes: int, seed: int) -> NDArray[np.float64]:
    """Return the probability of each class (n, classes), of each sample by models of the other folds.

    The features are those of Nyström's method for a Gaussian kernel (Williams and Seeger 2001, "Using the Nyström
    Method to Speed Up Kernel Machines"), as wide as the median distance of two samples; the classifier is a
    logistic regression, fitted to 20,000 samples of the other folds at most.

    Parameters
    ----------
    x
        Rows (n, d).
    labels
        Classes (n,) from 0.
    classes
        How many.
    seed
        Of folds and landmarks.

    Raises
    ------
    ImportError
        If scikit-learn is not installed; says what to type.
    """
    try:
        from sklearn.kernel_approximation import Nystroem
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import KFold
    except ImportError as error:
        raise missing("scikit-learn", "gradindex[review]", "A review") from error
    rows = standardised(x)
    random = np.random.default_rng(seed)
    pairs = rows[random.integers(0, len(rows), (2, 1000))]
    width = float(np.median(((pairs[0] - pairs[1]) ** 2).sum(axis=1)))
    found = np.full((len(rows), classes), 1 / classes)
    folds = KFold(min(FOLDS, len(rows)), shuffle=True, random_state=seed)
    for others, held in folds.split(rows):
        fit = random.choice(others, _FITTED, replace=False) if len(others) > _FITTED else others
        if len(np.unique(labels[fit])) < 2:
            continue
        features = Nystroem(gamma=1 / max(width, 1e-12), n_components=min(_LANDMARKS, len(fit)), random_state=seed).fit(
            rows[fit]
        )
        model = LogisticRegression(C=10, max_iter=300).fit(features.transform(rows[fit]), labels[fit])
        found[held] = 0
        found[np.ix_(held, model.classes_)] = model.predict_proba(features.transform(rows[held]))
    return found
