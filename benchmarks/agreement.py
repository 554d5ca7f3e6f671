"""The explainer's scores beside a naive loop's, and the index's answers beside all scores.

Trains a small CNN on scikit-learn's digits in each framework, explains test digits, and compares with gradients
taken one sample at a time, multiplied in float64. Prints for each kernel the largest error relative to the largest
|score| of its query, and recall@10 of ``index="Flat"`` with 50 exact checks a side, proponents and opponents.

    python benchmarks/agreement.py [--epochs 1] [--queries 50] [--out FILE]
"""

import argparse

import numpy as np
import record

from gradindex import GradientSimilarity
from gradindex.cli import demo
from gradindex.words import Backend

KERNELS = ("grad_dot", "grad_cos", "grad_asym_dot")


def torch_gradients(model, x, y):
    import torch

    model.eval()
    rows = []
    for one, label in zip(x, y, strict=True):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(one[None])), torch.tensor([label])).backward()
        rows.append(np.concatenate([p.grad.numpy().ravel() for p in model.parameters()]))
    model.zero_grad()
    return np.array(rows, np.float64)


def keras_gradients(model, x, y):
    import keras
    import tensorflow as tf

    rows = []
    for one, label in zip(x, y, strict=True):
        with tf.GradientTape() as tape:
            output = model(one[None], training=False)
            loss = keras.losses.sparse_categorical_crossentropy(np.array([label]), output, from_logits=True)
        grads = tape.gradient(loss, [v.value for v in model.trainable_variables])
        rows.append(np.concatenate([g.numpy().ravel() for g in grads]))
    return np.array(rows, np.float64)


def naive_scores(kernel, queries, train):
    dots = queries @ train.T
    norms = np.linalg.norm(queries, axis=1)[:, None], np.linalg.norm(train, axis=1)
    if kernel == "grad_dot":
        return dots
    return dots / (norms[0] * norms[1] + 1e-7 if kernel == "grad_cos" else norms[1] ** 2 + 1e-7)


def recall(want, got):
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(want, got, strict=True)]))


def run(backend, epochs, m):
    if backend is Backend.TORCH:
        import torch

        torch.set_num_threads(1)  # more only wait for each other: the model is small
        model, fit, loop, loss = demo._torch_model(0), demo._fit_torch, torch_gradients, torch.nn.CrossEntropyLoss()
    else:
        import keras

        model, fit, loop = demo._keras_model(0), demo._fit_keras, keras_gradients
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y, queries, labels = demo.digits(backend, seed=0)
    queries, labels = queries[:m], labels[:m]
    fit(model, x, y, epochs)
    truth = loop(model, queries, labels), loop(model, x, y)
    found = []
    for kernel in KERNELS:
        options = {"sim_fn": kernel, "backend": "pytorch" if backend is Backend.TORCH else "tensorflow"}
        want = naive_scores(kernel, *truth)
        result = GradientSimilarity(model, loss, **options).fit(x, y).explain(queries, labels)
        scores = np.empty_like(want)
        np.put_along_axis(scores, result.ordered_indices, result.scores, 1)
        indexed = GradientSimilarity(model, loss, **options, index="Flat").fit(x, y).explain(queries, labels, k=10)
        found.append(
            {
                "backend": backend.value,
                "kernel": kernel,
                "epochs": epochs,
                "error": float((np.abs(scores - want) / np.abs(want).max(axis=1, keepdims=True)).max()),
                "recall": recall(result.ordered_indices[:, :10], indexed.ordered_indices),
                "opponent_recall": recall(result.ordered_indices[:, -10:], indexed.opponent_indices),
            }
        )
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--queries", type=int, default=50)
    record.add_out(parser)
    options = parser.parse_args()
    rows = [row for backend in Backend for row in run(backend, options.epochs, options.queries)]
    print(f"{'framework':<12}{'kernel':<15}{'largest error':>14}{'recall@10':>11}{'opponents':>11}")
    for row in rows:
        print(
            f"{row['backend']:<12}{row['kernel']:<15}{row['error']:>14.1e}{row['recall']:>11.4f}"
            f"{row['opponent_recall']:>11.4f}"
        )
    if options.out:
        record.write(options.out, rows)


if __name__ == "__main__":
    main()
