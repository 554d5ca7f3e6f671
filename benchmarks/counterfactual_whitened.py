"""Contenders of counterfactual.py whose kernels know the curvature: whitened rows, the exact Fisher matrix, EKFAC."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import gradindex
from gradindex.gradients import loop
from gradindex.gradients.curvature.curvature import Curvature
from gradindex.kernels import WhiteKernel

BYTES, BYTES_ALONG = 1024, 2040
"""Bytes of a whitened row's numbers, of one model and of several; 4 of the norm come to them."""
GRID = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Dampings as multiples of the rule's own."""
_MOST_BYTES = 3 << 30  # of formed gradients


_kept: dict[tuple[str, str], Any] = {}


def _built(bench: Any, kind: str, bits: int = 8) -> gradindex.Index:
    """Return the index of a kind of rows, built once in a folder of its own."""
    key = bench.case.name, f"{kind}, {bits} bits"
    if key not in _kept:
        _kept[key] = _build(bench, kind, 8 // bits)
    return _kept[key]


def _build(bench: Any, kind: str, numbers: int) -> gradindex.Index:
    """Build an index with so many numbers of a row, and landmarks, in a byte."""
    case = bench.case
    job = bench.job
    dims = min(1024, case.landmarks) * numbers
    sketch = gradindex.Landmark(landmarks=case.landmarks * numbers, dims=dims, draw="norm", memory=4 << 30)
    if kind == "countsketch":
        sketch = gradindex.CountSketch(2048)
    elif kind != "final":
        runs = bench.runs if kind == "models" else bench.runs[:1]
        states = [run.checkpoints[-1] for run in runs] if kind == "models" else runs[0].checkpoints
        each = min(512 if len(states) > 3 else 680, case.landmarks)
        sketch = dataclasses.replace(sketch, dims=each * numbers, per_checkpoint=True)
        job = gradindex.Job(
            bench.runs[0].model, case.loss_fn, (case.data.x, case.data.y), checkpoints=[(s, 1.0) for s, _ in states]
        )
    folder = Path(tempfile.mkdtemp(prefix="counterfactual-"))
    index = gradindex.build(job, folder / "index", sketch=sketch, progress=False)
    size = BYTES if kind in ("final", "countsketch") else BYTES_ALONG
    index.whiten(dims=size * numbers, bits=8 // numbers)
    return index


def whitened(kind: str = "final", kernel: WhiteKernel = WhiteKernel.DOT, bits: int = 8) -> Any:
    """Return a contender: whitened rows of 8 or 4 bits a number, damped by the rule."""

    def scores(bench: Any) -> np.ndarray | None:
        if kind == "along" and len(bench.case.recorded) < 2:
            return None
        return _built(bench, kind, bits).scores(*bench.case.data.queries, kernel=kernel)

    return scores


def whitened_by_damping(bench: Any) -> dict[float, np.ndarray]:
    """Return the scores of the same rows for a grid of dampings, without rounding to 8 bits."""
    index = _built(bench, "final")
    rows, norms = index.store.gather(np.arange(len(index))), index.store.norms
    queries = index.embedded(index.labelled(*bench.case.data.queries))
    own = index.white.dampings
    found = {}
    for factor in GRID:
        whitener = index.white.spectrum.whitener(tuple(factor * one for one in own), BYTES)
        (q, q_norms), (t, t_norms) = whitener(*queries), whitener(rows, norms)
        found[factor] = ((q @ t.T) * q_norms[:, None] * t_norms).astype(np.float32)
    return found


def _gradients(bench: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the formed gradients (m, P) of queries and (n, P) of samples; None where they are too large."""
    job, data = bench.job, bench.case.data
    if len(data) * job.engine.size * 4 > _MOST_BYTES:
        return None
    key = bench.case.name, "gradients"
    if key not in _kept:
        queries = loop.gradients(job.engine, *data.queries).gradients
        _kept[key] = queries, gradindex.exact_gradients(job, np.arange(len(data)))
    return _kept[key]


def fisher(bench: Any) -> np.ndarray | None:
    """Return qᵀ (F + λ)⁻¹ g by all gradients, unprojected, with the whitened rows' own λ."""
    return next(iter(_fisher(bench, (1.0,)).values()), None)


def fisher_by_damping(bench: Any) -> dict[float, np.ndarray] | None:
    """Return it for a grid of dampings."""
    return _fisher(bench, GRID) or None


def _fisher(bench: Any, factors: tuple[float, ...]) -> dict[float, np.ndarray]:
    pair = _gradients(bench)
    if pair is None:
        return {}
    queries, gradients = pair
    count = len(gradients)
    dots = (queries @ gradients.T).astype(np.float64)
    values, vectors = np.linalg.eigh((gradients @ gradients.T).astype(np.float64) / count)
    inner = dots @ vectors
    found = {}
    for factor in factors:
        # (Gᵀ G / n + λ)⁻¹ Gᵀ = Gᵀ (G Gᵀ / n + λ)⁻¹
        damping = factor * _built(bench, "final").white.damping
        found[factor] = ((inner * (1 / (np.maximum(values, 0) + damping))) @ vectors.T).astype(np.float32)
    return found


def ekfac(kind: str) -> Any:
    """Return a contender by our own EKFAC or K-FAC: dampings as multiples of its default."""

    def scores(bench: Any) -> dict[float, np.ndarray] | None:
        pair = _gradients(bench)
        if pair is None:
            return None
        job = bench.job
        curvature = Curvature.fit(job.engine, job.source, kind=kind)
        queries, gradients = pair
        return {
            factor: (curvature.apply(queries, factor * curvature.damping).astype(np.float32) @ gradients.T)
            for factor in GRID
        }

    return scores
