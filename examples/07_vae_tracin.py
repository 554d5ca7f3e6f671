"""Ask a variational autoencoder which training images make a test image likely (VAE-TracIn).

After Kong & Chaudhuri (2021): a VAE is trained, its checkpoints are kept, and the gradients of its loss, the negative
ELBO averaged over seeded draws, are indexed at all of them. The script prints the study's figures: how many training
images are their own strongest proponent, how often the strongest proponents and opponents of a test image have its
label, how self-influence follows the loss, and how well it finds images of another data set mixed into training. Run
it with ``python examples/07_vae_tracin.py``; the pictures are drawn into the folder ``--out``.
"""

import numpy as np
import torch
from data import Images, arguments, load
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

import gradindex
from gradindex.influence import CheckpointRecorder, UnsupervisedJob
from gradindex.influence.plots import plot_self_influence
from gradindex.influence.self_influence import self_influence
from gradindex.plots import plot_similar

STRANGERS = 0.05  # share of images of another data set


class VAE(nn.Module):
    """Encoder to means and log variances, decoder to logits of pixels."""

    def __init__(self, pixels: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.encoder = perceptron(pixels, hidden, 2 * latent)
        self.decoder = perceptron(latent, hidden, pixels)


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Module:
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers)


def negative_elbo(model: VAE, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the loss (b,) of images (b, pixels) with standard normal noise (b, latent)."""
    mean, log_variance = model.encoder(x).chunk(2, dim=1)
    logits = model.decoder(mean + torch.exp(log_variance / 2) * noise)
    misfit = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=1)
    return misfit - (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1) / 2


def train(x: np.ndarray, seed: int, quick: bool) -> UnsupervisedJob:
    """Train a VAE by Adam and return the job of its gradients at checkpoints along the way."""
    hidden, latent, epochs, count = (96, 16, 40, 5) if quick else (512, 128, 40, 20)
    torch.manual_seed(seed)
    model, images = VAE(x.shape[1], hidden, latent), torch.from_numpy(x)
    optimizer, recorder = torch.optim.Adam(model.parameters(), lr=1e-3), CheckpointRecorder()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            losses = negative_elbo(model, images[rows], torch.randn(len(rows), latent))
            losses.mean().backward()
            optimizer.step()
            total += float(losses.sum().detach())
        if (epoch + 1) % (epochs // count) == 0:
            recorder.record(model, optimizer)
    print(f"trained on {len(x)} images: loss {total / len(x):.1f} in the last of {epochs} epochs")
    return UnsupervisedJob(
        model,
        negative_elbo,
        x,
        takes="model",
        noise=(latent,),
        draws=2,
        seed=seed,
        checkpoints=recorder.checkpoints,
    )


def own_proponents(index: gradindex.Index, ids: np.ndarray) -> np.ndarray:
    """Print how many training images are their own strongest proponent, and why others are not; return those."""
    found = index.explain(ids=ids, k=10, kernel="grad_dot", rerank=20)
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


def test_images(index: gradindex.Index, data: Images, x: np.ndarray, queries: int) -> gradindex.Explanation:
    """Print how often the strongest proponents and opponents of test images have their label."""
    asked = x[:queries]
    found = index.explain(*index.job.queries(asked), k=5, kernel="grad_dot", rerank=20)
    own = data.y_test[:queries]
    for side, ids in (("proponents", found.ordered_indices), ("opponents", found.opponent_indices)):
        same = data.y_train[ids] == own[:, None]
        print(
            f"strongest {side} with the test image's label: {same[:, 0].mean():.1%}; of the first 5 {same.mean():.1%}"
        )
    value, error = index.job.influence(found.ordered_indices[0, :1], asked[:1])
    losses, spread = index.job.losses(asked)
    print(f"standard error over draws: of a test loss {np.mean(spread / losses):.1%} of it,", end=" ")
    print(f"of the strongest influence on the first test image {error[0, 0] / value[0, 0]:.1%}")
    return found


def strangers(data: Images, seed: int, quick: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """Return training images some of which are of another data set, which ones are, and what they are."""
    x = data.x_train.reshape(len(data.x_train), -1)[: 1400 if quick else 8000].copy()
    random = np.random.default_rng(seed)
    wrong = np.zeros(len(x), bool)
    wrong[random.choice(len(x), round(STRANGERS * len(x)), replace=False)] = True
    if data.name == "digits":
        x[wrong] = random.permuted(x[wrong], axis=1)
        return x, wrong, "digits with shuffled pixels"
    other = load("fashion" if data.name == "mnist" else "mnist", int(wrong.sum()))
    x[wrong] = other.x_train.reshape(len(other.x_train), -1)
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


def main() -> None:
    options = arguments(__doc__, "runs/vae-tracin")
    data = load(options.data, 8000)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    x, test = (images.reshape(len(images), -1) for images in (data.x_train, data.x_test))
    queries, sketch = (40, gradindex.CountSketch(1024)) if options.quick else (250, gradindex.CountSketch(4096))
    print(f"{data.name}:", end=" ", flush=True)
    index = gradindex.build(train(x, options.seed, options.quick), options.out / "index", sketch=sketch, overwrite=True)

    values, losses = self_influence(index.store), index.store.columns["loss"]
    print(f"self-influence against loss: Spearman {spearmanr(values, losses).statistic:.3f}", flush=True)
    ids = np.random.default_rng(options.seed).choice(len(x), queries, replace=False)
    failed = own_proponents(index, ids)
    found = test_images(index, data, test, queries)

    mixed, wrong, what = strangers(data, options.seed, options.quick)
    print("with strangers:", end=" ", flush=True)
    other = gradindex.build(
        train(mixed, options.seed, options.quick), options.out / "mixed", sketch=sketch, overwrite=True
    )
    scores = self_influence(other.store)
    auc, by_loss = (roc_auc_score(wrong, ranking) for ranking in (scores, other.store.columns["loss"]))
    print(f"AUC of self-influence for {wrong.sum()} {what}: {auc:.3f} (of the loss {by_loss:.3f})")

    order = np.argsort(-values)
    rows = [("highest self-influence", data.x_train[order[:12]]), ("lowest self-influence", data.x_train[order[-12:]])]
    if len(failed):
        rows.append(("not their own strongest proponent", data.x_train[failed[:12]]))
    pictures = {
        "extremes": grid(rows),
        "self-influence": plot_self_influence(scores, other.store.columns["loss"], wrong, marked_title=what),
        "proponents": plot_similar(few(found, 5), data.x_test[:5], data.x_train, data.y_test[:5], data.y_train),
    }
    for name, figure in pictures.items():
        figure.savefig(options.out / f"{name}.png", dpi=80)
        print(f"wrote {options.out / name}.png")


def few(found: gradindex.Explanation, count: int) -> gradindex.Explanation:
    """Return the explanation of the first queries alone."""
    return gradindex.Explanation(found.meta, {name: value[:count] for name, value in found.data.items()})


if __name__ == "__main__":
    main()
