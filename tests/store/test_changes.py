"""What is added, removed and compacted is there for who opens the index afterwards, and not for who did before."""

import json
import multiprocessing
import shutil
import time

import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex.ann import files as index_files
from gradindex.cli.app import run
from gradindex.data import fingerprint
from gradindex.data.chain import Chain
from gradindex.data.dataset_types import as_source
from gradindex.data.source import ColumnSource, MapSource
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.lifecycle import compact, embed_shards
from gradindex.store import Store, changes
from tests import oracles
from tests.jobs import ROWS, digits, digits_job, longer_job, other_model_job
from tests.store.reading import read_in_a_loop
from tests.test_builder import files

MORE = 60
KERNELS = ["grad_cos", "grad_dot", "grad_asym_dot"]


def new(begin=ROWS, stop=ROWS + MORE):
    x, y = digits(stop)
    return x[begin:], y[begin:]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return gradindex.build(digits_job(), tmp_path_factory.mktemp("changes") / "i", shard_rows=100).store.path


@pytest.fixture
def path(original, tmp_path):
    return shutil.copytree(original, tmp_path / "i")


def answers(index, ids=(1, 5, 8), k=20, **options):
    found = index.explain(ids=list(ids), k=k, **options)
    return np.concatenate([found.ordered_indices, found.opponent_indices], axis=1)


