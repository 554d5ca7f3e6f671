"""Files that no damage makes: contents of any kind under seals and checksums that fit, opened under limits.

    python -m tests.parsing 200 [SEED]

For each kind of file, hypothesis draws changes: values of manifests, numbers within binary files, lengths. Then all
checksums are made anew, as whoever writes such a file on purpose would, and the index is opened and asked. It has to
answer, or to raise an error that is a ValueError, within ten seconds and half a gigabyte of memory. A process for each
kind, so that a crash is seen. Prints JSON: what happened how often.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import faiss
import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import gradindex
from gradindex.store.manifest import seal
from tests.jobs import digits_job

BYTES, SECONDS = 512 << 20, 10
WILD = [0, 1, -1, 7, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**48 - 1, 2**63 - 1, 2**63, 10**30, -(10**30)]
LEAVES = st.one_of(
    st.sampled_from([*WILD, None, True, "", "x", "../x", "a" * 300, 0.5, float("nan"), 1e308, [], {}, [[]], [None]]),
    st.lists(st.sampled_from(WILD), max_size=4),
)
KINDS = {
    "header": "store.json",
    "shard": "shards/*.json",
    "index": "index/*.json",
    "assets": "assets/*.json",
    "changes": "changes/*.json",
    "numbers": "**/*.npy",
    "columns": "**/*.parquet",
    "faiss": "**/*.faiss",
}


def build(path: Path) -> None:
    """An index with every kind of file."""
    sketch = gradindex.Landmark(landmarks=60, dims=16)
    index = gradindex.build(digits_job(), path, shard_rows=120, index="IVF4,SQ8", sketch=sketch, progress=False)
    index.tune(queries=5, k=3)
    index.remove([3, 200])


def places(value, here=()):
    """Yield where the leaves of a JSON value are, and its lists and objects themselves."""
    if here:
        yield here
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*here, key))


def put(value, place, new):
    for key in place[:-1]:
        value = value[key]
    value[place[-1]] = new


def sealed(root: Path, path: Path, saved: dict) -> None:
    """Write a manifest under a seal that fits; where it is the header, all others name the new one."""
    before = json.loads(path.read_text())["seal"]
    saved.pop("seal", None)
    after = seal(saved)
    path.write_text(json.dumps({**saved, "seal": after}))
    for other in root.rglob("*.json") if path.name == "store.json" else []:
        text = other.read_text()
        if other != path and before in text:
            rest = json.loads(text.replace(before, after))
            rest.pop("seal", None)
            other.write_text(json.dumps({**rest, "seal": seal(rest)}))


def named_anew(root: Path, file: Path) -> None:
    """Let the manifest that names a file have its size and sha256."""
    data = file.read_bytes()
    for manifest in file.parent.glob("*.json"):
        saved = json.loads(manifest.read_text())
        for entry in saved.get("files", {}).values():
            if entry["name"] == file.name:
                entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                sealed(root, manifest, saved)


def change(root: Path, kind: str, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(root.glob(KINDS[kind]))))
    if file.suffix == ".json":
        saved = json.loads(file.read_text())
        del saved["seal"]
        for _ in range(data.draw(st.integers(1, 2))):
            put(saved, data.draw(st.sampled_from(sorted(places(saved), key=str))), data.draw(LEAVES))
            if not isinstance(saved, dict) or not list(places(saved)):
                break
        sealed(root, file, saved)
        return
    contents = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(contents), 2000) - 1) | st.integers(0, len(contents) - 1))
        how = data.draw(st.sampled_from(["byte", "number", "cut", "more"]))
        if how == "byte":
            contents[at] = data.draw(st.integers(0, 255))
        elif how == "number":
            number = struct.pack("<Q", data.draw(st.sampled_from(WILD)) % 2**64)[: data.draw(st.sampled_from([4, 8]))]
            contents[at : at + len(number)] = number
        elif how == "cut" and at:
            del contents[at:]
        else:
            contents += data.draw(st.binary(min_size=1, max_size=50))
    file.write_bytes(contents)
    named_anew(root, file)


def ask(path: Path) -> None:
    index = gradindex.load(path)
    index.check()
    index.search(np.eye(4, index.store.header.dim, dtype=np.float32), 3)
    index.self_influence(3)
    for name in index.store.columns:
        index.store.columns[name]
    _ = index.curve, str(index)
    gradindex.load(path, digits_job()).explain(ids=[0], k=2)


def too_long(*_):
    raise TimeoutError(f"longer than {SECONDS} s")


def fuzz(kind: str, root: Path, count: int, number: int, out: Path) -> None:
    """Draw `count` changes of one kind; write what happened, and anything that should not."""
    found: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, too_long)
    copy = root.with_name(f"{root.name}-{kind}")
    ask(root)  # what is loaded once
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, resource.RLIM_INFINITY))

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(root, copy)
        change(copy, kind, data)
        signal.alarm(SECONDS)
        try:
            ask(copy)
            found["answered"] += 1
        except (ValueError, FileNotFoundError) as error:
            found[f"refused: {type(error).__name__}"] += 1
        except Exception as error:
            found[f"OTHER ERROR {type(error).__name__}: {str(error)[:150]}"] += 1
        finally:
            signal.alarm(0)

    run()
    shutil.rmtree(copy, ignore_errors=True)
    out.write_text(json.dumps(found))


def main(count: int, number: int) -> dict[str, dict[str, int]]:
    results: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "index"
        built = os.fork()  # so that this process starts no threads before it forks again
        if built == 0:
            build(root)
            os._exit(0)
        assert os.waitpid(built, 0)[1] == 0
        digits_job()
        for kind in KINDS:
            out = Path(folder) / f"{kind}.json"
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    fuzz(kind, root, count, number, out)
                    code = 0
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            results[kind] = {f"CRASH ({code})": 1} if code else json.loads(out.read_text())
    return results


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    faiss.omp_set_num_threads(1)
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), int((sys.argv[2:] or [0])[0])), indent=1) + "\n")
