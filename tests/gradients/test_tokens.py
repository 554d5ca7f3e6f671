"""Derivatives of single tokens' losses by forward mode, beside a plain loop of backward passes."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from gradindex.gradients.in_double import InDouble
from gradindex.gradients.torch import tokens
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.gradients.training.tracin import TracInEngine
from tests.tiny_language import NextToken, TinyCausal

RNG = np.random.default_rng(0)


def texts(samples=3, length=7, words=20, prompt=2):
    ids = RNG.integers(1, words, (samples, length))
    labels = ids.copy()
    labels[:, :prompt] = -100
    return {"input_ids": ids}, labels


def loop(model, loss, x, y):
    """The gradients (b, t, P) of all tokens' losses, by a forward and a backward pass for each, nothing else."""
    rows = []
    for i in range(len(y)):
        one = {name: torch.tensor(part[i : i + 1]) for name, part in x.items()}
        target = torch.tensor(y[i : i + 1])
        row = []
        for j in range(y.shape[1]):
            model.zero_grad()
            each = loss.per_token(model(**one), target)
            each[0, j].backward()
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
            row.append(torch.cat([grad.flatten() for grad in grads]).numpy().astype(np.float64))
        rows.append(row)
    model.zero_grad()
    return np.array(rows)


def assert_as_loop(engine, model, loss, x, y):
    truth = loop(model, loss, x, y)
    directions = RNG.standard_normal((3, engine.size)).astype(np.float32)
    want = np.einsum("btp,np->nbt", truth, directions)
    scale = np.linalg.norm(truth, axis=2).max() * np.linalg.norm(directions, axis=1).max()
    several, losses = engine.token_products(x, y, directions)
    assert several.shape == want.shape and losses.shape == y.shape
    assert_allclose(several, want, atol=1e-6 * scale)
    one, _ = engine.token_products(x, y, directions[1])
    assert_allclose(one, want[1], atol=1e-6 * scale)
    whole = np.stack([engine.directional(x, y, direction)[0] for direction in directions])
    assert_allclose(several.sum(axis=2), whole, atol=1e-6 * scale)
    assert np.abs(want).max() > 1e-3 * scale  # there is something to compare
    for i in range(len(y)):
        single = {name: part[i : i + 1] for name, part in x.items()}, y[i : i + 1]
        assert_allclose(engine.token_losses(*single), losses[i], atol=1e-6)
        token = y.shape[1] - 1
        assert_allclose(engine.token_gradient(*single, token).gradients[0], truth[i, token], atol=1e-6 * scale)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_products_are_those_of_a_loop_over_tokens(reduction):
    torch.manual_seed(0)
    model, loss = TinyCausal().eval(), NextToken(reduction)
    engine = TorchEngine(model, loss)
    x, y = texts()
    y[1, 3:] = -100  # samples differ in what has a loss
    assert_as_loop(engine, model, loss, x, y)
    assert_array_equal(engine.token_products(x, y, np.ones(engine.size, np.float32))[0][:, :2], 0)


