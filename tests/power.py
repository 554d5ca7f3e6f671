"""What is done while the power may go, and what may be found afterwards; used by tests and by benchmarks/faults.py."""

import dataclasses
import functools
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gradindex
from gradindex.ann import files as index_files
from gradindex.errors import DamagedIndexError
from gradindex.lifecycle.header import check_job
from gradindex.store import location
from tests import oracles
from tests.crashes import Recorder, lay
from tests.jobs import ROWS, digits, digits_job, longer_job, other_model_job

MORE, GONE = 20, [1, 2, ROWS + 3]
HOW = {"shard_rows": 100, "sketch": gradindex.CountSketch(32), "progress": False}
LANDMARKS = {"shard_rows": 150, "sketch": gradindex.Landmark(landmarks=8, dims=4), "progress": False}


@dataclasses.dataclass
class Case:
    """`prepare` makes what is there before, `act` is recorded, `look` says what is found.

    `go_on` is what a user does where `look` says "unfinished"; then `look` has to say the last mark.
    """

    prepare: Callable[[Path], Any]
    act: Callable[[Path, Callable[[str], None]], Any]
    look: Callable[[Path], str]
    go_on: Callable[[Path], Any] | None = None
    first: str = "old"
    """What is found before anything is done."""


def _sound(out: Path) -> gradindex.Index:
    index = gradindex.load(out)
    for shard in index.store.shards:
        shard.check()
        _ = shard.table()
    index_files.check(index.store)
    rows = index.store.gather(np.arange(0, len(index), 40))
    alive = index.store.ids[::40] if index.store.alive is None else index.store.ids[::40][index.store.alive[::40]]
    assert np.isin(alive, index.search(rows, 3)[1]).all()
    return index


def _built(out: Path) -> str:
    try:
        _sound(out)
    except (FileNotFoundError, DamagedIndexError) as error:
        if not re.search(r"(store|index)\.json is missing|shards are missing", str(error)):
            raise  # a file that is named is to be there
        return "unfinished"
    return "built"


def _build(how):
    def build(root, mark=lambda name: None):
        if _built(root / "i") == "unfinished":
            gradindex.build(digits_job(), root / "i", **how)
        mark("built")

    return build


def _change(root, mark):
    index = gradindex.add(root / "i", longer_job(ROWS + MORE), progress=False)
    mark("added")
    index.remove(GONE)
    mark("removed")
    gradindex.compact(root / "i", progress=False)
    mark("compacted")


def _state(root: Path) -> str:
    store = _sound(root / "i").store
    alive = len(store) if store.alive is None else int(store.alive.sum())
    names = {(ROWS, ROWS): "old", (ROWS + MORE,) * 2: "added"}
    names |= {(ROWS + MORE, ROWS + MORE - 3): "removed", (ROWS + MORE - 3,) * 2: "compacted"}
    return names[len(store), alive]


def _overwrite(root, mark):
    gradindex.build(other_model_job(), root / "i", overwrite=True, **HOW)
    mark("new")


def _whiten(root, mark=lambda name: None, dims=4):
    gradindex.load(root / "i").whiten(dims=dims, progress=False)
    mark("white")


def _whiten_again(root, mark):
    _whiten(root, dims=2)
    mark("again")


def _whitened(root: Path) -> str:
    index = _sound(root / "i")
    if not index.is_whitened:
        return "old"
    rows = index.whitened_rows()
    for shard in rows.store.shards:
        shard.check()
        _ = shard.table()
    index_files.check(rows.store)
    some = rows.store.gather(np.arange(0, len(index), 40))
    assert (rows.searcher.search(some, 1)[0] > 0.98).all()
    return {4: "white", 2: "again"}[rows.store.header.dim]


def _calibrate(root, mark=lambda name: None, count=30, name="calibrated"):
    x, y = digits()
    job = digits_job()
    gradindex.load(root / "i", job).calibrate(x[:count] + 0.5, y[:count], k=5, progress=False)
    mark(name)


def _calibrated(root: Path) -> str:
    found = _sound(root / "i").calibration(k=5)
    return "old" if found is None else {30: "calibrated", 20: "again"}[found.about.queries]


def _which(root: Path) -> str:
    index = _sound(root / "i")
    try:
        check_job(index.store, digits_job())
    except gradindex.MismatchError:
        return "new"
    return "old"


