"""Held-out copies of training samples: which ones a review finds, and what else it takes for copies."""

import argparse
import io
import tempfile
from collections.abc import Callable

import numpy as np
import record
import review_data
from PIL import Image
from torch import nn

import gradindex
from gradindex.review import review

PLANTED = 100


def moved(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return pictures (n, s, s) moved by a pixel, each in one of eight directions; what comes in is 0."""
    steps = np.array([(a, b) for a in range(3) for b in range(3) if (a, b) != (1, 1)])
    padded, side = np.pad(x, ((0, 0), (1, 1), (1, 1))), x.shape[1]
    chosen = steps[random.integers(0, len(steps), len(x))]
    return np.stack([one[a : a + side, b : b + side] for one, (a, b) in zip(padded, chosen, strict=True)])


def noisy(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return x + random.normal(0, 0.02, x.shape)


def encoded(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return pictures as they come out of JPEG with quality 75."""
    found = []
    for one in x:
        file = io.BytesIO()
        Image.fromarray(np.round(np.clip(one, 0, 1) * 255).astype(np.uint8)).save(file, "JPEG", quality=75)
        found.append(np.asarray(Image.open(file), np.float32) / 255)
    return np.stack(found)


CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "none planted": lambda x, random: x[:0],
    "exact": lambda x, random: x,
    "noise": noisy,
    "JPEG": encoded,
    "moved by a pixel": moved,
}


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Return recall and precision of each way to copy samples, in a held-out set of a third of the data."""
    one = review_data.load(name)
    random = np.random.default_rng(seed)
    order = random.permutation(len(one.x))[:3000]
    train, held = np.split(order, [2 * len(order) // 3])
    side = int(np.sqrt(one.x.shape[1]))
    x, y = (one.x[train] / one.x.max()).astype(np.float32), one.y[train]
    model = review_data.fit(x, y, one, seed)
    job = gradindex.Job(model, nn.CrossEntropyLoss(), (x, y), render=lambda i: x[i].reshape(side, side))
    index = gradindex.build(job, f"{tempfile.mkdtemp()}/index")
    chosen, lines = random.choice(len(x), PLANTED, replace=False), []
    for change, make in CHANGES.items():
        asked = (one.x[held] / one.x.max()).astype(np.float32)
        copies = make(x[chosen].reshape(-1, side, side), random).reshape(-1, side * side)
        asked[: len(copies)] = copies
        found = review(index, top=len(asked), held_out=asked).of("leak")
        right = sum(a.held_out < len(copies) and chosen[a.held_out] in a.neighbours for a in found)
        wrong = sum(a.held_out >= len(copies) for a in found)
        lines.append(
            {"data": name, "change": change, "seed": seed, "held_out": len(asked), "planted": len(copies)}
            | {"found": right, "recall": right / PLANTED if len(copies) else None, "others": wrong}
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits,mnist,fashion")
    parser.add_argument("--seeds", type=int, default=1)
    record.add_out(parser)
    options = parser.parse_args()
    lines = [line for name in options.data.split(",") for seed in range(options.seeds) for line in measure(name, seed)]
    if options.out:
        record.write(options.out, lines)


if __name__ == "__main__":
    main()
