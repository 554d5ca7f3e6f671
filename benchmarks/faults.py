"""Kill, damage, cut the power, and let many work at once; count what differs, crashes or answers wrongly.

    python benchmarks/faults.py --kills 1000 --damages 100000 --states 200000 --minutes 10

Kills: a process of its own gets SIGKILL after a random time, up to three times; then the same calls run to their end,
and every file is compared with those of undisturbed ones. A third each builds a small index (240 digits, 12 shards,
Flat); replaces a finished index of another model (overwrite=True); and changes a finished index: adds 60 samples,
removes three, compacts. After every kill of the latter, the index is opened, and must be in a state that it had.

Damages: a file of a finished index is truncated, extended, flipped in one bit, deleted or swapped with another; half of
them in an index that was built, half in one that was changed and audited. Then the index is opened and searched, with
and without `Index.check`. It must raise gradindex's own error, or answer as before. Each batch runs in a process of its
own with an alarm, so that a crash or a hang is seen and counted.

States: what a loss of power may leave of the disk at every moment of a build, a replacement, changes, a whitening, a
calibration, a repair and a save, see `tests/crashes.py` and `tests/power.py`. Each has to open as one of the states
before and after, or as an unfinished build, of which some are continued.

Minutes: eight processes at once on two indexes: two add and remove, one compacts, two replace, three read. Every answer
is compared with the state that the reader's index says it has, and that state with the log of changes.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet  # noqa: F401  loaded before the processes part, as everything slow is
import record
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import gradindex
from gradindex.errors import DamagedIndexError, IndexExistsError
from gradindex.index import opening
from gradindex.store import Store
from gradindex.store.location import is_temporary
from tests.at_once import MOST, Workers, until
from tests.jobs import ROWS, digits_job, longer_job, other_model_job
from tests.power import CASES, replay

BATCH = 150  # damages tried by one process
ALARM = 120  # seconds that trying one damaged index may take, on a busy machine
MORE, GONE = 60, [1, 2, 250]  # samples that are added, and ids that are removed
STATES = [list(range(ROWS)), list(range(ROWS + MORE)), sorted({*range(ROWS + MORE)} - {*GONE})]


def in_child(work, *arguments):
    """Run `work` in a forked process; return its process id. Nothing that starts threads may run before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work(*arguments) or 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def finished(child):
    """Wait for a process; return 0, its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def build(out, replace=False):
    """Build the index at `out`, or take it up again."""
    try:
        opening.build(digits_job(), out, shard_rows=20, batch_size=8, overwrite=replace, progress=False)
    except IndexExistsError as error:
        if "already holds an index" not in str(error):
            raise


def build_other(out):
    """Build the index that is to be replaced."""
    opening.build(other_model_job(), out, shard_rows=20, batch_size=8, progress=False)


def change(out):
    """Add, remove and compact; what was done before a kill is found done."""
    gradindex.add(out, longer_job(ROWS + MORE), progress=False)
    Store.open(out).remove(GONE)
    gradindex.compact(out, progress=False)


def change_more(out):
    """Make an index with every kind of file: parts that were compacted and added, all kinds of changes, an audit."""
    change(out)
    index = gradindex.add(out, longer_job(ROWS + MORE + 10), progress=False)
    index.verify(queries=5, k=3)
    index.remove([7, ROWS + MORE + 3])


def check_state(out):
    """Return 0 if an index is in one of the states of `change`, and finds its samples; else 3."""
    index = gradindex.load(out)
    alive = index.store.ids if index.store.alive is None else index.store.ids[index.store.alive]
    found = index.search(index.store.gather(np.arange(1)), len(index))[1][0]
    found, alive = sorted(found[found >= 0].tolist()), sorted(alive.tolist())
    return 0 if found == alive and alive in STATES else 3


def contents(path):
    """Return every file's bytes by name; temporary files of killed processes are not part of an index."""
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file() and not is_temporary(p)
    }


def kills(count, folder, rng):
    """Return how often a killed and resumed build differed, and how the kills fell."""
    reference = folder / "reference"
    began = time.perf_counter()
    if finished(in_child(build, reference)):
        raise SystemExit("The undisturbed build fails.")
    seconds = time.perf_counter() - began
    want, found = contents(reference), Counter()
    other, changed = folder / "other", shutil.copytree(reference, folder / "changed")
    finished(in_child(build_other, other))
    began = time.perf_counter()
    if finished(in_child(change, changed)):
        raise SystemExit("The undisturbed change fails.")
    modes = {
        "build": (build, (False,), None, want, seconds),
        "replace": (build, (True,), other, want, seconds),
        "change": (change, (), reference, contents(changed), time.perf_counter() - began),
    }
    while found["killed"] < count:
        mode = rng.choice(sorted(modes))
        work, arguments, start, wanted, long = modes[mode]
        out = folder / "killed" / "index"
        if start is not None:
            shutil.copytree(start, out)
        for _ in range(rng.randint(1, 3)):
            child = in_child(work, out, *arguments)
            time.sleep(rng.random() * long)
            os.kill(child, signal.SIGKILL)
            killed = finished(child) == -signal.SIGKILL
            found["killed" if killed else "finished before the kill"] += 1
            found[f"killed: {mode}"] += killed
            if mode == "change":
                found["NO STATE of a changed index"] += finished(in_child(check_state, out)) != 0
        if mode == "replace":  # one of the two is whole at every moment, beside its place if not in it
            old = out if out.exists() else out.with_name(".index.replaced")
            found["NEITHER old nor new index"] += contents(old) not in (contents(other), want)
        code = finished(in_child(work, out, *arguments))
        got = contents(out) if out.exists() else {}
        same = code == 0 and got == wanted
        if not same:
            files = sorted(name for name in {*got, *wanted} if got.get(name) != wanted.get(name))
            print(f"DIFFERENT: exit code {code}, {mode}, files {files}", file=sys.stderr)
        found["same as undisturbed" if same else "DIFFERENT"] += 1
        shutil.rmtree(out.parent)
    return {name: times for name, times in found.items() if times}


