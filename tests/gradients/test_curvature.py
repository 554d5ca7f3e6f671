"""K-FAC and EKFAC against plain loops over samples in double precision, by torch's own hooks and formed gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradindex import InDouble
from gradindex.data.dataset_types import as_source
from gradindex.gradients.curvature import Curvature
from gradindex.gradients.curvature import curvature as curvature_module
from gradindex.gradients.curvature.factors import EigenvalueSums, FactorSums
from gradindex.gradients.torch.engine import TorchEngine

RNG = np.random.default_rng(0)
LOSS = nn.CrossEntropyLoss()


class Words(nn.Module):
    """A table, whose rows are looked up more than once, attention, normalisation, and positions."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.places = nn.Parameter(torch.randn(1, 5, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.words(x) + self.places).mean(1))


class Tied(nn.Module):
    """One layer called twice, another's weight used twice: all uses make one gradient."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), (6,)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), (2, 6)),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 2, stride=2), nn.Flatten(), nn.Linear(20, 3)
        ),
        (2, 4, 4),
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)), (4, 4, 4)),
    "norm": (lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)), (6,)),
    "words": (Words, None),
    "tied": (Tied, (6,)),
}


def case(name, n=40, double=True):
    make, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = make().eval()
    random = np.random.default_rng(2)
    x = random.integers(0, 11, (n, 5)) if shape is None else random.standard_normal((n, *shape))
    if double:
        model = model.double()
    elif shape is not None:
        x = x.astype(np.float32)
    return TorchEngine(model, LOSS), x, random.integers(0, 3, n)


def formed(engine, x, y):
    """Gradients (n, P) of plain training steps."""
    return np.concatenate([engine.sample_gradient(x[i : i + 1], y[i : i + 1]).gradients for i in range(len(x))])


def recorded(model, x, y):
    """What layers received (positions, in) and the derivatives (positions, out) of what they gave, by name."""
    kept = {}

    def watch(name):
        def hook(module, args, output):
            output.retain_grad()
            kept.setdefault(name, []).append((args[0].detach(), output))

        return hook

    kinds = nn.Linear | nn.Conv1d | nn.Conv2d
    hooks = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if isinstance(m, kinds)]
    for i in range(len(x)):
        with torch.enable_grad():
            LOSS(model(torch.as_tensor(x[i : i + 1])), torch.as_tensor(y[i : i + 1])).backward()
    for hook in hooks:
        hook.remove()
    return kept


def sides(module, pairs):
    """A = E[Σ_t a_t a_tᵀ], G = E[Σ_t g_t g_tᵀ], and the mean number of positions."""
    a_total = g_total = positions = 0
    for a, output in pairs:
        g = output.grad
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            flat = isinstance(module, nn.Conv1d)
            a = a[:, :, None] if flat else a
            ours = (lambda v: (1, v[0])) if flat else (lambda v: v)
            zero = (0, module.padding[0]) if flat else module.padding
            a = F.unfold(a, ours(module.kernel_size), padding=zero, stride=ours(module.stride))[0].T
            g = g.flatten(2)[0].T
        else:
            a, g = a.reshape(-1, a.shape[-1]), g.reshape(-1, g.shape[-1])
        a_total, g_total, positions = a_total + a.T @ a, g_total + g.T @ g, positions + len(a)
    return a_total, g_total, positions


def matrix(side):
    return np.diag(side.values) if side.vectors is None else side.vectors @ np.diag(side.values) @ side.vectors.T


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d", "norm", "tied"])
def test_factors_are_those_of_a_loop(name):
    engine, x, y = case(name)
    found = {b.parameter.name: b for b in Curvature.fit(engine, as_source((x, y)), "kfac").blocks}
    checked = 0
    for layer, pairs in recorded(engine.model, x, y).items():
        a, g, positions = sides(engine.model.get_submodule(layer), pairs)
        block = found[f"{layer}.weight"]
        np.testing.assert_allclose(matrix(block.rows), g / len(x), atol=1e-10)
        np.testing.assert_allclose(matrix(block.columns), a / len(x), atol=1e-10)
        assert block.scale == pytest.approx(len(x) / positions)
        checked += 1
    assert checked == sum(isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d) for m in engine.model.modules())


def test_channels_last_convolutions_have_the_same_factors():
    (single, x, y), (double, *_) = case("conv2d", double=False), case("conv2d")
    assert single._channels_last
    ours, plain = (Curvature.fit(e, as_source((x.astype(e.dtype), y)), "kfac").blocks for e in (single, double))
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(matrix(one.columns), matrix(other.columns), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(matrix(one.rows), matrix(other.rows), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(MODELS))
def test_parameters_that_come_formed_have_their_own_matrix(name):
    engine, x, y = case(name)
    gradients = formed(engine, x, y)
    curvature = Curvature.fit(engine, as_source((x, y)), "kfac")
    seen = 0
    for block, (_, place) in zip(curvature.blocks, engine.slices(), strict=True):
        if block.shape == (block.parameter.size, 1):
            g = gradients[:, place]
            np.testing.assert_allclose(matrix(block.rows) * block.scale, g.T @ g / len(g), atol=1e-10)
            seen += 1
    assert seen


def test_a_table_of_looked_up_rows_has_a_diagonal_of_counts():
    engine, x, y = case("words")
    block = Curvature.fit(engine, as_source((x, y)), "kfac").blocks[
        [p.name for p in engine.parameters].index("words.weight")
    ]
    assert block.rows.vectors is None
    np.testing.assert_allclose(block.rows.values, np.bincount(x.ravel(), minlength=11) / len(x))
    assert block.scale == pytest.approx(1 / 5)


@pytest.mark.parametrize("name", list(MODELS))
def test_eigenvalues_are_second_moments_in_the_eigenvectors(name):
    engine, x, y = case(name)
    gradients = formed(engine, x, y)
    curvature = Curvature.fit(engine, as_source((x, y)), "ekfac")
    for block, (_, place) in zip(curvature.blocks, engine.slices(), strict=True):
        turned = np.zeros(block.shape)
        above, below = (np.eye(len(s.values)) if s.vectors is None else s.vectors for s in (block.rows, block.columns))
        for g in gradients[:, place]:
            turned += (above.T @ g.reshape(block.shape) @ below) ** 2
        np.testing.assert_allclose(block.values, turned / len(x), atol=1e-10, err_msg=block.parameter.name)
    assert curvature.trace == pytest.approx((gradients**2).sum() / len(x))


@pytest.mark.parametrize("kind", ["kfac", "factored", "ekfac"])
@pytest.mark.parametrize("name", ["conv2d", "words"])
def test_power_is_that_of_the_explicit_matrix(name, kind):
    engine, x, y = case(name)
    curvature = Curvature.fit(engine, as_source((x, y)), "ekfac" if kind == "ekfac" else "kfac")
    curvature = curvature.with_factored_damping() if kind == "factored" else curvature
    rows = RNG.standard_normal((3, engine.size))
    damping = 0.01
    for exponent in (-1.0, -0.5, 1.0):
        found = curvature.power(rows, damping, exponent)
        for block, (_, place) in zip(curvature.blocks, engine.slices(), strict=True):
            g, a = matrix(block.rows) * block.scale, matrix(block.columns)
            if kind == "kfac":
                whole = np.kron(g, a) + damping * np.eye(len(g) * len(a))
            elif kind == "factored":
                mean = [np.mean(v[v > 1e-6 * v.max()]) for v in map(np.linalg.eigvalsh, (g, a))]
                ratio = np.sqrt(mean[0] / mean[1])
                whole = np.kron(
                    g + np.sqrt(damping) * ratio * np.eye(len(g)), a + np.sqrt(damping) / ratio * np.eye(len(a))
                )
            else:
                above, below = (
                    np.eye(len(s.values)) if s.vectors is None else s.vectors for s in (block.rows, block.columns)
                )
                basis = np.kron(above, below)
                whole = basis @ np.diag(block.measured.ravel() + damping) @ basis.T
            values, vectors = np.linalg.eigh(whole)
            want = rows[:, place] @ (vectors * values**exponent) @ vectors.T
            np.testing.assert_allclose(found[:, place], want, rtol=1e-6, atol=1e-9 * np.abs(want).max())
    np.testing.assert_allclose(curvature.root(curvature.root(rows)), curvature.apply(rows), rtol=1e-8)


def test_default_damping_is_a_tenth_of_the_mean_of_eigenvalues_that_are_not_rounding():
    x = np.hstack([RNG.standard_normal((30, 4)), np.zeros((30, 3))])  # inputs that are always 0 do not count
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        engine = TorchEngine(nn.Linear(7, 3, bias=False).double(), LOSS)
    curvature = Curvature.fit(engine, as_source((x, RNG.integers(0, 3, 30))), "ekfac")
    assert curvature.damping == pytest.approx(0.1 * curvature.trace / (2 * 4))  # p − y has two degrees of freedom


def test_memory_makes_passes_and_no_difference():
    engine, x, y = case("words", double=False)
    source = as_source((x, y))
    whole = Curvature.fit(engine, source, "ekfac", labels="model", samples=2)
    parts = Curvature.fit(engine, source, "ekfac", labels="model", samples=2, memory=1)
    assert len(curvature_module._groups(engine.parameters, 1)) == len(engine.parameters)
    assert len(curvature_module._groups(engine.parameters, curvature_module.MEMORY)) == 1
    for one, other in zip(whole.blocks, parts.blocks, strict=True):
        np.testing.assert_array_equal(one.measured, other.measured)
        np.testing.assert_array_equal(one.rows.values, other.rows.values)


def test_several_batches_and_threads_count_every_sample_once(monkeypatch):
    engine, x, y = case("conv2d", n=50, double=False)
    monkeypatch.setattr(curvature_module, "_BATCH", 20)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # parts of a batch at once, and a trial of three samples before
    try:
        found = Curvature.fit(engine, as_source((x, y)), "ekfac")
    finally:
        torch.set_num_threads(before)
    gradients = formed(engine, x, y)
    assert found.trace == pytest.approx((gradients**2).sum() / len(x), rel=1e-5)


def test_an_engine_that_hands_out_samples_twice_is_refused():
    engine, x, y = case("linear")

    class Twice(type(engine)):
        def embed(self, x, y, projector):
            super().embed(x, y, projector)
            return super().embed(x, y, projector)

    engine.__class__ = Twice
    with pytest.raises(RuntimeError, match="more than once"):
        Curvature.fit(engine, as_source((x, y)), "kfac")


def test_a_pass_starts_again_where_factors_become_formed():
    engine, x, y = case("linear")
    engine.settle(x, y)
    seen = 0

    class Lowered(FactorSums):
        def take(self, engine, batch):
            nonlocal seen
            seen += 1
            if seen == 2:
                engine.lower()
            super().take(engine, batch)

    from gradindex.gradients.curvature.sums import passed

    totals = passed(lambda: Lowered(engine.parameters), engine, lambda: as_source((x, y)).blocks(10))
    assert {total.form for total in totals.values()} == {"exact"}
    assert all(total.samples == len(x) for total in totals.values())


def test_losses_in_double_give_factors_of_samples_the_model_is_sure_of():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight *= 40
        x = torch.as_tensor(RNG.standard_normal((60, 6)).astype(np.float32))
        out = model(x).double()
        y = out.argmax(1)
        kept = F.cross_entropy(out, y, reduction="none") < 1e-9  # p − y is below the rounding of p
    x, y = x[kept].numpy(), y[kept].numpy()
    found = [Curvature.fit(TorchEngine(model, loss), as_source((x, y))).blocks[0] for loss in (LOSS, InDouble(LOSS))]
    want = matrix(Curvature.fit(TorchEngine(model.double(), LOSS), as_source((x.astype(float), y))).blocks[0].rows)
    plain, exact = (np.linalg.norm(matrix(block.rows) - want) / np.linalg.norm(want) for block in found)
    assert exact < 1e-3
    assert plain > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "shampoo"}, "Unknown kind 'shampoo'"),
        ({"labels": "true"}, "Unknown labels"),
        ({"samples": 0}, "samples must be a positive integer"),
        ({"memory": 0}, "memory must be a positive integer"),
    ],
)
def test_bad_options(options, message):
    engine, x, y = case("linear")
    with pytest.raises(ValueError, match=message):
        Curvature.fit(engine, as_source((x, y)), **options)


def test_bad_rows():
    engine, x, y = case("linear")
    found = Curvature.fit(engine, as_source((x, y)), "kfac")
    with pytest.raises(ValueError, match=r"Expected gradients of shape \(b, 53\), got \(2, 5\)"):
        found.apply(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="are no products"):
        Curvature.fit(engine, as_source((x, y)), "ekfac").with_factored_damping()
    with pytest.raises(ValueError, match="damping must be"):
        found.apply(np.zeros((2, 53)), -1.0)


def test_sums_ask_for_factors_and_eigenvalues_for_what_is_cheaper():
    engine, x, y = case("conv2d")
    found = Curvature.fit(engine, as_source((x, y)), "kfac")
    sums = EigenvalueSums(found.blocks)
    conv = engine.parameters[0]
    # 16 positions, a matrix of 4 × 18: turning every position costs more than forming first.
    assert sums.factor_cost(conv, 1000) > 1000 * conv.size / 15 + sums.cost(conv)
    assert FactorSums(engine.parameters).factor_cost(conv, 1000) == 0
