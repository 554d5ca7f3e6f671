"""Labels drawn from the model's own distribution.

With them the second moment of gradients is the Fisher information, which for a loss −log p(y | output) of a usual kind
is the Gauss-Newton matrix (Martens 2020, https://arxiv.org/abs/1412.1193). What distribution a loss stands for is found
by asking it: classes whose −log p, by the softmax of the outputs, or by outputs that are probabilities or their
logarithms, is the loss; classes that are 0 or 1 independently; or numbers whose loss is a square.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit, log_softmax

from gradindex.data.labels import as_array
from gradindex.data.source import Tree, is_ragged
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats

_TRIED = 6  # label arrays with which a loss is asked what it is
_CLOSE = 1e-4
_STREAM = 7  # of the random numbers, apart from those of the same seed elsewhere


class NoDistribution(ValueError):
    """The loss is no logarithm of a probability that is known here."""


@dataclass(frozen=True)
class Distribution:
    """How labels are drawn from outputs.

    `kind`: ``"classes"``, ``"one-hot"``, ``"binary"`` or ``"square"``. `form`: the outputs are ``"logits"``,
    ``"probabilities"`` or ``"logarithms"``. `axis`: the outputs' axis of classes. `slope`: of a square, the derivative
    is slope × (output − y).
    """

    kind: str
    form: str = ""
    axis: int = -1
    slope: float = 1.0

    def draw(self, outputs: Floats, y: NDArray[Any], seed: tuple[int, ...]) -> NDArray[Any]:
        """Return labels like `y` for outputs (b, …); those outside the classes, such as −100, stay as they are."""
        random = np.random.default_rng([_STREAM, *seed])
        values = np.asarray(outputs, np.float64)
        if self.kind == "square":
            numbers: NDArray[Any] = values + random.standard_normal(values.shape) / np.sqrt(self.slope)
            return numbers.reshape(y.shape).astype(y.dtype)
        if self.kind == "binary":
            chance = np.exp(_binary(values, self.form)[0])
            drawn: NDArray[Any] = random.random(values.shape) < chance
            return drawn.reshape(y.shape).astype(y.dtype)
        logs = np.moveaxis(_classes(values, self.form, self.axis), self.axis, -1)
        # The largest of log p plus Gumbel noise is a draw from p.
        best: NDArray[np.intp] = (logs + random.gumbel(size=logs.shape)).argmax(axis=-1)
        if self.kind == "one-hot":
            return np.moveaxis(np.eye(logs.shape[-1], dtype=y.dtype)[best], -1, self.axis)
        classes: NDArray[Any] = best.reshape(y.shape).astype(y.dtype)
        return np.where((y >= 0) & (y < logs.shape[-1]), classes, y)

    def surprise(self, outputs: Floats, y: NDArray[Any]) -> tuple[float, int]:
        """Return −log p of one sample's labels, and how many of them there are."""
        values = np.asarray(outputs, np.float64)
        if self.kind == "binary":
            yes, no = _binary(values, self.form)
            return float(-np.where(y.reshape(values.shape) == 1, yes, no).sum()), y.size
        logs = np.moveaxis(_classes(values, self.form, self.axis), self.axis, -1)
        if self.kind == "one-hot":
            return float(-(logs * np.moveaxis(y, self.axis, -1)).sum()), logs[..., 0].size
        labels = y.reshape(logs.shape[:-1])
        counted = (labels >= 0) & (labels < logs.shape[-1])
        found = np.take_along_axis(logs, np.where(counted, labels, 0).astype(np.int64)[..., None], -1)[..., 0]
        return float(-found[counted].sum()), int(counted.sum())


def _classes(outputs: NDArray[np.float64], form: str, axis: int) -> NDArray[np.float64]:
    if form == "logits":
        found: NDArray[np.float64] = log_softmax(outputs, axis=axis)
        return found
    return _log(outputs) if form == "probabilities" else outputs


