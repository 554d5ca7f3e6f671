"""Samples that differ in length: packed with others of their length, never padded, results in the samples' order."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gradindex.compute.blocks import embed, embed_rows, exact_gradients
from gradindex.data.dataset_types import as_source
from gradindex.data.source import is_ragged, rectangles
from gradindex.job import Job
from gradindex.sketch import CountSketch

WORDS, CLASSES = 13, 3
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(0, WORDS, length) for length in (4, 7, 4, 3, 9, 7, 4, 5, 3, 4, 7)]
LABELS = RNG.integers(0, CLASSES, len(TEXTS))


def torch_model():
    import torch
    from torch import nn

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(WORDS, 8), nn.Embedding(16, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.rnn, self.head = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, CLASSES)

        def forward(self, ids, weights=None):
            x = self.layer(self.words(ids) + self.places(torch.arange(ids.shape[1])))
            x = self.rnn(x)[0] if weights is None else self.rnn(x)[0] * weights[:, :, None]
            x = x.reshape(-1, 5)  # time folded into the batch: how many rows a sample has depends on its length
            return self.head(torch.tanh(x)).reshape(len(ids), -1, CLASSES).mean(1)

    torch.manual_seed(0)
    return Reader()


def keras_model():
    keras = pytest.importorskip("keras")
    layers = keras.layers
    keras.utils.set_random_seed(0)
    words = layers.Input((None,), dtype="int32")
    x = layers.Embedding(WORDS, 8)(words)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.Conv1D(6, 3, padding="same", activation="relu")(x)
    return keras.Model(words, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))


def job(framework, x=TEXTS, y=LABELS, model=None, loss=None):
    if framework == "torch":
        from torch import nn

        return Job(model=model or torch_model(), loss_fn=loss or nn.CrossEntropyLoss(), dataset=(x, y))
    keras = pytest.importorskip("keras")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Job(model=keras_model(), loss_fn=loss, dataset=(x, y))


def assert_embedded(job, blocks):
    truth = exact_gradients(job, np.arange(len(job.source)))
    projector = CountSketch().bind(job.engine.parameters, 0)
    expected = projector(job.engine.parameters, truth)
    assert_array_equal(np.concatenate([block.ids for block in blocks]), np.arange(len(job.source)))
    found = np.concatenate([block.sketches for block in blocks])
    assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert_allclose(np.concatenate([block.norms for block in blocks]), np.linalg.norm(truth, axis=1), rtol=1e-5)


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
@pytest.mark.parametrize("batch_size", [None, 2, 1])
def test_texts_embed_as_one_by_one(framework, batch_size):
    task = job(framework)
    blocks = list(embed(task, batch_size=batch_size))
    assert_embedded(task, blocks)
    assert set(task.engine.paths.values()) == {"factored"}
    again = list(embed(task, batch_size=batch_size))
    for block, same in zip(blocks, again, strict=True):
        assert_array_equal(block.sketches, same.sketches)
        assert_array_equal(block.norms, same.norms)
        assert_array_equal(block.predictions, same.predictions)


def test_dicts_of_texts():
    weights = [RNG.random(len(text), np.float32) for text in TEXTS]
    task = job("torch", {"ids": TEXTS, "weights": weights})
    assert_embedded(task, list(embed(task)))
    assert set(task.engine.paths.values()) == {"factored"}


def test_pairs_and_lists_of_numbers():
    pairs = [(text.tolist(), int(label)) for text, label in zip(TEXTS, LABELS, strict=True)]
    from torch import nn

    task = Job(model=torch_model(), loss_fn=nn.CrossEntropyLoss(), dataset=pairs)
    assert_embedded(task, list(embed(task)))


def test_labels_for_each_token():
    from torch import nn

    model = nn.Sequential(nn.Embedding(WORDS, 4), nn.Linear(4, CLASSES))
    tags = [RNG.integers(0, CLASSES, len(text)) for text in TEXTS]

    def loss(out, y):
        return nn.functional.cross_entropy(out.flatten(0, 1), y.flatten())

    task = job("torch", TEXTS, tags, model, loss)
    blocks = list(embed(task))
    assert_embedded(task, blocks)
    assert all(block.predictions is None for block in blocks)


def test_some_rows_have_the_same_bits_as_in_another_block():
    task = job("torch")
    projector = CountSketch(64).bind(task.engine.parameters, 0)
    whole = list(embed_rows(task, projector, 4, 3, 9))
    again = list(embed_rows(task, projector, 4, 3, 9))
    assert_array_equal(np.concatenate([block.ids for block in whole]), np.arange(3, 9))
    assert_array_equal(whole[0].sketches, again[0].sketches)


def test_rectangles_largest_first_and_no_more_than_asked_for():
    parts = rectangles(TEXTS, LABELS, 3)
    shapes = [x.shape for _, x, _ in parts]
    assert shapes == [(3, 4), (1, 4), (3, 7), (2, 3), (1, 5), (1, 9)]
    for rows, x, y in parts:
        assert_array_equal(x, np.stack([TEXTS[i] for i in rows]))
        assert_array_equal(y, LABELS[rows])
    assert_array_equal(np.sort(np.concatenate([rows for rows, _, _ in parts])), np.arange(len(TEXTS)))


def test_objects_and_equal_shapes_stay_together():
    (rows, x, y), *more = rectangles(["a", "bc", "d"], np.arange(3))
    assert (rows.tolist(), x, y.tolist(), more) == ([0, 1, 2], ["a", "bc", "d"], [0, 1, 2], [])
    assert [len(rows) for rows, _, _ in rectangles(np.ones((5, 2)), None, 2)] == [2, 2, 1]


def test_lists_of_numbers_become_arrays_of_one_dtype():
    column = as_source(([[1, 2], [], [3]], [0, 1, 0])).x
    assert is_ragged(column)
    assert [array.dtype.kind for array in column] == ["i", "i", "i"]
    assert not is_ragged(as_source((["a", "bc"], [0, 1])).x)
    assert is_ragged(as_source((np.array([[1, 2], [3]], dtype=object), [0, 1])).x)


def test_nan_in_a_sample_is_named():
    values = [np.ones(2, np.float32), np.array([1, np.nan, 2], np.float32)]
    with pytest.raises(ValueError, match=r"The data of samples \[1\] holds NaN or infinity"):
        list(embed(job("torch", values, [0, 1]), batch_size=2))


def test_another_length_is_checked_against_the_loop_too():
    import torch
    from torch import nn

    class Mixing(nn.Module):
        """Mixes samples, but only long ones."""

        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, CLASSES)

        def forward(self, ids):
            x = self.words(ids).mean(1)
            return self.head(x - 0.5 * x.mean(0, keepdim=True) if ids.shape[1] > 4 else x)

    torch.manual_seed(0)
    task = job("torch", model=Mixing())
    with pytest.warns(UserWarning, match="differ from the one-sample loop"):
        found = task.engine.gradients(task.source.x, LABELS).gradients
    assert_allclose(found, exact_gradients(task, np.arange(len(TEXTS))), atol=1e-6)
    assert set(task.engine.paths.values()) == {"vmap"}
