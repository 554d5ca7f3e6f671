"""The figures and pictures of VAE-TracIn (Kong & Chaudhuri 2021), whatever framework trained the autoencoder.

A study hands `run` a function that trains a variational autoencoder and returns its job, its gradients at checkpoints
along training, and those that encode and decode. See ``07_vae_tracin.py`` (PyTorch) and ``10_vae_tracin_keras.py``.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from data import Images, load, print_data
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import gradindex
from gradindex.influence import UnsupervisedJob, draws_needed
from gradindex.influence.plots import plot_self_influence
from gradindex.influence.self_influence import self_influence
from gradindex.plots import plot_similar

STRANGERS = 0.05  # share of images of another data set


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the autoencoder and of its training, and how much is asked of the index."""

    hidden: int
    latent: int
    epochs: int
    rate: float
    """Adam's learning rate. Its last steps leave an error that all samples share, so a large one (1e-3) makes
    gradients alike: it decides how many samples are their own strongest proponents."""
    checkpoints: int
    draws: int
    images: int
    queries: int
    dim: int
    variance: float = 0.005
    """σ² of the Gaussian likelihood of a pixel."""


@dataclass(frozen=True)
class Framework:
    """What a script does in its framework."""

    train: Callable[[np.ndarray, np.ndarray, Settings, int, Path, bool], UnsupervisedJob]
    """Trains on images (n, pixels), prints the loss on others that are held out, and returns the job; the model is left
    in a folder or, where the last argument is true, taken from there."""
    encode: Callable[[object, np.ndarray], np.ndarray]
    """The means (n, latent) that a model encodes images (n, pixels) to."""
    decode: Callable[[object, np.ndarray], np.ndarray]
    """The images (n, pixels) that a model decodes latent vectors (n, latent) to."""


def run(options: argparse.Namespace, framework: Framework, settings: Settings) -> None:
    """Print the study's figures and draw its pictures."""
    given = {name: getattr(options, name) for name in ("images", "epochs") if getattr(options, name) is not None}
    settings = replace(settings, **given)
    found = load(options.data)
    print_data(found)
    data = split(found, settings.images)
    print(f"of them {len(data.x_train)} to train on, {len(data.x_held_out)} held out, {settings.queries} to ask about")
    options.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    pictures = explain(data, framework, settings, options, figures)
    pictures |= with_strangers(data, framework, settings, options, figures)
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1))
    for name, figure in pictures.items():
        figure.savefig(options.out / f"{name}.png", dpi=80)
        print(f"wrote {options.out / name}.png")


def explain(
    data: "Split", framework: Framework, settings: Settings, options: argparse.Namespace, figures: dict[str, float]
) -> dict[str, Figure]:
    """Train on a data set, and ask which images are behind themselves and behind test images."""
    print(f"{data.name}:", end=" ", flush=True)
    job = framework.train(
        flat(data.x_train), flat(data.x_held_out), settings, options.seed, options.out / "model", options.load
    )
    sketch = gradindex.CountSketch(settings.dim)
    index = gradindex.build(job, options.out / "index", sketch=sketch, overwrite=True)
    values, losses = self_influence(index.store), index.store.columns["loss"]
    figures["Spearman"] = float(spearmanr(values, losses).statistic)
    print(f"self-influence against loss: Spearman {figures['Spearman']:.3f}", flush=True)
    failed = own_proponents(index, index.store.ids)
    figures["own proponents"] = 1 - len(failed) / len(index)
    asked = flat(data.x_test)[: settings.queries]
    proponents, opponents = strongest(index, asked)
    figures |= labels_of(data, asked, proponents, opponents)
    print_errors(index, asked, proponents)
    latent, of_asked = (framework.encode(job.model, images) for images in (flat(data.x_train), asked))
    figures |= in_latent_space(latent, of_asked, proponents[:, 0], opponents[:, 0], values)
    found = index.explain(*job.queries(flat(data.x_test)[:5]), k=5, kernel="grad_dot", rerank=10)  # exact
    order = np.argsort(-values)
    rows = [("highest self-influence", data.x_train[order[:12]]), ("lowest self-influence", data.x_train[order[-12:]])]
    if len(failed):
        rows.append(("not their own strongest proponent", data.x_train[failed[:12]]))
    similar = plot_similar(
        found, data.x_test[:5], data.x_train, data.y_test[:5], data.y_train, class_names=data.class_names
    )
    return {"extremes": grid(rows), "proponents": similar}


