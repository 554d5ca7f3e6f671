"""Models as they come: outputs that hold more than the loss reads, types that differ, checkpoints, state that moves.

Gradients are compared with a plain loop of `backward()`; nothing in it is gradindex's.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import checkpoint

import gradindex
from gradindex.gradients import batch_loss
from gradindex.gradients.torch import costs
from gradindex.gradients.torch.engine import TorchEngine

TOKENS, LENGTH = 30, 6


def plain(model, loss, x, y):
    """Gradients (n, P) in float64, one training step in evaluation mode a sample; the model's state is put back."""
    rows, model = [], model.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for i in range(len(y)):
        model.zero_grad()
        one = {k: v[i : i + 1] for k, v in x.items()} if isinstance(x, dict) else (x[i : i + 1],)
        out = model(**one) if isinstance(x, dict) else model(*one)
        loss(out, y[i : i + 1]).backward()
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters() if p.requires_grad]
        rows.append(torch.cat([part.double().flatten() for part in parts]).numpy())
        model.load_state_dict(state)
    model.zero_grad()
    return np.stack(rows)


def assert_right(model, loss, x, y, paths=("factored",), off=1e-4, along=True):
    """Rows, and products by forward mode, of 9 samples as the plain loop's; on these paths."""
    true = plain(model, loss, x, y)
    engine = TorchEngine(model, loss)
    found = engine.gradients(x, y)
    assert (np.linalg.norm(found.gradients - true, axis=1) <= off * np.linalg.norm(true, axis=1)).all()
    assert found.gradients.dtype == engine.dtype
    assert set(engine.paths.values()) == set(paths), engine.paths
    if along:
        dots, _ = engine.directional(x, y, found.gradients[0])
        lengths = np.linalg.norm(true, axis=1)
        np.testing.assert_allclose(dots / lengths / lengths[0], (true @ true[0]) / lengths / lengths[0], atol=off)
    return engine


def texts(n=9):
    torch.manual_seed(n)
    return torch.randint(1, TOKENS, (n, LENGTH)), torch.randint(0, 3, (n,))


