"""The clever parts beside the plain ones that `benchmarks/clever.py` puts in their place, by value."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradindex.compiled import filters, ghost_norms, outer_products
from gradindex.gradients.parameter import Parameter
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.gradients.torch.rules import conv_channels_last
from gradindex.sketch import CountSketch, tensor_sketch
from gradindex.store import Header, Rows, Store, shard
from tests.gradients.test_products import CONVOLUTIONS, convolution, normal

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import clever_parts
from clever_parts import PARTS


def close(found, want, tolerance=2e-6):
    assert np.abs(found - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_sums_in_registers_of_convolutions(name):
    large, small, at = convolution(name)
    out, other = (np.full((3, at.length // at.groups, small.shape[-1]), np.nan, np.float32) for _ in range(2))
    filters.form(large, small, out, at)
    clever_parts.form(large, small, other, at)
    close(out, other)
    if at.groups == 1:
        squares = ghost_norms.of_convolution(large, small, at)
        np.testing.assert_allclose(squares, clever_parts.of_convolution(large, small, at), rtol=1e-5)


@pytest.mark.parametrize("shape", [(7, 30, 40), (3, 24, 16), (9, 7, 100)])
def test_sums_in_registers_of_outer_products(shape):
    positions, height, width = shape
    rows, columns = normal(3, positions, height), normal(3, positions, width)
    out, other = np.empty((2, 3, height, width), np.float32)
    outer_products.outer(rows, columns, out)
    clever_parts.outer(rows, columns, other)
    close(out, other)
    np.testing.assert_allclose(ghost_norms.squared(rows, columns), clever_parts.squared(rows, columns), rtol=1e-5)


@pytest.mark.parametrize("dim", [64, 1024])
def test_samples_in_lanes(dim):
    parameter = Parameter(name="w", position=1, shape=(33, 70), dtype="float32")
    projector = CountSketch(dim).bind([parameter], seed=2)
    gradients, rows, columns = normal(37, 33 * 70), normal(37, 3, 33), normal(37, 3, 70)
    sketches = {}
    for name in (None, "samples in lanes, TensorSketch"):
        out = np.zeros((2, 37, dim), np.float32)
        with pytest.MonkeyPatch.context() as patch:
            for owner, attribute, value in PARTS[name].changes("torch") if name else []:
                patch.setattr(owner, attribute, value)
            squares = projector.add_measured(out[0], parameter, gradients)
            projector.add_factors(out[1], parameter, rows, columns)
        np.testing.assert_allclose(squares, np.square(gradients.astype(float)).sum(1), rtol=1e-6)
        sketches[name] = out
    formed, factors = sketches.pop(None)
    for name, out in sketches.items():
        close(out[0], formed)
        close(out[1], factors)
        assert (out[1] != factors).any() == name.endswith("TensorSketch")


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 16, 50), nn.Tanh(), nn.Linear(50, 10),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if "torch" in part.backends])
def test_rows_of_a_model_without_a_part(name):
    x, y = normal(64, 8, 6, 6), np.arange(64) % 10
    engine = TorchEngine(small_model(), nn.CrossEntropyLoss())
    projector = CountSketch(clever_parts.DIMS.get(name, 1024)).bind(engine.parameters, 0)
    want = engine.embed(x, y, projector)
    with PARTS[name].out("torch"):
        other = TorchEngine(small_model(), nn.CrossEntropyLoss())
        found = other.embed(x, y, projector)
    close(found.sketches, want.sketches, 1e-5)
    np.testing.assert_allclose(found.norms, want.norms, rtol=1e-5)


def test_a_part_is_out_for_a_while_only(monkeypatch):
    before = tensor_sketch.serves, conv_channels_last._is_compiled
    with PARTS["all emitted instructions"].out("torch"):
        now = tensor_sketch.serves, conv_channels_last._is_compiled
        assert all(one is not other for one, other in zip(now, before, strict=True))
    assert before == (tensor_sketch.serves, conv_channels_last._is_compiled)


def test_a_shard_without_threads_has_the_same_bytes(tmp_path, monkeypatch):
    rows = normal(12_000, 64).astype(np.float16)
    header = Header(
        rows=12_000, shard_rows=12_000, dim=64, sketch={"kind": "arrays", "dim": 64}, seed=0, batch_size=1, task="none",
        backend="none", parameters=[], state=[], versions={},
    )  # fmt: skip
    pool, pools = shard.ThreadPoolExecutor, []
    for name, made in (("threads", pool), ("turns", clever_parts.InTurn)):
        monkeypatch.setattr(shard, "ThreadPoolExecutor", lambda *given, made=made: pools.append(made) or made(*given))
        store = Store.create(tmp_path / name, header)
        store.write(0, Rows(rows, np.ones(12_000, np.float32), np.arange(12_000), {}))
        read = Store.open(tmp_path / name)
        assert (next(read.blocks(12_000))[1].astype(np.float16) == rows).all()
        assert (Store.open(tmp_path / name).kept(np.arange(12_000)) == rows).all()
    assert len(pools) == 6 and pools[:3] == [pool] * 3 and pools[3:] == [clever_parts.InTurn] * 3
    one, other = (
        sorted(file.read_bytes() for file in (tmp_path / name).rglob("*.npy")) for name in ("threads", "turns")
    )
    assert len(one) == 3 and one == other
