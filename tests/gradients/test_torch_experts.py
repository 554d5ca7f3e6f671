"""A mixture's experts: products in the order of tokens, and what each sample gives to each expert."""

import numpy as np
import pytest
import torch

from gradindex.gradients import loop
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.gradients.torch.experts import expert_products
from gradindex.sketch import CountSketch

TOKENS, EXPERTS, CHOSEN, WIDTH = 5, 4, 2, 6


@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_those_of_each_rows_expert(transposed):
    torch.manual_seed(0)
    x, weight = torch.randn(9, WIDTH), torch.randn(EXPERTS, 3, WIDTH)
    numbers = torch.tensor([3, 0, 0, 3, 1, 0, 3, 3, 1])  # none of expert 2
    found = expert_products(x, weight.transpose(1, 2) if transposed else weight, numbers, transposed)
    torch.testing.assert_close(found, torch.stack([weight[e] @ row for e, row in zip(numbers, x, strict=True)]))


class Mixture(torch.nn.Module):
    """Tokens choose two of four experts, by the products of `expert_products`, one of whose weights is transposed."""

    def __init__(self):
        super().__init__()
        self.router = torch.nn.Linear(WIDTH, EXPERTS)
        self.up = torch.nn.Parameter(torch.randn(EXPERTS, 7, WIDTH) / 3)
        self.down = torch.nn.Parameter(torch.randn(EXPERTS, 7, WIDTH) / 3)
        self.head = torch.nn.Linear(WIDTH, 3)

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).flatten(0, 1).topk(CHOSEN)
        rows, numbers = x.flatten(0, 1).repeat_interleave(CHOSEN, 0), chosen.flatten()
        rows = expert_products(rows, self.up, numbers).relu()
        rows = expert_products(rows, self.down, numbers, True) * weights.reshape(-1, 1)
        return self.head(rows.view(*x.shape[:2], CHOSEN, WIDTH).sum(2).mean(1))


def test_gradients_and_sketches_are_those_of_training_steps():
    torch.manual_seed(0)
    engine = TorchEngine(Mixture(), torch.nn.functional.cross_entropy)
    x, y = torch.randn(8, TOKENS, WIDTH), torch.arange(8) % 3
    truth = loop.gradients(engine, x, y).gradients
    for b in (8, 3, 1):
        found = engine.gradients(x[:b], y[:b]).gradients
        np.testing.assert_allclose(found, truth[:b], atol=1e-6)
    assert set(engine.paths.values()) == {"factored"}, engine.paths
    places = {one.name: place for one, place in engine.slices()}
    of_experts = truth[:, places["up"]].reshape(8, EXPERTS, -1).any(-1)
    assert of_experts.any(0).all()
    assert not of_experts.all()  # some samples leave some experts alone
    projector = CountSketch(256).bind(engine.parameters, 0)
    sketched = engine.embed(x, y, projector)
    np.testing.assert_allclose(sketched.norms, np.linalg.norm(truth, axis=1), rtol=1e-5)
    wanted = np.zeros((8, projector.dim), np.float32)
    projector.add_all(wanted, engine.parameters, truth)
    np.testing.assert_allclose(sketched.sketches, wanted, atol=1e-5)
    direction = np.random.default_rng(0).standard_normal(engine.size).astype(np.float32)
    dots, _ = engine.directional(x, y, direction)
    np.testing.assert_allclose(dots, truth @ direction, atol=1e-5)
