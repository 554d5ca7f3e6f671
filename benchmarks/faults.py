"""Kill builds at random moments and damage stores at random; count what differs, crashes or answers wrongly.

    python benchmarks/faults.py --kills 200 --damages 10000

Kills: a small build (240 digits, 12 shards, a Flat index) runs in a process of its own and gets SIGKILL after a random
time, up to three times; then it is run to its end and every file is compared with those of an undisturbed build. A
third of the builds replace a finished index of another model (overwrite=True).

Damages: a file of a finished index is truncated, extended, flipped in one bit, deleted or swapped with another. Then
the index is opened and searched, with and without `Index.check`. It must raise gradindex's own error, or answer as
before. Each batch runs in a process of its own with an alarm, so that a crash or a hang is seen and counted.
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
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import gradindex
from gradindex import builder
from gradindex.errors import DamagedIndexError, IndexExistsError
from gradindex.store.location import is_temporary
from tests.jobs import digits_job, other_model_job

BATCH = 250  # damages tried by one process
ALARM = 300  # seconds a process may take


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
        builder.build(digits_job(), out, shard_rows=20, batch_size=8, overwrite=replace, progress=False)
    except IndexExistsError as error:
        if "already holds an index" not in str(error):
            raise


def build_other(out):
    """Build the index that is to be replaced."""
    builder.build(other_model_job(), out, shard_rows=20, batch_size=8, progress=False)


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
    other = folder / "other"
    finished(in_child(build_other, other))
    done = 0
    while done < count:
        out = folder / "killed" / "index"
        replace = rng.random() < 1 / 3
        if replace:
            shutil.copytree(other, out)
        for _ in range(rng.randint(1, 3)):
            child = in_child(build, out, replace)
            time.sleep(rng.random() * seconds)
            os.kill(child, signal.SIGKILL)
            code = finished(child)
            found["killed" if code == -signal.SIGKILL else "finished before the kill"] += 1
            done += code == -signal.SIGKILL
        if replace:  # one of the two is whole at every moment, beside its place if not in it
            old = out if out.exists() else out.with_name(".index.replaced")
            whole = contents(old) in (contents(other), want)
            found["neither old nor new index"] += not whole
        code = finished(in_child(build, out, replace))
        got = contents(out) if out.exists() else {}
        same = code == 0 and got == want
        if not same:
            files = sorted(name for name in {*got, *want} if got.get(name) != want.get(name))
            print(f"DIFFERENT: exit code {code}, replace={replace}, files {files}", file=sys.stderr)
        found["same as undisturbed" if same else "DIFFERENT"] += 1
        shutil.rmtree(out.parent)
    return dict(found)


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
    signal.alarm(ALARM)
    rng, found = random.Random(seed), Counter()
    want = answers(reference, check=True)
    copy = folder / f"damaged-{seed}"
    for _ in range(count):
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
    reference, found = folder / "reference", Counter()
    if not reference.exists():
        finished(in_child(build, reference))
    for begin in range(0, count, BATCH):
        out = folder / "found.json"
        out.unlink(missing_ok=True)
        here = min(BATCH, count - begin)
        code = finished(in_child(try_damages, reference, folder, seed + begin, here, out))
        if code:
            found["HANG" if code == -signal.SIGALRM else f"CRASH ({code})"] += 1
        else:
            found.update(json.loads(out.read_text()))
    return dict(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits_job(), other_model_job()  # trained once, before the processes part
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "kills": kills(options.kills, Path(folder), random.Random(options.seed)) if options.kills else {},
            "damages": damages(options.damages, Path(folder), options.seed) if options.damages else {},
        }
    print(json.dumps(result, indent=1, sort_keys=True))
    bad = [
        name
        for part in result.values()
        for name, times in part.items()
        if times and name != name.lower() and _bad(name)
    ]
    if bad:
        raise SystemExit(f"Failed: {bad}")


def _bad(name):
    return any(word in name for word in ("DIFFERENT", "neither", "WRONG ANSWER", "OTHER ERROR", "HANG", "CRASH"))


if __name__ == "__main__":
    main()
