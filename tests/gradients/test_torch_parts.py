"""A batch computed in parts at once gives what one sample at a time gives, and is only where that is safe."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from gradindex.gradients import loop
from gradindex.gradients.torch import parts as torch_parts
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.sketch import CountSketch

COUNT, CLASSES = 19, 3


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def parts(monkeypatch):
    """The numbers of parts that were computed at once."""
    seen, at_once = [], torch_parts.at_once

    def counted(work, count, threads):
        seen.append(count)
        return at_once(work, count, threads)

    monkeypatch.setattr(torch_parts, "at_once", counted)
    return seen


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


class Remembering(nn.Module):
    """Keeps what it computes in an attribute, in a dictionary and in a list, and reads it again later."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, CLASSES)
        self.kept, self.last, self.list = {}, None, []

    def forward(self, x):
        self.kept["hidden"] = self.first(x).tanh()
        self.last = self.kept["hidden"] ** 2
        self.list = [self.last]
        return self.second(self.last + self.kept["hidden"] + self.list[0])


class Noisy(nn.Module):
    """Adds the same random numbers to every sample, drawn anew in each call."""

    def __init__(self, generator=None) -> None:
        super().__init__()
        self.layer, self.generator = nn.Linear(6, CLASSES), generator

    def forward(self, x):
        (self.generator or torch).manual_seed(0)
        return self.layer(x + torch.randn(6, generator=self.generator))


def leaking():
    """A model whose layers meet in a dictionary outside."""
    model, kept = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, CLASSES)), {}
    model[0].register_forward_hook(lambda module, args, output: kept.update(hidden=output))
    model[3].register_forward_hook(lambda module, args, output: output + kept["hidden"])
    return model, nn.CrossEntropyLoss()


def data(*shape):
    random = np.random.default_rng(0)
    return random.normal(size=(COUNT, *shape)).astype(np.float32), random.integers(0, CLASSES, COUNT)


def embedded(model, loss, x, y):
    engine = TorchEngine(model, loss)
    projector = CountSketch(64).bind(engine.parameters, 0)
    return engine, projector, engine.embed(x, y, projector)


def check(engine, projector, found, x, y):
    truth = loop.gradients(engine, x, y)
    want = projector(engine.parameters, truth.gradients)
    np.testing.assert_allclose(found.sketches, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    np.testing.assert_allclose(found.norms, np.linalg.norm(truth.gradients, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.losses, truth.losses, rtol=1e-5)
    np.testing.assert_allclose(found.outputs, truth.outputs, rtol=1e-4, atol=1e-5)


MODELS = {
    "cnn": (
        (2, 6, 6),
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)),
    ),
    "lstm": ((4, 6), lambda: nn.Sequential(Last(), nn.Linear(10, CLASSES))),
    "attention": (
        (4, 6),
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(24, CLASSES)
        ),
    ),
    "weight norm": (
        (6,),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, CLASSES)),
    ),
    "state in attributes": ((6,), Remembering),
}


@pytest.mark.parametrize("name", MODELS)
def test_parts_are_as_one_sample_at_a_time(name, parts):
    torch.manual_seed(0)
    shape, model = MODELS[name]
    x, y = data(*shape)
    engine, projector, found = embedded(model(), nn.CrossEntropyLoss(), x, y)
    assert parts == [2]
    check(engine, projector, found, x, y)
    again = engine.embed(x, y, projector)
    np.testing.assert_array_equal(found.sketches, again.sketches)
    np.testing.assert_array_equal(found.norms, again.norms)


def test_what_meets_outside_the_modules_is_computed_in_one_part(parts):
    torch.manual_seed(0)
    x, y = data(6)
    engine, projector, found = embedded(*leaking(), x, y)
    assert set(engine.paths.values()) == {"factored"}
    assert parts == []
    check(engine, projector, found, x, y)


def test_one_sample_does_not_tell(parts):
    torch.manual_seed(0)
    x, y = data(6)
    model, loss = leaking()
    engine = TorchEngine(model, loss)
    projector = CountSketch(64).bind(engine.parameters, 0)
    same = np.zeros((3, 6), np.float32)
    engine.embed(same, y[:3], projector)  # as are several that are all alike
    check(engine, projector, engine.embed(x, y, projector), x, y)
    assert parts == []


@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["global", "its own"])
def test_a_model_that_draws_random_numbers_is_computed_in_one_part(generator, parts):
    x, y = data(6)
    engine, projector, found = embedded(Noisy(generator), nn.CrossEntropyLoss(), x, y)
    assert set(engine.paths.values()) == {"factored"}
    assert parts == []
    check(engine, projector, found, x, y)


def test_other_threads_keep_their_number_of_torch_threads(parts):
    x, y = data(6)
    embedded(nn.Linear(6, CLASSES), nn.CrossEntropyLoss(), x, y)
    assert parts == [2]
    seen = []
    new = threading.Thread(target=lambda: seen.append((torch.ones(8).sum(), torch.get_num_threads())[1]))
    new.start()
    new.join()
    assert (torch.get_num_threads(), seen) == (2, [2])


def test_an_error_in_a_part_reaches_the_caller_and_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Embedding(4, 6), nn.Flatten(), nn.Linear(6, CLASSES)).train()
    x, y = np.arange(COUNT)[:, None] % 4, data(6)[1]
    engine, projector, _ = embedded(model, nn.CrossEntropyLoss(), x, y)
    with pytest.raises(IndexError):
        engine.embed(np.where(np.arange(COUNT)[:, None] < COUNT - 1, x, 99), y, projector)
    assert all(module.training for module in model.modules())
    check(engine, projector, engine.embed(x, y, projector), x, y)


@pytest.mark.parametrize(
    ("samples", "threads", "sizes"), [(0, 2, [0]), (15, 2, [15]), (16, 2, [8, 8]), (29, 3, [9, 10, 10])]
)
def test_parts_cover_the_batch(samples, threads, sizes):
    found = torch_parts.split(samples, threads)
    assert [part.stop - part.start for part in found] == sizes
    assert np.concatenate([np.arange(samples)[part] for part in found]).tolist() == list(range(samples))
