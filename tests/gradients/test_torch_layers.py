"""Every kind of layer, factored, against the plain loop over samples, by value."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradindex.gradients import loop
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.sketch import CountSketch
from tests.gradients.torch_models import (
    TOKENS,
    Bags,
    Both,
    CrossAttention,
    Einsum,
    First,
    Frames,
    Functional,
    HuggingFaceConv1D,
    ManyFrames,
    Masked,
    OwnForward,
    Positions,
    Relative,
    Repeated,
    SelfAttention,
    Tied,
    TimeFirst,
    Twice,
    Viewed,
    WeightedBag,
    Window,
    trained,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning"),
]


TEXT = "text"
CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "linear without bias": (lambda: nn.Linear(5, 3, bias=False), (5,)),
    "linear, positions": (lambda: nn.Linear(5, 3), (7, 5)),
    "linear, two axes of positions": (lambda: nn.Linear(5, 3), (2, 3, 5)),
    "linear, wide": (lambda: nn.Linear(300, 200), (300,)),
    "linear, wide, positions": (lambda: nn.Linear(300, 200), (2, 300)),
    "Hugging Face's Conv1D": (HuggingFaceConv1D, (4, 5)),
    "functional": (Functional, (3,)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3), (3, 5, 6)),
    "conv2d, wide": (lambda: nn.Conv2d(64, 128, 3), (64, 4, 4)),
    "conv2d, stride": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 3), padding=(1, 0)), (3, 8, 9)),
    "conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding="same"), (4, 7, 6)),
    "conv2d, same": (lambda: nn.Conv2d(3, 4, 2, padding="same"), (3, 5, 5)),
    "conv2d, valid": (lambda: nn.Conv2d(3, 4, 2, padding="valid", bias=False), (3, 5, 5)),
    "conv2d, one point": (lambda: nn.Conv2d(3, 4, 1), (3, 1, 1)),
    "conv2d, channels last": (lambda: nn.Conv2d(16, 5, (3, 2), (2, 1), (1, 2), dilation=(1, 2)), (16, 7, 6)),
    "conv2d, channels last, point": (lambda: nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 3, 1, 2)), (16, 5, 4)),
    "conv2d, channels last, pools": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            trained(nn.BatchNorm2d(16)),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 8, 3, padding="same"),
            nn.GroupNorm(2, 8),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 3),
        ),
        (3, 8, 8),
    ),
    "conv2d, channels last, frames": (ManyFrames, (3, 16, 4, 3)),
    "conv2d, viewed": (Viewed, (16, 5, 5)),
    "conv2d, three times": (lambda: Repeated(nn.Conv2d(16, 16, 3, padding=1)), (16, 4, 4)),
    "conv1d, three times": (lambda: Repeated(nn.Conv1d(4, 4, 3, padding=1)), (4, 5)),
    "linear, three times": (lambda: Repeated(nn.Linear(5, 5)), (5,)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 6, 6)),
    "conv2d, reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 5, 5)),
    "conv2d, circular": (lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"), (3, 5, 5)),
    "conv2d, replicate": (lambda: nn.Conv2d(3, 4, 3, padding=2, padding_mode="replicate"), (3, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 2)), (2, 3, 4, 5)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, dilation=2), (4, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, 2, padding=1, output_padding=1), (3, 4, 5)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 3, 2, bias=False), (2, 2, 3, 2)),
    "frames": (lambda: trained(Frames()), (3, 2, 3, 3)),
    "embedding": (lambda: nn.Embedding(TOKENS, 4), TEXT),
    "embedding, padding": (lambda: nn.Embedding(TOKENS, 4, padding_idx=-3), TEXT),
    "embedding, rescaled": (lambda: nn.Embedding(TOKENS, 4, max_norm=1.0), TEXT),
    "embedding, sparse": (lambda: nn.Embedding(TOKENS, 4, sparse=True), TEXT),
    "embedding_bag, sum": (lambda: nn.EmbeddingBag(TOKENS, 4, mode="sum", padding_idx=-2), TEXT),
    "embedding_bag, mean": (lambda: nn.EmbeddingBag(TOKENS, 4, padding_idx=2), TEXT),
    "embedding_bag, offsets": (Bags, TEXT),
    "embedding_bag, last offset": (lambda: Bags(include_last_offset=True, mode="sum", padding_idx=2), TEXT),
    "embedding_bag, weighted": (WeightedBag, TEXT),
    "positions": (lambda: Positions(lambda x, p: x + p, padding_idx=2), TEXT),
    "positions, one row": (lambda: Positions(lambda x, p: p.unsqueeze(0) + x), TEXT),
    "positions, for each sample": (lambda: Positions(lambda x, p: x + p.expand_as(x)), TEXT),
    "positions, in place": (lambda: Positions(lambda x, p: x.add_(p)), TEXT),
    "positions, relative": (Relative, TEXT),
    "window": (Window, (3, 6)),
    "where": (Masked, (4, 3)),
    "own forward": (lambda: OwnForward(5, 3), (5,)),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), (3,)),
    "weight_norm, conv": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 2)), (3, 5)),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), (2, 3)),
    "layer_norm": (lambda: trained(nn.LayerNorm((3, 4))), (2, 3, 4)),
    "layer_norm without weight": (lambda: nn.Sequential(nn.LayerNorm(4, bias=False), nn.Linear(4, 2)), (4,)),
    "group_norm": (lambda: trained(nn.GroupNorm(2, 4)), (4, 3)),
    "batch_norm1d": (lambda: trained(nn.BatchNorm1d(3)), (3,)),
    "batch_norm2d": (lambda: trained(nn.BatchNorm2d(3)), (3, 4, 4)),
    "instance_norm": (lambda: trained(nn.InstanceNorm2d(3, affine=True)), (3, 4, 4)),
    "instance_norm, running": (
        lambda: trained(nn.InstanceNorm1d(3, affine=True, track_running_stats=True)),
        (3, 4),
    ),
    "rms_norm": (lambda: trained(nn.RMSNorm(4)), (3, 4)),
    "prelu": (nn.PReLU, (3, 4)),
    "prelu, by channel": (lambda: nn.PReLU(3), (3, 4)),
    "attention": (lambda: SelfAttention(batch_first=True), (5, 8)),
    "attention without bias": (lambda: SelfAttention(batch_first=True, bias=False), (5, 8)),
    "attention with extra keys": (lambda: SelfAttention(batch_first=True, add_bias_kv=True), (5, 8)),
    "attention, time first": (TimeFirst, (5, 8)),
    "attention, across": (CrossAttention, (5, 8)),
    "tied": (Tied, TEXT),
    "twice": (Twice, (3, 6)),
    "relu in place": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(True), nn.BatchNorm2d(4), nn.ReLU(True)),
        (3, 5, 5),
    ),
    "relu in place on views": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(True), nn.Linear(4, 4), nn.ReLU(True)),
        (6, 3),
    ),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    "LSTM, projection": (lambda: First(nn.LSTM(4, 5, proj_size=3, batch_first=True)), (6, 4)),
    "LSTM, projection, both ways": (
        lambda: First(nn.LSTM(4, 5, proj_size=3, num_layers=2, bidirectional=True, bias=False, batch_first=True)),
        (6, 4),
    ),
    "rnn, relu": (lambda: First(nn.RNN(4, 5, nonlinearity="relu", batch_first=True)), (6, 4)),
} | {
    f"{kind.__name__}, {name}": (lambda kind=kind, options=options: First(kind(4, 5, **options)), (6, 4))
    for kind in (nn.RNN, nn.LSTM, nn.GRU)
    for name, options in {
        "plain": {"batch_first": True},
        "two layers, both ways": {"batch_first": True, "bidirectional": True, "num_layers": 2, "dropout": 0.5},
        "without bias": {"batch_first": True, "bias": False},
    }.items()
}
# What has no rule, and which parameters of it take the next rung.
WITHOUT_RULE: dict[str, tuple[Callable[[], nn.Module], Any, set[str]]] = {
    "einsum": (lambda: Einsum(5, 3), (5,), {"weight"}),
    "bilinear": (lambda: Both(nn.Bilinear(3, 3, 2)), (3,), {"layer.weight", "layer.bias"}),
    "embedding_bag, max": (lambda: nn.EmbeddingBag(TOKENS, 4, mode="max"), TEXT, {"weight"}),
    "embedding_bag, scaled by frequency": (
        lambda: nn.EmbeddingBag(TOKENS, 4, mode="sum", scale_grad_by_freq=True),
        TEXT,
        {"weight"},
    ),
}


def loss(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Depend on every output in its own way."""
    weights = torch.arange(1.0, output[0].numel() + 1).sin().reshape(output.shape[1:])
    return (output.float().square() * weights).sum()


