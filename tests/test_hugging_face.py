"""Hugging Face datasets as a job's dataset, and embeddings as a column that its own FAISS index searches."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex.data import hugging_face
from gradindex.data.dataset_types import as_source
from gradindex.interop.hugging_face import with_embeddings
from tests.jobs import ROWS, digits, trained

datasets = pytest.importorskip("datasets", reason="pip install datasets")


@pytest.fixture(scope="module")
def pictures():
    x, y = digits()
    return datasets.Dataset.from_dict({"pixels": x.tolist(), "label": y.tolist()})


@pytest.fixture(scope="module")
def index(pictures, tmp_path_factory):
    job = gradindex.Job(trained(), nn.CrossEntropyLoss(), pictures)
    return gradindex.build(job, tmp_path_factory.mktemp("hf") / "index")


def test_a_dataset_is_read_as_its_arrays_are(pictures, index, tmp_path):
    x, y = digits()
    want = gradindex.build(gradindex.Job(trained(), nn.CrossEntropyLoss(), (x, y)), tmp_path / "arrays")
    np.testing.assert_array_equal(index.store.gather(np.arange(ROWS)), want.store.gather(np.arange(ROWS)))
    found, same = index.explain(x[:3], k=4), want.explain(x[:3], k=4)
    np.testing.assert_array_equal(found.ordered_indices, same.ordered_indices)
    np.testing.assert_array_equal(found.labels, y[found.ordered_indices])


def test_columns_by_name_formats_and_texts():
    rows = {
        "input_ids": [[1, 2, 3], [4, 5], [6, 7, 8]],
        "attention_mask": [[1, 1, 1], [1, 1], [1, 1, 0]],
        "text": ["a", "b", "c"],
        "labels": [0, 1, 1],
    }
    data = datasets.Dataset.from_dict(rows)
    several = hugging_face.source(data, x=["input_ids", "attention_mask"]).take(np.array([2, 0]))
    assert [one.tolist() for one in several.x["input_ids"]] == [[6, 7, 8], [1, 2, 3]]
    assert several.y.tolist() == [1, 0]
    ragged = hugging_face.source(data, x="input_ids").take(np.array([0, 1, 1]))
    assert [one.tolist() for one in ragged.x] == [[1, 2, 3], [4, 5], [4, 5]]
    assert hugging_face.source(data, x="text").take(np.array([1])).x == ["b"]
    other = hugging_face.source(data, x="text", y="attention_mask").take(np.array([1]))
    assert [one.tolist() for one in other.y] == [[1, 1]]
    own = data.select_columns(["input_ids", "labels"]).with_format("torch")
    found = as_source(own).take(np.array([0]))
    assert isinstance(found.x, torch.Tensor | list) and isinstance(found.y, torch.Tensor)
    assert set(as_source(data).take(np.array([0])).x) == {"input_ids", "attention_mask", "text"}


def test_bad_columns_and_ids_are_named(pictures):
    with pytest.raises(ValueError, match=r"no column 'image'; the dataset has \['pixels', 'label'\]"):
        hugging_face.source(pictures, x="image")
    with pytest.raises(ValueError, match=r"Which column holds the labels\? Give y, one of \['pixels'\]"):
        as_source(pictures.remove_columns("label"))
    with pytest.raises(IndexError, match="out of range for a dataset of 240 samples"):
        as_source(pictures).take(np.array([240]))


def test_nearest_examples_are_those_of_the_index(pictures, index):
    import faiss

    x, _ = digits()
    queries = index.sketch(x[:3])
    scores, ids = index.search(queries, 5)
    found = with_embeddings(pictures, index)
    assert found.column_names == ["pixels", "label", "gradient"]
    found.add_faiss_index("gradient")
    for query, score, row in zip(queries, scores, ids, strict=True):
        distances, samples = found.get_nearest_examples("gradient", query, k=5)
        np.testing.assert_allclose(samples["pixels"], x[row], atol=1e-6)
        np.testing.assert_allclose(distances, 2 - 2 * score, atol=1e-5)
    found.drop_index("gradient")
    found.add_faiss_index("gradient", metric_type=faiss.METRIC_INNER_PRODUCT)
    cosines, samples = found.get_nearest_examples("gradient", queries[0], k=5)
    np.testing.assert_allclose(cosines, scores[0], atol=1e-5)
    np.testing.assert_allclose(samples["pixels"], x[ids[0]], atol=1e-6)


def test_embeddings_in_a_file(pictures, index, tmp_path):
    path = tmp_path / "rows.arrow"
    found = with_embeddings(pictures, index, path=path)
    want = with_embeddings(pictures, index)
    assert found.column_names == want.column_names
    np.testing.assert_array_equal(found["gradient"][:], want["gradient"][:])
    assert str(path) in {file["filename"] for file in found.cache_files}
    with pytest.raises(FileExistsError):
        with_embeddings(pictures, index, path=path)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.arrow"]


def test_removed_samples_are_left_out(pictures, tmp_path):
    x, _ = digits()
    index = gradindex.build(gradindex.Job(trained(), nn.CrossEntropyLoss(), pictures), tmp_path / "i")
    index.remove([0, 7])
    for _ in range(2):
        found = with_embeddings(pictures, index, "row")
        assert len(found) == ROWS - 2
        found.add_faiss_index("row")
        _, samples = found.get_nearest_examples("row", index.sketch(x[:1])[0], k=4)
        np.testing.assert_allclose(samples["pixels"], x[index.search(index.sketch(x[:1]), 4)[1][0]], atol=1e-6)
        index.compact()


def test_what_does_not_fit_is_refused(pictures, index, monkeypatch):
    with pytest.raises(ValueError, match="has a column 'label' already"):
        with_embeddings(pictures, index, "label")
    with pytest.raises(ValueError, match="made of 240 samples but the dataset has 239"):
        with_embeddings(pictures.select(range(239)), index)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'gradindex\[datasets\]'"):
        with_embeddings(pictures, index)