def _binary(outputs: NDArray[np.float64], form: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log p of 1 and of 0."""
    if form == "logits":
        return log_expit(outputs), log_expit(-outputs)
    return _log(outputs), _log(1 - outputs)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[np.float64] = np.log(values)
    return found


def find(engine: Engine, outputs: Floats, y: Tree) -> Distribution:
    """Return the distribution that an engine's loss stands for, found out by two samples' losses with several labels.

    Parameters
    ----------
    engine
        Has the loss.
    outputs
        Of the model for some samples (b, …).
    y
        Their labels, one array.

    Raises
    ------
    NoDistribution
        If the loss is none of those, as with weights of classes or smoothed labels, or labels are not one array.
    """
    if y is None or isinstance(y, dict | tuple) or is_ragged(y) or as_array(y).dtype.kind not in "biuf":
        raise NoDistribution(f"Labels are not one array of numbers, so none can be drawn. {_INSTEAD}")
    labels = as_array(y)
    largest = np.abs(outputs.reshape(len(outputs), -1)).max(axis=1)
    # Small outputs round least, and are in no flat part of a loss; the smallest may all be alike.
    rows = np.argsort(largest, kind="stable")[[0, len(outputs) // 4]]
    samples = [(outputs[row : row + 1], labels[row : row + 1]) for row in rows]
    one, like = samples[0]
    for candidate in _candidates(engine, one, like):
        if all(_agrees(engine, candidate, *sample) for sample in samples):
            return candidate
    if (slope := _slope(engine, one, like)) is not None:
        return Distribution("square", slope=slope)
    raise NoDistribution(
        f"The loss is not −log p of labels given the model's outputs, so none can be drawn. {_INSTEAD}"
    )


_INSTEAD = 'Use labels="data".'


def _candidates(engine: Engine, outputs: Floats, like: NDArray[Any]) -> list[Distribution]:
    forms = ("logits", "probabilities", "logarithms")
    if like.shape == outputs.shape or outputs[0].size == like[0].size == 1:
        kinds = [("binary", -1), ("one-hot", engine.class_axis)] if like.shape == outputs.shape else [("binary", -1)]
        return [Distribution(kind, form, axis) for kind, axis in kinds for form in forms]
    found = []
    for axis in dict.fromkeys([engine.class_axis % outputs.ndim, outputs.ndim - 1]):
        rest = np.delete(outputs.shape, axis)
        if int(np.prod(rest)) == like.size and like.dtype.kind in "iuf":
            found += [Distribution("classes", form, axis) for form in forms]
    return found


def _agrees(engine: Engine, candidate: Distribution, outputs: Floats, like: NDArray[Any]) -> bool:
    """Whether the loss of labels drawn evenly is −log p, summed or averaged over a sample's labels."""
    random = np.random.default_rng(_STREAM)
    losses, surprises = [], []
    for _ in range(_TRIED):
        if candidate.kind == "binary":
            y = random.integers(0, 2, like.shape).astype(like.dtype)
        else:
            flat = Distribution(candidate.kind, "logits", candidate.axis)
            y = flat.draw(np.zeros_like(outputs), like, (int(random.integers(1 << 30)),))
        surprise, count = candidate.surprise(outputs, y)
        losses.append(float(engine.losses(outputs, y)[0]))
        surprises.append((surprise, surprise / max(count, 1)))
    scale = _CLOSE * (1 + np.abs(losses))
    differences = np.abs(np.array(losses)[:, None] - np.array(surprises))
    return bool(np.isfinite(differences).all() and (differences < scale[:, None]).all(axis=0).any())


def _slope(engine: Engine, outputs: Floats, like: NDArray[Any]) -> float | None:
    """Return s of a loss whose derivative by the outputs is s × (output − y), None if it is none such."""
    if like.dtype.kind != "f" or like.size != outputs.size:
        return None
    errors = np.random.default_rng(_STREAM).standard_normal((3, *outputs.shape[1:]))
    errors[1] *= 3
    labels = (outputs - errors).reshape(3, *like.shape[1:]).astype(like.dtype)
    repeated = np.repeat(outputs, 3, axis=0)
    slopes = engine.output_gradients(repeated, labels).reshape(errors.shape) / errors
    slope = float(np.median(slopes))
    return slope if slope > 0 and np.allclose(slopes, slope, rtol=0.02) else None
