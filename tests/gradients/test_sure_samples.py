"""Samples that a model is sure of: what is left of their gradients is rounding."""

import numpy as np
import pytest
import torch

from gradindex.gradients import paths
from gradindex.gradients.results import PerSample
from gradindex.gradients.torch.engine import TorchEngine


@pytest.mark.parametrize(("loss", "differ"), [(1e-5, False), (0.5, True)])
def test_paths_are_not_left_for_what_rounding_does(loss, differ):
    """Where a model is sure of a sample, what is left of its gradient is rounding: another path rounds otherwise."""
    engine = TorchEngine(torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss())
    rows = np.random.default_rng(0).standard_normal((4, engine.size)).astype(np.float32)
    losses = np.full(4, loss, np.float32)
    truth, found = (PerSample(part, losses, None) for part in (rows, rows * (1 + 5e-3)))
    assert paths._differing(engine, ["weight", "bias"], found, truth) == (["weight", "bias"] if differ else [])
