"""A million real gradients: Fashion-MNIST under seeded augmentation, embedded, stored, indexed and verified.

    GRADINDEX_DATA=… python benchmarks/million.py [--rows 100000 1000000] [--keep FOLDER] [--out FILE]

The network is the CNN of Hanawa et al. (2021): six 3×3 convolutions of 16 channels, pooling after each two, global
average, one linear layer (12 k parameters). Each size runs in a process of its own. Memory is the largest resident
size above that of the process once torch, the data and the trained network are there; it is read ten times a
second. A plain epoch (forward, backward, Adam, the same augmented batches) is timed in slices before and after.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import record

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

_SLICE, _BATCH, _SHIFT = 20_000, 128, 2


class Augmented:
    """Pictures shifted, mirrored, dimmed and partly erased, as a hash of (seed, id) says; the first are as they are."""

    def __init__(self, pictures: Any, labels: Any, rows: int, seed: int) -> None:
        self._padded = np.pad(pictures, ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT)))
        self._labels, self._rows, self._seed = labels, rows, seed

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Any:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        x, y = self.take(np.asarray(rows))
        return list(zip(x, y, strict=True))

    def take(self, rows: Any) -> tuple[Any, Any]:
        """Return pictures (b, 1, 28, 28) and labels (b,)."""
        base, size = rows % len(self._labels), self._padded.shape[1] - 2 * _SHIFT
        altered = rows >= len(self._labels)
        down, right, mirror, dim, top, left, erase = _hashes(rows, self._seed, 7)
        down, right = (np.where(altered, h % (2 * _SHIFT + 1), _SHIFT) for h in (down, right))
        pixels = np.arange(size)
        columns = np.where((altered & (mirror % 2 == 1))[:, None], pixels[::-1], pixels)
        lines = (down[:, None] + pixels)[:, :, None]
        x = self._padded[base[:, None, None], lines, (right[:, None] + columns)[:, None, :]]
        x = x * np.where(altered, 0.7 + 0.3 * (dim % 1000) / 1000, 1).astype(np.float32)[:, None, None]
        corner = np.stack([top % (size - 6), left % (size - 6)])
        inside = [(pixels >= at[:, None]) & (pixels < at[:, None] + 6) for at in corner]
        gone = (altered & (erase % 2 == 1))[:, None, None] & inside[0][:, :, None] & inside[1][:, None, :]
        return np.where(gone, np.float32(0), x)[:, None], self._labels[base]


def _hashes(rows: Any, seed: int, count: int) -> list[Any]:
    """Return `count` arrays of pseudo-random non-negative integers, splitmix64 of (seed, row, number)."""
    out = []
    for number in range(count):
        z = rows.astype(np.uint64) + np.uint64((seed * 1000 + number + 1) * 0x9E3779B97F4A7C15 % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out.append(((z ^ (z >> np.uint64(31))) >> np.uint64(33)).astype(np.int64))
    return out


def network() -> Any:
    """Return the CNN."""
    from torch import nn

    layers: list[Any] = []
    for i in range(6):
        layers += [nn.Conv2d(16 if i else 1, 16, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i % 2 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def train(model: Any, optimiser: Any, data: Augmented, rows: Any) -> float:
    """Train on these rows in order; return samples a second."""
    import torch

    loss = torch.nn.CrossEntropyLoss()
    model.train()
    begin = time.perf_counter()
    for at in range(0, len(rows), _BATCH):
        x, y = data.take(rows[at : at + _BATCH])
        optimiser.zero_grad()
        loss(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimiser.step()
    model.eval()
    return len(rows) / (time.perf_counter() - begin)


class Memory(threading.Thread):
    """Reads the resident size ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.readings: list[tuple[float, int]] = []
        self.start()

    def run(self) -> None:
        while True:
            self.readings.append((time.perf_counter(), resident()))
            time.sleep(0.1)

    def peak(self, begin: float, end: float) -> int:
        """Return the largest resident size between two times; that of now where none was read between them."""
        return max((size for at, size in self.readings if begin <= at <= end), default=resident())


def resident() -> int:
    """Return the resident size of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def one(rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Build and verify one index; return what was measured."""
    import data as images
    import torch

    import gradindex

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    pictures = images.load("fashion")
    dataset = Augmented(pictures.x_train, pictures.y_train, rows, options.seed)
    model, rng = network(), np.random.default_rng(options.seed)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(options.epochs):
        train(model, optimiser, dataset, rng.permutation(min(rows, 60_000)))
    with torch.no_grad():
        answers = model(torch.from_numpy(pictures.x_test[:, None])).argmax(1).numpy()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    some = rng.choice(rows, min(rows, _SLICE), replace=False)
    plain = [train(model, optimiser, dataset, some)]
    model.load_state_dict(weights)
    before, memory = resident(), Memory()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="million-"))
    try:
        job = gradindex.Job(model, torch.nn.CrossEntropyLoss(), dataset)
        begin = time.perf_counter()
        index = gradindex.build(job, folder / f"rows-{rows}", overwrite=True)
        built, summary = time.perf_counter(), index.summary
        middle = begin + (built - begin) * summary.embedding_seconds / (
            summary.embedding_seconds + summary.indexing_seconds
        )
        if options.keep:  # for lookup.py
            torch.save(weights, folder / f"network-{rows}.pt")
        audit = index.verify(queries=options.queries)
        verified = time.perf_counter()
        files = sum(path.stat().st_size for path in (folder / f"rows-{rows}").rglob("*") if path.is_file())
        begin_open = time.perf_counter()
        gradindex.load(folder / f"rows-{rows}", job)
        opened = time.perf_counter() - begin_open
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    plain.append(train(model, optimiser, dataset, some))
    return {
        "rows": rows,
        "accuracy": float((answers == pictures.y_test).mean()),
        "plain_per_second": plain,
        "embedded_per_second": summary.rate,
        "ratio": summary.rate / float(np.mean(plain)),
        "embedding_seconds": summary.embedding_seconds,
        "indexing_seconds": summary.indexing_seconds,
        "verify_seconds": verified - built,
        "open_seconds": opened,
        "index": index.searcher.factory,
        "before_bytes": before,
        "embedding_bytes": memory.peak(begin, middle) - before,
        "indexing_bytes": memory.peak(middle, built) - before,
        "verify_bytes": memory.peak(built, verified) - before,
        "disk_bytes_per_row": files / rows,
        "index_bytes_per_row": summary.index_bytes / rows,
        "recall@10": audit.recall,
        "recall@10 interval": audit.recall_interval,
        "recall@10 of the search alone": audit.search_recall,
    }


def main() -> None:
    """Run every size in a process of its own, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--queries", type=int, default=50, help="training samples that the answers are verified with")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder to leave the indexes in")
    record.add_out(parser)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.rows[0], options)))
        return
    found = []
    for rows in options.rows:
        rest = ["--epochs", options.epochs, "--queries", options.queries, "--threads", options.threads]
        rest += ["--seed", options.seed] + (["--keep", options.keep] if options.keep else [])
        command = [sys.executable, __file__, "--one", "--rows", str(rows), *map(str, rest)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        for key, value in found[-1].items():
            print(f"{key:32}{value}", flush=True)
        print(flush=True)
        if options.out:
            record.write(options.out, found)


if __name__ == "__main__":
    main()