def truth(gone=(), kernel="grad_cos", rows=ROWS + MORE, queries=(1, 5, 8), k=20):
    """Return the exact answer of an index of `rows` samples that never had those that are `gone`."""
    gradients = gradindex.exact_gradients(longer_job(rows), np.arange(rows)).astype(np.float64)
    values = oracles.kernel(kernel, gradients[list(queries)], gradients, eps=0)
    values[:, list(gone)] = -np.inf
    return np.argsort(-values, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("kernel", KERNELS)
def test_added_samples_are_found_as_in_an_index_of_all(path, kernel):
    index = gradindex.load(path, digits_job())
    np.testing.assert_array_equal(index.add(new()), np.arange(ROWS, ROWS + MORE))
    assert len(index) == ROWS + MORE and index.summary.embedded == MORE
    for one in (
        index,
        gradindex.load(path, longer_job(ROWS + MORE)),
        gradindex.load(path, digits_job().extended(new())),
    ):
        for options in ({}, {"certify": True, "max_checks": ROWS + MORE}):
            found = one.explain(ids=[1, 5, 8], k=20, kernel=kernel, rerank=ROWS + MORE, **options)
            np.testing.assert_array_equal(found.ordered_indices, truth(kernel=kernel))
            assert found.exact.all()
    audit = index.verify(queries=30, k=5)
    assert audit.rows == ROWS + MORE and audit.recall == 1
    index.check()
    assert str(gradindex.repair(path)) == "Nothing was damaged."


def test_rows_are_those_of_a_build_of_all(path, tmp_path):
    index = gradindex.load(path, digits_job())
    index.add(new())
    index.add(new(ROWS + MORE, ROWS + MORE + 7))
    whole = gradindex.build(longer_job(ROWS + MORE + 7), tmp_path / "whole", shard_rows=100)
    np.testing.assert_array_equal(index.store.ids, whole.store.ids)
    np.testing.assert_allclose(index.store.norms, whole.store.norms, rtol=1e-5)
    every = np.arange(len(whole))
    np.testing.assert_allclose(index.store.gather(every), whole.store.gather(every), atol=1e-3)
    np.testing.assert_array_equal(index.store.gather(every[::-7]), index.store.gather(every)[::-7])
    for name, values in whole.store.columns.items():
        np.testing.assert_allclose(index.store.columns[name], values, rtol=1e-4, atol=1e-6)
    starts = [start for start, _ in index.store.blocks()]
    assert starts == [0, 100, 200, ROWS, ROWS + MORE]
    np.testing.assert_array_equal(
        np.concatenate([rows for _, rows in index.store.blocks(30, first=250)]), index.store.gather(every[250:])
    )


@pytest.mark.parametrize("kind", ["Flat", "IVF8,Flat", "IVF4,SQ8", "HNSW16"])
def test_every_kind_of_index_grows(path, kind):
    gradindex.index_store(Store.open(path), kind)
    index = gradindex.load(path, digits_job())
    index.add(new())
    assert index.searcher.factory == kind and index.searcher.index.ntotal == ROWS + MORE
    _, ids = index.search(index.store.gather(np.arange(ROWS, ROWS + 10)), 3)
    assert (ids[:, 0] == np.arange(ROWS, ROWS + 10)).mean() > 0.8


def test_who_opened_it_before_sees_it_as_it_was(path):
    before = gradindex.load(path, digits_job())
    want = answers(before)
    other = gradindex.load(path, digits_job())
    other.add(new())
    other.remove([*want[0, :3], ROWS + 2])
    added = gradindex.load(path, longer_job(ROWS + MORE))
    middle = answers(added)
    other.compact()
    for opened, answer in ((before, want), (added, middle)):
        np.testing.assert_array_equal(answers(opened), answer)  # also of what is deleted on disk
        assert len(opened.store.columns["label"]) == len(opened)
        opened.store.gather(np.arange(len(opened)))
    assert len(gradindex.load(path)) == ROWS + MORE - 4 == len(other)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_compacted_index_answers_as_before(path, kernel):
    index = gradindex.load(path, digits_job())
    index.add(new())
    gone = np.arange(0, ROWS + MORE, 3)
    index.remove(gone)
    want = truth(gone, kernel)
    assert index.compact() == len(gone)
    for one in (index, gradindex.load(path, longer_job(ROWS + MORE))):
        assert len(one) == ROWS + MORE - len(gone) and one.store.alive is None
        for options in ({}, {"certify": True, "max_checks": len(one)}):
            found = one.explain(ids=[1, 5, 8], k=20, kernel=kernel, rerank=len(one), **options).ordered_indices
            np.testing.assert_array_equal(found, want)
    index.check()
    assert not (path / "shards").exists() and len(list((path / "parts").iterdir())) == 1
    assert len(list((path / "index").iterdir())) == 2
    audit = index.verify(queries=30, k=5)
    assert audit.rows == len(index) and audit.recall == 1
    assert str(gradindex.repair(path)) == "Nothing was damaged."


def test_and_it_goes_on(path):
    """Add, remove and compact in turn; ids keep their meaning throughout."""
    index = gradindex.load(path, digits_job())
    gone = [3, 4]
    index.remove(gone)
    index.compact()
    assert index.remove([3]) == 0  # removed already, though its row is gone
    index.add(new())
    index.remove([5, ROWS + 1])
    gone += [5, ROWS + 1]
    np.testing.assert_array_equal(
        index.explain(ids=[1, 8], k=20, rerank=500).ordered_indices, truth(gone, queries=(1, 8))
    )
    assert index.compact() == 2
    index.add(new(ROWS + MORE, ROWS + MORE + 5))
    assert len(index) == ROWS + MORE + 5 - 4
    np.testing.assert_array_equal(
        index.explain(ids=[1, 8], k=20, rerank=500, where=np.setdiff1d(np.arange(ROWS), gone)).ordered_indices,
        [line[line < ROWS][:20] for line in truth(gone, queries=(1, 8), k=200)],
    )
    index.check()
    gradindex.load(path, longer_job(ROWS + MORE + 5)).check()
    with pytest.raises(IndexError, match="out of range"):
        index.remove([ROWS + MORE + 5])


def test_nothing_to_do(path):
    before = files(path)
    assert gradindex.compact(path) == 0
    assert gradindex.add(path, digits_job()).summary is None
    assert files(path) == before


def test_compacting_keeps_what_columns_hold(tmp_path):
    words = [["a", None], "b"][:1] * ROWS
    columns = {
        "word": [f"w{i}" for i in range(ROWS)],
        "maybe": [None if i % 3 else i for i in range(ROWS)],
        "list": words,
    }
    index = gradindex.build(digits_job(columns=columns), tmp_path / "i", shard_rows=100)
    with pytest.raises(ValueError, match=r"Expected columns \['list', 'maybe', 'word'\] for the new samples, too"):
        index.add(new())
    index.add(new(), columns={name: values[:MORE] for name, values in columns.items()})
    before = {shard.start: shard.table().schema for shard in index.store.shards}
    index.remove([0, 1])
    index.compact()
    assert {shard.table().schema for shard in index.store.shards} == {before[0]}
    assert index.store.columns["word"].tolist() == columns["word"][2:] + columns["word"][:MORE]
    assert index.explain(ids=[9], k=2).columns["word"].shape == (1, 2)


def test_what_cannot_be_added(path):
    index = gradindex.load(path, digits_job())
    x, y = new()
    with pytest.raises(ValueError, match="The dataset is empty"):
        index.add((x[:0], y[:0]))
    x = x.copy()
    x[5] = np.nan
    with pytest.raises(ValueError, match=r"data of samples \[245\] holds NaN"):
        index.add((x, y))
    with pytest.raises(MismatchError, match="has other values"):
        gradindex.add(path, gradindex.Job(other_model_job().model, nn.CrossEntropyLoss(), digits(ROWS + MORE)))
    with pytest.raises(MismatchError, match="the dataset has 100 samples, the index 240"):
        gradindex.add(path, longer_job(100))
    with pytest.raises(ValueError, match="This needs the model and the data"):
        gradindex.load(path).add(new())
    assert len(index) == len(gradindex.load(path)) == ROWS


def test_the_jobs_dataset_must_be_longer_afterwards(path):
    gradindex.load(path, digits_job()).add(new())
    with pytest.raises(MismatchError, match=r"the dataset has 240 samples, the index 300 \(60 of them were added\)"):
        gradindex.load(path, digits_job())


def test_another_process_was_first(path):
    first, second = (gradindex.load(path, digits_job()) for _ in range(2))
    first.add(new())
    with pytest.raises(MismatchError, match="the dataset has 247 samples, the index 300"):
        second.add(new(ROWS, ROWS + 7))
    assert len(second) == ROWS


def test_another_process_is_first_while_this_one_embeds(path, monkeypatch):
    embed, second = embed_shards.embed_missing, gradindex.load(path, digits_job())

    def slow(*args, **options):
        done = embed(*args, **options)
        with monkeypatch.context() as patch:
            patch.setattr("gradindex.lifecycle.add.embed_missing", embed)
            gradindex.load(path, digits_job()).add(new())
        return done

    with monkeypatch.context() as patch:
        patch.setattr("gradindex.lifecycle.add.embed_missing", slow)
        with pytest.raises(MismatchError, match="Another process added 60 samples"):
            second.add(new(ROWS, ROWS + 7))
    index = gradindex.load(path, longer_job(ROWS + MORE))
    index.check()  # what the loser left does not disturb
    assert any(name.startswith("parts/") for name in gradindex.repair(path).removed)
    assert len(list((path / "parts").iterdir())) == 1


def test_the_same_samples_twice_at_once_are_added_once(path, monkeypatch):
    embed = embed_shards.embed_missing

    def slow(*args, **options):
        done = embed(*args, **options)
        with monkeypatch.context() as patch:
            patch.setattr("gradindex.lifecycle.add.embed_missing", embed)
            gradindex.add(path, longer_job(ROWS + MORE))
        return done

    monkeypatch.setattr("gradindex.lifecycle.add.embed_missing", slow)
    index = gradindex.add(path, longer_job(ROWS + MORE))
    assert len(index) == ROWS + MORE
    index.check()


def test_stopped_anywhere_it_goes_on(path, monkeypatch, tmp_path):
    """Stop at every publishing step of an add and a compaction: before it the old state, after it the new one."""
    want = gradindex.load(shutil.copytree(path, tmp_path / "whole"), digits_job())
    want.add(new())
    want.remove([1, 2, ROWS])
    want.compact()
    states = {ROWS, ROWS + MORE, ROWS + MORE - 3}
    real = {name: getattr(changes.publish.__globals__["location"], name) for name in ("create", "replace", "move")}
    for step in range(1, 100, 5):
        here = shutil.copytree(path, tmp_path / f"step{step}")
        left = [step]

        def stopping(name, left=left):
            def act(*args):
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                return real[name](*args)

            return act

        def everything(here=here):
            index = gradindex.add(here, longer_job(ROWS + MORE))
            index.remove([1, 2, ROWS])
            gradindex.compact(here)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(f"gradindex.store.location.{name}", stopping(name))
            try:
                everything()
                finished = True
            except KeyboardInterrupt:
                finished = False
        assert len(gradindex.load(here)) in states
        everything()
        gradindex.load(here).check()
        assert files(here) == files(want.store.path)
        shutil.rmtree(here)
        if finished:
            break
    assert 20 < step < 99


@pytest.mark.parametrize("what", ["sketch.npy", "id.npy", "columns.parquet", "000000.json"])
@pytest.mark.parametrize("state", ["added", "compacted"])
def test_damaged_parts_are_embedded_again(path, what, state):
    index = gradindex.load(path, digits_job())
    index.add(new())
    index.remove([1, 2, ROWS])
    if state == "compacted":
        index.compact()
    want = answers(index), index.store.ids, index.store.columns["label"]
    damaged = next((path / "parts").glob(f"*/shards/*{what}"))
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"abcd")
    with pytest.raises(DamagedIndexError, match=damaged.name):
        gradindex.load(path).check()
    with pytest.raises(ValueError, match=f"Shards {damaged.parent.parent.name}/"):
        gradindex.repair(path)
    gradindex.repair(path, longer_job(ROWS + MORE))
    again = gradindex.load(path, longer_job(ROWS + MORE))
    again.check()
    for got, expected in zip((answers(again), again.store.ids, again.store.columns["label"]), want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_lost_index_of_parts_is_rebuilt(path):
    index = gradindex.load(path, digits_job())
    index.add(new())
    want = answers(index)
    shutil.rmtree(path / "index")
    assert gradindex.repair(path).index
    np.testing.assert_array_equal(answers(gradindex.load(path, longer_job(ROWS + MORE))), want)


@pytest.mark.parametrize("damage", ["header", "another part's", "path", "kind", "rows", "first", "bool", "nan"])
def test_damaged_changes_are_refused(path, damage, tmp_path):
    index = gradindex.load(path, digits_job())
    index.add(new())
    change = changes.file(path, 1)
    saved = json.loads(change.read_text())
    saved.pop("seal")
    header = path / "parts" / saved["part"] / "store.json"
    if damage == "header":
        header.unlink()
    elif damage == "another part's":
        shutil.copy(path / "store.json", header)
    else:
        edit = {
            "path": {"part": "../../../../etc"},
            "kind": {"kind": "exec"},
            "rows": {"rows": 1 << 60},
            "first": {"first": 3},
            "bool": {"kind": "remove", "ids": [True]},
            "nan": {"rows": float("nan")},
        }[damage]
        change.unlink()
        changes.publish(change, {**saved, **edit})
    for reader in (Store.open, gradindex.load, gradindex.repair, gradindex.compact):
        with pytest.raises(DamagedIndexError, match=r"000001\.json is damaged|store\.json is"):
            reader(path)


def test_landmark_rows(tmp_path):
    sketch = gradindex.Landmark(landmarks=32, dims=16)
    index = gradindex.build(digits_job(), tmp_path / "i", sketch=sketch, shard_rows=100)
    index.add(new())
    index.remove([2])
    index.compact()
    for one in (index, gradindex.load(tmp_path / "i", longer_job(ROWS + MORE))):
        found = one.explain(ids=[1, 5, 8], k=20, certify=True)
        assert found.proved.all()
        np.testing.assert_array_equal(found.ordered_indices, truth([2]))
    index.check()
    shard = next((tmp_path / "i").glob("parts/*/shards/000000.*.sketch.npy"))
    shard.unlink()
    gradindex.repair(tmp_path / "i", longer_job(ROWS + MORE))
    found = gradindex.load(tmp_path / "i", longer_job(ROWS + MORE)).explain(ids=[1, 5, 8], k=20, certify=True)
    np.testing.assert_array_equal(found.ordered_indices, truth([2]))


def test_arrays_are_compacted_too(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 8))
    ids = np.arange(1000, 1050)[::-1]
    store = Store.from_arrays(rows, ids, np.ones(50), tmp_path / "a", shard_rows=20)
    gradindex.index_store(store).remove(ids[:10])
    index = gradindex.load(tmp_path / "a")
    want = index.search(rows, 5)
    assert index.compact() == 10
    for got, expected in zip(index.search(rows, 5), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(index.store.ids, ids[10:])


def test_readers_see_one_state_or_another_whatever_happens(path):
    """Three processes open and search in a loop while this one adds, removes and compacts."""
    present, states, actions = set(range(ROWS)), [], []
    states.append(frozenset(present))
    for turn in range(4):
        begin = ROWS + 5 * turn
        actions += [("add", new(begin, begin + 5)), ("remove", [turn, begin + 1]), ("compact", None)]
        present |= set(range(begin, begin + 5))
        states.append(frozenset(present))
        present -= {turn, begin + 1}
        states.append(frozenset(present))
    context = multiprocessing.get_context("spawn")  # a forked child has FAISS's locks, and not its threads
    stop, failures, reads = context.Event(), context.Queue(), context.Queue()
    arguments = (path, stop, frozenset(states), failures, reads)
    readers = [context.Process(target=read_in_a_loop, args=arguments, daemon=True) for _ in range(3)]
    index = gradindex.load(path, digits_job())
    for reader in readers:
        reader.start()
    count = sum(reads.get(timeout=60) for _ in range(2 * len(readers)))  # they are reading
    for name, argument in actions:
        getattr(index, name)(*([] if argument is None else [argument]))
        time.sleep(0.02)
    time.sleep(0.2)
    stop.set()
    said, until = "", time.monotonic() + 60
    while any(reader.is_alive() for reader in readers) or not reads.empty():
        assert time.monotonic() < until, "a reader hangs"
        while not reads.empty():
            count += reads.get()
        while not failures.empty():
            said = failures.get()
        time.sleep(0.01)
    for reader in readers:
        reader.join()
    assert not said and failures.empty()
    assert count > 10


def test_threads_that_search_one_index_while_it_changes(path):
    import threading

    index, failures, sizes, stop = gradindex.load(path, digits_job()), [], set(), threading.Event()

    def search():
        while not stop.is_set():
            try:
                found = index.explain(ids=[1], k=ROWS // 2, rerank=0)
                index.self_influence(5)
                sizes.add(found.meta["params"]["rows"])
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(3):
        begin = ROWS + 5 * turn
        index.add(new(begin, begin + 5))
        index.remove([turn + 10])
        index.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(index) == ROWS + 12 and sizes <= {ROWS, 245, 244, 249, 248, 253, 252}


def test_the_commands(path, capsys):
    assert run(["add", str(path), "tests.jobs:more_job"]) == 0
    assert "Added 60 samples to 240." in capsys.readouterr().out
    assert run(["add", str(path), "tests.jobs:more_job"]) == 0
    assert "Nothing to add: the index has all 300 samples." in capsys.readouterr().out
    assert run(["remove", str(path), "--ids", "3,299"]) == 0
    assert run(["compact", str(path)]) == 0
    assert "Left out 2 removed samples." in capsys.readouterr().out
    assert run(["info", str(path), "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 298
    assert run(["explain", str(path), "tests.jobs:more_job", "--ids", "3"]) == 0


def test_deletion_that_was_killed_is_finished(path, monkeypatch):
    index = gradindex.load(path, digits_job())
    index.remove([3])
    with monkeypatch.context() as patch:
        patch.setattr(compact, "settle", lambda store: None)
        index.compact()
    with pytest.raises(DamagedIndexError, match="belongs to no manifest"):
        gradindex.load(path).check()
    gradindex.compact(path)
    gradindex.load(path).check()


def test_chains():
    x, y = digits()
    parts = [
        ColumnSource(x[:10], y[:10]),
        MapSource([(x[i], y[i]) for i in range(10, 17)]),
        as_source((x[17:30], y[17:30])),
    ]
    chain = Chain([Chain(parts[:2]), parts[2]])
    assert len(chain) == 30
    ids = np.array([29, 0, 12, 12, 9, 10, 17])
    found = chain.take(ids)
    np.testing.assert_array_equal(found.x, x[ids])
    np.testing.assert_array_equal(found.y, y[ids])
    blocks = list(chain.blocks(4, 2, 28))
    np.testing.assert_array_equal(np.concatenate([block.ids for block in blocks]), np.arange(2, 28))
    np.testing.assert_array_equal(np.concatenate([block.x for block in blocks]), x[2:28])
    assert max(map(len, blocks)) == 4
    assert len(chain.take(ids[:0])) == 0
    with pytest.raises(IndexError, match="out of range"):
        chain.take(np.array([30]))


def test_chains_of_other_forms():
    tensors = as_source((torch.eye(3), torch.arange(3)))
    arrays = as_source((np.eye(3, dtype=np.float32), np.arange(3)))
    np.testing.assert_array_equal(Chain([tensors, arrays]).take(np.array([5, 0])).x, np.eye(3)[[2, 0]])
    texts = Chain([as_source((["a", "b"], [0, 1])), as_source((["c"], [1]))])
    assert texts.take(np.array([2, 0])).x == ["c", "a"]
    pairs = Chain([as_source((({"a": np.eye(2)}, np.ones(2)), [0, 1]))] * 2)
    assert pairs.take(np.array([3, 1])).x[0]["a"].tolist() == [[0, 1], [0, 1]]


def test_fingerprints_tell_samples_apart():
    x, y = digits()
    same = fingerprint.fingerprint(as_source((x, y)), 0, ROWS)
    assert same == fingerprint.fingerprint(as_source([(x[i], y[i]) for i in range(ROWS)]), 0, ROWS)
    other = y.copy()
    other[-1] += 1
    assert same != fingerprint.fingerprint(as_source((x, other)), 0, ROWS)
    assert same != fingerprint.fingerprint(as_source((x[::-1], y)), 0, ROWS)
    assert same != fingerprint.fingerprint(as_source((x, y)), 0, ROWS - 1)
    words = [fingerprint.fingerprint(as_source((list(text), [0, 1])), 0, 2) for text in ("ab", "ac")]
    assert words[0] != words[1]


def test_removed_rows_stay_out_of_an_index_that_is_built_anew(path):
    index = gradindex.load(path, digits_job())
    index.add(new())
    index.remove([ROWS + 3])
    gradindex.index_store(Store.open(path), "IVF4,Flat")
    again = gradindex.load(path, longer_job(ROWS + MORE))
    assert again.searcher.factory == "IVF4,Flat"
    assert index_files.manifest_path(again.store).name != "index.json"
    assert ROWS + 3 not in again.search(again.store.gather(np.array([ROWS + 3])), 5)[1]
