import numpy as np
import pytest

from gradindex.gradients.parameter import Parameter
from gradindex.sketch import SJLT, CountSketch, Gaussian, Identity, Rademacher, from_json
from gradindex.sketch.hashing import side_hash
from gradindex.sketch.unit_rows import fold

RANDOM = [CountSketch(64), Gaussian(64), Rademacher(64), SJLT(64)]
torch_conv = Parameter(name="c", position=1, shape=(5, 3, 2, 4), dtype="float32")
keras_conv = Parameter(
    name="other", position=1, shape=(2, 4, 3, 5), dtype="float32", split=3, outputs_first=False, input_order=(2, 0, 1)
)
linear = Parameter(name="w", position=0, shape=(40, 30), dtype="float32")
bias = Parameter(name="b", position=2, shape=(11,), dtype="float32")
scalar = Parameter(name="s", position=3, shape=(), dtype="float32")
everything = [linear, torch_conv, bias, scalar]


def gradients(n, parameters, seed=0):
    return np.random.default_rng(seed).normal(size=(n, sum(p.size for p in parameters))).astype(np.float32)


def naive_countsketch(parameters, rows, seed, dim):
    """Entry by entry, from the definition: bucket (h(i) + h'(j)) mod k, sign s(i)·s'(j)."""
    out = np.zeros((len(rows), dim))
    begin = 0
    for p in parameters:
        h, s = side_hash(seed, p.position, True, p.output_size, dim)
        hj, sj = side_hash(seed, p.position, False, p.input_size, dim)
        tensor = rows[:, begin : begin + p.size].reshape(len(rows), p.output_size, p.input_size)
        for i in range(p.output_size):
            for j in range(p.input_size):
                out[:, (h[i] + hj[j]) % dim] += s[i] * sj[j] * tensor[:, i, j]
        begin += p.size
    return out


@pytest.mark.parametrize("dim", [1, 7, 64])
def test_countsketch_is_its_definition(dim):
    rows = gradients(3, everything)
    found = CountSketch(dim).bind(everything, 5)(everything, rows)
    np.testing.assert_allclose(found, naive_countsketch(everything, rows, 5, dim), rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("sketch", RANDOM, ids=lambda s: s.kind)
def test_is_linear(sketch):
    project = sketch.bind(everything, 0)
    a, b = gradients(2, everything, 1), gradients(2, everything, 2)
    want = 2 * project(everything, a) - 3 * project(everything, b)
    np.testing.assert_allclose(project(everything, 2 * a - 3 * b), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sketch", RANDOM, ids=lambda s: s.kind)
def test_layout_of_a_framework_does_not_matter(sketch):
    rows = gradients(2, [torch_conv]).reshape(2, 5, 3, 2, 4)
    turned = rows.transpose(0, 3, 4, 2, 1).reshape(2, -1)
    first = sketch.bind([torch_conv], 3)([torch_conv], rows.reshape(2, -1))
    second = sketch.bind([keras_conv], 3)([keras_conv], turned)
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sketch", RANDOM, ids=lambda s: s.kind)
def test_same_seed_same_bits_other_seed_other_bits(sketch):
    rows = gradients(2, everything)
    first = sketch.bind(everything, 7)(everything, rows)
    np.testing.assert_array_equal(first, sketch.bind(everything, 7)(everything, rows))
    assert not np.allclose(first, sketch.bind(everything, 8)(everything, rows))


@pytest.mark.parametrize("sketch", RANDOM, ids=lambda s: s.kind)
def test_is_unbiased_with_the_variance_of_theory(sketch):
    """Over seeds E⟨Sx, Sy⟩ = ⟨x, y⟩ and, for unit vectors of cosine c, Var = (1 + c²)/k to leading order."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, linear.size))
    x /= np.linalg.norm(x)
    z -= (z @ x) * x
    z /= np.linalg.norm(z)
    c, trials = 0.6, 1500
    pair = np.stack([x, c * x + np.sqrt(1 - c * c) * z]).astype(np.float32)
    products = np.empty(trials)
    for seed in range(trials):
        a, b = sketch.bind([linear], seed)([linear], pair)
        products[seed] = a @ b
    theory = (1 + c * c) / sketch.dim
    assert abs(products.mean() - c) < 4 * np.sqrt(theory / trials)
    # The estimate of a variance from n normal draws varies by √(2/n): 3.7 %; the product hash adds terms of 1/k.
    assert products.var() == pytest.approx(theory, rel=0.2)


def test_hashes_are_pinned():
    """These bits are the format: a store made today is searched for years."""
    buckets, signs = side_hash(0, 0, True, 6, 1024)
    assert buckets.tolist() == [155, 434, 633, 220, 963, 989]
    assert signs.tolist() == [1.0, 1.0, 1.0, -1.0, -1.0, 1.0]


def test_folding_is_the_narrow_sketch():
    rows = gradients(4, everything)
    wide = CountSketch(64).bind(everything, 2)(everything, rows)
    for dim in (32, 16, 8):
        narrow = CountSketch(dim).bind(everything, 2)(everything, rows)
        np.testing.assert_allclose(fold(wide, dim), narrow, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="Cannot fold 64 buckets to 24"):
        fold(wide, 24)


def test_a_parameter_keeps_its_hashes_when_others_are_left_out():
    rows = gradients(2, [torch_conv])
    alone = CountSketch(32).bind([torch_conv], 0)([torch_conv], rows)
    zeros = np.zeros((2, linear.size), np.float32)
    among = CountSketch(32).bind([linear, torch_conv], 0)([linear, torch_conv], np.hstack([zeros, rows]))
    np.testing.assert_array_equal(alone, among)


def test_identity_is_the_gradient():
    rows = gradients(3, everything)
    project = Identity().bind(everything, 0)
    assert project.dim == rows.shape[1]
    np.testing.assert_array_equal(project(everything, rows), rows)


def test_empty_batch():
    assert CountSketch(8).bind(everything, 0)(everything, gradients(0, everything)).shape == (0, 8)


@pytest.mark.parametrize("sketch", [*RANDOM, Identity()], ids=lambda s: s.kind)
def test_json_round_trip(sketch):
    assert from_json(sketch.to_json()) == sketch


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="dim must be a positive integer, got 0"):
        CountSketch(0)
    with pytest.raises(ValueError, match="nonzeros must divide dim 64, got 5"):
        SJLT(64, nonzeros=5)
    with pytest.raises(ValueError, match=r"Unknown sketch 'x'\. Expected one of: 'countsketch' \| 'gaussian'"):
        from_json({"kind": "x"})
    with pytest.raises(ValueError, match="Bad options for sketch 'gaussian'"):
        from_json({"kind": "gaussian", "width": 3})
    with pytest.raises(ValueError, match=r"seed must be an integer in \[0, 2\*\*64\), got -1"):
        CountSketch(8).bind(everything, -1)
