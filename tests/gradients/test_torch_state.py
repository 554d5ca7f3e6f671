"""What a pass may change besides its outputs comes back: weights, a loss's averages, gradients of a teacher, lists."""

import contextlib
import copy
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradindex
from gradindex.gradients.torch.engine import TorchEngine

N, CLASSES = 12, 4
Y = torch.arange(N) % CLASSES


def network(first=None):
    return nn.Sequential(first or nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def samples():
    torch.manual_seed(0)
    return torch.randn(N, 6)


class Renormed(nn.Linear):
    """As EEGNet's convolutions: the weight's memory is another one after each pass."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.25)
        return super().forward(x)


class Clamped(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(min=-0.1)
        return super().forward(x)


class Halved(nn.Linear):
    """Another weight each time, and ``.data`` does not tell anyone."""

    def forward(self, x):
        self.weight.data.mul_(0.5)
        return super().forward(x)


class Limited(nn.Module):
    """An embedding that rescales what it looks up, without a module that says so."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(9, 6)), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(F.embedding(x, self.table, max_norm=1.0).mean(1))


class Follower(nn.Module):
    """A frozen twin follows the weights a little in each pass."""

    def __init__(self):
        super().__init__()
        self.own = network()
        self.twin = copy.deepcopy(self.own).requires_grad_(False)
        with torch.no_grad():
            self.twin[0].weight.add_(0.3)

    def forward(self, x):
        with torch.no_grad():
            for own, twin in zip(self.own.parameters(), self.twin.parameters(), strict=True):
                twin.data.mul_(0.5).add_(0.5 * own.data)
            target = self.twin(x)
        return self.own(x) - 0.3 * target


def steps(model, loss, x, y=Y, state=lambda: None):
    """Gradients (n, P) of training steps, each from the same weights; `state` puts back what else there is."""
    rows, before = [], copy.deepcopy(model.state_dict())
    for i in range(len(y)):
        model.zero_grad()
        state()
        loss(model(x[i : i + 1]), y[i : i + 1]).backward()
        rows.append(np.concatenate([p.grad.numpy().ravel() for p in model.parameters() if p.requires_grad]))
        model.load_state_dict(before)
    model.zero_grad()
    state()
    return np.stack(rows)


def assert_right(model, loss, x, want, y=Y):
    """Rows, of a batch and of single steps, are those wanted; twice, as one pass may change the next."""
    engine = TorchEngine(model, loss)
    for _ in range(2):
        np.testing.assert_allclose(engine.gradients(x, y).gradients, want, atol=1e-5)
        np.testing.assert_allclose(engine.sample_gradient(x[3:4], y[3:4]).gradients[0], want[3], atol=1e-5)
    return engine


@pytest.mark.parametrize("make", [Renormed, Clamped, Halved, Limited, Follower])
def test_weights_that_a_forward_pass_writes(make):
    x = samples()
    if make is Limited:
        x, model = torch.randint(0, 9, (N, 5)), Limited()
    else:
        model = Follower() if make is Follower else network(make(6, 8))
    model.eval()
    want = steps(model, F.cross_entropy, x)
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    engine = assert_right(model, F.cross_entropy, x, want)
    with contextlib.suppress(RuntimeError):  # forward mode forbids most of these
        engine.directional(x, Y, want[0])
    engine.outputs(x)
    for name, value in model.state_dict().items():
        assert value.data_ptr() == before[name][0] and torch.equal(value, before[name][1])


def test_a_renormed_weight_is_factored():
    model = network(Renormed(6, 8)).eval()
    engine = TorchEngine(model, F.cross_entropy)
    engine.gradients(samples(), Y)
    assert set(engine.paths.values()) == {"factored"}


class Centred(nn.Module):
    """A loss with a running centre, as DINO's, and prototypes of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(CLASSES))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, out, y):
        loss = F.cross_entropy(self.scale * (out - self.centre), y)
        self.centre.mul_(0.5).add_(0.5 * out.detach().mean(0))
        return loss


class Counting:
    """A loss that is no module, and counts its calls."""

    def __init__(self):
        self.calls, self.seen = 0, []

    def __call__(self, out, y):
        self.calls += 1
        self.seen.append(float(out.detach()[0, 0]))
        return F.cross_entropy(out * (1 + 0.1 * len(self.seen)), y)


def test_a_loss_that_remembers(tmp_path):
    x, model = samples(), network()
    loss = Centred()
    want = steps(model, loss, x, state=loss.centre.zero_)
    loss.scale.grad = None
    assert_right(model, loss, x, want)
    index = gradindex.build(gradindex.Job(model, loss, (x, Y)), tmp_path / "i", progress=False)
    index.explain(x[:2], Y[:2], k=2)
    assert not loss.centre.any() and loss.scale.grad is None


def test_a_loss_that_counts():
    x, model, loss = samples(), network(), Counting()
    want = steps(model, loss, x, state=loss.seen.clear)
    loss.calls = 0
    assert_right(model, loss, x, want)
    assert loss.calls == 0 and not loss.seen


TEACHER = nn.Linear(CLASSES, CLASSES)


@pytest.mark.parametrize("held", ["closure", "global", "list", "attribute"])
def test_a_teacher_gets_no_gradient(held):
    teacher, x = TEACHER if held == "global" else nn.Linear(CLASSES, CLASSES), samples()
    model = network()
    if held == "closure":

        def loss(out, y):
            return F.cross_entropy(teacher(out), y)
    elif held == "global":

        def loss(out, y):
            return F.cross_entropy(TEACHER(out), y)
    elif held == "attribute":
        loss = Taught(teacher)
    else:
        model, loss = Hidden(teacher), F.cross_entropy
    kept = teacher.bias.grad = torch.ones(CLASSES)
    TorchEngine(model, loss).sample_gradient(x[:1], Y[:1])
    assert teacher.weight.grad is None and teacher.bias.grad is kept and (kept == 1).all()


class Taught:
    def __init__(self, teacher):
        self.teacher = teacher

    def __call__(self, out, y):
        return F.cross_entropy(self.teacher(out), y)


class Hidden(nn.Module):
    """Keeps a module in a list, so that it is none of its own."""

    def __init__(self, teacher):
        super().__init__()
        self.own, self.others = network(), [teacher]

    def forward(self, x):
        return self.others[0](self.own(x))


class Remembering(nn.Module):
    """Keeps what it saw in containers, and computes with it."""

    def __init__(self):
        super().__init__()
        self.own, self.seen, self.last = network(), [], deque(maxlen=3)
        self.counts, self.kinds = {"calls": 0, "sum": torch.zeros(())}, set()

    def forward(self, x):
        self.counts["calls"] += 1
        self.counts["sum"] += 1
        self.seen.append(x.detach().mean())
        self.last.append(len(self.seen))
        self.kinds.add(len(self.seen))
        return self.own(x) * (1 + 0.1 * self.counts["calls"] + 0.1 * self.counts["sum"] + 0.1 * len(self.last))


def test_lists_and_dicts_of_a_model():
    x, model = samples(), Remembering()

    def state():
        model.seen.clear()
        model.last.clear()
        model.kinds.clear()
        model.counts.update(calls=0, sum=model.counts["sum"].zero_())

    want = steps(model, F.cross_entropy, x, state=state)
    assert_right(model, F.cross_entropy, x, want)
    assert not model.seen and not model.last and not model.kinds
    assert model.counts["calls"] == 0 and model.counts["sum"] == 0


def test_a_loss_that_reads_what_a_hook_keeps():
    """It is that of the model's last call, and no loss that remembers."""
    x, model, kept = samples(), network(), {}
    model[0].register_forward_hook(lambda module, args, out: kept.update(hidden=out))

    def loss(out, y):
        return F.cross_entropy(out, y) + kept["hidden"].square().mean()

    assert_right(model, loss, x, steps(model, loss, x))
