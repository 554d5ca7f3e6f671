"""What is seen of torch models before the first batch: branches on the batch, and what forward mode looks through."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradindex

X, Y = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


class Reading(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.linear, self.more, self.read = nn.Linear(6, 3), nn.Linear(3, 3), read

    def forward(self, x, mask=None):
        h = self.linear(x)
        return h + self.more(h) * (2.0 if self.read(self, h, mask) else 0.5)


READS = {
    "a value of the batch": (lambda m, h, mask: (h[:, 0] > 0.8).any(), True),
    "a number of the batch": (lambda m, h, mask: float(h.detach().max()) > 0.8, True),
    "an array": (lambda m, h, mask: np.asarray(h.detach()).max() > 0.8, True),
    "an entry": (lambda m, h, mask: True in (h[:, 0] > 0.8), True),
    "a mask": (lambda m, h, mask: mask.all(), False),
    "a check of finite numbers": (lambda m, h, mask: torch.isfinite(h).all(), False),
    "weights": (lambda m, h, mask: float(m.linear.bias.detach().abs().max()) > 0, False),
}


@pytest.mark.parametrize("name", READS)
def test_what_may_branch_takes_training_steps(name):
    read, branches = READS[name]
    torch.manual_seed(0)
    model = Reading(read)
    x = {"x": X, "mask": torch.ones(60, 4, dtype=torch.bool)}
    job = gradindex.Job(model, F.cross_entropy, (x, Y))
    rows = np.concatenate([block.sketches for block in gradindex.embed(job, sketch=gradindex.Identity())])
    true = []
    for i in range(60):
        model.zero_grad()
        F.cross_entropy(model(X[i : i + 1], x["mask"][i : i + 1]), Y[i : i + 1]).backward()
        true.append(torch.cat([p.grad.flatten() for p in model.parameters()]).numpy())
    model.zero_grad()
    np.testing.assert_allclose(rows, true, atol=1e-5)
    assert ("branch" in {signal.name for signal in job.engine.signals}) == branches
    assert set(job.engine.paths.values()) == ({"loop"} if branches else {"factored"})


@pytest.mark.filterwarnings("ignore:factored gradients")
@pytest.mark.parametrize(
    "count",
    [
        lambda h: len(h[h > 0.8]),
        lambda h: (h > 0.8).nonzero().numel(),
        lambda h: torch.masked_select(h, h > 0.8).shape[0],
        lambda h: torch.where(h > 0.8)[0].size(0),
    ],
)
def test_how_many_are_selected_by_value_is_read(count):
    """It may depend on the other samples, so that samples of every other batch are compared with training steps."""
    job = gradindex.Job(Reading(lambda m, h, mask: count(h) > 0), F.cross_entropy, (X, Y))
    job.engine.settle(X[:8], Y[:8])
    assert "reading" in {signal.name for signal in job.engine.signals} and job.engine.suspect
    job = gradindex.Job(Reading(lambda m, h, mask: len(h) > 0), F.cross_entropy, (X, Y))
    job.engine.settle(X[:8], Y[:8])
    assert not job.engine.suspect


class Tied(nn.Module):
    def __init__(self, tied, **options):
        super().__init__()
        self.table, self.tied = nn.Embedding(8, 5, **options), tied
        self.linear, self.head = nn.Linear(5, 5), nn.Linear(5, 8)

    def forward(self, x):
        h = torch.tanh(self.linear(self.table(x).mean(1)))
        return F.linear(h, self.table.weight) if self.tied else self.head(h)


@pytest.mark.parametrize(
    ("tied", "options", "seen"),
    [
        (True, {"padding_idx": 0}, "tied padding"),
        (False, {"padding_idx": 0}, ""),
        (True, {}, ""),
        (False, {"scale_grad_by_freq": True}, "scale_grad_by_freq"),
    ],
)
@pytest.mark.filterwarnings("ignore:The loss does not depend")
def test_forward_mode_and_embeddings(tmp_path, tied, options, seen):
    torch.manual_seed(0)
    model = Tied(tied, **options)
    x, y = torch.randint(0, 8, (60, 6)), torch.arange(60) % 8
    index = gradindex.build(gradindex.Job(model, F.cross_entropy, (x, y)), tmp_path / "index", progress=False)
    assert (seen in {signal.name for signal in index.job.engine.signals}) == bool(seen)
    found = index.explain(ids=[3], k=10)
    assert ("forward mode" in found.meta["params"]["exact_method"]) == (not seen)
    true = gradindex.compute.blocks.exact_gradients(index.job, [3, *found.ordered_indices[0]]).astype(np.float64)
    units = true / np.linalg.norm(true, axis=1, keepdims=True)
    np.testing.assert_allclose(found.scores[0], units[1:] @ units[0], atol=1e-5)


def test_products_are_those_of_training_steps_once_rows_were_wrong(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def loss(z, y):  # the first sample has no penalty, so that nothing is seen before the first batch
        penalty = sum(p.square().sum() for p in model.parameters()) if (y == 2).any() else 0.0
        return F.cross_entropy(z, y) + 0.01 * penalty

    labels = torch.cat([torch.zeros(10, dtype=torch.int64), Y[10:]])
    job = gradindex.Job(model, loss, (X, labels))
    job.engine.settle(X[:8], labels[:8])
    index = gradindex.build(job, tmp_path / "index", progress=False)
    found = index.explain(ids=[20, 21], k=5)
    assert found.meta["params"]["exact_method"] == "training steps"
    true = gradindex.compute.blocks.exact_gradients(job, range(60)).astype(np.float64)
    units = true / np.linalg.norm(true, axis=1, keepdims=True)
    want = np.take_along_axis(units[[20, 21]] @ units.T, found.ordered_indices, 1)
    np.testing.assert_allclose(found.scores, want, atol=1e-5)
