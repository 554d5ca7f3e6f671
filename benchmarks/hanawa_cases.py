"""The cases of `hanawa.py`: which data, which model, how it is trained, and what is changed to see what it does."""

import hashlib
import os
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gradindex.evaluation import Experiment
from gradindex.evaluation.criteria import merge_classes

DATA = Path(os.environ.get("GRADINDEX_DATA", "."))
ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Case:
    """What is trained: data, model, epochs, batch, training samples.

    With `kept` samples set apart the weights of the best accuracy on them are kept, else those of the last epoch;
    `falling` is a learning rate that falls to 0 over the second half. `study` names the study's case where ours is
    called otherwise.
    """

    data: str
    kind: str
    epochs: int
    batch: int
    train: int
    init: str = "torch"
    falling: bool = False
    kept: int = 0
    scaling: str = "raw"
    widths: tuple[int, ...] = (24, 24)
    activation: str = "relu"
    study: str = ""


CASES = {
    "vehicle-mlp": Case("vehicle", "mlp", 1000, 64, 423),
    "vehicle-logreg": Case("vehicle", "logreg", 3000, 64, 423),
    "segment-mlp": Case("segment", "mlp", 400, 64, 1155),
    "segment-logreg": Case("segment", "logreg", 1000, 64, 1155),
    "segment-mlp-924": Case("segment", "mlp", 400, 64, 924, study="segment-mlp"),
    "segment-logreg-924": Case("segment", "logreg", 1000, 64, 924, study="segment-logreg"),
    "mnist-cnn": Case("mnist", "cnn", 24, 16, 5500, "he", falling=True),
    "mnist-cnn-100": Case("mnist", "cnn", 100, 128, 5500, "lecun", kept=2000, study="mnist-cnn"),
    "mnist-logreg": Case("mnist", "logreg", 60, 128, 5500),
}
VARIANTS = {
    "as it is": {},
    "standardised": {"scaling": "standard"},
    "scaled to [0, 1]": {"scaling": "minmax"},
    "hidden layers of 8 and 64": {"widths": (8, 64)},
    "hidden layers of 20, 20, 20": {"widths": (20, 20, 20)},
    "sigmoid": {"activation": "sigmoid"},
    "tanh": {"activation": "tanh"},
    "He's initialisation": {"init": "he"},
    "N(0, 1) initialisation": {"init": "normal"},
    "a tenth of the epochs": {"epochs": 0.1},
    "all samples a batch": {"batch": 10_000},
}
"""Other choices for a case with a multilayer perceptron, one at a time."""


def varied(case, name):
    """Return a case with one choice changed."""
    changes = dict(VARIANTS[name])
    if "epochs" in changes:
        changes["epochs"] = round(changes["epochs"] * case.epochs)
    return replace(case, **changes)


def table(name, scaling):
    rows = [line.replace(" ", "").strip().split(",") for line in (DATA / f"{name}.dat").read_text().splitlines()]
    rows = [row for row in rows if len(row) > 2 and not row[0].startswith("@")]
    x = np.array([row[:-1] for row in rows], np.float32)
    _, y = np.unique([row[-1] for row in rows], return_inverse=True)
    if scaling == "raw":
        return x, y
    centre, scale = (x.mean(axis=0), x.std(axis=0)) if scaling == "standard" else (x.min(axis=0), np.ptp(x, axis=0))
    return (x - centre) / np.where(scale > 0, scale, 1), y


def mnist():
    with np.load(DATA / "mnist10k.npz") as saved:
        return saved["x"][:, None].astype(np.float32) / 255, saved["y"].astype(np.int64)


def make(case, shape, classes, seed):
    """Return a model of a case with new weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(*layers_of(case, shape, classes))
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear) and case.init != "torch":
                if case.init == "normal":
                    nn.init.normal_(layer.weight)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity={"he": "relu", "lecun": "linear"}[case.init])
                nn.init.zeros_(layer.bias)
        return model


def layers_of(case, shape, classes):
    if case.kind == "logreg":
        return [nn.Flatten(), nn.Linear(int(np.prod(shape)), classes)]
    layers = []
    if case.kind == "mlp":
        inputs = shape[0]
        for width in case.widths:
            layers += [nn.Linear(inputs, width), ACTIVATIONS[case.activation]()]
            inputs = width
        return [*layers, nn.Linear(inputs, classes)]
    channels = shape[0]
    for _ in range(3):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = 16
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes)]


def fit(x, y, classes, seed, *, case, kept=None, models=None):
    """Return a trained model; one of the same data and settings is read from the folder `models`, or put there."""
    model = make(case, x.shape[1:], classes, seed)
    if kept is not None and classes == 2:
        kept = kept[0], merge_classes(kept[1], seed)[0]
    if models is not None:
        key = hashlib.sha256(x.tobytes() + y.tobytes() + repr((astuple(case), classes, seed)).encode())
        saved = models / f"{case.kind}_{seed}_{classes}_{key.hexdigest()[:16]}.npz"
        if not saved.is_file():
            train(model, x, y, seed, case, kept)
            np.savez(saved, **{name: value.numpy() for name, value in model.state_dict().items()})
        with np.load(saved) as state:
            model.load_state_dict({name: torch.as_tensor(state[name]) for name in state.files})
    else:
        train(model, x, y, seed, case, kept)
    return model.eval()


def train(model, x, y, seed, case, kept=None):
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    steps = case.epochs * -(-len(x) // case.batch)
    if case.kind == "cnn":
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1, 2 - 2 * s / steps) if case.falling else 1)
    best = -1.0
    for _ in range(case.epochs):
        for rows in torch.randperm(len(x), generator=order).split(case.batch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
            rate.step()
        if kept is not None and (found := accuracy(model, *kept)) > best:
            best, state = found, {name: value.clone() for name, value in model.state_dict().items()}
    if kept is not None:
        model.load_state_dict(state)
    model.to(memory_format=torch.contiguous_format)


def accuracy(model, x, y):
    with torch.no_grad():
        return (model(torch.as_tensor(x)).argmax(dim=1) == torch.as_tensor(y)).double().mean().item()


def experiment(case, *, models=None, single=False, loss=nn.functional.cross_entropy):
    """Return the experiment of a case; its models are double precision, or `single`, as they were trained."""
    x, y = mnist() if case.data == "mnist" else table(case.data, case.scaling)
    rest = len(x) - case.kept
    kept = (x[rest:], y[rest:]) if case.kept else None
    dtype = torch.float32 if single else torch.float64
    return Experiment(
        lambda *samples: fit(*samples, case=case, kept=kept, models=models).to(dtype),
        loss,
        (x[:rest], y[:rest]),
        train_size=case.train,
        queries=500,
        fresh=lambda classes, seed: make(case, x.shape[1:], classes, seed).eval().to(dtype),
    )
