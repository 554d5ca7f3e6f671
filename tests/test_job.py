import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import gradindex
from gradindex.job import load_job
from tests.jobs import ROWS, digits, digits_job, trained


class Pairs(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        x, y = digits()
        return x[i], int(y[i])


class Stream(IterableDataset):
    def __len__(self):
        return ROWS

    def __iter__(self):
        x, y = digits()
        yield from zip(x, y.tolist(), strict=True)


def tensors():
    x, y = digits()
    return TensorDataset(torch.from_numpy(x), torch.from_numpy(y))


def shifted(samples):
    """A collate function that does something the default would not."""
    x, y = zip(*samples, strict=True)
    return torch.stack([torch.as_tensor(a) for a in x]) * 1.0, torch.tensor(y)


DATASETS = {
    "arrays": digits,
    "float64": lambda: (digits()[0].astype(np.float64), digits()[1].astype(np.uint8)),
    "tensors as columns": lambda: tuple(map(torch.from_numpy, digits())),
    "lists of numbers": lambda: (digits()[0].tolist(), digits()[1].tolist()),
    "torch Dataset": Pairs,
    "TensorDataset": tensors,
    "DataLoader": lambda: DataLoader(tensors(), batch_size=32),
    "DataLoader that shuffles": lambda: DataLoader(tensors(), batch_size=32, shuffle=True),
    "DataLoader with collate_fn": lambda: DataLoader(tensors(), collate_fn=shifted),
    "IterableDataset": Stream,
    "DataLoader of an IterableDataset": lambda: DataLoader(Stream(), batch_size=16),
    "list of pairs": lambda: list(zip(*digits(), strict=True)),
}


@pytest.fixture(scope="module")
def want():
    return np.concatenate([block.sketches for block in gradindex.embed(digits_job())])


@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_of_dataset_gives_the_same_rows(kind, want):
    job = gradindex.Job(trained(), nn.CrossEntropyLoss(), DATASETS[kind]())
    blocks = list(gradindex.embed(job, batch_size=100))
    np.testing.assert_array_equal(np.concatenate([block.ids for block in blocks]), np.arange(ROWS))
    np.testing.assert_allclose(np.concatenate([block.sketches for block in blocks]), want, rtol=1e-4, atol=1e-5)
    ids = [7, 3, 239, 3]
    oracle = gradindex.exact_gradients(digits_job(), ids)
    np.testing.assert_allclose(gradindex.exact_gradients(job, ids), oracle, rtol=1e-4, atol=1e-6)


class TwoParts(nn.Module):
    """Sums two inputs; takes them by name, by place, or as one dict."""

    def __init__(self):
        super().__init__()
        self.inner = trained()

    def forward(self, left, right):
        return self.inner(left + right)


class OneDict(TwoParts):
    def forward(self, batch):
        return self.inner(batch["left"] + batch["right"])


def halves():
    x, _ = digits()
    return {"left": x * 0.25, "right": x * 0.75}


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        (TwoParts, lambda: (halves(), digits()[1])),
        (OneDict, lambda: (halves(), digits()[1])),
        (TwoParts, lambda: (tuple(halves().values()), digits()[1])),
        (
            TwoParts,
            lambda: [
                (dict(zip(halves(), a, strict=True)), y) for *a, y in zip(*halves().values(), digits()[1], strict=True)
            ],
        ),
        (TwoParts, lambda: [((a, b), y) for a, b, y in zip(*halves().values(), digits()[1], strict=True)]),
    ],
    ids=["dict as keywords", "dict as one", "tuple", "dict samples", "tuple samples"],
)
def test_inputs_of_several_parts(model, dataset, want, tmp_path):
    job = gradindex.Job(model(), nn.CrossEntropyLoss(), dataset())
    found = np.concatenate([block.sketches for block in gradindex.embed(job)])
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)
    index = gradindex.build(job, tmp_path / "i")
    np.testing.assert_array_equal(index.explain(ids=[4], k=1).ordered_indices, [[4]])
    x = job.source.take(np.array([4, 5])).x
    assert index.explain(x, digits()[1][4:6], k=1).ordered_indices.tolist() == [[4], [5]]


