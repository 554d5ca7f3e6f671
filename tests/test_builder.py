import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex.compute import blocks
from gradindex.errors import DamagedIndexError, IndexExistsError, MismatchError
from tests.jobs import ROWS, digits, digits_job, other_model_job, trained


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_rows_are_the_exact_gradients(tmp_path):
    job = digits_job()
    index = gradindex.build(job, tmp_path / "i", sketch=gradindex.Identity(), shard_rows=64, batch_size=50)
    want = gradindex.exact_gradients(job, np.arange(ROWS))
    norms = np.linalg.norm(want, axis=1)
    np.testing.assert_allclose(index.store.norms, norms, rtol=1e-5)
    rows = index.store.gather(np.arange(ROWS))
    np.testing.assert_allclose(rows, want / norms[:, None], atol=2e-3)  # float16
    x, y = map(torch.from_numpy, digits())
    losses = nn.functional.cross_entropy(trained()(x), y, reduction="none").detach().numpy()
    np.testing.assert_allclose(index.store.columns["loss"], losses, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(index.store.columns["label"], y.numpy())


def test_embed_yields_blocks_in_order(tmp_path):
    job = digits_job()
    blocks = list(gradindex.embed(job, sketch=gradindex.Identity(), batch_size=100))
    assert [len(block.ids) for block in blocks] == [100, 100, 40]
    np.testing.assert_array_equal(np.concatenate([b.ids for b in blocks]), np.arange(ROWS))
    want = gradindex.exact_gradients(job, [0, 100, 239])
    found = np.concatenate([b.sketches for b in blocks])[[0, 100, 239]]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        np.concatenate([b.norms for b in blocks])[[0, 100, 239]], np.linalg.norm(want, axis=1), rtol=1e-5
    )
    np.testing.assert_array_equal(blocks[0].labels, digits()[1][:100])


def test_sketched_cosines_are_near_the_exact_ones():
    job = digits_job()
    sketches = np.concatenate([b.sketches for b in gradindex.embed(job, sketch=gradindex.CountSketch(2048), seed=3)])
    exact = gradindex.exact_gradients(job, np.arange(ROWS))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (sketches, exact)]
    error = (unit[0] @ unit[0].T - unit[1] @ unit[1].T)[~np.eye(ROWS, dtype=bool)]
    cosines = (unit[1] @ unit[1].T)[~np.eye(ROWS, dtype=bool)]
    theory = np.sqrt(np.mean((1 - cosines**2) ** 2) / 2048)
    assert error.std() == pytest.approx(theory, rel=0.35)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")],
    ids=["python", "cuda", "cpu"],
)
def test_halves_a_batch_that_does_not_fit(monkeypatch, error):
    job = digits_job()
    want = np.concatenate([block.sketches for block in gradindex.embed(job, batch_size=60)])
    embed, sizes = type(job.engine).embed, []

    def little_memory(self, x, y, projector):
        if len(x) > 20:
            raise error
        sizes.append(len(x))
        return embed(self, x, y, projector)

    monkeypatch.setattr(type(job.engine), "embed", little_memory)
    blocks = list(gradindex.embed(job, batch_size=60))
    assert [len(block.ids) for block in blocks] == [60] * 4
    assert sizes == [15] * 16
    np.testing.assert_allclose(np.concatenate([block.sketches for block in blocks]), want, rtol=1e-4, atol=1e-5)

    def no_memory(self, x, y, projector):
        raise error

    monkeypatch.setattr(type(job.engine), "embed", no_memory)
    with pytest.raises(type(error)):
        list(gradindex.embed(job, batch_size=60))


class Fails:
    """A dataset that breaks at one sample."""

    def __init__(self, at):
        self.at = at
        self.x, self.y = digits()

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        if i == self.at:
            raise OSError("disk on fire")
        return self.x[i], self.y[i]


