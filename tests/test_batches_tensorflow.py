import warnings

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from gradindex.data.dataset_types import as_source  # noqa: E402

N = 10
X = np.arange(N * 3, dtype=np.float32).reshape(N, 3)
Y = np.arange(N)


def base():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def keep(x, y):
    return x, y


def generated(batched):
    lead = (None,) if batched else ()
    signature = (tf.TensorSpec((*lead, 3), tf.float32), tf.TensorSpec(lead, tf.int64))
    rows = [(X[:7], Y[:7]), (X[7:], Y[7:])] if batched else list(zip(X, Y, strict=True))
    return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)


DATASETS = {
    "samples": base,
    "batched": lambda: base().batch(4),
    "batched, prefetched": lambda: base().map(keep).batch(4).cache().prefetch(2),
    "batched in parallel": lambda: base().batch(4, num_parallel_calls=2).map(keep, num_parallel_calls=2),
    "unbatched": lambda: base().batch(4).unbatch(),
    "batched again": lambda: base().batch(4).unbatch().batch(3),
    "rebatched": lambda: base().batch(4).rebatch(3),
    "padded": lambda: base().padded_batch(4),
    "zipped": lambda: tf.data.Dataset.zip(
        (tf.data.Dataset.from_tensor_slices(X).batch(4), tf.data.Dataset.from_tensor_slices(Y).batch(4))
    ),
    "concatenated": lambda: base().take(4).batch(3).concatenate(base().skip(4).batch(5)),
    "filtered": lambda: base().filter(lambda x, y: y >= 0),
    "flat map": lambda: base().batch(5).flat_map(lambda x, y: tf.data.Dataset.from_tensor_slices((x, y))),
    "chosen": lambda: tf.data.Dataset.choose_from_datasets(
        [base().take(5).batch(5), base().skip(5).batch(5)], tf.data.Dataset.range(2)
    ),
    "generator of samples": lambda: generated(batched=False),
    "generator of batches": lambda: generated(batched=True),
    "generator, batched": lambda: generated(batched=False).batch(3),
}


@pytest.mark.parametrize("make", DATASETS.values(), ids=DATASETS)
def test_datasets_are_samples_in_order(make):
    source = as_source(make())
    assert len(source) == N
    blocks = list(source.blocks(4))
    assert [len(block) for block in blocks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([block.ids for block in blocks]), np.arange(N))
    np.testing.assert_array_equal(np.concatenate([block.x for block in blocks]), X)
    np.testing.assert_array_equal(np.concatenate([block.y for block in blocks]), Y)
    assert all(isinstance(block.x, np.ndarray) for block in blocks)


@pytest.mark.parametrize("make", [DATASETS["samples"], DATASETS["batched"], DATASETS["generator of batches"]])
def test_random_access_and_ranges(make):
    source = as_source(make())
    batch = source.take(np.array([7, 0, 7, 9]))
    np.testing.assert_array_equal(batch.x, X[[7, 0, 7, 9]])
    np.testing.assert_array_equal(batch.y, Y[[7, 0, 7, 9]])
    (block,) = source.blocks(10, start=3, stop=6)
    np.testing.assert_array_equal(block.x, X[3:6])


def test_no_labels_dicts_and_one_part():
    alone = as_source(tf.data.Dataset.from_tensor_slices(X).batch(4))
    assert alone.take(np.array([2])).y is None
    np.testing.assert_array_equal(alone.take(np.array([2])).x, X[[2]])
    named = as_source(tf.data.Dataset.from_tensor_slices(({"a": X, "b": Y}, Y)).batch(4))
    batch = named.take(np.array([5, 1]))
    np.testing.assert_array_equal(batch.x["a"], X[[5, 1]])
    np.testing.assert_array_equal(batch.x["b"], Y[[5, 1]])
    np.testing.assert_array_equal(batch.y, Y[[5, 1]])
    several = as_source(tf.data.Dataset.from_tensor_slices(((X, Y), Y)))
    np.testing.assert_array_equal(several.take(np.array([4])).x[1], [4])


def test_samples_of_different_shapes_are_a_list():
    lengths = [2, 3, 1]
    dataset = tf.data.Dataset.from_generator(
        lambda: ((np.arange(n), n) for n in lengths),
        output_signature=(tf.TensorSpec((None,), tf.int64), tf.TensorSpec((), tf.int64)),
    )
    source = as_source(dataset)
    batch = source.take(np.arange(3))
    assert isinstance(batch.x, list)
    assert [len(x) for x in batch.x] == lengths
    np.testing.assert_array_equal(batch.y, lengths)


def test_a_seeded_shuffle_that_stays_is_an_order():
    source = as_source(base().shuffle(N, seed=3, reshuffle_each_iteration=False).batch(4))
    (whole,) = source.blocks(N)
    assert sorted(whole.y) == list(Y) != list(whole.y)
    np.testing.assert_array_equal(source.take(np.array([6, 2])).y, whole.y[[6, 2]])
    np.testing.assert_array_equal(whole.x, X[whole.y])


SHUFFLED = {
    "plain": lambda: base().shuffle(N),
    "before batches": lambda: base().shuffle(N, seed=1).batch(4).prefetch(1),
    "of batches": lambda: base().batch(2).shuffle(N),
    "without a seed": lambda: base().shuffle(N, reshuffle_each_iteration=False),
    "in a part": lambda: base().concatenate(base().shuffle(N)),
    "sampled": lambda: tf.data.Dataset.sample_from_datasets([base(), base()]),
}


@pytest.mark.parametrize("make", SHUFFLED.values(), ids=SHUFFLED)
def test_shuffled_is_refused(make, monkeypatch):
    context = pytest.importorskip("tensorflow.python.eager.context").context()
    monkeypatch.setattr(context, "_seed", None)  # another test may have set the global seed
    with pytest.raises(ValueError, match=r"reshuffle_each_iteration=False"):
        as_source(make())


def test_nondeterministic_is_refused():
    with pytest.raises(ValueError, match="deterministic"):
        as_source(base().map(keep, num_parallel_calls=2, deterministic=False))
    options = tf.data.Options()
    options.deterministic = False
    with pytest.raises(ValueError, match="deterministic"):
        as_source(base().with_options(options))


def test_infinite_empty_and_sparse_are_refused():
    for endless in (base().repeat(), base().batch(3).repeat()):
        with pytest.raises(ValueError, match=r"infinite.*take\(n\)"):
            as_source(endless)
    assert len(as_source(base().repeat(2).batch(3))) == 2 * N
    with pytest.raises(ValueError, match="empty"):
        as_source(base().take(0))
    with pytest.raises(TypeError, match="dense tensors"):
        as_source(base().ragged_batch(4).map(lambda x, y: (tf.RaggedTensor.from_tensor(x), y)))


def test_reading_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(as_source(base().batch(4)).blocks(3))
