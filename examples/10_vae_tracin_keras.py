"""Ask a variational autoencoder in Keras which training images make a test image likely (VAE-TracIn).

The study of ``07_vae_tracin.py`` with a smaller network, trained by ``fit``; the callback records its checkpoints. Run
it with ``python examples/10_vae_tracin_keras.py``; the pictures are drawn into the folder ``--out``.
"""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from data import arguments
from saved import recorded, trained
from vae_study import Framework, Settings, run

from gradindex.influence import CheckpointRecorder, UnsupervisedJob

FULL = Settings(hidden=512, latent=32, epochs=60, rate=1e-4, checkpoints=4, draws=2, images=2000, queries=300, dim=2048)
QUICK = Settings(hidden=256, latent=16, epochs=40, rate=1e-3, checkpoints=2, draws=2, images=300, queries=20, dim=512)


class VAE(keras.Model):
    """Encoder to means and log variances, decoder to the mean of a Gaussian for every pixel."""

    def __init__(self, pixels: int, settings: Settings, seed: int) -> None:
        super().__init__()
        self.encoder = perceptron(pixels, settings.hidden, 2 * settings.latent)
        self.decoder = perceptron(settings.latent, settings.hidden, pixels)
        self.variance, self.latent = settings.variance, settings.latent
        self.random = keras.random.SeedGenerator(seed)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Return images without their noise (b, pixels)."""
        return self.decoder(self.encoder(x)[:, : self.latent])

    def train_step(self, batch: tf.Tensor) -> dict[str, tf.Tensor]:
        """Make one step on a batch of images."""
        noise = keras.random.normal((tf.shape(batch)[0], self.latent), seed=self.random)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(negative_elbo(self, batch, noise))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"negative_elbo": loss}


def perceptron(inputs: int, hidden: int, outputs: int) -> keras.Model:
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input((inputs,)), dense(hidden, "relu"), dense(hidden, "relu"), dense(outputs)])


def negative_elbo(model: VAE, x: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Return the loss (b,) of images (b, pixels) with standard normal noise (b, latent), up to a constant."""
    mean, log_variance = tf.split(model.encoder(x), 2, axis=1)
    misfit = tf.reduce_sum((model.decoder(mean + tf.exp(log_variance / 2) * noise) - x) ** 2, axis=1)
    prior = tf.reduce_sum(1 + log_variance - mean**2 - tf.exp(log_variance), axis=1) / 2
    return misfit / (2 * model.variance) - prior


def train(
    x: np.ndarray, held_out: np.ndarray, settings: Settings, seed: int, folder: Path, load: bool
) -> UnsupervisedJob:
    """Train a VAE, or take it from a folder, and return the job of its gradients at checkpoints along the way."""
    keras.utils.set_random_seed(seed)
    model, recorder = VAE(x.shape[1], settings, seed), CheckpointRecorder()
    model(x[:1])
    print("loaded, " if load else "", end="")
    trained(folder / "model.weights.h5", load, model, lambda: fit(model, recorder, x, settings))
    recorded(folder / "checkpoints.npz", load, model, recorder)
    noise = keras.random.normal((len(held_out), settings.latent), seed=seed)
    print(f"{np.mean(negative_elbo(model, tf.constant(held_out), noise)):.1f} held out", flush=True)
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


def fit(model: VAE, recorder: CheckpointRecorder, x: np.ndarray, settings: Settings) -> None:
    """Train a VAE by Adam and record checkpoints."""
    model.compile(keras.optimizers.Adam(settings.rate))
    every = recorder.keras_callback(every=settings.epochs // settings.checkpoints)
    history = model.fit(x, batch_size=64, epochs=settings.epochs, verbose=0, callbacks=[every])
    last = history.history["negative_elbo"][-1]
    print(f"trained on {len(x)} images: loss {last:.1f} in the last of {settings.epochs} epochs, ", end="")


def encode(model: VAE, x: np.ndarray) -> np.ndarray:
    """Return the latent means (n, latent) of images (n, pixels)."""
    return np.asarray(model.encoder(x))[:, : model.latent]


def decode(model: VAE, z: np.ndarray) -> np.ndarray:
    """Return the images (n, pixels) of latent vectors (n, latent)."""
    return np.asarray(model.decoder(z))


if __name__ == "__main__":
    options = arguments(__doc__, "runs/vae-tracin-keras", load=True, images=FULL.images, epochs=FULL.epochs)
    run(options, Framework(train, encode, decode), QUICK if options.quick else FULL)
