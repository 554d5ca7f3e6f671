"""A review in a file of which a few lines are read at a time, also from several row groups; maps."""

import numpy as np
import pytest

import gradindex
from gradindex.review import Finding, Kind, Review
from gradindex.review.kept import Kept, as_parquet, undecided
from gradindex.review.projection import Projection, project
from gradindex.store import Store
from tests.jobs import digits_job


def large():
    counts = {Kind.LABEL: 2500, Kind.OUTLIER: 700, Kind.CONFUSION: 3}
    findings = [
        Finding(
            kind,
            None if kind is Kind.CONFUSION else 7 * i,
            float(i),
            i % 10,
            None if i % 3 else i % 7,
            None if i % 2 else 4,
            tuple(range(i % 4)),
            tuple(range(i % 4)),
            f"note {i}",
            None if kind is Kind.OUTLIER else 1 / (1 + i),
        )
        for kind, count in counts.items()
        for i in range(count)
    ]
    return Review(tuple(findings), ("nothing of texts",), {"precision_from": "a guess"}, None, np.arange(3))


@pytest.mark.parametrize("on_disk", [True, False])
def test_any_lines_are_those_of_the_review(tmp_path, on_disk):
    found = large()
    data = as_parquet(found)
    (tmp_path / "r.parquet").write_bytes(data)
    kept = Kept(tmp_path / "r.parquet" if on_disk else data)
    assert kept.left_out == ["nothing of texts"] and kept.about == {"precision_from": "a guess"}
    assert {kind: count for kind, count in kept.counts.items() if count} == {
        "label": 2500,
        "outlier": 700,
        "confusion": 3,
    }
    for kind in Kind:
        want = found.of(kind)
        assert kept.ids(kind).tolist() == [-1 if one.id is None else one.id for one in want]
        for offset, limit in ((0, 20), (1020, 10), (2490, 20), (690, 5), (0, 5000), (5000, 10), (2, 1)):
            assert kept.lines(kind, offset, limit) == want[offset : offset + limit], (kind, offset)
    found.save(tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match="holds no review"):
        Kept(tmp_path / "plain.parquet")


def test_what_is_undecided():
    assert undecided(np.array([5, -1, 3, 8, 3]), np.array([3, 9])).tolist() == [0, 3]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "index"
    gradindex.build(digits_job(), path).remove([3])
    return Store.open(path)


@pytest.mark.parametrize("way", ["pca", "tsne"])
def test_a_map_is_the_same_for_a_seed_and_keeps_neighbours_together(store, tmp_path, way):
    found, again, other = (project(store, most=150, way=way, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(found.ids, again.ids)
    np.testing.assert_allclose(found.places, again.places)
    assert found.ids.tolist() != other.ids.tolist()
    assert len(set(found.ids.tolist())) == 150 and 3 not in found.ids and (np.diff(found.ids) > 0).all()
    assert found.places.min() == 0 and found.places.max() == 1
    far = np.linalg.norm(found.places[:, None] - found.places[None], axis=-1)
    np.fill_diagonal(far, np.inf)
    rows = store.gather(store.rows_of(found.ids))
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    near = np.take_along_axis(cosines, far.argmin(axis=1)[:, None], 1).mean()
    assert near > 2 * cosines[np.isfinite(cosines)].mean()
    (tmp_path / "m.npz").write_bytes(found.to_bytes())
    read = Projection.read(tmp_path / "m.npz")
    np.testing.assert_array_equal(read.places, found.places)
    assert read.about == found.about and read.about["of"] == 239


def test_what_is_no_map_is_refused(store, tmp_path):
    with pytest.raises(ValueError, match="A map is made by tsne or pca, got 'umap'"):
        project(store, way="umap")
    for data in (b"", b"nonsense", large().about.__repr__().encode()):
        (tmp_path / "m.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"holds no map|pickled"):
            Projection.read(tmp_path / "m.npz")
    assert len(project(store, most=10**6, way="pca").ids) == 239
