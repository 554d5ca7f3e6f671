"""Many processes at once on the same indexes, with every answer compared with a state that existed."""

import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np

import gradindex
from gradindex.errors import IndexExistsError, MismatchError
from gradindex.store import Store, changes
from tests.jobs import ROWS, digits_job, longer_job, other_model_job

MOST = ROWS + 1500  # samples there are to be added


def until(end: float, out: Path, work) -> None:
    """Do some work again and again; write down how often it was done, or what was wrong, as JSON."""
    found, rng = Counter(), random.Random(os.getpid())
    while time.time() < end:
        try:
            found[work(rng)] += 1
        except (MismatchError, IndexExistsError) as error:  # another process was first, and this one says so
            found[f"refused: {type(error).__name__}"] += 1
        except Exception as error:
            found[f"OTHER ERROR {type(error).__name__}: {str(error)[:120]}"] += 1
    out.write_text(json.dumps(found))


class Workers:
    """What is done to an index in `changed`, and to one in `replaced`."""

    def __init__(self, folder: Path) -> None:
        self.changed, self.replaced, self.seals = folder / "changing", folder / "replaced", set()
        places = [self.changed, self.replaced, folder / "other"]
        for job, out in zip((digits_job(), digits_job(), other_model_job()), places, strict=True):
            built = gradindex.build(job, out, shard_rows=60, progress=False)
            self.seals.add(built.store.header.seal)
        longest = gradindex.build(longer_job(MOST), folder / "longest", progress=False)
        self.rows = longest.store.gather(np.arange(MOST))

    def all(self) -> list:
        """Return what two who change, one who compacts, two who replace and three who read do."""
        replace = [self.replace(digits_job()), self.replace(other_model_job())]
        return [self.change, self.change, self.compact, *replace, self.read, self.read, self.read_replaced]

    def change(self, rng):
        store = Store.open(self.changed)
        if rng.random() < 0.5 and store.state.positions + 5 <= MOST:
            gradindex.add(self.changed, longer_job(store.state.positions + 5), progress=False)
            return "added"
        there = store.ids if store.alive is None else store.ids[store.alive]
        if len(there) < 60:
            return "too few to remove"
        try:
            return "removed" if store.remove(rng.sample(there.tolist(), 2)) else "removed by another"
        except IndexError:  # removed and compacted since it was opened
            return "removed by another"

    def compact(self, rng):
        time.sleep(0.5)
        return "compacted" if gradindex.compact(self.changed, progress=False) else "nothing to compact"

    def replace(self, job):
        def work(rng):
            gradindex.build(job, self.replaced, shard_rows=60, overwrite=True, progress=False)
            return "replaced"

        return work

    def read(self, rng):
        index = gradindex.load(self.changed)
        state = index.store.state
        if not any((one.number, one.last) == (state.number, state.last) for one in self.history(index)):
            return "NO STATE that existed"
        want = sorted({*range(state.positions)} - {*state.removed.tolist()})
        queries = np.array(rng.sample(want, min(20, len(want))))
        scores, ids = index.search(self.rows[queries], len(index))
        same = all(sorted(line[line >= 0].tolist()) == want for line in ids)
        return "read a state that existed" if same and np.abs(scores[:, 0] - 1).max() < 1e-3 else "WRONG ANSWER"

    def history(self, index):
        return changes.history(self.changed, index.store.header)

    def read_replaced(self, rng):
        index = gradindex.load(self.replaced)
        scores, _ = index.search(index.store.gather(np.arange(20)), 1)
        right = index.store.header.seal in self.seals and len(index) == ROWS and np.abs(scores - 1).max() < 1e-3
        return "read the old or the new index" if right else "WRONG ANSWER"