def with_strangers(
    data: "Split", framework: Framework, settings: Settings, options: argparse.Namespace, figures: dict[str, float]
) -> dict[str, Figure]:
    """Train on half of a data set with images of another one mixed in, and look for them by self-influence."""
    mixed, wrong, what = strangers(data, options.seed)
    print("with strangers:", end=" ", flush=True)
    held_out = flat(data.x_held_out)
    job = framework.train(mixed, held_out, settings, options.seed, options.out / "model with strangers", options.load)
    sketch = gradindex.CountSketch(settings.dim)
    index = gradindex.build(job, options.out / "mixed", sketch=sketch, overwrite=True)
    scores, losses = self_influence(index.store), index.store.columns["loss"]
    auc, by_loss = (float(roc_auc_score(wrong, ranking)) for ranking in (scores, losses))
    figures |= {"AUC for strangers": auc, "AUC for strangers, by loss": by_loss}
    print(f"AUC of self-influence for {wrong.sum()} {what}: {auc:.3f} (of the loss {by_loss:.3f})", flush=True)
    samples = cleaned(job, mixed, wrong, scores, held_out, framework, settings, options, figures)
    shape = data.x_train.shape[1:]
    rows = [(title, images.reshape(-1, *shape)) for title, images in samples.items()]
    return {"self-influence": plot_self_influence(scores, losses, wrong, marked_title=what), "samples": grid(rows)}


def cleaned(
    job: UnsupervisedJob,
    x: np.ndarray,
    wrong: np.ndarray,
    scores: np.ndarray,
    held_out: np.ndarray,
    framework: Framework,
    settings: Settings,
    options: argparse.Namespace,
    figures: dict[str, float],
) -> dict[str, np.ndarray]:
    """Train again without some images, as many as there are strangers; return samples that the models draw.

    Left out are those of the highest self-influence, as many at random, and the strangers themselves. Held out are
    images of the data set alone. With fewer images an epoch has fewer steps, so that what leaving out changes is told
    beside as many at random.
    """
    random, count = np.random.default_rng(options.seed + 1), int(wrong.sum())  # the seed itself drew the strangers
    left_out = {
        "the highest self-influence": np.argsort(-scores)[:count],
        "as many at random": random.choice(len(x), count, replace=False),
        "the strangers": np.flatnonzero(wrong),
    }
    figures["strangers among the highest"] = float(wrong[left_out["the highest self-influence"]].mean())
    z = random.standard_normal((12, settings.latent)).astype(np.float32)
    losses, samples = {"nothing": held_out_losses(job, held_out)}, {"nothing left out": framework.decode(job.model, z)}
    at_the_end = replace(settings, checkpoints=1)
    for name, ids in left_out.items():
        print(f"without {name}:", end=" ", flush=True)
        rest, folder = np.delete(x, ids, axis=0), options.out / f"model without {name}"
        again = framework.train(rest, held_out, at_the_end, options.seed, folder, options.load)
        losses[name] = held_out_losses(again, held_out)
        samples[f"without {name}"] = framework.decode(again.model, z)
    print(f"negative ELBO of {len(held_out)} held-out images, up to a constant; beside leaving out as many at random:")
    for name, found in losses.items():
        change = found - losses["as many at random"]
        error = float(change.std(ddof=1) / np.sqrt(len(change)))
        figures[f"held-out loss without {name}"] = float(found.mean())
        figures[f"change without {name}"] = float(change.mean())
        figures[f"error of the change without {name}"] = error
        print(f"  without {name:30}{found.mean():9.1f}{change.mean():+9.1f} ± {error:.1f}")
    return samples


def held_out_losses(job: UnsupervisedJob, x: np.ndarray) -> np.ndarray:
    """Return the loss (n,) of images at the end of training, over ten draws, the same ones for every model."""
    return replace(job, checkpoints=None, draws=10, seed=1).losses(x)[0]


def flat(images: np.ndarray) -> np.ndarray:
    """Return images (n, h, w) as rows (n, pixels)."""
    return images.reshape(len(images), -1)


@dataclass(frozen=True)
class Split:
    """Images to train on, to choose settings by, and to report on."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_held_out: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] | None


def split(data: Images, images: int) -> Split:
    """Return the first images to train on and the last of the training images, at most 500, as held out."""
    count = min(500, len(data.x_train) // 8)
    images = min(images, len(data.x_train) - count)
    return Split(
        data.name,
        data.x_train[:images],
        data.y_train[:images],
        data.x_train[-count:],
        data.x_test,
        data.y_test,
        data.class_names,
    )


def own_proponents(index: gradindex.Index, ids: np.ndarray) -> np.ndarray:
    """Print how many training images are their own strongest proponent, and why others are not; return those."""
    # Estimates of the sketches, 2 % off at 2,048 numbers: exact ones cost a pass of every candidate at all checkpoints.
    found = index.explain(ids=ids, k=10, kernel="grad_dot", rerank=0)
    first = found.ordered_indices[:, 0] == ids
    print(f"training images that are their own strongest proponent: {first.mean():.1%} of {len(ids)}")
    for row in np.flatnonzero(~first)[:10]:
        place = np.flatnonzero(found.ordered_indices[row] == ids[row])
        norms = index.store.norms[index.store.rows_of(np.array([ids[row], found.ordered_indices[row, 0]]))]
        cosine = found.scores[row, 0] / norms.prod()
        rank = f"place {place[0] + 1}" if len(place) else "below place 10"
        print(
            f"  image {ids[row]} is in {rank}: the gradient of image {found.ordered_indices[row, 0]} is "
            f"{norms[1] / norms[0]:.2f} times as long, at cosine {cosine:.2f}"
        )
    return ids[~first]


def strongest(index: gradindex.Index, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (m, 5) of the strongest proponents and opponents of images, by estimates of the sketches."""
    found = index.explain(*index.job.queries(asked), k=5, kernel="grad_dot", rerank=0)
    return found.ordered_indices, found.opponent_indices


