"""Which models a retraining bank consists of: subsets, seeds, names of files."""

import numpy as np

from gradindex.data.names import Tree
from gradindex.evaluation.asked import Asked, sha256_of_dataset
from gradindex.evaluation.bank_store import MODELS, Header, Masks
from gradindex.evaluation.lds import FEWEST_SUBSETS
from gradindex.evaluation.training import Task

_STREAM = 0  # of the seeds of the subsets' models


def header(n: int, subsets: int, fraction: float, models: int, seed: int, asked: Asked, dataset: Tree) -> Header:
    """Return the header of the bank that `Bank.build` is asked for; raises ValueError if a number makes no sense."""
    numbers = (
        ("n", n, 2),
        ("subsets", subsets, FEWEST_SUBSETS),
        ("models", models, 1),
        ("seed", seed, 0),
    )
    for name, value, least in numbers:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}.")
    size = round(fraction * n)
    if not 0 < size < n:
        raise ValueError(f"fraction must leave some samples in and some out of {n}, got {fraction!r}.")
    count = asked.count
    if count < 1:
        raise ValueError("There are no queries.")
    sha = None if dataset is None else sha256_of_dataset(dataset, n)
    return Header(int(n), subsets, size, models, seed, count, asked.sha256, sha)


def draw_subsets(header: Header) -> Masks:
    """Return who is in which subset (subsets, n): each subset drawn by itself, without replacement."""
    masks = np.zeros((header.subsets, header.n), bool)
    for number, mask in enumerate(masks):
        rng = np.random.default_rng([header.seed, number])
        mask[rng.choice(header.n, header.size, replace=False)] = True
    return masks


def seed_of(*numbers: int) -> int:
    """Return a seed in [0, 2³¹) that depends on all numbers; 31 bits are what every framework takes."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) >> 1


def names(header: Header) -> list[str]:
    """Return the names of the files of all models, subset by subset."""
    return [f"{MODELS}/{s:05d}-{j}.json" for s in range(header.subsets) for j in range(header.models)]


def tasks(header: Header, masks: Masks) -> list[Task]:
    """Return all models to train, in the order of `names`; each has a seed of its own."""
    left = iter(names(header))
    return [
        Task(next(left), np.flatnonzero(mask).astype(np.int64), seed_of(header.seed, _STREAM, s, j))
        for s, mask in enumerate(masks)
        for j in range(header.models)
    ]
