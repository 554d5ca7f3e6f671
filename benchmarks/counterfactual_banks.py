"""The cases of counterfactual.py as data: training sets, queries, models, and how they are trained.

A case gives what a bank needs (`fit`, `queries`, `loss_fn`) and what a kernel is computed from: `run(seed)`, a model
trained on all samples with its state after a few epochs, and `job(run)`.
"""

import gzip
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import gradindex

QUERIES = 300
SEEDS = (1_000_000_001, 1_000_000_002, 1_000_000_003)  # of the models that kernels are computed from
PAD = 0


@dataclass(frozen=True)
class Data:
    """Training samples and queries; `texts`, where samples are texts, are both as words."""

    x: Any
    y: Any
    x_queries: Any
    y_queries: Any
    texts: tuple[list[list[str]], list[list[str]]] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def queries(self) -> tuple[Any, Any]:
        return self.x_queries, self.y_queries


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
        return LOSSES[self.backend, self.loss]()

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


def folder() -> Path:
    if "GRADINDEX_DATA" not in os.environ:
        raise SystemExit("Set GRADINDEX_DATA to the folder with mnist10k.npz, vehicle.dat and the others.")
    return Path(os.environ["GRADINDEX_DATA"])


# ---------------------------------------------------------------------------------------------------- data


def split(x: Any, y: Any, train: int, seed: int = 0) -> Data:
    order = np.random.default_rng(seed).permutation(len(x))
    a, b = order[:train], order[train : train + QUERIES]
    return Data(x[a], y[a], x[b], y[b])


@lru_cache
def digits(channels_last: bool = False) -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    return split(x.reshape(-1, 8, 8, 1) if channels_last else x.reshape(-1, 1, 8, 8), y.astype(np.int64), 1400)


@lru_cache
def mnist() -> Data:
    with np.load(folder() / "mnist10k.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    return split((x.reshape(len(x), -1) / 255).astype(np.float32), y.astype(np.int64), 5000)


@lru_cache
def fashion() -> Data:
    def read(name: str) -> Any:
        with gzip.open(folder() / "fashion-mnist" / name) as file:
            raw = file.read()
        axes = raw[3]
        shape = np.frombuffer(raw, ">i4", axes, 4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)

    x, y = read("train-images-idx3-ubyte.gz"), read("train-labels-idx1-ubyte.gz")
    order = np.random.default_rng(0).permutation(len(x))[: 5000 + QUERIES]
    return split((x[order, None] / 255).astype(np.float32), y[order].astype(np.int64), 5000)


@lru_cache
def vehicle() -> Data:
    rows = [line.split(",") for line in (folder() / "vehicle.dat").read_text().splitlines() if line.strip()]
    x = np.array([[float(one) for one in row[:-1]] for row in rows], np.float32)
    y = np.unique([row[-1].strip() for row in rows], return_inverse=True)[1]
    found = split(x, y.astype(np.int64), len(x) - QUERIES)
    mean, spread = found.x.mean(axis=0), found.x.std(axis=0)
    return Data((found.x - mean) / spread, found.y, (found.x_queries - mean) / spread, found.y_queries)


@lru_cache
def sections(train: int) -> tuple[list[list[str]], Any]:
    """Return the words and topics of `train` short texts and the queries."""
    with gzip.open(folder() / "debian_sections.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    order = np.random.default_rng(0).permutation(len(rows))[: train + QUERIES]
    topics = np.unique([row[0] for row in rows], return_inverse=True)[1]
    words = ["".join(c if c.isalnum() else " " for c in rows[i][2].lower()).split() for i in order]
    return words, topics[order].astype(np.int64)


def vocabulary(words: list[list[str]], size: int) -> dict[str, int]:
    """Return numbers from 2 on of the most frequent words; 0 is padding, 1 any other word."""
    counts = Counter(word for text in words for word in text)
    return {word: i + 2 for i, (word, _) in enumerate(counts.most_common(size - 2))}


def tfidf(words: list[list[str]], train: int, size: int) -> Any:
    """Return rows of length 1 of (1 + log count) × log(n / documents), float32, by the words of the training texts."""
    known = vocabulary(words[:train], size)
    counts = np.zeros((len(words), size), np.float32)
    for row, text in zip(counts, words, strict=True):
        for word in text:
            if word in known:
                row[known[word]] += 1
    documents = np.maximum((counts[:train] > 0).sum(axis=0), 1)
    rows = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * np.log(train / documents)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0).astype(np.float32)


@lru_cache
def bags(train: int = 5000, size: int = 1500) -> Data:
    words, topics = sections(train)
    x = tfidf(words, train, size)
    return Data(x[:train], topics[:train], x[train:], topics[train:], (words[:train], words[train:]))


@lru_cache
def tokens(train: int, size: int, length: int, next_word: bool = False) -> Data:
    """Return texts as rows of word numbers, padded; with `next_word`, labels are the words that follow."""
    words, topics = sections(train)
    known = vocabulary(words[:train], size)
    x = np.full((len(words), length), PAD, np.int64)
    for row, text in zip(x, words, strict=True):
        numbers = [known.get(word, 1) for word in text[:length]] or [1]
        row[: len(numbers)] = numbers
    y = topics
    if next_word:  # a text of one word is said to be followed by an unknown one
        y = np.concatenate([x[:, 1:], np.full((len(x), 1), PAD)], axis=1)
        y[:, 0] = np.where(y[:, 0] == PAD, 1, y[:, 0])
    return Data(x[:train], y[:train], x[train:], y[train:], (words[:train], words[train:]))


# -------------------------------------------------------------------------------------------------- models


def seeded(build: Callable[[], Any]) -> Callable[[int], Any]:
    """Return ``make(seed)``: the model that `build` returns, its weights drawn with this seed."""

    def make(seed: int) -> Any:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build()

    return make


def cnn_digits() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def cnn_digits_keras(seed: int) -> Any:
    import keras

    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 1)),
        layers.Conv2D(8, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dense(10),
    ])  # fmt: skip


