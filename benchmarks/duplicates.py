"""Changed copies within a training set: which ones a review finds, beside the nearest pixels and hidden vectors.

    python benchmarks/duplicates.py [--data digits,mnist,fashion,texts] [--seeds 3] [--out FILE]

A hundred samples are replaced by changed copies of a hundred others, and a network is trained on all. `recall` is the
share of these pairs that `gradindex.review` names with its own threshold, `others` are pairs that it names and nobody
planted; the data have some of their own. `first` takes as many of its pairs as were planted, and so do the contenders,
which rank all pairs by the cosine of hidden vectors, of inputs as they are, less their mean (`pixels`), or of
standardised inputs. In texts, whose inputs are weighted counts of words, `words` exchanges a fifth of a copy's words.
"""

import argparse
import tempfile
from collections.abc import Callable

import counterfactual_data
import numpy as np
import record
import review_data
import torch
from leaks import CHANGES
from torch import nn

import gradindex
from gradindex.ann.vectors import nearest_others
from gradindex.review import review
from gradindex.review.evidence import Evidence, Near, unit

PLANTED, ROWS = 100, 3000


def texts(seed: int) -> Callable[[str, np.ndarray, np.ndarray], np.ndarray]:
    """Return what makes the inputs of texts, some of which are copies with changed words."""
    words, _ = counterfactual_data.sections(2000)
    words, random = [list(one) for one in words], np.random.default_rng(seed)
    vocabulary = sorted({word for one in words[:2000] for word in one})

    def made(change: str, chosen: np.ndarray, replaced: np.ndarray) -> np.ndarray:
        changed = list(words)
        for one, other in zip(chosen, replaced, strict=True):
            copy = list(words[one])
            if change == "words":
                for place in random.choice(len(copy), max(1, len(copy) // 5), replace=False):
                    copy[place] = vocabulary[random.integers(len(vocabulary))]
            changed[other] = copy
        return counterfactual_data.tfidf(changed, 2000, 1000)[:2000]

    return made


def pictures(one: review_data.Set, rows: np.ndarray, seed: int) -> Callable[[str, np.ndarray, np.ndarray], np.ndarray]:
    """Return what makes pictures, some of which are changed copies."""
    random, side = np.random.default_rng(seed), int(np.sqrt(one.x.shape[1]))
    plain = (one.x[rows] / one.x.max()).astype(np.float32)

    def made(change: str, chosen: np.ndarray, replaced: np.ndarray) -> np.ndarray:
        x = plain.copy()
        copies = CHANGES[change](plain[chosen].reshape(-1, side, side), random)
        x[replaced] = copies.reshape(len(chosen), -1)
        return x

    return made


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Return, of each way to change copies, how many are found."""
    one, random = review_data.load(name), np.random.default_rng(seed)
    order = np.arange(2000) if name == "texts" else random.permutation(len(one.x))[:ROWS]
    make = texts(seed) if name == "texts" else pictures(one, order, seed)
    changes = ("exact", "words") if name == "texts" else [change for change in CHANGES if change != "none planted"]
    chosen, replaced = random.choice(len(order), (2, PLANTED), replace=False)
    planted, lines = {pair(*both) for both in zip(chosen.tolist(), replaced.tolist(), strict=True)}, []
    side = int(np.sqrt(one.x.shape[1]))
    for change in changes:
        x, y = make(change, chosen, replaced), one.y[order].copy()
        y[replaced] = y[chosen]
        model = review_data.fit(x, y, one, seed)
        render = None if name == "texts" else lambda i, x=x: x[i].reshape(side, side)
        job = gradindex.Job(model, nn.CrossEntropyLoss(), (x, y), render=render)
        index = gradindex.build(job, f"{tempfile.mkdtemp()}/index", progress=False)
        named = [pair(one.id, one.neighbours[0]) for one in review(index, top=len(x)).of("duplicate")]
        seen = Evidence(index)
        found = {
            "recall": len(planted & set(named)) / PLANTED,
            "others": len(set(named) - planted),
            "first": len(planted & set(named[:PLANTED])) / PLANTED,
        }
        raw = unit((x - x.mean(axis=0)).astype(np.float32))
        spaces = seen.near | {"pixels": Near(*nearest_others(raw, seen.k))}
        found |= {space: len(planted & nearest(spaces[space])) / PLANTED for space in ("hidden", "pixels", "inputs")}
        lines.append({"data": name, "change": change, "seed": seed, "rows": len(x), **found})
        print(lines[-1], flush=True)
    return lines


def pair(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)


def nearest(near: object) -> set[tuple[int, int]]:
    """Return as many pairs as were planted, of the highest cosines."""
    found: dict[tuple[int, int], float] = {}
    for row, (cosines, places) in enumerate(zip(near.cosines, near.places, strict=True)):
        for cosine, place in zip(cosines.tolist(), places.tolist(), strict=True):
            if place >= 0:
                found[pair(row, place)] = cosine
    return set(sorted(found, key=lambda both: -found[both])[:PLANTED])


def main() -> None:
    """Measure, and print means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits,mnist,fashion,texts")
    parser.add_argument("--seeds", type=int, default=3)
    record.add_out(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [line for name in options.data.split(",") for seed in range(options.seeds) for line in measure(name, seed)]
    means = []
    for name, change in dict.fromkeys((line["data"], line["change"]) for line in runs):
        some = [line for line in runs if (line["data"], line["change"]) == (name, change)]
        words = ("recall", "others", "first", "hidden", "pixels", "inputs")
        mean = {word: float(np.mean([line[word] for line in some])) for word in words}
        means.append({"data": name, "change": change, "seeds": len(some), **mean})
        print(means[-1])
    if options.out:
        record.write(options.out, means)


if __name__ == "__main__":
    main()