def damage(path, rng):
    """Damage one file below `path`; return what was done."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    file = rng.choice(files)
    data = file.read_bytes()
    how = rng.choice(["truncate", "extend", "flip", "delete", "swap"])
    if how == "truncate":
        file.write_bytes(data[: rng.randrange(len(data))])
    elif how == "extend":
        file.write_bytes(data + rng.randbytes(rng.choice([1, 100, 100_000])))
    elif how == "flip":
        place = rng.randrange(len(data))
        file.write_bytes(data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :])
    elif how == "delete":
        file.unlink()
    else:
        other = rng.choice([p for p in files if p != file])
        theirs = other.read_bytes()
        other.write_bytes(data)
        file.write_bytes(theirs)
    return how


def answers(path, check):
    """Return everything an index without a model answers, as bytes."""
    index = gradindex.load(path)
    if check:
        index.check()
    scores, ids = index.search(np.eye(8, index.store.header.dim, dtype=np.float32), 5)
    columns = b"".join(
        np.ascontiguousarray(index.store.columns[name]).tobytes() for name in sorted(index.store.columns)
    )
    influence = index.self_influence(20)
    rows = index.store.gather(np.arange(len(index)))
    parts = [scores, ids, *influence, index.store.ids]
    return b"".join(part.tobytes() for part in parts) + columns, rows.tobytes()


def try_damages(reference, folder, seed, count, out):
    """Damage copies of an index; write what happened to `out` as JSON."""
    faiss.omp_set_num_threads(1)
    rng, found = random.Random(seed), Counter()
    want = answers(reference, check=True)
    copy = folder / f"damaged-{seed}"
    for _ in range(count):
        signal.alarm(ALARM)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(reference, copy)
        how = damage(copy, rng)
        for check in (False, True):
            name = f"{how}, {'contents checked' if check else 'opened'}"
            try:
                got = answers(copy, check)
            except (DamagedIndexError, FileNotFoundError):
                found[f"{name}: refused"] += 1
            except Exception as error:
                found[f"{name}: OTHER ERROR {type(error).__name__}: {str(error)[:80]}"] += 1
            else:
                found[f"{name}: {'answers as before' if got == want else 'WRONG ANSWER'}"] += 1
    shutil.rmtree(copy, ignore_errors=True)
    out.write_text(json.dumps(found))


def damages(count, folder, seed):
    """Return how often each thing happened to damaged indexes, crashes and hangs included."""
    reference, changed, found = folder / "reference", folder / "changed more", Counter()
    if not reference.exists():
        finished(in_child(build, reference))
    shutil.copytree(reference, changed)
    if finished(in_child(change_more, changed)):
        raise SystemExit("The undisturbed changes fail.")
    for turn, begin in enumerate(range(0, count, BATCH)):
        out = folder / "found.json"
        out.unlink(missing_ok=True)
        here = min(BATCH, count - begin)
        code = finished(in_child(try_damages, changed if turn % 2 else reference, folder, seed + begin, here, out))
        if code:
            found["HANG" if code == -signal.SIGALRM else f"CRASH ({code})"] += 1
        else:
            found.update(json.loads(out.read_text()))
    return dict(found)


def states(count, folder, seed):
    """Return what was found in at least `count` crash states: more of each moment until there are so many."""
    found, turn = Counter(), 0
    while found["states"] < count:
        for name in CASES:
            here = replay(name, folder / "states", seed + turn, 4 << turn, 0.02)
            found.update(here)
            found[f"states: {name}"] += here["states"]
            shutil.rmtree(folder / "states")
        turn += 1
    return dict(found)


def at_once(minutes, folder):
    """Return what eight processes at once did and found."""
    workers, found = Workers(folder / "at once"), Counter()
    end = time.time() + 60 * minutes
    children = [in_child(until, end, folder / f"{n}.json", work) for n, work in enumerate(workers.all())]
    for number, child in enumerate(children):
        code = finished(child)
        found.update({f"CRASH ({code})": 1} if code else json.loads((folder / f"{number}.json").read_text()))
    gradindex.repair(workers.changed)
    gradindex.load(workers.changed).check()
    return dict(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=10_000)
    parser.add_argument("--states", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=0)
    record.add_out(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits_job(), other_model_job(), longer_job(MOST)  # trained once, before the processes part
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "kills": kills(options.kills, Path(folder), random.Random(options.seed)) if options.kills else {},
            "damages": damages(options.damages, Path(folder), options.seed) if options.damages else {},
            "at once": at_once(options.minutes, Path(folder)) if options.minutes else {},
            "states": states(options.states, Path(folder), options.seed) if options.states else {},
        }
    text = json.dumps(result, indent=1, sort_keys=True)
    print(text)
    if options.out is not None:
        record.write(options.out, result)
    bad = [
        name
        for part in result.values()
        for name, times in part.items()
        if times and name != name.lower() and _bad(name)
    ]
    if bad:
        raise SystemExit(f"Failed: {bad}")


def _bad(name):
    words = "DIFFERENT", "NEITHER", "NO STATE", "WRONG", "OTHER ERROR", "HANG", "CRASH"
    return any(word in name for word in words)


if __name__ == "__main__":
    main()
