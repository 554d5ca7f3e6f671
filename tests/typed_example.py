"""A program with annotations that uses the public names. `tests/test_typed.py` has mypy read it, and runs it."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import gradindex
from gradindex.review import Decisions, Finding, Review, read_decisions, review
from gradindex.sketch import Sketch


def job_of(model: torch.nn.Module, x: NDArray[np.float32], y: NDArray[np.int64]) -> gradindex.Job:
    """Return a job of a classifier."""
    return gradindex.Job(model, torch.nn.CrossEntropyLoss(), (x, y))


def nearest(job: gradindex.Job, folder: Path, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the five nearest training samples (m, 5) of some queries, with an index that is built and opened again."""
    sketch: Sketch = gradindex.CountSketch(256)
    built = gradindex.build(job, folder / "index", sketch=sketch, seed=3)
    assert_type(built, gradindex.Index)
    index: gradindex.Index = gradindex.load(folder / "index", job)
    answer = index.explain(x, k=5, certify=True)
    assert_type(answer, gradindex.Explanation)
    assert_type(answer.to_json(), str)
    distances, ids = index.kneighbors(x, 5)
    assert_type(distances, NDArray[np.float64])
    assert_type(ids, NDArray[np.int64])
    assert_type(index.kneighbors(x, return_distance=False), NDArray[np.int64])
    influence, _ = index.self_influence(3)
    assert_type(influence, NDArray[np.float64])
    assert_type(len(index), int)
    return ids


def suspicious(index: gradindex.Index, held_out: NDArray[np.float32]) -> list[int]:
    """Return the samples whose labels look wrong, and the rows of held-out samples that were trained on."""
    found: Review = review(index, top=5, held_out=held_out)
    labels = found.of("label")
    assert_type(labels, list[Finding])
    leaks = [one.held_out for one in found.of("leak") if one.held_out is not None]
    return [one.id for one in labels if one.id is not None] + leaks


def removed(file: Path) -> NDArray[np.int64]:
    """Return the samples that a file of decisions removes."""
    decided: Decisions = read_decisions(file)
    return np.array(sorted(decided.by_id), np.int64)
