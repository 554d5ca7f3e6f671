"""Alibi 0.9.6: seconds of explaining one query against 1,000 references; run by lookup.py in Alibi's environment."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from alibi.explainers import GradientSimilarity
from network import network
from torch import nn

REFERENCES, ROWS = 1000, 60_000


def main():
    folder, repeats = Path(sys.argv[1]), int(sys.argv[2])
    data, model = np.load(folder / "peer.npz"), network()
    model.load_state_dict(torch.load(folder / "cnn.pt", weights_only=True))
    x, y = data["x"][:REFERENCES], data["y"][:REFERENCES]
    out = {"references": REFERENCES}
    for name, keep in (("computed", False), ("kept", True)):
        explainer = GradientSimilarity(
            model.eval(), nn.CrossEntropyLoss(), sim_fn="grad_cos", backend="pytorch", precompute_grads=keep
        )
        began = time.perf_counter()
        explainer.fit(x, y)
        out[f"fit_seconds_{name}"] = time.perf_counter() - began
        times = []
        for i in range(min(repeats, 3)):
            began = time.perf_counter()
            explainer.explain(data["queries"][i : i + 1], data["labels"][i : i + 1])
            times.append(time.perf_counter() - began)
        out[f"explain_seconds_{name}"] = float(np.median(times))
        out[f"explain_seconds_{name}_extrapolated_to_60000"] = float(np.median(times)) * ROWS / REFERENCES
    print(json.dumps(out))


if __name__ == "__main__":
    main()