def test_a_single_sample_and_labels_as_the_model_trains():
    torch.manual_seed(1)
    model, loss = TinyCausal().train(), NextToken()  # the engine turns dropout off
    engine = TorchEngine(model, loss)
    x, y = texts(samples=1)
    products, _ = engine.token_products(x, y, np.ones(engine.size, np.float32))
    assert_as_loop(engine, model.eval(), loss, x, y)
    assert_allclose(engine.token_products(x, y, np.ones(engine.size, np.float32))[0], products, rtol=1e-6)


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "T5"])
def test_models_of_hugging_face(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "GPT-2":
        config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=12)
        model = transformers.GPT2LMHeadModel(config)
    elif name == "Llama":
        config = transformers.LlamaConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.T5Config(
            vocab_size=20, d_model=16, d_kv=8, d_ff=20, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
        model = transformers.T5ForConditionalGeneration(config)
    model.eval()
    x, y = texts(words=20, samples=2)
    loss = NextToken()
    if name == "T5":
        x["decoder_input_ids"] = np.pad(x["input_ids"][:, :-1], ((0, 0), (1, 0)))
        loss = AtOnce()
    assert_as_loop(TorchEngine(model, loss), model, loss, x, y)


class AtOnce(NextToken):
    """The output at a place is about the token at that place."""

    def per_token(self, output, y):
        each = torch.nn.functional.cross_entropy(getattr(output, "logits", output).transpose(1, 2), y, reduction="none")
        return each / (y != -100).sum(1, keepdim=True)


class Smoothed(NextToken):
    """Each token's loss is half its own and half that of the token two before it."""

    def per_token(self, output, y):
        each = super().per_token(output, y)
        return (each + torch.nn.functional.pad(each, (2, 0))[:, :-2]) / 2


@pytest.mark.parametrize("loss", [AtOnce(), Smoothed()])
def test_losses_that_read_other_places(loss, monkeypatch):
    torch.manual_seed(0)
    model = TinyCausal().eval()
    found = []
    slopes = tokens._slopes
    monkeypatch.setattr(tokens, "_slopes", lambda *given: found.append(slopes(*given)) or found[-1])
    assert_as_loop(TorchEngine(model, loss), model, loss, *texts())
    assert {None if one is None else one[1] for one in found} == ({0} if isinstance(loss, AtOnce) else {None})


def test_directions_one_by_one_where_vmap_fails(monkeypatch, caplog):
    def fails(*given):
        raise RuntimeError("no batching rule")

    torch.manual_seed(0)
    model, loss = TinyCausal().eval(), NextToken()
    engine, (x, y) = TorchEngine(model, loss), texts()
    directions = RNG.standard_normal((3, engine.size)).astype(np.float32)
    at_once, _ = engine.token_products(x, y, directions)
    monkeypatch.setattr(tokens, "vmap", fails)
    with caplog.at_level("INFO", "gradindex"):
        apart, _ = engine.token_products(x, y, directions)
    assert_allclose(apart, at_once, atol=1e-5)
    assert "one by one" in caplog.text


def test_a_loss_in_double_precision():
    torch.manual_seed(0)
    model, loss = TinyCausal().eval(), InDouble(NextToken())
    assert not hasattr(InDouble(torch.nn.CrossEntropyLoss()), "per_token")
    again = pickle.loads(pickle.dumps(loss))
    x, y = texts()
    assert_as_loop(TorchEngine(model, again), model, again, x, y)
    assert again.per_token(torch.zeros(1, 7, 5), torch.zeros(1, 7, dtype=torch.int64)).dtype == torch.float64


def test_tokens_along_training():
    torch.manual_seed(0)
    model, loss = TinyCausal().eval(), NextToken()
    states = []
    for scale in (1.0, 1.5):
        states.append({name: value.clone() * scale for name, value in model.state_dict().items()})
    engine = TracInEngine(TorchEngine(model, loss), model, [(states[0], 0.1), (states[1], 0.4)])
    x, y = texts(samples=2)
    direction = RNG.standard_normal(engine.size).astype(np.float32)
    want = 0.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for place, (state, rate) in enumerate(zip(states, (0.1, 0.4), strict=True)):
        model.load_state_dict(state)
        part = direction.reshape(2, -1)[place].astype(np.float64)
        want = want + np.sqrt(rate) * (loop(model, loss, x, y) @ part)
    model.load_state_dict(before)
    found, losses = engine.token_products(x, y, direction)
    assert_allclose(found, want, atol=1e-5 * np.abs(want).max())
    assert_allclose(engine.token_products(x, y, np.stack([direction, 2 * direction]))[0][1], 2 * found, rtol=1e-5)
    one = {"input_ids": x["input_ids"][:1]}, y[:1]
    assert_allclose(engine.token_gradient(*one, 4).gradients[0] @ direction, want[0, 4], atol=1e-5 * np.abs(want).max())
    assert_allclose(engine.token_losses(*one), losses[0], atol=1e-6)


def test_losses_without_tokens_are_refused():
    engine = TorchEngine(TinyCausal(), lambda output, y: NextToken()(output, y))
    x, y = texts()
    with pytest.raises(TypeError, match="says nothing of single tokens: expected a method per_token"):
        engine.token_products(x, y, np.ones(engine.size, np.float32))
    with pytest.raises(TypeError, match="says nothing of single tokens"):
        engine.token_losses({"input_ids": x["input_ids"][:1]}, y[:1])

    class Wrong(NextToken):
        def per_token(self, output, y):
            return super().per_token(output, y)[0]

    engine = TorchEngine(TinyCausal(), Wrong())
    engine.loss_fn.__class__.__call__ = lambda self, output, y: NextToken()(output, y)
    with pytest.raises(TypeError, match=r"per_token must return a tensor \(b, t\), here \(1, t\), got of shape \(7,\)"):
        engine.token_products(x, y, np.ones(engine.size, np.float32))
