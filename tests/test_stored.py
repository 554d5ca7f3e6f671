"""An index that an earlier version wrote opens, and answers what it answered then."""

import json
import shutil

import numpy as np

import gradindex
from tests import stored


def test_it_opens_and_answers_as_recorded(tmp_path):
    shutil.copytree(stored.FOLDER / "index", tmp_path / "index")
    weights = np.load(stored.FOLDER / "weights.npz")
    found = stored.answers(tmp_path / "index", weights)
    want = json.loads((stored.FOLDER / "answers.json").read_text())
    assert found.keys() == want.keys()
    for name, value in want.items():
        if name in ("loss", "searched", "exact", "opponents", "self_influence"):
            for one, other in zip(np.ravel(flat(found[name])), np.ravel(flat(value)), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        else:
            assert found[name] == value, name


def test_it_changes_like_any_other(tmp_path):
    shutil.copytree(stored.FOLDER / "index", tmp_path / "index")
    job = stored.job(np.load(stored.FOLDER / "weights.npz"), stored.ROWS + stored.MORE)
    assert gradindex.compact(tmp_path / "index", progress=False) == len(stored.GONE)
    index = gradindex.load(tmp_path / "index", job)
    assert len(index) == stored.ROWS + stored.MORE - len(stored.GONE)
    assert not np.isin(stored.GONE, index.explain(ids=[0], k=len(index)).ordered_indices).any()
    assert str(gradindex.repair(tmp_path / "index", job)) == "Nothing was damaged."


def flat(value):
    """Return all numbers in nested lists, in order."""
    return [one for part in value for one in flat(part)] if isinstance(value, list) else [value]