def samples(shape: Any, b: int) -> np.ndarray:
    rng = np.random.default_rng(b)
    if shape == TEXT:
        return rng.integers(0, TOKENS, (b, 6))
    return rng.standard_normal((b, *shape)).astype(np.float32)


def assert_as_the_loop(engine: TorchEngine, x: Any, y: Any, tolerance: float = 1e-5) -> None:
    projector = CountSketch(64).bind(engine.parameters, seed=3)
    truth = loop.gradients(engine, x, y)
    scale = np.abs(truth.gradients).max(initial=1e-30)
    formed = engine.gradients(x, y)
    np.testing.assert_allclose(formed.gradients, truth.gradients, rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(formed.losses, truth.losses, rtol=1e-4, atol=1e-5)
    embedded = engine.embed(x, y, projector)
    norms = np.linalg.norm(truth.gradients.astype(np.float64), axis=1)
    np.testing.assert_allclose(embedded.norms, norms, rtol=tolerance)
    sketches = projector(engine.parameters, truth.gradients)
    largest = np.square(sketches, dtype=np.float64).sum(1).max(initial=1e-30)
    dots, expected = embedded.sketches @ embedded.sketches.T, sketches @ sketches.T
    np.testing.assert_allclose(dots, expected, rtol=0, atol=2 * tolerance * largest)
    np.testing.assert_allclose(embedded.sketches, sketches, rtol=0, atol=tolerance * largest**0.5)


@pytest.mark.parametrize("b", [5, 1])
@pytest.mark.parametrize("case", CASES)
def test_factored_equals_loop(case, b):
    build, shape = CASES[case]
    torch.manual_seed(0)
    engine = TorchEngine(build(), loss)
    assert_as_the_loop(engine, samples(shape, b), np.zeros(b, np.float32))
    assert set(engine.paths.values()) == {"factored"}, engine.paths


@pytest.mark.parametrize("case", WITHOUT_RULE)
def test_what_has_no_rule_takes_the_next_rung(case):
    build, shape, expected = WITHOUT_RULE[case]
    torch.manual_seed(0)
    engine = TorchEngine(build(), loss)
    assert_as_the_loop(engine, samples(shape, 4), np.zeros(4, np.float32))
    assert {name for name, path in engine.paths.items() if path != "factored"} == expected


@pytest.mark.parametrize("case", CASES)
def test_no_samples(case):
    build, shape = CASES[case]
    engine = TorchEngine(build(), loss)
    x, y = samples(shape, 0), np.zeros(0, np.float32)
    assert engine.gradients(x, y).gradients.shape == (0, engine.size)
    assert engine.embed(x, y, CountSketch(16).bind(engine.parameters, 0)).sketches.shape == (0, 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.LayerNorm(30), nn.Linear(30, 4)).to(dtype)
    x = samples((20,), 4)
    if dtype == torch.float64:
        assert_as_the_loop(TorchEngine(model, loss), x.astype(np.float64), np.zeros(4))
        return
    engine = TorchEngine(model, loss)
    projector = CountSketch(64).bind(engine.parameters, 0)
    truth = loop.gradients(engine, x, np.zeros(4)).gradients
    found = engine.embed(x, np.zeros(4), projector)
    np.testing.assert_allclose(found.norms, np.linalg.norm(truth, axis=1), rtol=2e-2)
    np.testing.assert_allclose(found.sketches, projector(engine.parameters, truth), atol=3e-2 * truth.max())
    assert set(engine.paths.values()) == {"factored"}


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_that_rescales_its_weight_leaves_it_as_it_was(kind):
    torch.manual_seed(0)
    engine = TorchEngine(kind(TOKENS, 4, max_norm=0.5), loss)
    before, x = engine.state_hashes(), samples(TEXT, 4)
    assert_as_the_loop(engine, x, np.zeros(4, np.float32))
    engine.outputs(x)
    assert engine.state_hashes() == before


def test_some_of_the_factored_parameters():
    """Layouts are remembered by the number of the call, also where a call is not asked for."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = torch.tanh(self.first(x.transpose(0, 1)))  # (time, batch, ·), with time as long as the batch
            return self.last(x.transpose(0, 1))

    torch.manual_seed(0)
    engine = TorchEngine(Turned(), loss)
    x, y = samples((4, 3), 4), np.zeros(4, np.float32)
    whole = engine.gradients(x, y).gradients
    some = engine.factored_gradients(x, y, ["last.weight", "last.bias"]).gradients
    np.testing.assert_allclose(some, whole[:, -18:], rtol=1e-5)


def test_sequence_as_long_as_the_batch_is_not_taken_for_it():
    """With (time, batch, …) inside the model, only comparing batch sizes tells the two axes apart."""
    torch.manual_seed(0)
    engine = TorchEngine(TimeFirst(), loss)
    for b in (2, 3, 5, 10):  # 5 is the number of steps
        assert_as_the_loop(engine, samples((5, 8), b), np.zeros(b, np.float32))
    assert set(engine.paths.values()) == {"factored"}
