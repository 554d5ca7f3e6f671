"""Image data for the examples, and the table they print.

MNIST and Fashion-MNIST are read from the folder named by the environment variable ``GRADINDEX_DATA``, which holds
``mnist10k.npz`` (``x`` uint8 (10000, 28, 28), ``y`` uint8) and ``fashion-mnist/*.gz`` (the four idx files).
scikit-learn's digits need no folder.
"""

import argparse
import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VARIABLE = "GRADINDEX_DATA"
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class Images:
    """A labelled image data set: pictures (n, h, w) float32 from 0 to 1, labels (n,) int64."""

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    class_names: tuple[str, ...] | None = None


def load(name: str, train: int | None = None) -> Images:
    """Return a data set by name, with at most `train` training pictures.

    Parameters
    ----------
    name
        ``'mnist'`` (10,000 pictures of 28×28, the last 2,000 for testing), ``'fashion'`` (60,000 + 10,000 of
        28×28) or ``'digits'`` (1,797 of 8×8, the last 397 for testing).
    train
        Keep this many training pictures; None: all.

    Raises
    ------
    ValueError
        For another name.
    FileNotFoundError
        If a file is not where ``GRADINDEX_DATA`` says, or that is not set.
    """
    loaders = {"mnist": _mnist, "fashion": _fashion, "digits": _digits}
    if name not in loaders:
        raise ValueError(f"Unknown data set {name!r}; expected one of {', '.join(loaders)}.")
    x_train, y_train, x_test, y_test = loaders[name]()
    white = float(x_train.max())
    return Images(
        name,
        np.asarray(x_train[:train], np.float32) / white,
        np.asarray(y_train[:train], np.int64),
        np.asarray(x_test, np.float32) / white,
        np.asarray(y_test, np.int64),
        FASHION if name == "fashion" else None,
    )


def parser_of(description: str | None, out: str, quick: str) -> argparse.ArgumentParser:
    """Return a parser of the options that every example takes; `quick` says what the short form leaves out."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for what it writes")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn: data, weights, order of training")
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def add_load(parser: argparse.ArgumentParser) -> None:
    """Add `--load` to an example that leaves its trained model in its folder."""
    parser.add_argument("--load", action="store_true", help="take the model that a run before left in --out")


def arguments(description: str | None, out: str, load: bool = False, **numbers: int) -> argparse.Namespace:
    """Read the options that the image studies share, those that take a number, with their defaults, and `--load`."""
    parser = parser_of(description, out, "less training, fewer reference samples")
    default = "mnist" if os.environ.get(VARIABLE) else "digits"
    parser.add_argument("--data", choices=("mnist", "fashion", "digits"), default=default)
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, help=f"default {value}, less with --quick")
    if load:
        add_load(parser)
    return parser.parse_args()


def print_data(data: Images, wanted: str = "MNIST") -> None:
    """Print what data a script works on, how many, and of which data they take the place of."""
    high, wide = data.x_train.shape[1:]
    instead = "" if os.environ.get(VARIABLE) else f", in the place of {wanted}: {VARIABLE} is not set"
    print(
        f"data: {data.name}, {len(data.x_train)} training and {len(data.x_test)} test images of {high}×{wide}{instead}"
    )


def print_neighbours(data: Images, labels: Any, predictions: Any, neighbours: NDArray[np.int64]) -> None:
    """Print a line per query: its label, its prediction, its neighbours' labels and the share of its own class.

    Parameters
    ----------
    data
        For the names of the classes.
    labels, predictions
        Classes of the m queries, (m,).
    neighbours
        Labels of each query's most similar samples, (m, k), most similar first.
    """
    names = data.class_names or tuple(map(str, range(10)))
    width = max(map(len, (*names, "prediction"))) + 2
    print(f"{'query':7}{'label':{width}}{'prediction':{width}}{'same class':12}labels of the most similar")
    for row, (label, prediction, near) in enumerate(zip(labels, predictions, neighbours, strict=True)):
        share = f"{np.mean(near == label):.0%}"
        near_names = ", ".join(names[one] for one in near)
        print(f"{row:<7}{names[label]:{width}}{names[prediction]:{width}}{share:12}{near_names}")
    print(f"share of neighbours with the query's class: {np.mean(neighbours == np.c_[labels]):.0%}")


def _digits() -> tuple[NDArray[Any], ...]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = digits.images[order], digits.target[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def _mnist() -> tuple[NDArray[Any], ...]:
    with np.load(_file("mnist10k.npz"), allow_pickle=False) as saved:
        x, y = saved["x"], saved["y"]
    return x[:8000], y[:8000], x[8000:], y[8000:]


def _fashion() -> tuple[NDArray[Any], ...]:
    parts = [
        _idx(_file(f"fashion-mnist/{part}-{kind}-ubyte.gz"))
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    return tuple(parts)


def _idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of bytes: two zeros, type 8, number of axes, their lengths as big-endian int32, values."""
    with gzip.open(path) as file:
        content = file.read()
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of bytes.")
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _file(name: str) -> Path:
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise FileNotFoundError(f"{VARIABLE} is not set: set it to the folder that holds {name}, or use --data digits.")
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: {VARIABLE} must name the folder that holds {name}; or use --data digits."
        )
    return path
