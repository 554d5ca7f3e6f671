"""Stored rows in 8 bits and in 16: which is the default, what is rounded, and that additions and repairs keep to it."""

import json
import shutil

import numpy as np
import pytest

import gradindex
from gradindex.compute import watch
from gradindex.compute.blocks import exact_gradients
from gradindex.errors import MismatchError
from gradindex.index.opening import add, compact, repair
from gradindex.store import Store
from gradindex.store.layout import WATCH
from tests.jobs import ROWS, digits_job, longer_job

DIM = 256


@pytest.fixture(scope="module")
def job():
    return digits_job()


@pytest.fixture(scope="module")
def both(tmp_path_factory, job):
    folder = tmp_path_factory.mktemp("rows")
    make = lambda kind: gradindex.build(job, folder / kind, sketch=gradindex.CountSketch(DIM), row_type=kind)  # noqa: E731
    return {kind: make(kind) for kind in ("int8", "float16")}


@pytest.mark.parametrize(
    ("sketch", "kind"),
    [
        (None, "int8"),
        (gradindex.CountSketch(64), "int8"),
        (gradindex.SJLT(64), "int8"),
        (gradindex.Gaussian(64), "int8"),
        (gradindex.Rademacher(64), "int8"),
        (gradindex.Identity(), "float16"),
        (gradindex.Landmark(landmarks=32, dims=16), "float16"),
    ],
)
def test_random_projections_are_kept_in_8_bits(tmp_path, job, sketch, kind):
    index = gradindex.build(job, tmp_path / "i", sketch=sketch)
    assert index.store.header.row_type == kind
    assert index.store.shards[0].sketches.dtype == np.dtype(kind)


def test_rows_of_a_metric_stay_as_they_are(tmp_path, job):
    index = gradindex.build(job, tmp_path / "i", metric="cos-last")
    assert index.store.header.row_type == "float16"


def test_the_rounding_is_that_of_the_largest_entry(both):
    """Half of a 127th of the largest entry for each number, and nothing else."""
    wanted = both["float16"].sketch(ids=np.arange(ROWS))  # unit norm, float32
    found = both["int8"].store.gather(np.arange(ROWS))
    off = np.linalg.norm(found - wanted, axis=1)
    most = np.abs(wanted).max(axis=1) / 127 / 2 * np.sqrt(DIM)
    there = np.linalg.norm(wanted, axis=1) > 0
    assert (off <= 1.01 * most)[there].all()
    assert np.median(off[there]) > 1e-3  # not those of 16 bits
    np.testing.assert_allclose(np.linalg.norm(found, axis=1)[there], 1, atol=1e-6)


def test_half_the_bytes_and_the_same_neighbours(both, job):
    narrow, wide = both["int8"], both["float16"]
    assert narrow.store.shards[0].sketches.nbytes * 2 == wide.store.shards[0].sketches.nbytes
    found = [index.explain(ids=np.arange(40), k=5) for index in (narrow, wide)]
    np.testing.assert_array_equal(found[0].ordered_indices, found[1].ordered_indices)
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-6)  # exact, whatever the rows
    gradients = exact_gradients(job, np.arange(ROWS)).astype(np.float64)
    lengths = np.linalg.norm(gradients, axis=1)
    cosines = (gradients[:40] @ gradients.T) / np.outer(lengths[:40], lengths)
    np.testing.assert_allclose(found[0].scores, -np.sort(-cosines, axis=1)[:, :5], atol=1e-5)
    estimated = [index.explain(ids=np.arange(40), k=5, rerank=0) for index in (narrow, wide)]
    np.testing.assert_allclose(estimated[0].scores, estimated[1].scores, atol=0.02)
    assert both["int8"].verify(queries=40, k=5).recall == pytest.approx(both["float16"].verify(queries=40, k=5).recall)