def mlp(*widths: int) -> Any:
    from torch import nn

    parts: list[Any] = []
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def cnn_fashion() -> Any:
    """11,478 parameters."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(8, 20, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(20 * 49, 10),
    )  # fmt: skip


def transformer(words: int, length: int, width: int, layers: int, heads: int, classes: int, causal: bool) -> Any:
    """Return a pre-norm transformer over word numbers, which classifies their mean, or with `causal` every place."""
    import torch
    from torch import nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, h, mask):
            x = self.before(h)
            parts = [f(x).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)]
            mixed = nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask)
            h = h + self.out(mixed.transpose(1, 2).flatten(2))
            return h + self.narrow(nn.functional.gelu(self.wide(self.between(h))))

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
            self.layers = nn.ModuleList(Layer() for _ in range(layers))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
            self.register_buffer("numbers", torch.arange(length), persistent=False)
            self.register_buffer("past", torch.ones(length, length).tril().bool(), persistent=False)

        def forward(self, x):
            there = x != PAD
            mask = self.past[None, None] if causal else there[:, None, None, :]
            h = self.words(x) + self.places(self.numbers)
            for layer in self.layers:
                h = layer(h, mask)
            h = self.norm(h)
            if causal:
                return self.head(h)
            weight = there.to(h.dtype)[..., None]
            return self.head((h * weight).sum(1) / weight.sum(1))

    return Reader()


# ---------------------------------------------------------------------------------------- losses, training


def torch_classes() -> Any:
    from torch import nn

    return nn.CrossEntropyLoss()


def torch_words() -> Any:
    """Return the loss of language models: the mean over a text's words."""
    import torch

    def loss(output: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(output.flatten(0, -2), y.flatten(), ignore_index=PAD)

    return loss


def keras_classes() -> Any:
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


LOSSES = {
    ("torch", "classes"): torch_classes,
    ("torch", "words"): torch_words,
    ("tensorflow", "classes"): keras_classes,
}


def states_of(model: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def descend(case: Case, model: Any, x: Any, y: Any, seed: int, after: Callable[..., None]) -> None:
    """Adam, or with ``momentum`` SGD, over batches in an order drawn by the seed; the rate falls by a cosine."""
    import torch

    x, y = torch.as_tensor(x), torch.as_tensor(y)
    if "momentum" in case.options:
        optimiser = torch.optim.SGD(model.parameters(), case.rate, case.options["momentum"], weight_decay=case.decay)
    else:
        optimiser = torch.optim.Adam(model.parameters(), case.rate, weight_decay=case.decay)
    steps = -(-len(x) // case.batch)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * case.epochs)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for epoch in range(1, case.epochs + 1):
        rate = falling.get_last_lr()[0]
        for rows in torch.randperm(len(x), generator=order).split(case.batch):
            optimiser.zero_grad()
            case.loss_fn(model(x[rows]), y[rows]).backward()
            optimiser.step()
            falling.step()
        after(epoch, partial(states_of, model), rate)
    model.eval()


def converge(case: Case, model: Any, x: Any, y: Any, seed: int, after: Callable[..., None]) -> None:
    """L-BFGS on the mean loss plus decay / 2 · ‖θ‖², which has one minimum: every seed ends there."""
    import torch

    x, y = torch.as_tensor(x), torch.as_tensor(y)
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=case.options["steps"], tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> Any:
        optimiser.zero_grad()
        squares = sum((one**2).sum() for one in model.parameters())
        loss = case.loss_fn(model(x), y) + case.decay / 2 * squares
        loss.backward()
        return loss

    for epoch in range(1, case.epochs + 1):
        optimiser.step(objective)
        after(epoch, partial(states_of, model), 1.0)


def descend_keras(case: Case, model: Any, x: Any, y: Any, seed: int, after: Callable[..., None]) -> None:
    """Do what `descend` does, in a compiled step of TensorFlow."""
    import keras
    import tensorflow as tf

    x, y = tf.constant(x), tf.constant(y)
    steps = -(-len(x) // case.batch)
    rates = keras.optimizers.schedules.CosineDecay(case.rate, steps * case.epochs)
    optimiser = keras.optimizers.Adam(rates)
    optimiser.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def step(rows: Any) -> None:
        with tf.GradientTape() as tape:
            loss = case.loss_fn(tf.gather(y, rows), model(tf.gather(x, rows), training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimiser.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    order = np.random.default_rng(seed)
    for epoch in range(1, case.epochs + 1):
        rate = float(rates((epoch - 1) * steps))
        mixed = order.permutation(len(x))
        for begin in range(0, len(x), case.batch):
            step(tf.constant(mixed[begin : begin + case.batch]))
        after(epoch, model.get_weights, rate)


# --------------------------------------------------------------------------------------------------- cases

WORDS, LM_WORDS, LENGTH, TOPICS = 1500, 1000, 16, 8


def cases() -> list[Case]:
    def reader(words: int, classes: int, causal: bool) -> Callable[[int], Any]:
        return seeded(partial(transformer, words, LENGTH, 32, 1, 4, classes, causal))

    return [
        Case(
            "digits-cnn", "CNN of 1,898 parameters on 1,400 digits of scikit-learn, Adam, 15 epochs", digits,
            seeded(cnn_digits), descend, epochs=15, batch=50, rate=1e-2,
        ),
        Case(
            "digits-cnn-keras", "the same in Keras", partial(digits, True), cnn_digits_keras, descend_keras,
            epochs=15, batch=50, rate=1e-2, subsets=40, models=2, backend="tensorflow",
        ),
        Case(
            "mnist-mlp", "MLP 784-64-32-10 on 5,000 digits of MNIST, SGD with momentum, 12 epochs", mnist,
            seeded(partial(mlp, 784, 64, 32, 10)), descend, epochs=12, rate=0.05, options={"momentum": 0.9},
        ),
        Case(
            "fashion-cnn", "CNN of 11,478 parameters on 5,000 pictures of Fashion-MNIST, Adam, 8 epochs", fashion,
            seeded(cnn_fashion), descend, epochs=8, rate=3e-3, subsets=50,
        ),
        Case(
            "vehicle-logreg", "logistic regression on 546 Vehicle rows, to the minimum", vehicle,
            seeded(partial(mlp, 18, 4)), converge, epochs=1, decay=1e-3, models=2, subsets=100,
            options={"steps": 500},
        ),
        Case(
            "texts-mlp", "MLP 1,500-48-8 on TF-IDF rows of 5,000 short texts, Adam, 10 epochs", bags,
            seeded(partial(mlp, WORDS, 48, TOPICS)), descend, epochs=10, rate=3e-3, subsets=50, models=2,
            content="words",
        ),
        Case(
            "texts-transformer", "transformer, one layer of 32, over 5,000 short texts, Adam, 6 epochs",
            partial(tokens, 5000, WORDS, LENGTH), reader(WORDS, TOPICS, False), descend, epochs=6,
            rate=1e-2, subsets=50, models=2, content="words",
        ),
        Case(
            "texts-lm", "causal language model, one layer of 32, on 3,000 short texts, loss per word, Adam, 6 epochs",
            partial(tokens, 3000, LM_WORDS, LENGTH, True), reader(LM_WORDS, LM_WORDS, True), descend, loss="words",
            epochs=6, rate=1e-2, subsets=40, models=2, content="words",
        ),
    ]  # fmt: skip


CASES = {case.name: case for case in cases()}