@pytest.mark.parametrize(
    ("dataset", "error", "said"),
    [
        (lambda: (digits()[0], digits()[1][:-1]), ValueError, "X has 240 samples but Y has 239"),
        (lambda: 3, TypeError, "Cannot read a dataset of type int"),
        (lambda: (i for i in range(3)), TypeError, "type generator has no length"),
        (lambda: ({"a": np.zeros(3), "b": np.zeros(4)}, np.zeros(3)), ValueError, "different numbers of samples"),
        (lambda: [(np.zeros(64), 1, 2)], ValueError, r"A sample must be \(x, y\), got 3 parts"),
        (list, ValueError, "The dataset is empty"),
    ],
)
def test_datasets_that_are_none(dataset, error, said):
    with pytest.raises(error, match=said):
        list(gradindex.embed(gradindex.Job(trained(), nn.CrossEntropyLoss(), dataset())))


def test_a_job_is_checked_at_birth():
    with pytest.raises(ValueError, match=r"Unknown task 'x'\. Expected one of: 'classification' \| 'regression'\."):
        digits_job(task="x")
    with pytest.raises(ValueError, match=r"Unknown backend 'jax'\. Expected one of: 'torch' \| 'tensorflow'\."):
        digits_job(backend="jax")
    with pytest.raises(TypeError, match=r"Expected a torch\.nn\.Module or a keras\.Model, got int"):
        gradindex.Job(3, nn.CrossEntropyLoss(), digits())
    with pytest.raises(TypeError, match="loss_fn must be callable, got str"):
        gradindex.Job(trained(), "cross entropy", digits())


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        (None, ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("bias", ["0.bias", "2.bias"]),
        (r"^2\.", ["2.weight", "2.bias"]),
        (["2.bias", "0.weight"], ["0.weight", "2.bias"]),
        ("last_layer", ["2.weight", "2.bias"]),
    ],
)
def test_parameters_are_chosen(parameters, names):
    job = digits_job(parameters=parameters)
    assert [parameter.name for parameter in job.engine.parameters] == names
    every = gradindex.exact_gradients(digits_job(), [5])
    places = {p.name: at for p, at in digits_job().engine.slices()}
    want = np.concatenate([every[:, places[name]] for name in names], axis=1)
    np.testing.assert_allclose(gradindex.exact_gradients(job, [5]), want, rtol=1e-6)
    ((block,),) = [list(gradindex.embed(job, sketch=gradindex.Identity(), batch_size=ROWS))]
    np.testing.assert_allclose(block.sketches[5:6], want, rtol=1e-3, atol=1e-6)


def test_parameters_that_do_not_exist():
    with pytest.raises(ValueError, match=r"Unknown parameters \['3.weight'\]. The trainable ones are: 0.weight, "):
        digits_job(parameters=["3.weight"]).engine  # noqa: B018
    with pytest.raises(ValueError, match="'conv' selects none of the trainable parameters"):
        digits_job(parameters="conv").engine  # noqa: B018


def test_a_file_may_import_what_is_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_a_job.py").write_text("from tests.jobs import digits_job as job\n")
    (tmp_path / "job_file.py").write_text("from beside_a_job import job\n")
    monkeypatch.chdir(tmp_path.parent)
    assert load_job(f"{tmp_path.name}/job_file.py:job").engine.size == digits_job().engine.size


def test_jobs_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_model.py").write_text("from tests.jobs import digits_job as job\n")
    assert load_job(str(tmp_path / "my_model.py") + ":job").engine.size == digits_job().engine.size
    monkeypatch.chdir(tmp_path)
    assert load_job("my_model:job").engine.size == digits_job().engine.size
    (tmp_path / "broken.py").write_text("import surely_not_installed\n")
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        load_job("broken:job")
