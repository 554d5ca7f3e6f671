"""The data sets of Hanawa et al. (2021) and of Alibi's examples, read from their files or fetched.

`load` looks for the files in the form in which their publishers give them out, in a folder. Where they are not there,
the library that knows where they are fetches them: torchvision (CIFAR10), Hugging Face's datasets (TREC, AGNews,
emotions) or scikit-learn (20 newsgroups). None of these is imported before it is needed.
"""

import csv
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
AGNEWS = ("World", "Sports", "Business", "Sci/Tech")
EMOTIONS = ("sadness", "joy", "love", "anger", "fear", "surprise")


@dataclass(frozen=True)
class Labelled:
    """Training and test samples with labels: texts, or images (n, channels, h, w) float32 from 0 to 1."""

    name: str
    x_train: Any
    y_train: np.ndarray
    x_test: Any
    y_test: np.ndarray
    classes: tuple[str, ...]


def load(name: str, folder: Path) -> Labelled:
    """Return a data set by name: ``cifar10``, ``trec``, ``agnews``, ``20news`` or ``emotions``.

    Parameters
    ----------
    name
        Of the data set.
    folder
        Where its files are, or are put by the library that fetches them.

    Raises
    ------
    ValueError
        For another name, or a file that is not of the expected form.
    ImportError
        If the files are not there and the library that fetches them is not installed.
    """
    loaders: dict[str, Callable[[Path], Labelled]] = {
        "cifar10": _cifar10,
        "trec": _trec,
        "agnews": _agnews,
        "20news": _newsgroups,
        "emotions": _emotions,
    }
    if name not in loaders:
        raise ValueError(f"Unknown data set {name!r}; expected one of {', '.join(loaders)}.")
    return loaders[name](Path(folder))


def fetching(library: str, what: str, files: str, folder: Path) -> ModuleType:
    """Return the library that fetches files which are not in a folder."""
    try:
        return import_module(library)
    except ImportError as error:
        package = library.partition(".")[0]
        raise ImportError(
            f"{what} is not in {folder}: put {files} there, or type pip install {package} to fetch it."
        ) from error


def _cifar10(folder: Path) -> Labelled:
    """Read the pickled batches: ``data`` (n, 3072) uint8, red, green and blue in turn; ``labels`` n numbers."""
    inner = folder / "cifar-10-batches-py"
    if not inner.is_dir():
        datasets = fetching("torchvision.datasets", "CIFAR10", "cifar-10-batches-py", folder)
        datasets.CIFAR10(str(folder), download=True)
    train = [_cifar_batch(path) for path in sorted(inner.glob("data_batch_*"))]
    if not train:
        raise ValueError(f"{inner} holds no data_batch_1 and so on.")
    x_test, y_test = _cifar_batch(inner / "test_batch")
    x, y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return Labelled("cifar10", x, y, x_test, y_test, CIFAR10)


def _cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        batch = _Arrays(file, encoding="bytes").load()
    pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"], np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
        raise ValueError(f"{path} is no batch of CIFAR10: its data are {pixels.dtype} {pixels.shape}.")
    return pixels.reshape(-1, 3, 32, 32).astype(np.float32) / 255, labels


class _Arrays(pickle.Unpickler):
    """Reads NumPy's arrays and plain values; a file that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what NumPy needs to make an array."""
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a batch of CIFAR10.")


def _trec(folder: Path) -> Labelled:
    """Read lines such as ``NUM:date When did Hawaii become a state ?`` in Latin-1; the class is before the colon."""
    parts = [folder / "train_5500.label", folder / "TREC_10.label"]
    if all(path.is_file() for path in parts):
        split = [[_trec_line(line) for line in path.read_text("latin-1").splitlines() if line] for path in parts]
    else:
        library = fetching("datasets", "TREC", "train_5500.label and TREC_10.label", folder)
        split = [_fetched(library, "CogComp/trec", part, "text", "coarse_label", folder) for part in ("train", "test")]
    return _texts("trec", split)


def _trec_line(line: str) -> tuple[str, str]:
    label, _, text = line.partition(" ")
    coarse, colon, _ = label.partition(":")
    if not colon or not text:
        raise ValueError(f"{line!r} is no line of TREC, such as 'NUM:date When did Hawaii become a state ?'.")
    return text.strip(), coarse


def _agnews(folder: Path) -> Labelled:
    """Read ``"3","title","description"`` rows; the text is the title, as in the study's tables 7 and 8."""
    parts = [folder / "train.csv", folder / "test.csv"]
    if all(path.is_file() for path in parts):
        split = [[_agnews_row(row, path) for row in _rows_of(path)] for path in parts]
    else:
        library = fetching("datasets", "AGNews", "train.csv and test.csv", folder)
        # There title and description are one text.
        split = [_fetched(library, "fancyzhx/ag_news", part, "text", "label", folder) for part in ("train", "test")]
    return _texts("agnews", split, AGNEWS)


def _rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def _agnews_row(row: list[str], path: Path) -> tuple[str, str]:
    if len(row) != 3 or row[0] not in ("1", "2", "3", "4"):
        raise ValueError(f"{path} has a row {row}; expected a class from 1 to 4, a title and a description.")
    return row[1], AGNEWS[int(row[0]) - 1]


def _newsgroups(folder: Path) -> Labelled:
    """Read ``20news-bydate-train/GROUP/NUMBER`` and ``-test``, or let scikit-learn fetch them, headers and all."""
    from sklearn import datasets

    parts = []
    for part in ("train", "test"):
        inner = folder / f"20news-bydate-{part}"
        if inner.is_dir():
            found = datasets.load_files(inner, encoding="latin1", shuffle=False)
        else:
            found = datasets.fetch_20newsgroups(data_home=str(folder), subset=part, shuffle=False)
        parts.append([(text, found.target_names[label]) for text, label in zip(found.data, found.target, strict=True)])
    return _texts("20news", parts)


def _emotions(folder: Path) -> Labelled:
    """Read lines such as ``i feel fine;joy``."""
    parts = [folder / "train.txt", folder / "test.txt"]
    if all(path.is_file() for path in parts):
        split = [[_emotions_line(line) for line in path.read_text("utf-8").splitlines() if line] for path in parts]
    else:
        library = fetching("datasets", "the emotions data set", "train.txt and test.txt", folder)
        split = [_fetched(library, "dair-ai/emotion", part, "text", "label", folder) for part in ("train", "test")]
    return _texts("emotions", split, EMOTIONS)


def _emotions_line(line: str) -> tuple[str, str]:
    text, semicolon, label = line.rpartition(";")
    if not semicolon or label not in EMOTIONS:
        raise ValueError(f"{line!r} is no line of the emotions data set, such as 'i feel fine;joy'.")
    return text, label


def _fetched(library: ModuleType, name: str, part: str, text: str, label: str, folder: Path) -> list[tuple[str, str]]:
    found = library.load_dataset(name, split=part, cache_dir=str(folder))
    names = found.features[label].names
    return [(one[text], names[one[label]]) for one in found]


def _texts(name: str, split: list[list[tuple[str, str]]], classes: tuple[str, ...] | None = None) -> Labelled:
    """Return training and test texts; classes in the order of their names where the data set has no other."""
    classes = classes or tuple(sorted({label for rows in split for _, label in rows}))
    place = {label: i for i, label in enumerate(classes)}
    columns = []
    for rows in split:
        columns += [[text for text, _ in rows], np.array([place[label] for _, label in rows], np.int64)]
    return Labelled(name, *columns, classes)
