"""Requests a second and latency of `gradindex serve`, batches of concurrent requests against one at a time.

    python benchmarks/serve.py [--data fashion] [--rows 8000] [--seconds 5] [--clients 1,8] [--modes 0123] [--out FILE]

A server is started on a free port of this machine and loaded by that many clients, each asking one query after the
other over its own connection, from another process; both stop by themselves. MNIST (an MLP 784-128-10) and
Fashion-MNIST (a CNN of 421,642 parameters) are read from GRADINDEX_DATA; digits (an MLP 64-128-10) are scikit-learn's.
Queries are held out; so are those that the calibrated recall of the last mode rests on. `checked` is the median of the
exact checks that its answers took, of both sides.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import record

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "examples"))

import data as images  # noqa: E402

SEARCH, ESTIMATE, EXPLAIN = "search", "explain, estimates", "explain, 100 exact checks a side"
PROMISED = "explain, calibrated recall .99"
MODES = (SEARCH, ESTIMATE, EXPLAIN, PROMISED)
CALIBRATED = 300  # queries
ASKED = 256


def data(rows):
    """Return inputs (n, 784) float32 (fashion: (n, 1, 28, 28); digits: (n, 64)) and labels (n,) int64."""
    found = images.load(os.environ["SERVE_DATA"])
    return shaped(found.x_train[:rows]), found.y_train[:rows]


def held_out():
    """Return inputs that are calibrated with, and inputs that are asked."""
    x = shaped(images.load(os.environ["SERVE_DATA"]).x_test[: CALIBRATED + ASKED])
    return x[:-ASKED], x[-ASKED:]


def shaped(x):
    return x[:, None] if os.environ["SERVE_DATA"] == "fashion" else x.reshape(len(x), -1)


def network(name, width):
    from torch import nn

    if name != "fashion":
        return nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 10))
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def job():
    """Make the job that the server is started with: rows from the environment, a model trained from a fixed seed."""
    import torch
    from torch import nn

    import gradindex
    from gradindex.runtime import threads

    x, y = data(int(os.environ["SERVE_ROWS"]))
    side = int(x[0].size ** 0.5)
    torch.manual_seed(0)
    model = network(os.environ["SERVE_DATA"], x[0].size)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with threads.using("torch", 1):  # the same weights in every process
        for _ in range(1 if x.ndim == 4 else 3):
            for i in range(0, len(x), 64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(
                    model(torch.from_numpy(x[i : i + 64])), torch.from_numpy(y[i : i + 64])
                ).backward()
                optimizer.step()
    return gradindex.Job(model, nn.CrossEntropyLoss(), (x, y), render=lambda i: x[i].reshape(side, side))


@contextlib.contextmanager
def server(path, batch):
    command = [sys.executable, "-m", "gradindex", "serve", str(path), f"{HERE}:job", "--port", "0"]
    process = subprocess.Popen([*command, "--max-batch", str(batch)], stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if found := re.search(r"http://([^:]+):(\d+)", line):
                break
        else:
            raise RuntimeError("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found.group(1), int(found.group(2))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def bodies(mode, rows, dim):
    rng = np.random.default_rng(0)
    if mode == SEARCH:
        vectors = rng.standard_normal((64, dim)).astype(np.float32)
        return "/v1/search", [json.dumps({"vectors": [v.round(4).tolist()], "k": 10}) for v in vectors]
    how = {EXPLAIN: {"rerank": 100}, ESTIMATE: {"rerank": 0}, PROMISED: {"recall": 0.99}}[mode]
    return "/v1/explain", [json.dumps({"inputs": [one.round(4).tolist()], "k": 10, **how}) for one in held_out()[1]]


def load(host, port, mode, clients, seconds, rows, dim, out):
    """Run in a process of its own: send (latencies, codes other than 200) of all clients."""
    path, asked = bodies(mode, rows, dim)
    latencies, refused, checked = [], [], []
    begin = time.perf_counter()

    def client(number):
        connection = HTTPConnection(host, port, timeout=120)
        i = number
        while (sent := time.perf_counter()) < begin + seconds:
            connection.request("POST", path, asked[i % len(asked)], {"content-type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            i += clients
            if answer.status == 200 and mode != SEARCH:
                (one,) = json.loads(body)["answers"]
                checked.append(one["checked"])
            (latencies if answer.status == 200 else refused).append(time.perf_counter() - sent)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.put((latencies, len(refused), time.perf_counter() - begin, float(np.median(checked)) if checked else None))


def measure(address, mode, clients, seconds, rows, dim):
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=load, args=(*address, mode, clients, seconds, rows, dim, out))
    process.start()
    latencies, refused, took, checked = out.get(timeout=seconds + 180)
    process.join()
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {"rate": len(latencies) / took, "p50": p50, "p99": p99, "refused": refused, "checked": checked}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="fashion", choices=("mnist", "fashion", "digits"))
    parser.add_argument("--rows", type=int, default=8_000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--modes", default="0123", help="digits: 0 search, 1 estimates, 2 exact checks, 3 recall=.99")
    record.add_out(parser)
    options = parser.parse_args()
    import gradindex

    os.environ["SERVE_DATA"] = options.data
    rows = len(data(options.rows)[0])
    os.environ["SERVE_ROWS"] = str(rows)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        index = gradindex.build(job(), Path(folder) / "index", progress=False)
        index.calibrate(held_out()[0], progress=False)
        dim = index.store.header.dim
        found = {}
        for batch in (1, 64):
            with server(Path(folder) / "index", batch) as address:
                for mode in [MODES[int(one)] for one in options.modes]:
                    measure(address, mode, 1, 0.5, rows, dim)
                    for clients in map(int, options.clients.split(",")):
                        found[mode, clients, batch] = measure(address, mode, clients, options.seconds, rows, dim)
    print(f"{options.data}: {rows:,} rows of {dim}, {os.cpu_count()} cores\n")
    print("| request | clients | one at a time /s | p50, p99 ms | batched /s | p50, p99 ms | batched / one at a time |")
    print("|---|---|---|---|---|---|---|")
    for mode, clients, batch in found:
        if batch > 1:
            one, many = found[mode, clients, 1], found[mode, clients, 64]
            print(
                f"| {mode} | {clients} | {one['rate']:.0f} | {one['p50']:.1f}, {one['p99']:.1f} | {many['rate']:.0f} | "
                f"{many['p50']:.1f}, {many['p99']:.1f} | {many['rate'] / one['rate']:.2f} |"
            )
            results.append({"mode": mode, "clients": clients, "one": one, "batched": many})
    print(f"\nrefused or failed: {sum(one['refused'] for one in found.values())}")
    if options.out:
        record.write(options.out, results)


if __name__ == "__main__":
    main()
