"""Ask a variational autoencoder which training images make a test image likely (VAE-TracIn).

After Kong & Chaudhuri (2021): a VAE is trained, its checkpoints are kept, and the gradients of its loss, the negative
ELBO averaged over seeded draws, are indexed at all of them. The script prints the study's figures: how many training
images are their own strongest proponent, how often the strongest proponents and opponents of a test image have its
label, how near they are in latent space, how self-influence follows the loss, how well it finds images of another data
set mixed into training, and what training without the highest does to held-out images. Run it with
``python examples/07_vae_tracin.py``; the pictures are drawn into the folder ``--out``.
"""

from pathlib import Path

import numpy as np
import torch
from data import arguments
from saved import recorded, trained
from torch import nn
from vae_study import Framework, Settings, run

from gradindex.influence import CheckpointRecorder, UnsupervisedJob

FULL = Settings(
    hidden=1024, latent=128, epochs=40, rate=1e-4, checkpoints=5, draws=2, images=3000, queries=500, dim=2048
)
QUICK = Settings(hidden=256, latent=16, epochs=40, rate=1e-3, checkpoints=2, draws=2, images=400, queries=30, dim=1024)


class VAE(nn.Module):
    """Encoder to means and log variances, decoder to the mean of a Gaussian for every pixel."""

    def __init__(self, pixels: int, settings: Settings) -> None:
        super().__init__()
        self.encoder = perceptron(pixels, settings.hidden, 2 * settings.latent)
        self.decoder = perceptron(settings.latent, settings.hidden, pixels)
        self.variance = settings.variance


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Module:
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers)


def negative_elbo(model: VAE, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the loss (b,) of images (b, pixels) with standard normal noise (b, latent), up to a constant."""
    mean, log_variance = model.encoder(x).chunk(2, dim=1)
    misfit = (model.decoder(mean + torch.exp(log_variance / 2) * noise) - x).square().sum(dim=1)
    return misfit / (2 * model.variance) - (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1) / 2


def train(
    x: np.ndarray, held_out: np.ndarray, settings: Settings, seed: int, folder: Path, load: bool
) -> UnsupervisedJob:
    """Train a VAE, or take it from a folder, and return the job of its gradients at checkpoints along the way."""
    torch.manual_seed(seed)
    model, recorder = VAE(x.shape[1], settings), CheckpointRecorder()
    print("loaded, " if load else "", end="")
    trained(folder / "model.pt", load, model, lambda: fit(model, recorder, torch.from_numpy(x), settings))
    recorded(folder / "checkpoints.npz", load, model, recorder)
    noise = torch.randn(len(held_out), settings.latent, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        validation = negative_elbo(model, torch.from_numpy(held_out), noise)
    print(f"{validation.mean():.1f} held out", flush=True)
    return UnsupervisedJob(
        model,
        negative_elbo,
        x,
        takes="model",
        noise=(settings.latent,),
        draws=settings.draws,
        seed=seed,
        checkpoints=recorder.checkpoints,
    )


def fit(model: VAE, recorder: CheckpointRecorder, images: torch.Tensor, settings: Settings) -> None:
    """Train a VAE by Adam and record checkpoints."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    for epoch in range(settings.epochs):
        total = 0.0
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            losses = negative_elbo(model, images[rows], torch.randn(len(rows), settings.latent))
            losses.mean().backward()
            optimizer.step()
            total += float(losses.sum().detach())
        if (epoch + 1) % (settings.epochs // settings.checkpoints) == 0:
            recorder.record(model, optimizer)
    last = total / len(images)
    print(f"trained on {len(images)} images: loss {last:.1f} in the last of {settings.epochs} epochs, ", end="")


def encode(model: VAE, x: np.ndarray) -> np.ndarray:
    """Return the latent means (n, latent) of images (n, pixels)."""
    with torch.no_grad():
        return model.encoder(torch.from_numpy(x)).chunk(2, dim=1)[0].numpy()


def decode(model: VAE, z: np.ndarray) -> np.ndarray:
    """Return the images (n, pixels) of latent vectors (n, latent)."""
    with torch.no_grad():
        return model.decoder(torch.from_numpy(z)).numpy()


if __name__ == "__main__":
    options = arguments(__doc__, "runs/vae-tracin", load=True, images=FULL.images, epochs=FULL.epochs)
    torch.set_num_threads(1)
    run(options, Framework(train, encode, decode), QUICK if options.quick else FULL)
