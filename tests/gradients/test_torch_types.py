"""Inputs and labels reach model and loss as a user's loop gives them: with their types, and as copies."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradindex
from gradindex.gradients.torch.engine import TorchEngine

N, CLASSES = 24, 4
Y = torch.arange(N) % CLASSES


class Prepared(nn.Module):
    """Makes numbers of the input by a function that asks for its type."""

    def __init__(self, prepare, size):
        super().__init__()
        self.prepare = prepare
        self.body = nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, CLASSES))

    def forward(self, x):
        return self.body(self.prepare(x))


def steps(model, loss, x, y):
    rows = []
    for i in range(N):
        model.zero_grad()
        loss(model(x[i : i + 1].clone()), y[i : i + 1].clone()).backward()
        rows.append(np.concatenate([p.grad.numpy().ravel() for p in model.parameters()]))
    model.zero_grad()
    return np.stack(rows)


def assert_right(tmp_path, model, loss, x, y):
    """Rows and exact cosines are those of training steps, and the dataset is as it was."""
    want, before = steps(model, loss, x, y), (x.clone(), y.clone())
    job = gradindex.Job(model, loss, (x, y), task="regression")
    rows = np.concatenate([part.sketches for part in gradindex.embed(job, sketch=gradindex.Identity())])
    np.testing.assert_allclose(rows, want, atol=1e-4 * np.abs(want).max())
    unit = want / np.maximum(np.linalg.norm(want, axis=1, keepdims=True), 1e-30)
    found = gradindex.build(job, tmp_path / "index", progress=False).explain(ids=[5], k=5)
    assert found.exact.all()
    np.testing.assert_allclose(found.scores[0], (unit[5] @ unit.T)[found.ordered_indices[0]], atol=1e-4)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert x.dtype == before[0].dtype and y.dtype == before[1].dtype


def times(n=N):
    return 1.7e9 + torch.rand(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1000


def pixels():
    return torch.randint(0, 256, (N, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("x", "prepare"),
    [
        (times(), lambda t: ((t - 1.7e9) / 300).float()),  # in single precision all times are alike
        (pixels(), lambda x: x.float() / torch.iinfo(x.dtype).max),
        (pixels(), lambda x: (~x).float() / 128 - 1),
        (pixels().to(torch.int16), lambda x: x.float() / torch.iinfo(x.dtype).max * 100),
        (pixels().float(), lambda x: x.sub_(128).div_(64)),  # writes into the batch
    ],
)
def test_inputs(tmp_path, x, prepare):
    torch.manual_seed(0)
    assert_right(tmp_path, Prepared(prepare, x.shape[1]), F.cross_entropy, x, Y)


def ade(out, y):
    """Classes from 1, 0 for none, as in ADE20K: below 0 there is 255."""
    return F.cross_entropy(out, (y - 1).long(), ignore_index=255, reduction="sum")


def hours(out, y):
    return F.mse_loss(out[:, :3], ((y - 1.7e9) / 300).float())


def in_place(out, y):
    y[y == 3] = -100
    return F.cross_entropy(out, y, ignore_index=-100, reduction="sum")


def one_less(out, y):
    y -= 1
    return F.cross_entropy(out, y.clamp(min=0))


@pytest.mark.parametrize(
    ("loss", "y"), [(ade, Y.to(torch.uint8)), (hours, times()), (in_place, Y), (one_less, Y), (F.mse_loss, times(N))]
)
def test_labels(tmp_path, loss, y):
    torch.manual_seed(0)
    x = torch.randn(N, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3 if loss is F.mse_loss else CLASSES))
    assert_right(tmp_path, model, loss, x, y)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32])
def test_what_a_model_does_not_take_is_converted(kind):
    torch.manual_seed(0)
    model, x = nn.Linear(6, CLASSES), np.random.default_rng(0).integers(-3, 3, (N, 6))
    if kind is np.int32:
        model, x = nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(30, CLASSES)), x + 3
    labels = np.arange(N, dtype=np.uint8) % CLASSES  # cross_entropy takes no uint8
    found = TorchEngine(model, F.cross_entropy).gradients(x.astype(kind), labels)
    want = steps(model, F.cross_entropy, torch.tensor(x) if kind is np.int32 else torch.tensor(x).float(), Y)
    np.testing.assert_allclose(found.gradients, want, atol=1e-5)
    assert found.gradients.dtype == np.float32


def test_tensors_of_inference_mode():
    with torch.inference_mode():
        x = torch.randn(N, 6)
    model = nn.Linear(6, CLASSES)
    with torch.inference_mode():
        found = TorchEngine(model, F.cross_entropy).gradients(x, Y)
    np.testing.assert_allclose(found.gradients, steps(model, F.cross_entropy, x.clone(), Y), atol=1e-5)
