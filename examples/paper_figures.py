"""The pictures by which Hanawa et al. (2021) explain why a metric is right or wrong: figures 5 to 11."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from paper_data import Labelled
from sklearn.manifold import TSNE

import gradindex
from gradindex import relevance
from gradindex.evaluation import Experiment, last_layer_factors
from gradindex.evaluation.criteria import merge_classes
from gradindex.relevance.base import Metric

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#9A9A9A"


def write(job: gradindex.Job, names: Sequence[str], x: np.ndarray, out: Path, seed: int) -> dict[str, float]:
    """Draw norms and factors for queries x into a folder, and return the means of the factors."""
    chosen = [name for name in ("IF", "FK", "GD", "GC") if name in names]
    norms(relevance.metrics(chosen, job), x).savefig(out / "norms.png", dpi=90)
    figure, means = factors(job, x, seed)
    figure.savefig(out / "factors.png", dpi=90)
    return means


def norms(metrics: dict[str, Metric], x: np.ndarray) -> Figure:
    """Draw how long the feature maps of all training samples are, and of those selected for queries x (figure 5)."""
    figure = Figure(figsize=(2.6 * len(metrics), 2.4), layout="constrained")
    for axes, (name, metric) in zip(np.ravel(figure.subplots(1, len(metrics))), metrics.items(), strict=True):
        every = lengths(metric)
        found = every[metric.top(x, k=1)[0][:, 0]]
        edges = np.linspace(0, every.max(), 25)
        for values, colour, label in ((every, GREY, "all"), (found, BLUE, "selected")):
            axes.hist(
                values, edges, weights=np.full(len(values), 1 / len(values)), color=colour, alpha=0.6, label=label
            )
        axes.set_title(f"{name}: norms", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    return figure


def lengths(metric: Metric) -> np.ndarray:
    """Return the norms (n,) of the training samples' feature maps, for IF and FK of matrix^(-1/2) g."""
    if metric.feature in ("IF", "FK"):
        return np.linalg.norm(metric.space.inverse(metric.feature).root(metric.space.train("grad")), axis=1)
    return np.linalg.norm(metric.space.train(metric.feature), axis=1)


def factors(job: gradindex.Job, x: np.ndarray, seed: int) -> tuple[Figure, dict[str, float]]:
    """Draw GC and the cosine of residuals, for samples of a query's class and of others (figure 7), one each."""
    labels = np.asarray(job.source.take(np.arange(len(job.source))).y)
    predicted = job.engine.outputs(x).argmax(axis=1)
    residual = last_layer_factors(job, x).residual
    gc = relevance.metrics(["GC"], job)["GC"].scores(x)
    random = np.random.default_rng(seed)
    figure, means = Figure(figsize=(6.4, 2.6), layout="constrained"), {}
    for axes, (title, values) in zip(figure.subplots(1, 2), (("GC", gc), ("cos(r, r')", residual)), strict=True):
        for same, colour in ((True, BLUE), (False, ORANGE)):
            groups = [np.flatnonzero((labels == one) == same) for one in predicted]
            drawn = [values[row, random.choice(ids)] for row, ids in enumerate(groups) if len(ids)]
            what = "same class" if same else "other class"
            axes.hist(drawn, np.linspace(-1, 1, 41), color=colour, alpha=0.6, label=what)
            means[f"{title}, {what}"] = float(np.mean(drawn))
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, means


def subclasses(experiment: Experiment, seed: int) -> Figure:
    """Draw all hidden layers of a model of two merged classes, by t-SNE, in the subclasses' colours (figure 9)."""
    split = experiment.split(seed)
    merged, _ = merge_classes(split.y_train, seed)
    job = experiment.job(split, merged, 2, seed)
    hidden = relevance.metrics(["l2-all"], job)["l2-all"].space.train("all")
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, side in zip(figure.subplots(1, 2), (0, 1), strict=True):
        rows = np.flatnonzero(merged == side)[:1000]
        place = TSNE(init="random", perplexity=min(30, len(rows) // 4), random_state=seed).fit_transform(hidden[rows])
        axes.scatter(*place.T, c=split.y_train[rows], cmap="tab10", s=6)
        axes.set_title(f"hidden layers of class {'AB'[side]}, subclasses in colours", fontsize=9)
        axes.set_axis_off()
    return figure


def neighbours(job: gradindex.Job, names: Sequence[str], x: np.ndarray, rows: Sequence[int], data: Labelled) -> Figure:
    """Draw the training image that each metric finds for test images (figures 10 and 11)."""
    figure = Figure(figsize=(0.95 * (len(names) + 1), 1.25 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(names) + 1, squeeze=False)
    metrics = relevance.metrics(list(names), job)
    for line, row in zip(panels, rows, strict=True):
        predicted = int(job.engine.outputs(x[row : row + 1]).argmax())
        shown = [(f"{data.classes[data.y_test[row]]}\n→ {data.classes[predicted]}", x[row])]
        for name, metric in metrics.items():
            found = int(metric.top(x[row : row + 1], k=1)[0][0, 0])
            shown.append((f"{name}\n{data.classes[data.y_train[found]]}", data.x_train[found]))
        for axes, (title, image) in zip(line, shown, strict=True):
            axes.imshow(image.transpose(1, 2, 0))
            axes.set_title(title, fontsize=6)
            axes.set_axis_off()
    return figure
