"""The main job in one go, on scikit-learn's digits: train, index, explain, audit, draw."""

import io
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Model
from gradindex.errors import missing
from gradindex.gradients import require
from gradindex.job import Job
from gradindex.kernels import WORDING, KernelName
from gradindex.words import Backend

if TYPE_CHECKING:
    import keras
    import torch
    from rich.console import Console

WEIGHTS = "model.npz"
PICTURE = "neighbours.png"
_TRAIN = 1347  # of 1,797 digits
_QUERIES = _NEIGHBOURS = 5


def run_demo(backend: Backend, path: Path, seed: int, out: "Console", err: "Console") -> dict[str, object]:
    """Run the demo and say what happens.

    Parameters
    ----------
    backend
        Framework of the model.
    path
        Directory for index, weights and picture; a former demo there is replaced.
    seed
        Seed of split, model, training and projection.
    out, err
        Where to print results and progress.

    Returns
    -------
    dict
        The same results, JSON-ready.

    Raises
    ------
    ImportError
        If the framework, scikit-learn or matplotlib is missing.
    """
    from gradindex import plots
    from gradindex.cli.tables import audit_table, explanation_tables, whitened_line
    from gradindex.index import opening
    from gradindex.plots.page import save_figure

    require(backend)
    x_train, y_train, x_test, y_test = digits(backend, seed)
    out.print(
        f"Data: scikit-learn's digits, {len(x_train):,} images of 8×8 to train on and {len(x_test):,} to test, "
        "in the place of MNIST.",
        soft_wrap=True,
    )
    with err.status(f"Training a small CNN on {len(x_train)} digits ({backend.value})"):
        model = _torch_model(seed) if backend is Backend.TORCH else _keras_model(seed)
        fit = _fit_torch if backend is Backend.TORCH else _fit_keras
        fit(model, x_train, y_train)
    job = _job(backend, model, x_train, y_train)
    began = time.perf_counter()
    index = opening.build(job, path / "index", seed=seed, overwrite=True)
    seconds = time.perf_counter() - began
    index.whiten()
    _save(path / WEIGHTS, backend, model, seed, x_train, y_train)
    accuracy = float((job.engine.outputs(x_test).argmax(axis=1) == y_test).mean())
    out.print(f"A CNN of {job.engine.size:,} parameters, test accuracy {accuracy:.3f}.")
    out.print(f"Indexed the gradients of {len(index):,} training digits in {seconds:.1f} s.\n")

    chosen = _interesting(job.engine.outputs(x_test), y_test)
    result = index.explain(x_test[chosen], k=_NEIGHBOURS)  # no labels: what is behind the predictions?
    result.data["query_labels"] = y_test[chosen]
    out.print(WORDING[KernelName.COS].sentence, highlight=False)
    names = [f"test digit {i}" for i in chosen]
    for table in explanation_tables(result, names):
        out.print(table)
    removal = index.explain(x_test[chosen[:1]], k=_NEIGHBOURS, kernel=KernelName.WHITE_DOT)
    removal.data["query_labels"] = y_test[chosen[:1]]
    out.print(whitened_line(removal), highlight=False)
    for table in explanation_tables(removal, names[:1]):
        out.print(table)
    with err.status("Auditing against the exact kernel"):
        audit = index.verify(seed=seed)
    out.print(audit_table(audit))
    figure = plots.plot_similar(result, x_test[chosen], x_train)
    save_figure(figure, path / PICTURE)
    out.print(f"Index    {path / 'index'}\nPicture  {path / PICTURE}\n", highlight=False, soft_wrap=True)
    where = "" if path.absolute() == Path("gradindex-demo").absolute() else f"GRADINDEX_DEMO={path} "
    out.print(
        f"Ask more: {where}gradindex explain {path / 'index'} gradindex.demo:{backend.value}_job --ids 3,14 -k 5",
        highlight=False,
        soft_wrap=True,
    )
    return {
        "backend": backend.value,
        "parameters": job.engine.size,
        "accuracy": accuracy,
        "samples": len(index),
        "seconds": seconds,
        "queries": chosen.tolist(),
        "explanation": json.loads(result.to_json()),
        "whitened_explanation": json.loads(removal.to_json()),
        "audit": audit.to_json(),
        "index": str(path / "index"),
        "picture": str(path / PICTURE),
    }


