"""The torch engine on whole models: the ladder, what is left behind, outputs and inputs of other kinds."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from gradindex.gradients.engine import PathFailed
from gradindex.gradients.parameter import Parameter
from gradindex.gradients.torch.capture import Capture, Known, Layout
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.sketch import CountSketch, Gaussian, Identity
from tests.gradients.test_torch_layers import assert_as_the_loop, loss, samples
from tests.gradients.torch_models import TOKENS


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.short = nn.Conv2d(before, after, 1, stride) if before != after else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += self.short(x)
        return self.relu(out)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), Block(6, 6, 1), Block(6, 8, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


class BiLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 5)
        self.lstm = nn.LSTM(5, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(self.embedding(x))[0].mean(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 8)
        self.position = nn.Parameter(torch.randn(1, 6, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.embedding(x) + self.position).mean(1))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("build", "shape"), [(resnet, (3, 8, 8)), (BiLSTM, "text"), (Transformer, "text")])
def test_models(build, shape, reduction):
    torch.manual_seed(0)
    engine = TorchEngine(build(), nn.CrossEntropyLoss(reduction=reduction))
    assert_as_the_loop(engine, samples(shape, 6), np.arange(6) % 3, tolerance=2e-5)
    assert set(engine.paths.values()) == {"factored"}


@pytest.mark.parametrize("sketch", [Gaussian(32), Identity(), CountSketch(33)])
def test_any_sketch_takes_factors(sketch):
    torch.manual_seed(0)
    engine = TorchEngine(Transformer(), nn.CrossEntropyLoss())
    x, y = samples("text", 3), np.array([0, 1, 2])
    projector = sketch.bind(engine.parameters, 0)
    expected = projector(engine.parameters, engine.gradients(x, y).gradients)
    np.testing.assert_allclose(engine.embed(x, y, projector).sketches, expected, atol=1e-5 * np.abs(expected).max())


def test_sketch_on_the_device_has_the_same_values():
    """The twin for CUDA, run on the CPU: formed gradients, factors and touched rows."""
    torch.manual_seed(0)
    parameter = Parameter(name="w", position=3, shape=(7, 5), dtype="float32")
    projector = CountSketch(16).bind([parameter], 1)
    twin = projector.on_device(torch.device("cpu"))
    gradients, rows, columns = torch.randn(4, 35), torch.randn(4, 3, 7), torch.randn(4, 3, 5)
    numbers = torch.randint(0, 7, (4, 3))
    for method, values in (
        ("add_measured", (gradients,)),
        ("add_factors", (rows, columns)),
        ("add_factors", (numbers, columns)),
    ):
        found, expected = torch.zeros(4, 16), np.zeros((4, 16), np.float32)
        squares = getattr(twin, method)(found, parameter, *values)
        wanted = getattr(projector, method)(expected, parameter, *(value.numpy() for value in values))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        if squares is not None:
            np.testing.assert_allclose(squares.numpy(), wanted, rtol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_embedding():
    torch.manual_seed(0)
    model = resnet()
    x, y = samples((3, 8, 8), 6), np.arange(6) % 3
    engines = [TorchEngine(model, nn.CrossEntropyLoss()), TorchEngine(resnet(), nn.CrossEntropyLoss(), device="cuda")]
    engines[1].model.load_state_dict(model.state_dict())
    host, device = (engine.embed(x, y, CountSketch(64).bind(engine.parameters, 0)) for engine in engines)
    np.testing.assert_allclose(device.norms, host.norms, rtol=1e-3)
    np.testing.assert_allclose(device.sketches, host.sketches, atol=1e-3 * np.abs(host.sketches).max())


def test_the_model_leaves_as_it_came():
    torch.manual_seed(0)
    model = resnet().train()
    model[0].bias.grad = torch.ones(6)
    engine = TorchEngine(model, nn.CrossEntropyLoss())
    before, state = engine.state_hashes(), torch.get_rng_state()
    engine.embed(samples((3, 8, 8), 4), np.zeros(4, np.int64), CountSketch(16).bind(engine.parameters, 0))
    assert engine.state_hashes() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert torch.equal(model[0].bias.grad, torch.ones(6))
    assert all(value.grad is None for name, value in model.named_parameters() if name != "0.bias")
    assert all(value.requires_grad for value in model.parameters())


def test_unused_parameters_are_named_and_count_as_zeros():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "head": nn.Linear(3, 2)})
    model.forward = lambda x: model["used"](x)
    engine = TorchEngine(model, loss)
    with pytest.warns(UserWarning, match=r"does not depend on 2 parameters: head\.weight, head\.bias"):
        assert_as_the_loop(engine, samples((3,), 4), np.zeros(4, np.float32))


def test_a_layer_whose_output_goes_unused_counts_as_zeros():
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.wasted = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            self.wasted(x)
            return self.used(x)

    engine = TorchEngine(Wasteful(), loss)
    with pytest.warns(UserWarning, match=r"wasted\.weight"):
        assert_as_the_loop(engine, samples((3,), 4), np.zeros(4, np.float32))


def test_samples_that_mix_take_the_loop_with_a_warning():
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x - x.mean(0, keepdim=True) * 0.5)

    engine = TorchEngine(Mixing(), loss)
    message = r"factored gradients of 'layer\.weight'.* differ from the one-sample loop"
    with pytest.warns(UserWarning, match=message):
        assert_as_the_loop(engine, samples((3,), 4), np.zeros(4, np.float32))
    assert set(engine.paths.values()) == {"vmap"}


def test_a_path_that_fails_later_gives_way_to_the_next(caplog):
    class Odd(nn.Module):
        """Cannot be vmapped, and on four samples does what has no rule."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = nn.Linear(3, 2), nn.Linear(2, 2)
            self.odd = False

        def forward(self, x):
            x = torch.tanh(self.layer(x))
            if self.odd and float(x.detach().sum()) > -99:
                x = self.other(x)
            return self.other(x)

    torch.manual_seed(0)
    model = Odd()
    engine = TorchEngine(model, loss)
    x, y = samples((3,), 4), np.zeros(4, np.float32)
    assert_as_the_loop(engine, x, y)
    assert set(engine.paths.values()) == {"factored"}
    model.odd = True
    assert_as_the_loop(engine, x, y)
    assert set(engine.paths.values()) == {"loop"}
    assert "the factored path fails from here on, using the vmap" in caplog.text
    assert "the vmap path fails from here on, using the loop" in caplog.text