def test_4_bits_of_twice_as_many_numbers(tmp_path, both, job):
    """As many bytes as 8 bits take, and estimates that are nearer to the exact cosines."""
    index = gradindex.build(job, tmp_path / "i", sketch=gradindex.CountSketch(2 * DIM), row_type="int4")
    assert index.store.shards[0].sketches.nbytes == both["int8"].store.shards[0].sketches.nbytes
    gradients = exact_gradients(job, np.arange(ROWS)).astype(np.float64)
    units = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    errors = []
    for one in (index, both["int8"]):
        rows = one.store.gather(np.arange(ROWS))
        errors.append(float(np.abs(rows[:40] @ rows.T - units[:40] @ units.T).mean()))
    assert errors[0] < errors[1]


def test_another_row_type_is_refused(tmp_path, job):
    with pytest.raises(ValueError, match="'float16', 'int8', 'int4', got 'int3'"):
        gradindex.build(job, tmp_path / "i", row_type="int3")
    with pytest.raises(ValueError, match="landmarks prove answers"):
        gradindex.build(job, tmp_path / "i", sketch=gradindex.Landmark(landmarks=32, dims=16), row_type="int8")
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_a_build_goes_on_in_the_rows_it_began_with(tmp_path, job, kind):
    whole = gradindex.build(job, tmp_path / "whole", row_type=kind, shard_rows=100)
    left = tmp_path / "left"
    shutil.copytree(tmp_path / "whole", left)
    shutil.rmtree(left / "index")
    for path in (left / "shards").glob("000001*"):
        path.unlink()
    with pytest.raises(MismatchError, match="row_type"):
        gradindex.build(job, left, shard_rows=100, row_type={"int8": "float16", "float16": "int8"}[kind])
    index = gradindex.build(job, left)
    assert index.store.header.row_type == kind
    for one, other in zip(whole.store.shards, index.store.shards, strict=True):
        np.testing.assert_array_equal(one.sketches, other.sketches)


@pytest.mark.parametrize("kind", ["int8", "float16", "int4"])
def test_what_is_added_mended_and_compacted_is_kept_alike(tmp_path, kind):
    path = tmp_path / "i"
    gradindex.build(longer_job(150), path, sketch=gradindex.CountSketch(DIM), row_type=kind, shard_rows=64)
    index = add(path, longer_job(ROWS))
    whole = gradindex.build(longer_job(ROWS), tmp_path / "whole", sketch=gradindex.CountSketch(DIM), row_type=kind)
    rows = np.arange(ROWS)
    # Batches differ, and with them the last bits of what is rounded.
    cosines = np.einsum("ij,ij->i", index.store.gather(rows), whole.store.gather(rows))
    assert cosines[whole.store.norms > 0].min() > 0.999  # rows of float16 are not quite of unit norm
    assert {part.header.row_type for part in map(index.store.part, index.store.state.parts)} == {kind}
    before = index.store.kept(rows)
    for damaged in path.glob("parts/*/shards/000000*sketch.npy"):
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x55")
    repair(path, longer_job(ROWS))
    np.testing.assert_array_equal(gradindex.load(path).store.kept(rows), before)
    gradindex.load(path).remove([3, 200])
    compact(path)
    compacted = gradindex.load(path).store
    assert compacted.header.row_type == kind
    np.testing.assert_array_equal(compacted.kept(np.arange(ROWS - 2)), np.delete(before, [3, 200], axis=0))


def test_rows_without_a_record_are_compared_as_they_are_rounded(both, tmp_path, job):
    """A rounding of 8 bits is no error of a row; a row that is off by more is."""
    shutil.copytree(both["int8"].store.path, tmp_path / "i")
    shutil.rmtree(tmp_path / "i" / WATCH)
    index = gradindex.load(tmp_path / "i", job)
    assert watch.compare_stored(index.store, job, index.projector)[1]
    header = json.loads((tmp_path / "i" / "store.json").read_text())
    assert header["row_type"] == "int8"
    turn = np.tile([1, -1], index.store.header.dim // 2)  # by a few hundredths of a row's length

    class Wrong(Store):
        def kept(self, rows):
            return np.clip(super().kept(rows).astype(int) + turn, -127, 127).astype(np.int8)

    other = Wrong(index.store.path, index.store.header)
    assert not watch.compare_stored(other, job, index.projector)[1]
