"""What was begun with some samples and a loss is not continued with others: no index holds rows of both."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest

import gradindex
from gradindex.compute import watch
from gradindex.errors import MismatchError
from gradindex.lifecycle import embed_shards
from gradindex.store import Store
from tests.jobs import ROWS, digits, digits_job
from tests.test_builder import files

ORDER = np.random.default_rng(0).permutation(ROWS)
NAMES = [f"n{i}" for i in range(ROWS)]


def half_built(path, monkeypatch, job=None, **options):
    """Begin a build that ends after two shards."""
    written = []

    def write(store, number, rows, real=Store.write):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        real(store, number, rows)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Store, "write", write)
        gradindex.build(job or digits_job(), path, shard_rows=50, **options)
    assert len(written) == 2


def shuffled():
    x, y = digits()
    return replace(digits_job(), dataset=(x[ORDER], y[ORDER]))


def smoothed():
    import torch

    return replace(digits_job(), loss_fn=torch.nn.CrossEntropyLoss(label_smoothing=0.5))


@pytest.mark.parametrize("other", [shuffled, smoothed])
def test_a_build_is_not_continued_with_others(tmp_path, monkeypatch, other):
    half_built(tmp_path / "i", monkeypatch)
    before = files(tmp_path / "i")
    with pytest.raises(MismatchError, match=r"are not those of these samples: .* or begin again \(overwrite=True"):
        gradindex.build(other(), tmp_path / "i", shard_rows=50)
    assert files(tmp_path / "i") == before
    index = gradindex.build(other(), tmp_path / "i", shard_rows=50, overwrite=True)
    assert files(tmp_path / "i") == files(gradindex.build(other(), tmp_path / "whole", shard_rows=50).store.path)
    assert len(index) == ROWS


def test_nor_with_other_columns(tmp_path, monkeypatch):
    half_built(tmp_path / "i", monkeypatch, digits_job(columns={"name": NAMES}))
    with pytest.raises(MismatchError, match=r"was begun with other values of column 'name'\. Give those, or begin"):
        gradindex.build(digits_job(columns={"name": NAMES[::-1]}), tmp_path / "i", shard_rows=50)
    index = gradindex.build(digits_job(columns={"name": NAMES}), tmp_path / "i", shard_rows=50)
    assert index.store.columns["name"].tolist() == NAMES


def test_nor_is_a_replacement(tmp_path, monkeypatch):
    gradindex.build(digits_job(), tmp_path / "i")
    half_built(tmp_path / "i", monkeypatch, overwrite=True)
    index = gradindex.build(shuffled(), tmp_path / "i", shard_rows=50, overwrite=True)
    assert files(tmp_path / "i") == files(gradindex.build(shuffled(), tmp_path / "whole", shard_rows=50).store.path)
    assert index.explain(ids=[3], k=1).exact.all()
    assert [one.name for one in tmp_path.iterdir() if "building" in one.name] == []


@pytest.mark.parametrize("how", ["in front", "shuffled"])
def test_samples_are_not_added_behind_others(tmp_path, how):
    x, y = digits()
    gradindex.build(digits_job(), tmp_path / "i")
    first = np.r_[:10, :ROWS] if how == "in front" else np.r_[ORDER, :10]
    with pytest.raises(MismatchError, match="are not those of these samples"):
        gradindex.add(tmp_path / "i", replace(digits_job(), dataset=(x[first], y[first])))
    assert Store.open(tmp_path / "i").state.number == 0
    index = gradindex.add(tmp_path / "i", replace(digits_job(), dataset=(x[np.r_[:ROWS, :10]], y[np.r_[:ROWS, :10]])))
    assert len(index) == ROWS + 10


def test_a_repair_takes_the_samples_of_the_build(tmp_path):
    gradindex.build(digits_job(), tmp_path / "i", shard_rows=50)
    before = files(tmp_path / "i")
    (file,) = (tmp_path / "i" / "shards").glob("000001*sketch.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(MismatchError, match="are not those of these samples"):
        gradindex.repair(tmp_path / "i", shuffled())
    assert gradindex.repair(tmp_path / "i", digits_job()).shards == ("1",)
    assert files(tmp_path / "i") == before


def test_damaged_shards_are_no_reason_to_refuse(tmp_path, monkeypatch):
    half_built(tmp_path / "i", monkeypatch)
    for file in (tmp_path / "i" / "shards").glob("000000*sketch.npy"):
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    job, store = digits_job(), Store(tmp_path / "i", gradindex.store.Header.read(tmp_path / "i" / "store.json"))
    assert embed_shards.embed_missing(job, store) == ROWS - 100


def test_the_rounding_of_the_largest_gradient_is_no_other_sample(tmp_path):
    """Of a sample whose gradient nearly cancels, it is all that is left: see `paths.allowance`."""
    job, index = digits_job(), gradindex.build(digits_job(), tmp_path / "i")
    store, row = index.store, np.array([5])
    given = job.engine, index.projector, job.source.take(row), store.kept(row), 1.01 * store.norms[row]
    norm = float(store.norms[5])
    near, far = (watch.errors_of(*given, store.header.row_type, largest)[0] for largest in (norm, 1e6 * norm))
    assert near == pytest.approx(0.01, abs=3e-3)
    assert far == 0
