"""The cases of counterfactual.py as data: training sets, queries, models, and how they are trained.

A case gives what a bank needs (`fit`, `queries`, `loss_fn`) and what a kernel is computed from: `run(seed)`, a model
trained on all samples with its state after a few epochs, and `job(run)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import counterfactual_data as data
import counterfactual_models as models
import numpy as np
from counterfactual_data import Data

import gradindex

SEEDS = (1_000_000_001, 1_000_000_002, 1_000_000_003)  # of the models that kernels are computed from


@dataclass(frozen=True)
class Run:
    """A trained `model`, and `states` by epoch: (state, learning rate)."""

    model: Any
    states: dict[int, tuple[Any, float]]

    @property
    def checkpoints(self) -> list[tuple[Any, float]]:
        """In the form that `gradindex.Job` takes."""
        return list(self.states.values())


@dataclass(frozen=True)
class Case:
    """One bank: `load() -> Data`, `make(seed) -> model`, `train(case, model, x, y, seed, after) -> None`."""

    name: str
    title: str
    load: Callable[[], Data]
    make: Callable[[int], Any]
    train: Callable[..., None]
    loss: str = "classes"
    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.0
    subsets: int = 60
    models: int = 3
    landmarks: int = 2048
    content: str = "pixels"
    backend: str = "torch"
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def data(self) -> Data:
        return self.load()

    @property
    def fit(self) -> Callable[[Any, int], Any]:
        """The bank's ``fit(ids, seed)``, which other processes can import."""
        return partial(fit, self.name, self.epochs)

    @property
    def loss_fn(self) -> Callable[[Any, Any], Any]:
        return models.LOSSES[self.backend, self.loss]()

    @property
    def recorded(self) -> tuple[int, ...]:
        """The epochs after which a state is kept: 1, 2, 4 and the last."""
        return tuple(sorted({one for one in (1, 2, 4, self.epochs) if one <= self.epochs}))

    def run(self, seed: int, ids: Any = None) -> Run:
        """Train on all samples, or some."""
        states: dict[int, tuple[Any, float]] = {}

        def after(epoch: int, state: Callable[[], Any], rate: float) -> None:
            if epoch in self.recorded:
                states[epoch] = state(), rate

        x, y = self.data.x, self.data.y
        rows = slice(None) if ids is None else np.asarray(ids)
        model = self.make(seed)
        self.train(self, model, x[rows], y[rows], seed, after)
        return Run(model, states)

    def job(self, run: Run, checkpoints: bool = False) -> gradindex.Job:
        """Return the job of a run's model; with all of its states, TracIn's."""
        kept = run.checkpoints if checkpoints else None
        return gradindex.Job(run.model, self.loss_fn, (self.data.x, self.data.y), checkpoints=kept)


def fit(name: str, epochs: int, ids: Any, seed: int) -> Any:
    return replace(CASES[name], epochs=epochs).run(seed, ids).model


WORDS, LM_WORDS, LENGTH, TOPICS = 1500, 1000, 16, 8


def cases() -> list[Case]:
    def reader(words: int, classes: int, causal: bool) -> Callable[[int], Any]:
        return models.seeded(partial(models.transformer, words, LENGTH, 32, 1, 4, classes, causal))

    return [
        Case(
            "digits-cnn", "CNN of 1,898 parameters on 1,400 digits of scikit-learn, Adam, 15 epochs", data.digits,
            models.seeded(models.cnn_digits), models.descend, epochs=15, batch=50, rate=1e-2,
        ),
        Case(
            "digits-cnn-keras", "the same in Keras", partial(data.digits, True), models.cnn_digits_keras,
            models.descend_keras, epochs=15, batch=50, rate=1e-2, subsets=40, models=2, backend="tensorflow",
        ),
        Case(
            "mnist-mlp", "MLP 784-64-32-10 on 5,000 digits of MNIST, SGD with momentum, 12 epochs", data.mnist,
            models.seeded(partial(models.mlp, 784, 64, 32, 10)), models.descend, epochs=12, rate=0.05,
            options={"momentum": 0.9},
        ),
        Case(
            "fashion-cnn", "CNN of 11,478 parameters on 5,000 pictures of Fashion-MNIST, Adam, 8 epochs", data.fashion,
            models.seeded(models.cnn_fashion), models.descend, epochs=8, rate=3e-3, subsets=50,
        ),
        Case(
            "vehicle-logreg", "logistic regression on 546 Vehicle rows, to the minimum", data.vehicle,
            models.seeded(partial(models.mlp, 18, 4)), models.converge, epochs=1, decay=1e-3, models=2, subsets=100,
            options={"steps": 500},
        ),
        Case(
            "texts-mlp", "MLP 1,500-48-8 on TF-IDF rows of 5,000 short texts, Adam, 10 epochs", data.bags,
            models.seeded(partial(models.mlp, WORDS, 48, TOPICS)), models.descend, epochs=10, rate=3e-3, subsets=50,
            models=2, content="words",
        ),
        Case(
            "texts-transformer", "transformer, one layer of 32, over 5,000 short texts, Adam, 6 epochs",
            partial(data.tokens, 5000, WORDS, LENGTH), reader(WORDS, TOPICS, False), models.descend, epochs=6,
            rate=1e-2, subsets=50, models=2, content="words",
        ),
        Case(
            "texts-lm", "causal language model, one layer of 32, on 3,000 short texts, loss per word, Adam, 6 epochs",
            partial(data.tokens, 3000, LM_WORDS, LENGTH, True), reader(LM_WORDS, LM_WORDS, True), models.descend,
            loss="words", epochs=6, rate=1e-2, subsets=40, models=2, content="words",
        ),
        Case(
            "minilm", "all-MiniLM-L6-v2 fine-tuned on 600 short texts, embeddings frozen, Adam, 2 epochs",
            partial(data.pieces, 600, LENGTH), models.seeded(partial(models.minilm, TOPICS)), models.descend, epochs=2,
            batch=16, rate=2e-4, subsets=20, models=2, content="words",
        ),
    ]  # fmt: skip


CASES = {case.name: case for case in cases()}
