"""Count the acknowledged decisions that are lost while two reviewers decide at once and the service is killed.

    python benchmarks/reviewers.py [--seconds 600] [--every 20] [--out FILE]

An index of scikit-learn's digits is served; both decide and undo over HTTP as fast as they are answered, on the same
200 samples. Every so many seconds the service gets SIGKILL and SIGTERM in turn, and is started again. In the end the
file of decisions is compared with what was acknowledged: each must be there once, in each reviewer's order.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import record

HERE = Path(__file__).resolve()
SAMPLES = 200


def job():
    """Return the digits with a small network, as it is made: what it has learned does not matter here."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    import gradindex

    x, y = load_digits(return_X_y=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    return gradindex.Job(model, nn.CrossEntropyLoss(), ((x[:SAMPLES] / 16).astype(np.float32), y[:SAMPLES]))


class Service:
    """The service as a command, started again after each end; `address` is None meanwhile."""

    def __init__(self, path):
        self.path, self.address, self.process = path, None, None
        self.stops = {"SIGKILL": 0, "SIGTERM": 0}

    def start(self):
        command = [sys.executable, "-m", "gradindex", "serve", str(self.path), f"{HERE}:job", "--port", "0", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = json.loads(self.process.stdout.readline())["address"].removeprefix("http://")

    def stop(self, number):
        self.stops[signal.Signals(number).name] += 1
        self.address = None
        self.process.send_signal(number)
        self.process.wait(60)
        self.process.stdout.close()


class Reviewer(threading.Thread):
    """Decides until told to stop; keeps what was acknowledged, in order, and how many were left without an answer."""

    def __init__(self, service, name):
        super().__init__(name=name)
        self.service, self.acknowledged, self.unanswered, self.refused = service, [], 0, []
        self.done, self.connection = threading.Event(), None

    def run(self):
        number = 0
        while not self.done.is_set():
            number += 1
            undoes = number % 10 == 0 and bool(self.acknowledged)  # who has decided nothing yet is rightly refused
            body = {"reviewer": self.name}
            if not undoes:
                decision = ("keep", "relabel", "remove", "later")[number % 4]
                body |= {"id": number * 7 % SAMPLES, "decision": decision}
                body |= {"label": number % 10} if decision == "relabel" else {}
            status, answer = self.ask("/v1/review/undo" if undoes else "/v1/review/decisions", body)
            if status == 200:
                self.acknowledged.append(key(answer["entry"]))
            elif status is not None:
                self.refused.append((status, answer))
        if self.connection is not None:
            self.connection.close()

    def ask(self, path, body):
        """Return the status and answer; None where the service ended before it answered."""
        try:
            if self.connection is None:
                if self.service.address is None:
                    time.sleep(0.05)
                    return None, None
                self.connection = HTTPConnection(self.service.address, timeout=30)
            self.connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = self.connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, HTTPException, ValueError):
            self.unanswered += 1
            self.connection = None
            time.sleep(0.05)
            return None, None


def key(entry):
    return tuple(entry[name] for name in ("time", "reviewer", "id", "decision", "label", "undoes"))


def lost(written, acknowledged):
    """Return how many acknowledged entries are not written in their order."""
    rest = iter(written)
    return sum(not any(one == wanted for one in rest) for wanted in acknowledged)


def run(path, seconds, every):
    """Return what was acknowledged and lost."""
    from gradindex.review.beside import decisions_path, directory
    from gradindex.review.decision_log import DecisionLog
    from gradindex.store import Store

    service = Service(path)
    reviewers = [Reviewer(service, name) for name in ("Ada", "Ben")]
    for one in reviewers:
        one.start()
    try:
        for number in range(max(1, round(seconds / every))):
            service.start()
            time.sleep(every)
            service.stop((signal.SIGKILL, signal.SIGTERM)[number % 2])
    finally:
        for one in reviewers:
            one.done.set()
        for one in reviewers:
            one.join()
        if service.process.poll() is None:
            service.stop(signal.SIGTERM)
    file = decisions_path(directory(path), Store.open(path))
    log = DecisionLog(file)
    written = [key(vars(entry)) for entry in log.since(0, 10**9)[1]]
    found = {one.name: lost([line for line in written if line[1] == one.name], one.acknowledged) for one in reviewers}
    return {
        "seconds": seconds,
        "acknowledged": sum(len(one.acknowledged) for one in reviewers),
        "lost": sum(found.values()),
        "twice": len(written) - len(set(written)),
        "written": len(written),
        "unanswered": sum(one.unanswered for one in reviewers),
        "refused": sum(len(one.refused) for one in reviewers),
        "torn": log.damaged,
        "stops": service.stops,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="of service, the starts not counted")
    parser.add_argument("--every", type=float, default=20, help="seconds from a start to the next stop")
    record.add_out(parser)
    options = parser.parse_args()
    import gradindex

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        gradindex.build(job(), path, progress=False)
        found = run(path, options.seconds, options.every)
    print(json.dumps(found, indent=1))
    if options.out:
        record.write(options.out, found)


if __name__ == "__main__":
    main()
