"""Models that read values in forward: which of them may go another way in a batch."""

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
