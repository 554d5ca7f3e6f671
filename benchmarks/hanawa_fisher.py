"""FK of logistic regression with three Fisher matrices: the true one, the rank-one form, and that in single precision.

``python benchmarks/hanawa_fisher.py``: class test on Vehicle. The last is the arithmetic of the study's code: ḡ ḡᵀ
plus 1e-10 times its mean absolute entry on the diagonal, inverted in float32, where the damping is below the rounding.
"""

import numpy as np
import torch
from hanawa import experiment

from gradindex import queries, relevance
from gradindex.evaluation import criteria

REPEATS = 5


def single_precision(train, asked):
    mean = train.astype(np.float32).mean(axis=0)
    matrix = np.outer(mean, mean)
    matrix += np.float32(1e-10) * np.abs(matrix).mean() * np.eye(len(matrix), dtype=np.float32)
    return asked @ np.linalg.inv(matrix).astype(np.float64) @ train.T


def main():
    torch.set_num_threads(1)
    setting = experiment("vehicle-logreg")
    rates = {"true": [], "rank one": [], "rank one, float32": []}
    for seed in range(REPEATS):
        split = setting.split(seed)
        job = setting.job(split, split.y_train, 4, seed)
        labels = np.asarray(queries.predicted(job.engine, split.x_test, split.y_train))
        x = split.x_test
        true = relevance.metric("FK", job)
        train, asked = true.space.train("grad"), true.space.of("grad", x, labels)
        scores = {
            "true": true.scores(x, labels),
            "rank one": relevance.metric("FK", job, fisher="mean").scores(x, labels),
            "rank one, float32": single_precision(train, asked),
        }
        for name, found in scores.items():
            rates[name].append(criteria.passes(found, split.y_train, labels).mean())
    for name, found in rates.items():
        print(f"{name:18} {np.mean(found):.2f} ± {np.std(found, ddof=1):.2f}   (the paper: 0.26 ± 0.17)")


if __name__ == "__main__":
    main()
