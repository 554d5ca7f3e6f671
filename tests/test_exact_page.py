"""The page "What exact means": its figures are right, and what is known not to hold does what the table says."""

import logging
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn
from torch.nn import functional as F

import gradindex
from gradindex.compute import blocks, watch
from gradindex.gradients import paths
from gradindex.gradients.results import Embedded

PAGE = (Path(__file__).parents[1] / "examples/docs/pages/exact.md").read_text(encoding="utf-8")
N = 120
X, Y = torch.randn(N, 6, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Around(nn.Module):
    """A network of which something is done to the inputs."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = net(), change

    def forward(self, x):
        return self.net(self.change(self, x))


def build(folder, model, loss=F.cross_entropy, data=(X, Y), **options):
    return gradindex.build(gradindex.Job(model, loss, data), folder / "index", progress=False, **options)


def test_the_shares_of_rows_are_those_of_the_rule():
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) % \| ([\d.]+) % \|$", PAGE, re.M)
    assert [int(row[0].replace(",", "")) for row in rows] == [64, 500, 5000]
    for n, large, small in ((int(a.replace(",", "")), float(b) / 100, float(c) / 100) for a, b, c in rows):
        assert 1 - (1 - large) ** n == pytest.approx(0.99, abs=1e-3)
        assert binom.sf(max(1, n // 16), n, small) == pytest.approx(0.99, abs=3e-3)


def test_the_rule_is_the_one_that_is_used():
    engine = gradindex.Job(net(), F.cross_entropy, (X, Y)).engine
    for n in (64, 500):
        few = np.where(np.arange(n) < n // 16, 0.04, 0.0)
        assert paths.agree(few, engine)
        assert not paths.agree(np.where(np.arange(n) <= n // 16, 0.04, 0.0), engine)
        assert not paths.agree(np.where(np.arange(n) < 1, 0.06, 0.0), engine)


def test_random_numbers_in_evaluation_mode(tmp_path):
    with pytest.raises(ValueError, match="draws random numbers in evaluation mode"):
        build(tmp_path, Around(lambda model, x: x + 0.5 * torch.randn_like(x)))
    unused = Around(lambda model, x: x if torch.rand(()).shape == () else -x)
    assert len(build(tmp_path, unused)) == N
    own = np.random.default_rng(0)
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match=r"random numbers|not made of the losses of its samples"),
    ):
        warnings.simplefilter("ignore", UserWarning)  # of samples that are mixed, as it seems
        build(tmp_path / "own", Around(lambda model, x: x + torch.from_numpy(own.standard_normal(x.shape)).float()))


class Given(torch.utils.data.Dataset):
    """The samples, and what happens when one is read."""

    def __init__(self, read):
        self.read = read

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.read(i), int(Y[i])


def test_weights_changed_during_a_build(tmp_path):
    model = net()

    def read(i):
        if i == 60:
            with torch.no_grad():
                model[0].weight.mul_(1.3)
        return X[i]

    index = build(tmp_path, model, data=Given(read), shard_rows=40, batch_size=20)
    with pytest.warns(UserWarning, match="is not the stored one"):
        index.explain(ids=[5], k=5)


def test_augmentation_without_a_seed(tmp_path):
    random = torch.Generator().manual_seed(0)
    index = build(tmp_path, net(), data=Given(lambda i: X[i] + 0.3 * torch.randn(6, generator=random)))
    with pytest.warns(UserWarning, match="is not the stored one"):
        index.explain(ids=[5], k=5)


def test_a_hook_that_steps_weights(tmp_path):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model[2].weight.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    with pytest.raises(ValueError, match="A hook changes the weights of"):
        build(tmp_path, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_that_compares_samples(tmp_path):
    def contrastive(z, y):
        z = F.normalize(z, dim=1)
        return F.cross_entropy(5 * z @ z.t(), torch.arange(len(z)))

    with pytest.raises(ValueError, match="not made of the losses of its samples"):
        build(tmp_path, net(), contrastive)


def test_statistics_of_the_batch(tmp_path):
    model = Around(lambda model, x: x - 0.5 * x.mean(0))
    with pytest.warns(UserWarning, match="does the model mix samples of a batch"):
        index = build(tmp_path, model, sketch=gradindex.Identity())
    halved = Around(lambda model, x: 0.5 * x)
    other = build(tmp_path / "other", halved, sketch=gradindex.Identity())
    np.testing.assert_allclose(index.store.norms, other.store.norms, rtol=1e-4)


def test_class_weights_with_a_mean(tmp_path, caplog):
    weights = torch.tensor([1.0, 2.0, 3.0])
    index = build(tmp_path, net(), nn.CrossEntropyLoss(weight=weights))
    assert "class weights cancel" in caplog.text and "reduction='sum'" in caplog.text
    plain = build(tmp_path / "plain", net())
    np.testing.assert_allclose(index.store.norms, plain.store.norms, rtol=1e-5)
    summed = build(tmp_path / "sum", net(), nn.CrossEntropyLoss(weight=weights, reduction="sum"))
    np.testing.assert_allclose(summed.store.norms, plain.store.norms * weights[Y].numpy(), rtol=1e-5)


def test_devices_that_are_not_deterministic(tmp_path):
    assert build(tmp_path, net()).store.header.deterministic
    assert not gradindex.Job(net().to("meta"), F.cross_entropy, (X, Y)).engine.deterministic


@pytest.mark.filterwarnings("ignore:.*does the model mix samples")
@pytest.mark.filterwarnings("ignore:.*does the model mix samples")
def test_state_in_python_objects(tmp_path):
    seen = []

    def count(model, x):
        seen.append(len(x))
        return x * (1 + len(seen) % 3)

    with pytest.raises(ValueError, match=r"computed one by one|not made of the losses of its samples"):
        build(tmp_path, Around(count))


def test_a_fault_on_very_few_rows(tmp_path, monkeypatch):
    drawn = watch.draw(0, 0, N, N)
    missed = int(np.setdiff1d(np.arange(N), drawn)[0])
    embed = blocks._embed

    def faulty(engine, batch, projector):
        found = embed(engine, batch, projector)
        by = np.where(batch.ids == missed, 2.0, 1.0)
        return Embedded(found.sketches, found.norms * by, found.losses, found.outputs)

    model = net()
    right = build(tmp_path / "right", model).store.norms
    monkeypatch.setattr(blocks, "_embed", faulty)
    found = build(tmp_path / "faulty", model).store.norms
    assert found[missed] == pytest.approx(2 * right[missed])  # no comparison of drawn rows can tell
    np.testing.assert_array_equal(found[drawn], right[drawn])


def test_gradients_that_are_rounding(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "gradindex")
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(60)
        labels = model(X).argmax(1)
    build(tmp_path, model, data=(X, labels))
    assert "gradindex.InDouble" in caplog.text
