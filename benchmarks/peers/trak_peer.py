"""TRAK: neighbours by its scores, and by the cosine of its features; run by lookup.py in TRAK's environment.

TRAK projects gradients of the margin log p/(1 − p) of the label. That of the cross-entropy is −(1 − p) times it, so the
cosine of TRAK's features estimates the gradient cosine, too; its scores are something else (features by the inverse of
their second moments). Its dense projection is kept in memory, which is its fastest way on a CPU.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from network import network
from trak import TRAKer
from trak.projectors import BasicSingleBlockProjector, ProjectionType

WIDTH, QUERIES, BATCH, K = 512, 200, 256, 10


class Kept(BasicSingleBlockProjector):
    """TRAK lets go of the matrix before queries come, and would draw another one for them."""

    def free_memory(self):
        """Keep the matrix."""


def main():
    folder = Path(sys.argv[1])
    data, model = np.load(folder / "peer.npz"), network()
    state = torch.load(folder / "cnn.pt", weights_only=True)
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    queries, labels = (torch.from_numpy(data[name][:QUERIES]) for name in ("queries", "labels"))
    size = sum(value.numel() for value in model.parameters())
    began = time.perf_counter()
    projector = Kept(size, WIDTH, 0, ProjectionType.rademacher, "cpu")
    with tempfile.TemporaryDirectory() as saved:
        trak = TRAKer(
            *(model.eval(), "image_classification", len(x)),
            save_dir=saved,
            device="cpu",
            projector=projector,
            proj_dim=WIDTH,
            use_half_precision=False,
        )
        trak.load_checkpoint(state, model_id=0)
        for at in range(0, len(x), BATCH):
            batch = x[at : at + BATCH], y[at : at + BATCH]
            trak.featurize(batch=batch, num_samples=len(batch[0]))
        trak.finalize_features()
        built = time.perf_counter() - began
        began = time.perf_counter()
        trak.start_scoring_checkpoint("queries", state, model_id=0, num_targets=len(queries))
        trak.score(batch=(queries, labels), num_samples=len(queries))
        scores = np.array(trak.finalize_scores("queries"))  # (n, m)
        scored = time.perf_counter() - began
        rows = np.array(trak.saver.current_store["grads"])
        asked = np.array(trak.saver.current_store["queries_grads"])
    cosines = (asked / np.linalg.norm(asked, axis=1, keepdims=True)) @ (rows / np.linalg.norm(rows, axis=1)[:, None]).T
    print(
        json.dumps(
            {
                "ids": np.argsort(-scores, axis=0)[:K].T.tolist(),
                "ids by cosine of features": np.argsort(-cosines, axis=1)[:, :K].tolist(),
                "numbers_a_row": WIDTH,
                "build_seconds": built,
                "query_ms": 1e3 * scored / len(queries),
            }
        )
    )


if __name__ == "__main__":
    main()