def _damage(root):
    _build(HOW)(root)
    path = next((root / "i" / "shards").glob("000001.*.sketch.npy"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")


def _repair(root, mark=lambda name: None):
    gradindex.repair(root / "i", digits_job())
    mark("built")


def _mended(root: Path) -> str:
    try:
        _sound(root / "i")
    except DamagedIndexError:
        return "unfinished"
    return "built"


@functools.cache
def _kit_and_model():
    kit = oracles.kit("pytorch")
    return kit, kit.mlp()


def _explainer(rows):
    kit, model = _kit_and_model()
    x, y = np.eye(12, 4, dtype="f4") + 1, np.arange(12) % 3
    how = {"index": "Flat", "precompute_grads": True}
    return kit.explainer(model, kit.named_loss("classes"), "grad_cos", **how).fit(x[:rows], y[:rows])


def _save(root, mark):
    _explainer(6).save(root / "e")
    mark("new")


def _saved(root: Path) -> str:
    found = gradindex.load(root / "e", _kit_and_model()[1])
    rows = len(found.X_train)
    assert found.explain(found.X_train[:1], found.Y_train[:1]).scores.max() > 0.999
    assert len(found.index) == len(found.grad_X_train) == rows
    return {12: "old", 6: "new"}[rows]


def _write(root, mark):
    location.save(root / "report.html", b"new" * 5000)
    mark("new")


CASES = {
    "build": Case(lambda root: None, _build(HOW), lambda root: _built(root / "i"), _build(HOW), "unfinished"),
    "build with landmarks": Case(
        lambda root: None, _build(LANDMARKS), lambda root: _built(root / "i"), _build(LANDMARKS), "unfinished"
    ),
    "replace": Case(_build(HOW), _overwrite, _which),
    "add, remove, compact": Case(_build(HOW), _change, _state),
    "whiten": Case(_build(LANDMARKS), _whiten, _whitened),
    "whiten again": Case(
        lambda root: (_build(LANDMARKS)(root), _whiten(root)), _whiten_again, _whitened, first="white"
    ),
    "calibrate": Case(_build(HOW), _calibrate, _calibrated),
    "calibrate again": Case(
        lambda root: (_build(HOW)(root), _calibrate(root)),
        lambda root, mark: _calibrate(root, mark, 20, "again"),
        _calibrated,
        first="calibrated",
    ),
    "repair": Case(_damage, _repair, _mended, _repair, "unfinished"),
    "save": Case(lambda root: _explainer(12).save(root / "e"), _save, _saved),
    "report": Case(
        lambda root: (root / "report.html").write_bytes(b"old" * 4000),
        _write,
        lambda root: {b"old" * 4000: "old", b"new" * 5000: "new"}[(root / "report.html").read_bytes()],
    ),
}


def replay(name: str, folder: Path, seed: int, most: int | None, go_on: float) -> Counter:
    """Record a case and look at its crash states; return how often each thing was found.

    Parameters
    ----------
    name
        Of the case.
    folder
        Where to work.
    seed
        Draws states.
    most
        States of each prefix; None: all.
    go_on
        Share of the unfinished states that are continued to the end.
    """
    case, rng, found = CASES[name], random.Random(seed), Counter()
    root, pool = folder / "recorded", folder / "pool"
    root.mkdir(parents=True), pool.mkdir()
    case.prepare(root)
    recorder = Recorder(root)
    with recorder.recording():
        case.act(root, recorder.mark)
    known: dict[Any, str] = {}
    for (last, following), tree in recorder.states(rng, most):
        key = frozenset(tree.items())
        if key not in known:
            known[key] = _look(case, tree, folder / "state", pool, found, rng.random() < go_on)
            go_on -= found["continued"]
            found["distinct"] += 1
        allowed = {last or case.first, following, *(["unfinished"] if not last and case.go_on else [])}
        found["states"] += 1
        found["as one of the states before and after" if known[key] in allowed else f"WRONG: {known[key]}"] += 1
    return found


def _look(case: Case, tree: dict, root: Path, pool: Path, found: Counter, go_on: bool) -> str:
    shutil.rmtree(root, ignore_errors=True)
    lay(tree, root, pool)
    try:
        seen = case.look(root)
        if seen == "unfinished" and go_on and case.go_on is not None:
            found["continued"] += 1
            case.go_on(root)
            if (then := case.look(root)) != "built":
                return f"not continued but {then}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    return seen