def test_a_broken_build_continues_to_the_same_bytes(tmp_path):
    job = gradindex.Job(trained(), nn.CrossEntropyLoss(), Fails(-1))
    gradindex.build(job, tmp_path / "whole", shard_rows=50, index="IVF4,SQ8")
    broken = gradindex.Job(trained(), nn.CrossEntropyLoss(), Fails(130))
    with pytest.raises(OSError, match="disk on fire"):
        gradindex.build(broken, tmp_path / "broken", shard_rows=50, index="IVF4,SQ8")
    with pytest.raises(DamagedIndexError, match=r"3 of 5 shards are missing.*Run the same build again"):
        gradindex.load(tmp_path / "broken")
    gradindex.build(job, tmp_path / "broken", shard_rows=50, index="IVF4,SQ8")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_published_shards_are_not_computed_again(tmp_path):
    broken = gradindex.Job(trained(), nn.CrossEntropyLoss(), Fails(130))
    with pytest.raises(OSError, match="disk on fire"):
        gradindex.build(broken, tmp_path / "i", shard_rows=50)
    fails_early = gradindex.Job(trained(), nn.CrossEntropyLoss(), Fails(30))  # in shard 0, which is done
    index = gradindex.build(fails_early, tmp_path / "i", shard_rows=50)
    assert len(index) == ROWS


def test_a_lost_index_is_rebuilt_from_the_store(tmp_path):
    index = gradindex.build(digits_job(), tmp_path / "i")
    want = index.explain(ids=[1, 2], k=5).ordered_indices
    shutil.rmtree(tmp_path / "i" / "index")
    np.testing.assert_array_equal(
        gradindex.build(digits_job(), tmp_path / "i").explain(ids=[1, 2], k=5).ordered_indices, want
    )


def test_a_finished_index_is_not_touched(tmp_path):
    gradindex.build(digits_job(), tmp_path / "i")
    before = files(tmp_path / "i")
    with pytest.raises(IndexExistsError, match=r"already holds an index of 240 samples.*overwrite"):
        gradindex.build(digits_job(), tmp_path / "i")
    with pytest.raises(MismatchError, match=r"seed is 0, not 1.*overwrite"):
        gradindex.build(digits_job(), tmp_path / "i", seed=1)
    with pytest.raises(MismatchError, match=r"parameter '0\.weight' \(and 3 more\) has other values"):
        gradindex.build(other_model_job(), tmp_path / "i")
    assert files(tmp_path / "i") == before
    index = gradindex.build(digits_job(), tmp_path / "i", seed=1, overwrite=True)
    assert index.store.header.seed == 1


