"""How far gradients of samples that a model is sure of are rounding: the room that a certified answer leaves for it.

    GRADINDEX_DATA=… python benchmarks/rounding.py [--rows 20000] [--out FILE]

Trains the MLP of `certified.py` for 8 epochs on Fashion-MNIST. By norm of the gradient: the room that
`bounds.evaluation_error` leaves for its cosines beside the usual 1e-5, and how far the direction is from that of the
same model in double precision. Then the distance of directions between passes in single precision, in batches of other
sizes. Both for the loss in single precision and for the same loss in double (`gradindex.InDouble`). Directions are
compared in CountSketches of 4,096 numbers.
"""

import argparse
import copy
import itertools

import certified
import numpy as np
import record
import torch
from torch import nn

import gradindex
from gradindex.gradients import in_double
from gradindex.search import bounds

DECADES = [0, *(10.0**power for power in range(-8, 1)), np.inf]


def embedded(job, projector, ids, size):
    """Return directions (n, 4096) and norms (n,) of the gradients of some samples, `size` of them at once."""
    parts = [job.source.take(ids[at : at + size]) for at in range(0, len(ids), size)]
    found = [job.engine.embed(part.x, part.y, projector) for part in parts]
    sketches = np.concatenate([one.sketches.astype(np.float64) for one in found])
    lengths = np.linalg.norm(sketches, axis=1, keepdims=True)
    return sketches / np.where(lengths > 0, lengths, 1), np.concatenate([one.norms for one in found])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--again", type=int, default=4096, help="rows that are embedded in batches of other sizes")
    parser.add_argument("--epochs", type=int, default=8)
    record.add_out(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = certified.load("fashion")
    model = certified.trained(certified.mlp, images, options.epochs, 0)
    x, y = images.x_train[: options.rows], images.y_train[: options.rows]
    double = gradindex.Job(copy.deepcopy(model).double(), nn.CrossEntropyLoss(), (x.astype(np.float64), y))
    projector = gradindex.CountSketch(4096).bind(double.engine.parameters, 0)
    truth, _ = embedded(double, projector, np.arange(len(x)), 512)
    found = {}
    for title, loss in (
        ("single", nn.CrossEntropyLoss()),
        ("double", gradindex.InDouble(nn.CrossEntropyLoss())),
    ):
        print(f"\n# The loss in {title} precision\n")
        found[title] = compare(gradindex.Job(model, loss, (x, y)), projector, truth, options.again)
    if options.out:
        record.write(options.out, found)


def compare(job, projector, truth, again):
    """Print and return how far directions are from the truth (n, 4096), and from each other in other batches."""
    ids = np.arange(len(truth))
    here, norms = embedded(job, projector, ids, 512)
    batch = job.source.take(ids)
    turned = in_double.directions(job.engine, job.engine.outputs(batch.x), batch.y)
    error = bounds.evaluation_error(norms.astype(np.float32), bounds.unit(job.engine), turned)
    room = error - bounds.EVALUATION
    off = np.linalg.norm(here - truth, axis=1)
    print(f"largest norm {norms.max():.3g}; a gradient of zero: {(norms == 0).mean():.3f} of the rows")
    print(f"{'norm':>18}{'rows':>8}{'room, median':>14}{'off, median':>13}{'off, most':>11}{'most off/allowed':>18}")
    by_norm, by_batch = [], []
    for low, high in itertools.pairwise(DECADES):
        some = (norms >= low) & (norms < high) & (norms > 0)
        if some.any():
            row = {
                "norms below": None if np.isinf(high) else high,
                "rows": float(some.mean()),
                "room": float(np.median(room[some])),
                "off": float(np.median(off[some])),
                "off at most": float(off[some].max()),
                "off over allowed": float((off[some] / error[some]).max()),
            }
            by_norm.append(row)
            print(
                f"{low:8.0e} to {high:6.0e}{row['rows']:8.3f}{row['room']:14.1e}{row['off']:13.1e}"
                f"{row['off at most']:11.1e}{row['off over allowed']:18.2f}"
            )
    first = ids[:again]
    order = np.random.default_rng(0).permutation(first)
    print(
        f"\nagain, the first {len(first)} rows: largest distance from the first pass, and over what a proof allows for"
    )
    for size in (1, 2, 5, 16, 64, 256):
        apart = np.linalg.norm(embedded(job, projector, order, size)[0] - here[order], axis=1)
        by_batch.append(
            {"size": size, "apart": float(apart.max()), "over allowed": float((apart / error[order]).max())}
        )
        print(f"batches of {size:3}: {by_batch[-1]['apart']:.1e}, {by_batch[-1]['over allowed']:.2f}")
    return {"largest off": float(off.max()), "by norm": by_norm, "in other batches": by_batch}


if __name__ == "__main__":
    main()
