"""Models and losses that take derivatives; losses with random numbers, or of a tiny scale; complex numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradindex
from gradindex.gradients import paths
from gradindex.gradients.torch.engine import TorchEngine

N = 24
Y = torch.arange(N) % 4


def body(inputs=3, outputs=1):
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs))


class Forces(nn.Module):
    """−∂E/∂x, as a force field computes them, without a word to torch that gradients are needed."""

    def __init__(self):
        super().__init__()
        self.energy = body()

    def forward(self, x):
        x = x.requires_grad_()
        return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


class WithInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body(3, 4)

    def forward(self, x):
        x = x.requires_grad_()
        return self.body(x), x


def penalised(out, y):
    slope = torch.autograd.grad(out[0].sum(), out[1], create_graph=True)[0]
    return F.cross_entropy(out[0], y) + 0.5 * slope.square().sum()


class Residual:
    """A physics-informed loss: the model hands on its inputs, and the loss differentiates the network."""

    def __init__(self, network):
        self.network = network

    def __call__(self, x, y):
        x = x.detach().requires_grad_()
        u = self.network(x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        return (slope[:, 0] - slope[:, 1] + u[:, 0]).square().mean()


class Given(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = body()

    def forward(self, x):
        return x


class Filtered(nn.Module):
    """Multiplies the spectrum by numbers whose real and imaginary parts are learnt."""

    def __init__(self):
        super().__init__()
        self.filter, self.turn = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3, 3, 2))
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        found = torch.fft.rfft(x, n=4) * torch.view_as_complex(self.filter)
        return self.head(torch.fft.irfft(found @ torch.view_as_complex(self.turn), n=4))


def steps(model, loss, x, y=Y):
    rows = []
    for i in range(N):
        model.zero_grad()
        loss(model(x[i : i + 1].clone()), y[i : i + 1]).backward()
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
        rows.append(np.concatenate([part.numpy().ravel() for part in parts]))
    model.zero_grad()
    return np.stack(rows)


def assert_right(tmp_path, model, loss, x, y=Y, atol=1e-4):
    want = steps(model, loss, x, y)
    job = gradindex.Job(model, loss, (x, y), task="regression")
    index = gradindex.build(job, tmp_path / "index", progress=False)
    rows = np.concatenate([part.sketches for part in gradindex.embed(job, sketch=gradindex.Identity())])
    np.testing.assert_allclose(rows, want, atol=atol * np.abs(want).max())
    unit = want.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for ids in ([3], [3, 4, 5]):
        found = index.explain(ids=ids, k=5)
        assert found.exact.all()
        np.testing.assert_allclose(found.scores[0], (unit[3] @ unit.T)[found.ordered_indices[0]], atol=1e-3)
    return job.engine


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(N, 3)


@pytest.mark.filterwarnings("ignore:The loss does not depend on")
def test_forces(tmp_path, x):
    engine = assert_right(tmp_path, Forces(), F.mse_loss, x, torch.randn(N, 3))
    assert engine.outputs(x).shape == (N, 3)


def test_a_penalty_on_the_slope(tmp_path, x):
    engine = assert_right(tmp_path, WithInput(), penalised, x)
    assert "loss reads graph" in [signal.name for signal in engine.signals]


@pytest.mark.filterwarnings("ignore:The loss does not depend on")
def test_a_residual_of_a_differential_equation(tmp_path, x):
    model = Given()
    assert_right(tmp_path, model, Residual(model.network), x)


@pytest.mark.filterwarnings("error:factored gradients")
def test_complex_numbers(tmp_path, x):
    engine = assert_right(tmp_path, Filtered(), F.cross_entropy, x)
    assert engine.paths == {"filter": "factored", "turn": "vmap", "head.weight": "factored", "head.bias": "factored"}


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, out, y):
        return F.cross_entropy(self.dropout(out), y)


def test_a_loss_that_draws_random_numbers(x):
    for loss in (Noisy(), lambda out, y: F.cross_entropy(out + torch.randn_like(out), y)):
        with pytest.raises(
            ValueError, match=r"The loss of one sample is .* at first, then .*: it draws random numbers"
        ):
            TorchEngine(body(3, 4), loss).gradients(x, Y)
    loss = Noisy().eval()
    np.testing.assert_allclose(
        TorchEngine(model := body(3, 4), loss).gradients(x, Y).gradients, steps(model, loss, x), atol=1e-5
    )


class Clipped(nn.Module):
    """Clips gradients by a hook on a node of the graph, which nothing but a training step sees."""

    def __init__(self, at):
        super().__init__()
        self.at, self.first, self.last = at, nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        if h.grad_fn is not None:
            h.grad_fn.register_prehook(lambda grads: (grads[0].clamp(-self.at, self.at),))
        return self.last(h)


@pytest.mark.parametrize("scale", [1e-7, 1e-25, 1.0, 1e22])
def test_losses_of_any_scale_are_compared(tmp_path, x, scale):
    """A loss that is small for what it is multiplied by is not that of a model that is sure of its samples."""
    engine = assert_right(tmp_path, Clipped(0.05 * scale), lambda out, y: scale * F.cross_entropy(out, y), x)
    assert scale > 1 or not engine.ways.usable("forward mode")
    assert engine.loss_unit == pytest.approx(min(1.0, np.log(4) * scale))


def test_what_counts_as_a_small_loss():
    assert paths.allowance(1.0, 1.0, 1e-5) == pytest.approx(paths.ROUNDING * 1e5)
    assert paths.allowance(1.0, 1.0, 1e-5, unit=1e-5) == pytest.approx(paths.ROUNDING)


def test_models_without_values():
    with torch.inference_mode():
        made = body()
    for model, message in (
        (nn.LazyLinear(3), "'weight' has no shape yet: call the model once"),
        (body().to("meta"), "'0.weight', .* has no values, as it is on the device 'meta'"),
        (made, "'0.weight' was made under torch.inference_mode"),
    ):
        with pytest.raises(ValueError, match=message):
            TorchEngine(model, F.mse_loss).gradients(np.zeros((3, 3), np.float32), np.zeros((3, 1), np.float32))


def test_a_dict_for_an_argument_beside_others():
    """`forward(self, batch, **options)` is called with the dict, not with its entries."""

    class Batched(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body(3, 4)

        def forward(self, batch, **options):
            return self.body(batch["a"]) * batch["b"][:, None]

    torch.manual_seed(0)
    model, batch = Batched(), {"a": torch.randn(N, 3), "b": torch.rand(N)}
    found = TorchEngine(model, F.cross_entropy).gradients(batch, Y).gradients
    F.cross_entropy(model({name: part[:1] for name, part in batch.items()}), Y[:1]).backward()
    np.testing.assert_allclose(found[0], np.concatenate([p.grad.ravel() for p in model.parameters()]), atol=1e-6)