class Recurrent(nn.Module):
    """Returns what `nn.LSTM` returns: its states have the samples on the second axis."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.lstm, self.o = nn.Embedding(TOKENS, 5), nn.LSTM(5, 4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, t):
        out, (h, c) = self.lstm(self.e(t))
        return self.o(out), (h, c)


class Cache:
    """As a cache of keys and values: no sequence, a number without samples, and a way back to itself and the model."""

    def __init__(self, keys, model):
        self.layers, self.seen, self.own, self.model = [SimpleNamespace(keys=keys)], torch.tensor(6), self, model


class Tokens(nn.Module):
    """A language model in small, whose output is `made` by the test."""

    def __init__(self, made):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.a, self.o, self.made = nn.Embedding(TOKENS, 6), nn.Linear(6, 6), nn.Linear(6, TOKENS), made

    def forward(self, ids, labels=None):
        hidden = torch.tanh(self.a(self.e(ids)))
        return self.made(self, hidden, self.o(hidden), labels)


def next_token(logits, y):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())


class TestOnlyWhatTheLossReadsCounts:
    def test_states_with_the_samples_on_the_second_axis_are_not_read(self):
        assert_right(Recurrent(), lambda out, y: F.cross_entropy(out[0].mean(1), y), *texts(), along=False)

    @pytest.mark.filterwarnings("ignore:The loss does not depend on 2 parameters")
    def test_they_are_read(self):
        def loss(out, y):
            h, c = out[1]
            return F.cross_entropy(h[-1, :, :3] + c[0, :, :3], y)

        assert_right(Recurrent(), loss, *texts(), along=False)

    @pytest.mark.parametrize("n", [2, 3, 6, 9])
    def test_samples_are_found_where_other_axes_are_as_long(self, n):
        class Time(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.lstm = nn.LSTM(4, 3)

            def forward(self, x):
                return self.lstm(x.transpose(0, 1))[0]

        x, y = torch.randn(n, LENGTH, 4), torch.arange(n) % 3
        engine = assert_right(Time(), lambda out, y: F.cross_entropy(out[-1], y), x, y, along=False)
        assert engine.gradients(x, y).outputs is None  # its first axis is time

    def test_a_cache_and_a_number_of_the_batch_are_not_read(self):
        model = Tokens(
            lambda own, hidden, logits, _: SimpleNamespace(
                logits=logits, loss=logits.mean(), past=Cache(hidden.transpose(0, 1), own), none=None
            )
        )
        x, _ = texts()
        assert_right(model, lambda out, y: next_token(out.logits, y), x, x)
        engine = assert_right(model, gradindex.InDouble(lambda out, y: next_token(out.logits, y)), x, x)
        assert engine.gradients(x, x).outputs.shape == (9, LENGTH, TOKENS)

    def test_rows_of_all_tokens_in_one_axis(self):
        model = Tokens(lambda own, hidden, logits, _: (logits.flatten(0, 1), logits.sum()))
        x, _ = texts()
        assert_right(model, lambda out, y: F.cross_entropy(out[0], y.flatten()), x, x)

    def test_what_all_samples_share(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.a, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor(0.5))

            def forward(self, x):
                return self.a(x), self.scale.exp()

        x, y = torch.randn(9, 4), torch.arange(9) % 3
        engine = assert_right(Scaled(), lambda out, y: F.cross_entropy(out[0] * out[1], y), x, y, ("factored", "vmap"))
        assert engine.paths["scale"] == "vmap"

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_a_loss_that_the_model_takes_of_the_batch(self, reduction):
        model = Tokens(
            lambda own, hidden, logits, labels: SimpleNamespace(
                loss=F.cross_entropy(
                    logits[:, :-1].reshape(-1, TOKENS), labels[:, 1:].reshape(-1), ignore_index=-1, reduction=reduction
                )
                + F.mse_loss(hidden, torch.ones_like(hidden), reduction=reduction)
            )
        )
        ids, _ = texts()
        labels = torch.where(torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (9, 1)), ids, -1)  # unlike lengths
        assert_right(model, lambda out, y: out.loss, {"ids": ids, "labels": labels}, ids)

    def test_a_number_of_the_batch_that_cannot_be_taken_apart(self):
        model = Tokens(lambda own, hidden, logits, _: (logits, logits.square().mean()))
        x, _ = texts()
        assert_right(model, lambda out, y: next_token(out[0], y) + out[1], x, x, ("vmap",), along=False)
        with pytest.raises(gradindex.gradients.engine.PathFailed, match="belongs to the batch as a whole"):
            TorchEngine(model, lambda out, y: out[1]).directional(x, x, np.zeros(558, np.float32))

    def test_what_is_read_as_a_number(self, monkeypatch):
        monkeypatch.setattr(batch_loss, "check", lambda *given: None)  # whose samples a branch on all of them mixes
        model = Tokens(lambda own, hidden, logits, _: (logits, hidden.detach().transpose(0, 1)))
        x, _ = texts()

        def loss(out, y):
            return next_token(out[0], y) * (3.0 if bool(out[1].mean() > 0) else 1.0)

        assert_right(model, loss, x, x)

    @pytest.mark.filterwarnings("ignore:The loss does not depend on 2 parameters")
    @pytest.mark.parametrize("first", [0, 5])
    def test_what_the_first_sample_does_not_read_and_later_ones_do(self, first):
        def loss(out, y):
            read = out[1] if bool((y > 0).all()) else out[0]
            return F.cross_entropy(read, y)

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

            def forward(self, x):
                return self.a(x), self.b(x)

        x, y = torch.randn(9, 4), (torch.arange(9) >= first).long() * 2
        model = Two()
        true, engine = plain(model, loss, x, y), TorchEngine(model, loss)
        for part in (slice(0, 5), slice(5, 9)):
            found = engine.gradients(x[part], y[part]).gradients
            np.testing.assert_allclose(found, true[part], atol=1e-6)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.a, self.b, self.o = nn.Embedding(TOKENS, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, t):
        h = self.e(t)
        for layer in (self.a, self.b, self.a):
            h = checkpoint.checkpoint(lambda h, layer=layer: torch.tanh(layer(h)), h, use_reentrant=self.reentrant)
        return self.o(h.mean(1))


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_computed_again(reentrant):
    before = checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator
    assert_right(Checkpointed(reentrant), F.cross_entropy, *texts())
    assert (checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator) == before


class Adapted(nn.Module):
    """A frozen base with low-rank adapters; as peft's, the adapters are of `head` type."""

    def __init__(self, base=torch.float32, head=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.w, self.o = nn.Embedding(TOKENS, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.to(base).requires_grad_(False)
        self.down, self.up = (layer.to(head) for layer in (nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)))

    def forward(self, t):
        h = self.e(t)
        for _ in range(2):
            h = torch.tanh(self.w(h) + self.up(self.down(h.to(self.down.weight.dtype))).to(h.dtype))
        return self.o(h.mean(1))


@pytest.mark.parametrize("how", ["method", "property"])
def test_an_embedding_whose_output_is_made_to_need_gradients(how):
    def hook(module, args, output):
        if how == "method":
            output.requires_grad_(True)
        else:
            output.requires_grad = True

    model = Adapted()
    model.e.register_forward_hook(hook)
    assert_right(model, F.cross_entropy, *texts())


@pytest.mark.filterwarnings("error")
def test_adapters_on_a_base_of_half_precision():
    engine = assert_right(
        Adapted(torch.bfloat16), lambda out, y: F.cross_entropy(out.float(), y), *texts(), off=0.1, along=False
    )
    assert engine.is_half
    assert not TorchEngine(Adapted(), F.cross_entropy).is_half


class Body(nn.Module):
    def __init__(self, body, head, frozen=True):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8)).to(body).requires_grad_(not frozen)
        self.head = nn.Linear(8, 3).to(head)

    def forward(self, x):
        return self.head(self.body(x).to(self.head.weight.dtype))