def digits(backend: Backend, seed: int) -> tuple[NDArray[Any], ...]:
    """Return x_train, y_train, x_test, y_test: float32 images in [0, 1] in the framework's layout, int64 labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing("scikit-learn", "gradindex[demo]", "The demo") from error
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8)
    images = images[:, None] if backend is Backend.TORCH else images[..., None]
    order = np.random.default_rng(seed).permutation(len(images))
    train, test = order[:_TRAIN], order[_TRAIN:]
    return images[train], labels[train], images[test], labels[test]


def torch_job() -> Job:
    """Return the job of ``gradindex demo``, read from the directory it wrote (``GRADINDEX_DEMO``)."""
    return _saved_job(Backend.TORCH)


def tensorflow_job() -> Job:
    """Return the job of ``gradindex demo --backend tensorflow``; see `torch_job`."""
    return _saved_job(Backend.TENSORFLOW)


def _saved_job(backend: Backend) -> Job:
    path = Path(os.environ.get("GRADINDEX_DEMO", "gradindex-demo")) / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run 'gradindex demo --backend {backend.value}' first.")
    with np.load(path, allow_pickle=False) as saved:
        if str(saved["backend"]) != backend.value:
            raise ValueError(f"{path} was written by the demo with --backend {saved['backend']}.")
        seed = int(saved["seed"])
        weights = [saved[name] for name in saved.files if name.startswith("weight")]
        if "x" not in saved.files:
            raise ValueError(f"{path} is an earlier version's: run 'gradindex demo --backend {backend.value}' again.")
        data = saved["x"], saved["y"]  # read from here, since the import of scikit-learn takes a second
    if backend is Backend.TORCH:
        import torch

        model = _torch_model(seed)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), weights, strict=True):
                parameter.copy_(torch.from_numpy(value))
    else:
        model = _keras_model(seed)
        model.set_weights(weights)
    return _job(backend, model, *data)


def _save(path: Path, backend: Backend, model: Model, seed: int, x: NDArray[Any], y: NDArray[Any]) -> None:
    if backend is Backend.TORCH:
        weights = [parameter.detach().numpy() for parameter in model.parameters()]
    else:
        weights = model.get_weights()
    named = {f"weight{number:02d}": value for number, value in enumerate(weights)}
    from gradindex.store import location

    file = io.BytesIO()
    np.savez(file, backend=np.array(backend.value), seed=np.array(seed), x=x, y=y, **named)
    location.save(path, file.getvalue())


def _job(backend: Backend, model: Model, x: NDArray[np.generic], y: NDArray[np.generic]) -> Job:
    if backend is Backend.TORCH:
        import torch

        return Job(model, torch.nn.CrossEntropyLoss(), (x, y))
    import keras

    return Job(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), (x, y))


def _interesting(outputs: NDArray[np.generic], labels: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return test digits to explain: up to two that the model gets wrong, then the first of some classes."""
    wrong = np.flatnonzero(outputs.argmax(axis=1) != labels)[:2]
    right = [np.flatnonzero((labels == c) & (outputs.argmax(axis=1) == c))[0] for c in range(_QUERIES)]
    return np.concatenate([np.array(right, np.int64), wrong])[-_QUERIES:]


def _torch_model(seed: int) -> "torch.nn.Module":
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def _fit_torch(model: Model, x: NDArray[np.generic], y: NDArray[np.generic], epochs: int = 12) -> None:
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    shuffle = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=shuffle).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    model.eval()


def _keras_model(seed: int) -> "keras.Model":
    import keras

    start = [keras.initializers.GlorotUniform(seed + number) for number in range(4)]
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu", kernel_initializer=start[0]),
            layers.MaxPooling2D(2),
            layers.Conv2D(32, 3, padding="same", activation="relu", kernel_initializer=start[1]),
            layers.Flatten(),
            layers.Dense(64, activation="relu", kernel_initializer=start[2]),
            layers.Dense(10, kernel_initializer=start[3]),
        ]
    )


def _fit_keras(model: Model, x: NDArray[np.generic], y: NDArray[np.generic], epochs: int = 12) -> None:
    import keras

    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.learning_rate = 2e-3
    shuffle = np.random.default_rng(0)
    for _ in range(epochs):
        rows = shuffle.permutation(len(x))
        model.fit(x[rows], y[rows], batch_size=64, shuffle=False, verbose=0)
