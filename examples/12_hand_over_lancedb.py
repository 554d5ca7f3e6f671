"""Handing an index over to a vector database: the same neighbours from LanceDB.

    python examples/12_hand_over_lancedb.py

Trains a small network on scikit-learn's digits, exports its index as Parquet, loads that into LanceDB (a database in a
folder, `pip install lancedb`), and asks both for the neighbours of the same queries.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from data import parser_of
from sklearn.datasets import load_digits

import gradindex
from gradindex.interop.export import query_vectors


def train(x: np.ndarray, y: np.ndarray, seed: int) -> torch.nn.Module:
    """Return a network after ten epochs."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(10):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x[rows])), torch.from_numpy(y[rows]))
            loss.backward()
            optimiser.step()
    return model


def main(rows: int, out: Path, seed: int) -> None:
    """Build, export, load, ask both, compare."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    print(f"data: scikit-learn's digits, {rows} training images of 8×8 and 20 queries")
    try:
        import lancedb
    except ImportError:
        print("LanceDB is not installed: pip install lancedb")
        return
    job = gradindex.Job(train(x[:rows], y[:rows], seed), torch.nn.CrossEntropyLoss(), (x[:rows], y[:rows]))
    index = gradindex.build(job, out / "index", overwrite=True)
    for name in ("parquet", "lancedb"):
        shutil.rmtree(out / name, ignore_errors=True)  # of an earlier run
    print(gradindex.export(out / "index", parquet=out / "parquet"))

    table = lancedb.connect(out / "lancedb").create_table("gradients", pq.read_table(out / "parquet"))
    queries = query_vectors(index, x[-20:], y[-20:])
    scores, ids = index.search(queries, 10)
    same = []
    for vector, score, want in zip(queries, scores, ids, strict=True):
        found = table.search(vector).distance_type("dot").limit(10).to_arrow()
        np.testing.assert_allclose(1 - found["_distance"].to_numpy(), score, atol=1e-4)
        same.append(len(np.intersect1d(found["id"].to_numpy(), want)))
    print(f"{sum(same)} of {10 * len(same)} neighbours are the same; the scores agree to 1e-4.")
    threes = table.search(queries[0]).distance_type("dot").where("label = 3", prefilter=True).limit(5).to_arrow()
    print(
        f"With the label as a filter: {threes['id'].to_pylist()}, as here: "
        f"{index.search(queries[:1], 5, where={'label': 3})[1][0].tolist()}"
    )


if __name__ == "__main__":
    parser = parser_of(__doc__, "runs/lancedb", "300 training images")
    parser.add_argument("--rows", type=int, default=1200, help="training images, up to 1,777")
    options = parser.parse_args()
    main(min(options.rows, 300) if options.quick else options.rows, options.out, options.seed)
