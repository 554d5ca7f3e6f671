"""A small stored index, and what it answered when it was made: later versions have to open it and answer the same.

    python -m tests.stored FOLDER

made `tests/stored/` with the version before modules moved (2026-11-30), and is kept to make another one when the format
gets another version. The model's weights lie beside it, since training gives other bits on other processors.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import gradindex

FOLDER = Path(__file__).parent / "stored"
ROWS, MORE, GONE = 90, 30, [4, 17, 100]
QUERIES = [0, 33, 95]


def job(weights, rows):
    x, y = load_digits(return_X_y=True)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    model.load_state_dict({name: torch.from_numpy(weights[name]) for name in model.state_dict()})
    data = (x[:rows] / 16).astype(np.float32), y[:rows]
    return gradindex.Job(model, nn.CrossEntropyLoss(), data, columns={"half": ["first", "second"] * (rows // 2)})


def answers(path, weights):
    """Return what the index says, as JSON has it."""
    index = gradindex.load(path, job(weights, ROWS + MORE))
    index.check()
    scores, ids = index.search(index.store.gather(np.array([0, 50, 100])), 5)
    exact, proved = index.explain(ids=QUERIES, k=4), index.explain(ids=QUERIES, k=3, certify=True)
    return {
        "rows": len(index),
        "ids": index.store.ids.tolist(),
        "searched": [ids.tolist(), scores.tolist()],
        "exact": [exact.ordered_indices.tolist(), exact.scores.tolist(), exact.exact.all().item()],
        "opponents": [exact.opponent_indices.tolist(), exact.opponent_scores.tolist()],
        "proved": [proved.ordered_indices.tolist(), proved.proved.tolist()],
        "filtered": index.explain(ids=[0], k=3, where={"half": "second"}).ordered_indices.tolist(),
        "self_influence": [part.tolist() for part in index.self_influence(5)],
        "loss": np.asarray(index.store.columns["loss"]).tolist(),
    }


def make(folder):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy((x[:ROWS] / 16).astype(np.float32)), torch.from_numpy(y[:ROWS])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    weights = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    folder.mkdir(parents=True)
    np.savez(folder / "weights.npz", **weights)
    sketch = gradindex.Landmark(landmarks=40, dims=24)
    gradindex.build(job(weights, ROWS), folder / "index", sketch=sketch, shard_rows=50, progress=False)
    gradindex.add(folder / "index", job(weights, ROWS + MORE), progress=False).remove(GONE)
    (folder / "answers.json").write_text(json.dumps(answers(folder / "index", weights), indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