def test_overwrite_removes_nothing_but_an_index(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(IndexExistsError, match="not empty and holds no gradindex store"):
        gradindex.build(digits_job(), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_opening_with_something_else_names_the_difference(tmp_path):
    gradindex.build(digits_job(), tmp_path / "i")
    x, y = digits()
    with pytest.raises(MismatchError, match=r"parameter '0\.weight' \(and 3 more\) has other values"):
        gradindex.load(tmp_path / "i", other_model_job())
    with pytest.raises(MismatchError, match=r"parameter '0\.weight' is missing"):
        gradindex.load(tmp_path / "i", digits_job(parameters="last_layer"))
    with pytest.raises(MismatchError, match="the dataset has 100 samples, the index 240"):
        gradindex.load(tmp_path / "i", gradindex.Job(trained(), nn.CrossEntropyLoss(), (x[:100], y[:100])))
    wider = nn.Sequential(nn.Linear(64, 25), nn.Tanh(), nn.Linear(25, 10))
    with pytest.raises(MismatchError, match=r"parameter '0\.weight' had shape \(24, 64\), now \(25, 64\)"):
        gradindex.load(tmp_path / "i", gradindex.Job(wider, nn.CrossEntropyLoss(), (x, y)))
    with pytest.raises(FileNotFoundError, match="holds no gradindex index"):
        gradindex.load(tmp_path / "nowhere")


def test_only_selected_parameters(tmp_path):
    index = gradindex.build(digits_job(parameters="last_layer"), tmp_path / "i", sketch=gradindex.Identity())
    assert index.store.header.dim == 250
    assert [p["name"] for p in index.store.header.parameters] == ["2.weight", "2.bias"]


def poisoned(what):
    x, y = (a.copy() for a in digits())
    if what == "data":
        x[[17, 30]] = np.nan
    return x, y


def test_nan_in_the_data_names_the_ids(tmp_path):
    with pytest.raises(ValueError, match=r"data of samples \[17, 30\] holds NaN or infinity"):
        gradindex.build(gradindex.Job(trained(), nn.CrossEntropyLoss(), poisoned("data")), tmp_path / "i")


def test_an_infinite_loss_names_the_ids(tmp_path):
    def loss(output, y):
        return nn.functional.cross_entropy(output, y) / (y != 7).float().sum()  # 1/0 for sevens

    sevens = np.flatnonzero(digits()[1] == 7)
    with pytest.raises(ValueError, match=rf"loss of samples \[{sevens[0]}, {sevens[1]},.*holds NaN or infinity"):
        gradindex.build(gradindex.Job(trained(), loss, digits()), tmp_path / "i")


def test_an_infinite_gradient_names_the_ids(tmp_path):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.sqrt(self.weight * x)  # finite; its derivative at 0 is not

    x = np.zeros((20, 1), np.float32)
    with pytest.raises(ValueError, match=r"gradient of samples \[0, 1,"):
        gradindex.build(gradindex.Job(Root(), nn.MSELoss(), (x, x), task="regression"), tmp_path / "i")


def test_empty_and_unlabelled_datasets(tmp_path):
    x, y = digits()
    with pytest.raises(ValueError, match="The dataset is empty"):
        gradindex.build(gradindex.Job(trained(), nn.CrossEntropyLoss(), (x[:0], y[:0])), tmp_path / "i")
    with pytest.raises(ValueError, match="The dataset has no labels"):
        gradindex.build(gradindex.Job(trained(), nn.CrossEntropyLoss(), x), tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_the_header_tells_how_each_gradient_was_computed(tmp_path):
    gradindex.build(digits_job(), tmp_path / "i")
    header = json.loads((tmp_path / "i" / "store.json").read_text())
    assert {p["path"] for p in header["parameters"]} <= {"factored", "vmap", "loop"}
    assert set(header["versions"]) == {"gradindex", "numpy", "faiss", "torch"}


def test_a_failed_overwrite_leaves_the_old_index(tmp_path, monkeypatch):
    out = tmp_path / "i"
    gradindex.build(digits_job(), out, shard_rows=64)
    before = files(out)
    with pytest.raises(ValueError, match="Unknown index 'IVX'"):
        gradindex.build(other_model_job(), out, index="IVX", overwrite=True)
    assert list(tmp_path.iterdir()) == [out]  # noticed before anything was embedded
    with monkeypatch.context() as patch:
        patch.setattr("gradindex.ann.build.build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            gradindex.build(other_model_job(), out, shard_rows=64, overwrite=True)
    assert files(out) == before
    new = gradindex.build(other_model_job(), out, shard_rows=64, overwrite=True)
    assert new.store.path == out
    assert list(tmp_path.iterdir()) == [out]
    assert files(out) == files(gradindex.build(other_model_job(), tmp_path / "fresh", shard_rows=64).store.path)


def test_an_overwrite_does_not_continue_another_jobs_leftovers(tmp_path, monkeypatch):
    out = tmp_path / "i"
    gradindex.build(digits_job(), out)
    with monkeypatch.context() as patch:
        patch.setattr("gradindex.ann.build.build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            gradindex.build(other_model_job(), out, overwrite=True)
    before = files(gradindex.build(digits_job(), tmp_path / "fresh", seed=3).store.path)
    gradindex.build(digits_job(), out, seed=3, overwrite=True)
    assert files(out) == before


def test_a_replacement_killed_between_its_renames_is_taken_up_again(tmp_path):
    out = tmp_path / "i"
    gradindex.build(digits_job(), out)
    before = files(out)
    gradindex.build(other_model_job(), tmp_path / "j").store.path.rename(tmp_path / ".i.building")
    out.rename(tmp_path / ".i.replaced")
    with pytest.raises(ValueError, match="Unknown index"):
        gradindex.build(other_model_job(), out, index="IVX", overwrite=True)
    gradindex.build(other_model_job(), out, overwrite=True)
    assert files(out) != before
    assert list(tmp_path.iterdir()) == [out]


def test_small_samples_come_in_larger_batches():
    job = digits_job()
    each = blocks.embedding_batch_size(job) and job.engine.bytes_per_sample
    assert blocks.embedding_batch_size(job) == 512  # an MLP of 100 activations
    assert blocks.embedding_batch_size(job, budget=300 * each) == 300
    wide = gradindex.Job(
        nn.Sequential(nn.Linear(64, 240_000), nn.ReLU(), nn.Linear(240_000, 10)), nn.CrossEntropyLoss(), digits()
    )
    assert blocks.embedding_batch_size(wide) == 128
    assert blocks.embedding_batch_size(wide, budget=wide.engine.bytes_per_sample) == 1
