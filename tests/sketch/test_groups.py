"""Sketches made of a block for each group of parameters."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gradindex.gradients.parameter import Parameter
from gradindex.sketch import SJLT, CountSketch, Groups, Identity, from_json

SHAPES = {"h.0.attn.w": (6, 5), "h.0.mlp.w": (4, 6), "h.1.attn.w": (6, 5), "h.1.mlp.w": (4, 6), "head.w": (3, 7)}
PARAMETERS = tuple(
    Parameter(name=name, position=place, shape=shape, dtype="float32")
    for place, (name, shape) in enumerate(SHAPES.items())
)
SIZE = sum(parameter.size for parameter in PARAMETERS)
RNG = np.random.default_rng(0)


def test_each_group_has_its_own_numbers():
    sketch = Groups({"attention": "attn", "mlp": "mlp"}, dim=100)
    projector = sketch.bind(PARAMETERS, 3)
    assert {group: (place.start, place.stop) for group, place in projector.places.items()} == {
        "attention": (0, 33), "mlp": (33, 66), "others": (66, 100),
    }  # fmt: skip
    rows = RNG.standard_normal((4, SIZE)).astype(np.float32)
    whole, begin = projector(PARAMETERS, rows), 0
    for parameter in PARAMETERS:
        alone = np.zeros_like(rows)
        alone[:, begin : begin + parameter.size] = rows[:, begin : begin + parameter.size]
        begin += parameter.size
        group = next(group for group, names in projector.members.items() if parameter.name in names)
        used = np.flatnonzero(projector(PARAMETERS, alone).any(axis=0))
        place = projector.places[group]
        assert len(used) and used.min() >= place.start and used.max() < place.stop
    own = CountSketch(33).bind([p for p in PARAMETERS if "attn" in p.name], 3)
    part = np.concatenate([rows[:, :30], rows[:, 54:84]], axis=1)
    assert_allclose(whole[:, :33], own([p for p in PARAMETERS if "attn" in p.name], part), atol=1e-6)


def test_products_of_rows_are_unbiased_for_every_group():
    rows = RNG.standard_normal((2, SIZE)).astype(np.float32)
    sums, whole = np.zeros(3), 0.0
    for seed in range(300):
        projector = Groups({"attention": "attn", "mlp": "mlp"}, dim=48).bind(PARAMETERS, seed)
        a, b = projector(PARAMETERS, rows)
        sums += [a[place] @ b[place] for place in projector.places.values()]
        whole += float(a @ b)
    places = {"attn": [], "mlp": [], "head": []}
    begin = 0
    for parameter in PARAMETERS:
        places[next(word for word in places if word in parameter.name)] += range(begin, begin + parameter.size)
        begin += parameter.size
    want = [rows[0, some].astype(np.float64) @ rows[1, some] for some in places.values()]
    assert_allclose(sums / 300, want, atol=2.5)  # norms of 5 to 8 over 16 numbers, by 300 seeds
    assert_allclose(whole / 300, rows[0] @ rows[1], atol=4)


@pytest.mark.parametrize("sketch", [Groups("blocks", dim=30), Groups({"a": "attn"}, SJLT(16, nonzeros=4))])
def test_factors_and_formed_gradients_have_the_same_sketch(sketch):
    projector = from_json(sketch.to_json()).bind(PARAMETERS, 1)
    assert projector.dim == sketch.dim
    for parameter in PARAMETERS:
        rows, columns = (RNG.standard_normal((3, 2, size)).astype(np.float32) for size in parameter.matrix_shape)
        formed = np.einsum("btr,btc->brc", rows, columns).reshape(3, -1)
        by_factors, by_form = np.zeros((2, 3, projector.dim), np.float32)
        projector.add_factors(by_factors, parameter, rows, columns)
        squares = projector.add_measured(by_form, parameter, formed)
        assert_allclose(by_factors, by_form, atol=1e-4)
        assert_allclose(squares, (formed**2).sum(axis=1), rtol=1e-5)
        assert projector.cost(parameter) > 0 and projector.factor_cost(parameter, 2) > 0


def test_weights_of_a_query():
    projector = Groups({"attention": "attn", "mlp": "mlp"}, dim=30).bind(PARAMETERS, 0)
    numbers, by_name = projector.weights({"mlp": 2.0})
    assert_array_equal(numbers, np.repeat([0, 2, 0], 10))
    assert by_name == {name: 2.0 if "mlp" in name else 0.0 for name in SHAPES}


def test_options_are_saved_and_bad_ones_refused():
    sketch = Groups({"attention": "attn"}, CountSketch(64))
    assert from_json(sketch.to_json()) == sketch and hash(sketch) == hash(
        Groups({"attention": "attn"}, CountSketch(64))
    )
    assert sketch != Groups({"attention": "mlp"}, CountSketch(64))
    assert Groups("blocks").dim == 1024
    with pytest.raises(
        ValueError, match="groups must be 'blocks' or a mapping of names to regular expressions, got 'l"
    ):
        Groups("layers")
    with pytest.raises(TypeError, match="groups must be a mapping of names to regular expressions, or 'blocks'"):
        Groups({"a": 3})
    with pytest.raises(ValueError, match="must have at least one name, and none may be 'others'"):
        Groups({"others": "a"})
    with pytest.raises(ValueError, match="shares out a CountSketch's, SJLT's, Gaussian's or Rademacher's dim"):
        Groups("blocks", Identity())
    with pytest.raises(ValueError, match=r"The group 'c' .'conv'. has none of the parameters"):
        Groups({"c": "conv"}).bind(PARAMETERS, 0)
    with pytest.raises(ValueError, match="There are 3 groups for 2 numbers"):
        Groups("blocks", dim=2).bind(PARAMETERS, 0)
