"""Datasets as blocks of (ids, x, y): whole columns, datasets, loaders, streams and sequences."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from gradindex.data.dataset_types import as_source
from gradindex.data.source import (
    Batch,
    ColumnSource,
    MapSource,
    StreamSource,
    as_columns,
    is_tensor,
    leaves,
    length,
    map_leaves,
    take_rows,
)

X = np.arange(21, dtype=np.float32).reshape(7, 3)
Y = np.arange(7) * 10


def pairs():
    return list(zip(X, Y, strict=True))


class Iterable:
    """A stream with a length and no random access."""

    def __init__(self, stop=7, length=7):
        self.stop, self.length = stop, length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(pairs()[: self.stop])


def torch_dataset():
    import torch

    return torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))


def loader(**options):
    import torch

    return torch.utils.data.DataLoader(torch_dataset(), batch_size=2, **options)


DATASETS = {
    "columns": lambda: (X, Y),
    "lists": lambda: (X.tolist(), Y.tolist()),
    "pairs": pairs,
    "tuple of pairs": lambda: tuple(pairs()),
    "torch dataset": torch_dataset,
    "loader": loader,
    "shuffled loader": lambda: loader(shuffle=True),
    "dropping loader": lambda: loader(drop_last=True),
    "iterable": Iterable,
    "source": lambda: ColumnSource(X, Y),
}


@pytest.mark.parametrize("name", DATASETS)
class TestEveryDataset:
    def test_blocks(self, name):
        source = as_source(DATASETS[name]())
        assert len(source) == 7
        blocks = list(source.blocks(3))
        assert [len(block) for block in blocks] == [3, 3, 1]
        for block in blocks:
            assert block.ids.dtype == np.int64
            assert_array_equal(block.x, X[block.ids])
            assert_array_equal(block.y, Y[block.ids])
        assert_array_equal(np.concatenate([block.ids for block in blocks]), np.arange(7))

    @pytest.mark.parametrize(("start", "stop"), [(0, 7), (2, 6), (6, 7), (3, 3)])
    def test_part(self, name, start, stop):
        blocks = list(as_source(DATASETS[name]()).blocks(3, start, stop))
        ids = [i for block in blocks for i in block.ids.tolist()]
        assert ids == list(range(start, stop))
        for block in blocks:
            assert_array_equal(block.x, X[block.ids])

    def test_take_keeps_order_and_repeats(self, name):
        ids = np.array([5, 0, 5, 3])
        batch = as_source(DATASETS[name]()).take(ids)
        assert_array_equal(batch.ids, ids)
        assert_array_equal(batch.x, X[ids])
        assert_array_equal(batch.y, Y[ids])

    @pytest.mark.parametrize("bad", [[-1], [7], [0, 99]])
    def test_ids_out_of_range(self, name, bad):
        with pytest.raises(IndexError, match=rf"\[{next(i for i in bad if i)}\] are out of range .* 7 samples"):
            as_source(DATASETS[name]()).take(np.array(bad))

    def test_twice_the_same(self, name):
        source = as_source(DATASETS[name]())
        first, second = (np.concatenate([block.x for block in source.blocks(2)]) for _ in range(2))
        assert_array_equal(first, second)


class TestKinds:
    def test_without_labels(self):
        for dataset in (X, (X,), [(row,) for row in X], list(X)):
            batch = as_source(dataset).take(np.array([1, 2]))
            assert batch.y is None
            assert_array_equal(batch.x, X[1:3])
            assert batch.select(slice(0, 1)).y is None

    def test_several_inputs(self):
        columns = ({"a": X, "b": X[:, 0]}, Y)
        samples = [({"a": a, "b": a[0]}, y) for a, y in pairs()]
        for dataset in (columns, samples):
            batch = as_source(dataset).take(np.array([4, 2]))
            assert_array_equal(batch.x["a"], X[[4, 2]])
            assert_array_equal(batch.x["b"], X[[4, 2], 0])

    def test_tuples_of_inputs(self):
        batch = as_source([((a, a[:1]), y) for a, y in pairs()]).take(np.array([4, 2]))
        assert isinstance(batch.x, tuple)
        assert_array_equal(batch.x[1], X[[4, 2], :1])
        assert_array_equal(batch.y, [40, 20])

    def test_objects_stay_a_list(self):
        texts = list("abcdefg")
        for dataset in ((texts, Y), list(zip(texts, Y, strict=True))):
            assert as_source(dataset).take(np.array([6, 0])).x == ["g", "a"]

    def test_ragged_arrays_stay_a_list(self):
        ragged = [np.ones(i + 1) for i in range(7)]
        found = as_source((ragged, Y)).take(np.array([2, 0])).x
        assert [len(item) for item in found] == [3, 1]

    def test_collate_function_of_a_loader(self):
        source = as_source(loader(collate_fn=lambda samples: (len(samples), [y for _, y in samples])))
        batch = source.take(np.array([1, 2, 3]))
        assert batch.x == 3
        assert [int(y) for y in batch.y] == [10, 20, 30]

    def test_iterable_torch_dataset(self):
        import torch

        class Stream(torch.utils.data.IterableDataset):
            def __len__(self):
                return 7

            def __iter__(self):
                return iter(pairs())

        source = as_source(Stream())
        assert isinstance(source, StreamSource)
        assert_array_equal(source.take(np.array([3])).x, X[3:4])

    def test_map_source_of_nothing(self):
        assert len(MapSource(pairs()).take(np.array([], np.int64))) == 0

    @pytest.mark.parametrize("dataset", [[], (X[:0], Y[:0]), ([], []), Iterable(0, 0)])
    def test_empty(self, dataset):
        with pytest.raises(ValueError, match="dataset is empty"):
            as_source(dataset)

    def test_a_stream_shorter_than_it_says(self):
        with pytest.raises(ValueError, match="ended after 5 samples; 7 were expected"):
            list(as_source(Iterable(stop=5)).blocks(3))

    def test_no_length(self):
        with pytest.raises(TypeError, match="has no length"):
            as_source(iter(pairs()))

    @pytest.mark.parametrize("dataset", [None, 3, object()])
    def test_not_a_dataset(self, dataset):
        with pytest.raises(TypeError, match=f"Cannot read a dataset of type {type(dataset).__name__}"):
            as_source(dataset)

    def test_samples_of_three_parts(self):
        with pytest.raises(ValueError, match=r"must be \(x, y\), got 3 parts"):
            as_source([(a, a, y) for a, y in pairs()]).take(np.array([0]))

    def test_columns_of_different_lengths(self):
        with pytest.raises(ValueError, match="X has 7 samples but Y has 6"):
            as_source((X, Y[:6]))


class TestTrees:
    def test_map_and_leaves(self):
        tree = {"a": X, "b": (Y, ["p", "q"])}
        assert [len(leaf) for leaf in leaves(tree)] == [7, 7, 2]
        assert map_leaves(len, tree) == {"a": 7, "b": (7, 2)}

    def test_length(self):
        assert length({"a": X, "b": Y}) == 7
        with pytest.raises(ValueError, match=r"different numbers of samples: \[2, 7\]"):
            length((X, ["p", "q"]))

    @pytest.mark.parametrize("rows", [slice(1, 3), np.array([1, 2])])
    def test_index(self, rows):
        import torch

        found = take_rows({"a": X, "b": (list("abcdefg"), torch.tensor(Y))}, rows)
        assert_array_equal(found["a"], X[1:3])
        assert found["b"][0] == ["b", "c"]
        assert isinstance(found["b"][1], torch.Tensor)
        assert_array_equal(found["b"][1], Y[1:3])

    def test_select_keeps_ids(self):
        batch = Batch(np.array([5, 6, 9]), X[:3], Y[:3]).select(np.array([2, 0]))
        assert_array_equal(batch.ids, [9, 5])
        assert_array_equal(batch.x, X[[2, 0]])

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ([1, 2], np.array([1, 2])),
            ([[1.0], [2.0]], np.array([[1.0], [2.0]])),
            ([True, False], np.array([True, False])),
            ([np.ones(2), np.zeros(2)], np.array([[1.0, 1.0], [0.0, 0.0]])),
            (3, np.array(3)),
        ],
    )
    def test_numbers_become_arrays(self, value, expected):
        assert_array_equal(as_columns(value), expected, strict=True)

    @pytest.mark.parametrize("value", [["a", "b"], [{"a": 1}], [(1, 2)], [b"a"], [["a"], ["b", "c"]], [None, None], []])
    def test_objects_stay_lists(self, value):
        found = as_columns(value)
        if value:
            assert found is not value or isinstance(found, list)
            assert found == value
        else:
            assert len(found) == 0

    def test_lists_of_tensors_are_stacked(self):
        import torch

        found = as_columns([torch.ones(2), torch.zeros(2)])
        assert isinstance(found, torch.Tensor)
        assert found.shape == (2, 2)
        assert len(as_columns([torch.ones(2), torch.ones(3)])) == 2

    def test_is_tensor(self):
        import torch

        assert is_tensor(torch.ones(1))
        assert not is_tensor(np.ones(1))
        assert not is_tensor([1])


class Several:
    """A dataset that fetches whole batches, as torch's may."""

    def __init__(self, short=0):
        self.asked, self.short = [], short

    def __len__(self):
        return 9

    def __getitem__(self, i):
        raise AssertionError("one at a time")

    def __getitems__(self, positions):
        self.asked.append(positions)
        return [(np.full(3, i, np.float32), i) for i in positions[self.short :]]


def test_a_dataset_that_has_getitems_is_asked_for_whole_batches():
    dataset = Several()
    batch = as_source(dataset).take(np.array([7, 2, 4]))
    assert dataset.asked[-1] == [7, 2, 4]
    assert batch.x[:, 0].tolist() == [7, 2, 4]
    assert batch.y.tolist() == [7, 2, 4]


def test_getitems_that_loses_samples_is_refused():
    with pytest.raises(ValueError, match="returned 2 samples for 3 positions"):
        as_source(Several(short=1)).take(np.array([7, 2, 4]))
