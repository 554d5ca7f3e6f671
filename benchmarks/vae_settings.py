"""Why gradients of a VAE are alike: settings of its training, judged without a test image.

Trains the VAE of ``examples/07_vae_tracin.py`` on Fashion-MNIST (``GRADINDEX_DATA``) under one setting, and prints at
every checkpoint, and for the sum over them: how many training images are their own strongest proponent, how often the
strongest proponents and opponents of 500 held-out training images have their label, and the rank correlation of
self-influence with the loss. Inner products are exact, from the layers' inputs and output gradients, without gradindex.
``python benchmarks/vae_settings.py --hidden 1024 --rate 1e-4``
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import record
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from data import load


def perceptron(inputs, hidden, outputs):
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers)


def losses_of(encoder, decoder, x, noise, options):
    mean, log_variance = encoder(x).chunk(2, dim=1)
    output = decoder(mean + torch.exp(log_variance / 2) * noise)
    if options.likelihood == "bernoulli":
        misfit = F.binary_cross_entropy_with_logits(output, x, reduction="none").sum(dim=1)
    else:
        misfit = (output - x).square().sum(dim=1) / (2 * options.variance)
    return misfit - (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1) / 2


def factors(encoder, decoder, x, draws, options):
    """Return the losses (n,) and, layer by layer and draw by draw, inputs and output gradients (n, ·)."""
    layers = [layer for net in (encoder, decoder) for layer in net if isinstance(layer, nn.Linear)]
    total, parts = 0.0, []
    for draw in draws:
        caught = []
        hooks = [layer.register_forward_hook(lambda _, a, b, to=caught: to.append((a[0], b))) for layer in layers]
        losses = losses_of(encoder, decoder, x, draw.expand(len(x), -1), options)
        for hook in hooks:
            hook.remove()
        deltas = torch.autograd.grad(losses.sum(), [output for _, output in caught])
        parts.append([(a.detach(), delta / len(draws)) for (a, _), delta in zip(caught, deltas, strict=True)])
        total = total + losses.detach() / len(draws)
    return total, [list(uses) for uses in zip(*parts, strict=True)]


def products(one, other):
    return sum(
        (d @ e.T) * (a @ b.T + 1) for uses, others in zip(one, other, strict=True) for a, d in uses for b, e in others
    )


def squares(one):
    return sum((d * e).sum(dim=1) * ((a * b).sum(dim=1) + 1) for uses in one for a, d in uses for b, e in uses).numpy()


def report(title, pairs, own, held_out, losses, ids, labels):
    """Print and return how many images are their own strongest proponents, the labels found, and Spearman's rho."""
    y, y_held_out = labels
    first = (pairs.argmax(dim=1).numpy() == ids).mean()
    high, low = (np.mean(y[found.numpy()] == y_held_out) for found in (held_out.argmax(dim=1), held_out.argmin(dim=1)))
    rho = float(spearmanr(own, losses).statistic)
    print(
        f"{title:12} own strongest proponent {first:.3f}, label of proponent {high:.3f} and opponent {low:.3f}, "
        f"Spearman {rho:.3f}",
        flush=True,
    )
    return {"own": float(first), "proponent": float(high), "opponent": float(low), "spearman": rho}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--likelihood", choices=("gaussian", "bernoulli"), default="gaussian")
    parser.add_argument("--variance", type=float, default=0.005)
    parser.add_argument("--rate", type=float, default=1e-4)
    for name, value in {
        "images": 2000,
        "hidden": 512,
        "epochs": 60,
        "checkpoints": 3,
        "draws": 4,
        "queries": 100,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    record.add_out(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load("fashion")
    x, y = torch.from_numpy(data.x_train[: options.images]).flatten(1), data.y_train[: options.images]
    v, y_held_out = torch.from_numpy(data.x_train[50_000:50_500]).flatten(1), data.y_train[50_000:50_500]
    encoder, decoder = perceptron(784, options.hidden, 256), perceptron(128, options.hidden, 784)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=options.rate)
    random = np.random.default_rng(0)
    ids = random.choice(len(x), options.queries, replace=False)
    draws = torch.from_numpy(random.standard_normal((options.draws, 128)).astype(np.float32))
    sums, results = [0.0, 0.0, 0.0], []
    for epoch in range(options.epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            losses_of(encoder, decoder, x[rows], torch.randn(len(rows), 128), options).mean().backward()
            optimizer.step()
        if (epoch + 1) % (options.epochs // options.checkpoints):
            continue
        losses, train = factors(encoder, decoder, x, draws, options)
        asked = [[(a[ids], d[ids]) for a, d in uses] for uses in train]
        loss, held_out = factors(encoder, decoder, v, draws, options)
        found = products(asked, train), squares(train), products(held_out, train)
        sums = [total + one for total, one in zip(sums, found, strict=True)]
        print(f"epoch {epoch + 1}: loss {losses.mean():.1f}, held out {loss.mean():.1f}")
        for title, (pairs, own, of_held_out) in (("alone", found), ("sum so far", sums)):
            row = report(title, pairs, own, of_held_out, losses.numpy(), ids, (y, y_held_out))
            results.append({"epoch": epoch + 1, "of": title, **row})

    if options.out:
        record.write(options.out, results)


if __name__ == "__main__":
    main()
