"""Captum's TracInCPFastRandProj: neighbours and seconds a query; run by lookup.py in Captum's environment."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from captum.influence import TracInCPFastRandProj
from captum.influence._utils.nearest_neighbors import AnnoyNearestNeighbors
from network import network
from torch import nn
from torch.utils.data import TensorDataset

WIDTH, TREES, QUERIES, K = 70, 50, 200, 10


def main():
    folder = Path(sys.argv[1])
    data, model = np.load(folder / "peer.npz"), network()
    path = str(folder / "cnn.pt")
    model.load_state_dict(torch.load(path, weights_only=True))
    dataset = TensorDataset(torch.from_numpy(data["x"]), torch.from_numpy(data["y"]))

    def load(model, path):
        model.load_state_dict(torch.load(path, weights_only=True))
        return 1.0

    began = time.perf_counter()
    tracin = TracInCPFastRandProj(
        model.eval(),
        model[-1],
        dataset,
        [path],
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=256,
        nearest_neighbors=AnnoyNearestNeighbors(TREES),
        projection_dim=WIDTH,
    )
    built = time.perf_counter() - began
    ids, times = [], []
    for i in range(min(QUERIES, len(data["queries"]))):
        query = torch.from_numpy(data["queries"][i : i + 1]), torch.from_numpy(data["labels"][i : i + 1])
        began = time.perf_counter()
        found, _ = tracin.influence(query, k=K, proponents=True)
        times.append(time.perf_counter() - began)
        ids.append(found[0].tolist())
    print(
        json.dumps(
            {"ids": ids, "numbers_a_row": WIDTH, "build_seconds": built, "query_ms": 1e3 * float(np.median(times))}
        )
    )


if __name__ == "__main__":
    main()