def labels_of(data: Split, asked: np.ndarray, proponents: np.ndarray, opponents: np.ndarray) -> dict[str, float]:
    """Print and return how often the strongest proponents and opponents of test images have their label."""
    own, figures = data.y_test[: len(asked)], {}
    for side, ids in (("proponents", proponents), ("opponents", opponents)):
        same = data.y_train[ids] == own[:, None]
        figures[f"label of {side}"] = float(same[:, 0].mean())
        print(
            f"strongest {side} with the test image's label: {same[:, 0].mean():.1%}; of the first 5 {same.mean():.1%}"
        )
    return figures


def print_errors(index: gradindex.Index, asked: np.ndarray, proponents: np.ndarray) -> None:
    """Print how far draws take a loss and an influence, and how many draws bound the error of a loss."""
    value, error = index.job.influence(proponents[0, :1], asked[:1])
    losses, spread = index.job.losses(asked)
    print(f"standard error over draws: of a test loss {np.mean(spread / np.abs(losses)):.1%} of it,", end=" ")
    print(f"of the strongest influence on the first test image {error[0, 0] / value[0, 0]:.1%}", flush=True)
    single = float(np.sqrt(np.mean((spread / losses) ** 2) * index.job.draws))  # one draw's deviation, of the loss
    print(f"draws that bound the error of a test loss in 95 of 100 cases ({index.job.draws} were made):", end=" ")
    print(f"{draws_needed(0.05, 0.05, single)} for 5% of it, {draws_needed(0.01, 0.05, single)} for 1%")


def in_latent_space(
    latent: np.ndarray, asked: np.ndarray, proponents: np.ndarray, opponents: np.ndarray, values: np.ndarray
) -> dict[str, float]:
    """Print and return how near the strongest proponents and opponents are, and what latent norms say of influence.

    Parameters
    ----------
    latent, asked
        Latent means of n training images (n, latent) and of m test images (m, latent).
    proponents, opponents
        Ids (m,) of each test image's strongest.
    values
        Self-influence of the training images (n,).
    """
    squares = np.square(asked).sum(axis=1)[:, None] + np.square(latent).sum(axis=1) - 2 * asked @ latent.T
    distances, norms = np.sqrt(np.maximum(squares, 0)), np.linalg.norm(latent, axis=1)
    every, rows = distances.mean(axis=1), np.arange(len(asked))
    figures = {
        "latent distance of proponents": float(np.mean(distances[rows, proponents] / every)),
        "latent distance of opponents": float(np.mean(distances[rows, opponents] / every)),
        "latent distance of the nearest": float(np.mean(distances.min(axis=1) / every)),
        "latent norm of proponents": float(norms[proponents].mean() / norms.mean()),
        "Spearman of self-influence and latent norm": float(spearmanr(values, norms).statistic),
    }
    print(
        "latent distance to the test image, of the mean distance of training images: "
        f"strongest proponents {figures['latent distance of proponents']:.2f}, "
        f"opponents {figures['latent distance of opponents']:.2f}, "
        f"nearest image {figures['latent distance of the nearest']:.2f}"
    )
    print(
        f"latent norm of the strongest proponents, of the mean norm: {figures['latent norm of proponents']:.2f}; "
        f"self-influence against latent norm: Spearman {figures['Spearman of self-influence and latent norm']:.3f}"
    )
    return figures


def strangers(data: Split, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Return half of the training images, some replaced by another data set's, which ones are, and what they are."""
    x, random = flat(data.x_train[: len(data.x_train) // 2]).copy(), np.random.default_rng(seed)
    wrong = np.zeros(len(x), bool)
    wrong[random.choice(len(x), round(STRANGERS * len(x)), replace=False)] = True
    if data.name == "digits":
        x[wrong] = random.permuted(x[wrong], axis=1)
        return x, wrong, "digits with shuffled pixels"
    other = load("fashion" if data.name == "mnist" else "mnist", int(wrong.sum()))
    x[wrong] = flat(other.x_train)
    return x, wrong, f"images of {other.name}"


def grid(rows: list[tuple[str, np.ndarray]]) -> Figure:
    """Draw rows of images (n, h, w), each under its title."""
    width = max(len(images) for _, images in rows)
    figure = Figure(figsize=(0.62 * width, 0.85 * len(rows)), layout="constrained")
    for part, (title, images) in zip(np.ravel(figure.subfigures(len(rows), 1)), rows, strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=8)
        panels = np.ravel(part.subplots(1, width))
        for axes in panels:
            axes.set_axis_off()
        for axes, image in zip(panels, images, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    return figure