def test_an_input_changed_after_it_was_read_is_not_believed():
    layer = nn.Linear(3, 3)
    capture = Capture({id(layer.weight): "weight"}, Known([Layout(0)], {}), lambda call, g: list(call(g)), 2)
    with capture:
        x = torch.ones(2, 3)
        y = layer(x)
        x.mul_(2)
    with pytest.raises(PathFailed, match="changed in place"):
        y.sum().backward()


def test_selected_and_frozen_parameters():
    torch.manual_seed(0)
    model = resnet()
    model[0].weight.requires_grad_(False)
    engine = TorchEngine(model, nn.CrossEntropyLoss(), parameters=r"conv|^7")
    assert_as_the_loop(engine, samples((3, 8, 8), 4), np.array([0, 1, 2, 0]), tolerance=2e-5)
    assert len(engine.parameters) == 6
    assert engine.frozen == ("0.weight",)


def test_output_with_logits_and_keyword_inputs():
    class Hugging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, ids, mask=None):
            return SimpleNamespace(logits=self.layer(ids * mask), loss=None)

    engine = TorchEngine(Hugging(), lambda out, y: nn.functional.cross_entropy(out.logits, y))
    x = {"ids": samples((3,), 4), "mask": np.ones((4, 3), np.float32)}
    assert_as_the_loop(engine, x, np.array([0, 1, 1, 0]))
    assert set(engine.paths.values()) == {"factored"}
    assert engine.gradients(x, np.array([0, 1, 1, 0])).outputs.shape == (4, 2)


def test_loss_within_the_output():
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, labels):
            logits = self.layer(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    engine = TorchEngine(WithLoss(), lambda out, y: out["loss"])
    x = {"x": samples((3,), 4), "labels": np.array([0, 1, 1, 0])}
    assert_as_the_loop(engine, x, None)


def test_more_layer_calls_than_the_first_batch_saw():
    class Deepening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.times = 1

        def forward(self, x):
            for _ in range(self.times):
                x = self.layer(x)
            return x

    torch.manual_seed(0)
    model = Deepening()
    engine = TorchEngine(model, loss)
    x, y = samples((3,), 4), np.zeros(4, np.float32)
    assert_as_the_loop(engine, x, y)
    model.times = 2
    assert_as_the_loop(engine, x, y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compiled_module_is_unwrapped():
    model = nn.Linear(3, 2)
    assert TorchEngine(torch.compile(model), loss).model is model


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compiled_part_is_seen_through():
    torch.manual_seed(0)
    part = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), backend="eager")
    engine = TorchEngine(nn.Sequential(nn.Linear(3, 4), part, nn.Linear(4, 2)), loss)
    assert_as_the_loop(engine, samples((3,), 4), np.zeros(4, np.float32))
    assert set(engine.paths.values()) == {"factored"}


def test_a_loss_that_vmap_refuses_is_taken_sample_by_sample():
    """With weights and smoothing, cross_entropy selects by a mask."""
    torch.manual_seed(0)
    weighted = nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 3.0]))
    engine = TorchEngine(nn.Linear(4, 3), weighted)
    assert_as_the_loop(engine, samples((4,), 5), np.array([0, 1, 2, 2, 1]))
    assert set(engine.paths.values()) == {"factored"}


def test_complex_parameters_are_refused():
    model = nn.Linear(3, 2)
    model.turn = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"Expected real parameters, got complex ones: turn\. Select others"):
        TorchEngine(model, loss)
    assert TorchEngine(model, loss, parameters="weight|bias").size == 8


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_module_takes_the_loop():
    torch.manual_seed(0)
    engine = TorchEngine(torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), loss)
    assert_as_the_loop(engine, samples((3,), 4), np.zeros(4, np.float32))
    assert set(engine.paths.values()) == {"loop"}


def test_a_pass_leaves_nothing_for_the_garbage_collector():
    """A cycle of references would hold a batch's gradients until it runs, which is seldom: 1 KB a sample."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3))
    engine, x, y = TorchEngine(model, nn.CrossEntropyLoss()), samples((2, 5, 5), 20), np.arange(20) % 3
    projector = CountSketch(16).bind(engine.parameters, 0)
    for work in (lambda: engine.gradients(x, y), lambda: engine.embed(x, y, projector)):
        work()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            work()
            gc.collect()
            left = [one for one in gc.garbage if isinstance(one, torch.Tensor | np.ndarray | Capture)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert not left


def test_labels_that_do_not_exist_leave_the_paths_as_they_were(caplog):
    engine = TorchEngine(nn.Sequential(nn.Linear(4, 3)), nn.CrossEntropyLoss())
    x = np.eye(4, dtype=np.float32)
    engine.gradients(x, np.arange(4) % 3)
    assert set(engine.paths.values()) == {"factored"}
    with pytest.raises(IndexError, match="out of bounds"):
        engine.gradients(x, np.full(4, 7))
    assert set(engine.paths.values()) == {"factored"}
    assert "fails from here on" not in caplog.text
