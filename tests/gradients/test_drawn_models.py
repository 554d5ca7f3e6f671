"""Three hundred torch models drawn at random: no score that is marked exact, and no proof, is wrong."""

import logging

import pytest

import gradindex
from tests.drawn_judge import judge
from tests.drawn_models import draw

MODELS, AT_ONCE, SAMPLES = 300, 25, 24
REFUSED = 0.1  # share of models at most


@pytest.fixture(scope="module")
def refused():
    """The numbers of the models that were refused, and why; most models have to be served."""
    found = {}
    yield found
    assert len(found) <= REFUSED * MODELS, found


@pytest.mark.parametrize("first", range(0, MODELS, AT_ONCE))
def test_what_is_marked_exact_is(first, tmp_path, refused, caplog):
    caplog.set_level(logging.ERROR, "gradindex")
    wrong = []
    for seed in range(first, first + AT_ONCE):
        found = judge(draw(seed, SAMPLES), tmp_path, thorough=seed % 4 == 0)
        if found.refused:
            refused[seed] = found.refused
        if not found.right:
            wrong.append(found)
    assert not wrong


@pytest.mark.parametrize("seed", [1417, 1807, 2040, 2044, 3584, 3898])
def test_what_few_samples_show_of_a_batch_is_not_forgotten_by_products(seed, tmp_path, caplog):
    """A penalty on the samples of one class: the paths were chosen right, forward mode missed it for some of them."""
    caplog.set_level(logging.ERROR, "gradindex")
    assert judge(draw(seed, 30), tmp_path).right


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", [1417, 2044, 3898])
def test_nor_by_an_index_that_is_opened(seed, tmp_path, caplog):
    """By whatever door, and though a query of its own shows nothing of the penalty."""
    caplog.set_level(logging.ERROR, "gradindex")
    drawn = draw(seed, 30)
    gradindex.build(drawn.job(), tmp_path / "index", progress=False)
    harmless = int((drawn.y != drawn.y.max()).nonzero()[0])
    for door in (gradindex.load, gradindex.Index.open):
        index = door(tmp_path / "index", drawn.job())
        found = index.explain(ids=[harmless], k=5)
        assert index.job.engine.ways.distrusted
        assert found.meta["params"]["exact_method"] == "training steps"
        assert found.exact.all()