class TestTypes:
    @pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("body", [torch.bfloat16, torch.float64])
    def test_inputs_are_what_the_body_takes(self, body, given):
        torch.manual_seed(1)
        x, y = torch.randn(9, 4).to(given), torch.arange(9) % 3
        model = Body(body, torch.float32)
        true, engine = plain(model, F.cross_entropy, x.to(body), y), TorchEngine(model, F.cross_entropy)
        found = engine.gradients(x if given == torch.bfloat16 else x.numpy(), y).gradients
        off = 0.03 if body == torch.bfloat16 else 1e-5
        assert (np.linalg.norm(found - true, axis=1) <= off * np.linalg.norm(true, axis=1)).all()
        assert found.dtype == np.float32
        assert engine.directional(x.to(body), y, found[0])[0].dtype == np.float32

    def test_what_comes_in_another_type_later(self):
        engine = TorchEngine(Body(torch.bfloat16, torch.float32), F.cross_entropy)
        x, y = torch.randn(4, 4), torch.zeros(4, dtype=torch.int64)
        x = x.to(torch.bfloat16)
        found = [engine.gradients(x.to(kind), y).gradients for kind in (torch.bfloat16, torch.float32)]
        np.testing.assert_array_equal(*found)

    @pytest.mark.parametrize("types", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
    def test_selected_parameters_of_several_types(self, types):
        x, y = torch.randn(9, 4).to(types[0]), torch.arange(9) % 3
        engine = assert_right(Body(*types, frozen=False), F.cross_entropy, x, y)
        assert engine.dtype == np.float64

    @pytest.mark.filterwarnings("error")
    def test_autocast(self):
        class Cast(Body):
            def forward(self, x):
                with torch.autocast("cpu", torch.bfloat16):
                    return super().forward(x).float()

        x, y = torch.randn(9, 4), torch.arange(9) % 3
        engine = assert_right(Cast(torch.float32, torch.float32), F.cross_entropy, x, y, off=0.1, along=False)
        assert engine.is_half

    def test_labels_keep_their_digits(self):
        model, y = nn.Linear(4, 1).to(torch.bfloat16), np.full((3, 1), 1.2345, np.float32)
        seen = []

        def loss(out, y):
            seen.append(y)
            return F.mse_loss(out.float(), y)

        TorchEngine(model, loss).gradients(np.ones((3, 4), np.float32), y)
        assert {one.dtype for one in seen} == {torch.float32}


def in_place(own, x):
    own.n += 1
    own.mean.mul_(0.9).add_(0.1 * x.detach().mean())


def through_data(own, x):
    own.mean.data.mul_(0.9).add_(0.1 * x.detach().mean() + 0.1)


def assigned(own, x):
    own.mean = 0.9 * own.mean + 0.1 * x.detach().mean()
    own.n = own.n + 1


def attributes(own, x):
    own.calls += 1
    own.kept = own.kept * 0.9 + 1
    own.last = x.detach().mean()


def large(own, x):
    own.bank[0] += 1


class Moving(nn.Module):
    """Its output depends on what its own forward pass moves."""

    def __init__(self, move):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.move, self.calls, self.kept, self.last = nn.Linear(4, 3), move, 0, torch.ones(()), None
        self.register_buffer("n", torch.zeros(()))
        self.register_buffer("mean", torch.ones(()))
        self.register_buffer("bank", torch.zeros(20_000))

    def forward(self, x):
        self.move(self, x)
        return self.a(x) * (1 + 0.1 * (self.n + self.mean + self.calls + self.kept + self.bank[0]))


@pytest.mark.filterwarnings("ignore:factored gradients of")  # where the batch moves the state otherwise than a sample
@pytest.mark.parametrize("move", [in_place, through_data, assigned, attributes, large])
def test_every_pass_starts_from_the_same_state(move):
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    model, tensors = Moving(move), {}
    engine = TorchEngine(model, F.cross_entropy)
    tensors = {name: (value, value.clone()) for name, value in model.named_buffers()}
    hashes = engine.state_hashes()

    def loss_of(i):
        fresh = Moving(move)
        return F.cross_entropy(fresh.eval()(x[i : i + 1]), y[i : i + 1]).detach()

    for _ in range(5):
        found = engine.gradients(x, y)
        alone = [float(engine.sample_gradient(x[i : i + 1], y[i : i + 1]).losses[0]) for i in range(9)]
        np.testing.assert_allclose(alone, [float(loss_of(i)) for i in range(9)], rtol=1e-5)
        assert engine.state_hashes() == hashes
    np.testing.assert_allclose(found.losses, alone, rtol=1e-3 if move in (attributes, large) else 0.2)
    for name, (value, before) in tensors.items():
        assert dict(model.named_buffers())[name] is value
        torch.testing.assert_close(value, before)
    assert (model.calls, model.last, float(model.kept)) == (0, None, 1.0)


def test_spectral_norm_stays_as_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert_right(model, F.cross_entropy, torch.randn(9, 4), torch.arange(9) % 3)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_table_that_divides_gradients_by_how_often_rows_were_looked_up():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.e, self.o = nn.Embedding(8, 5, padding_idx=1, scale_grad_by_freq=True), nn.Linear(5, 3)

        def forward(self, t):
            return self.o(torch.tanh(self.e(t)).mean(1))

    x, y = texts()
    assert_right(Counted(), F.cross_entropy, x % 8, y, along=False)


class OfTheBatch(nn.Module):
    """Its loss is a mean that no rule takes apart, so that nothing is factored."""

    def __init__(self, body):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.body, self.o = nn.Embedding(TOKENS, 16), body, nn.Linear(16, 3)

    def forward(self, t):
        h = self.body(self.e(t))
        return self.o((h[0] if isinstance(h, tuple) else h)[:, -1]).square().mean()


@pytest.mark.parametrize(
    ("body", "path"), [(lambda: nn.LSTM(16, 16, batch_first=True), "loop"), (lambda: nn.Linear(16, 16), "vmap")]
)
def test_vmap_gives_way_where_it_does_more_than_the_loop(body, path):
    x, y = torch.randint(1, TOKENS, (9, 40)), torch.zeros(9)
    assert_right(OfTheBatch(body()), lambda out, y: out, x, y, (path,), along=False)


def test_counted_operations_do_not_depend_on_the_clock():
    weight = torch.randn(1000, 1000)
    assert costs.pays(lambda: weight[:8] @ weight, 8, lambda: weight[:1] @ weight)
    assert not costs.pays(lambda: [weight + 1 for _ in range(8)], 1, lambda: weight + 1)
