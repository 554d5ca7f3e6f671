"""Randomization of h_last and h_all on Vehicle's MLP under other choices: ``python benchmarks/hanawa_hidden.py``.

The study has .16, -.09, .85 (ℓ2, cos, dot of h_last) and .20, -.01, .97 (h_all) there. Each line changes one choice of
`hanawa.py`: features as they are, two hidden layers of 24, ReLU, torch's initialisation, batches of 64, 1,000 epochs.
"""

import argparse

import hanawa
import numpy as np
import record
import torch
from torch import nn

from gradindex.evaluation import Experiment, evaluate

NAMES = [f"{s}-{h}" for h in ("last", "all") for s in ("l2", "cos", "dot")]
VARIANTS = {
    "as in hanawa.py": {},
    "standardised": {"scaling": "standard"},
    "scaled to [0, 1]": {"scaling": "minmax"},
    "hidden layers of 8 and 64": {"widths": (8, 64)},
    "hidden layers of 20, 20, 20": {"widths": (20, 20, 20)},
    "sigmoid": {"activation": nn.Sigmoid},
    "tanh": {"activation": nn.Tanh},
    "He's initialisation": {"init": nn.init.kaiming_normal_},
    "N(0, 1) initialisation": {"init": nn.init.normal_},
    "100 epochs": {"epochs": 100},
    "all samples a batch": {"batch": 423},
}


def model_of(widths, activation, init, classes, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for ins, outs in zip((18, *widths), (*widths, classes), strict=True):
            layers += [nn.Linear(ins, outs), activation()]
            if init is not None:
                init(layers[-2].weight)
        return nn.Sequential(*layers[:-1])


def experiment(scaling="raw", widths=(24, 24), activation=nn.ReLU, init=None, epochs=1000, batch=64):
    x, y = hanawa.table("vehicle", scaling)

    def fit(x, y, classes, seed):
        model = model_of(widths, activation, init, classes, seed)
        hanawa.train(model, x, y, seed, hanawa.Case("vehicle", "mlp", epochs, batch, len(x)))
        return model.eval().double()

    def fresh(classes, seed):
        return model_of(widths, activation, init, classes, seed).double()

    return Experiment(fit, nn.functional.cross_entropy, (x, y), train_size=423, queries=500, fresh=fresh)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    record.add_out(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    print(f"{'':28} accuracy " + " ".join(f"{name:>8}" for name in NAMES))
    for name in arguments.variants:
        result = evaluate(experiment(**VARIANTS[name]), NAMES, ["randomization"], repeats=arguments.repeats)
        found[name] = {one: result.mean("randomization", one) for one in NAMES}
        found[name]["accuracy"] = float(np.mean(result.accuracy["class"]))
        cells = " ".join(f"{result.mean('randomization', one):8.2f}" for one in NAMES)
        print(f"{name:28} {np.mean(result.accuracy['class']):8.2f} {cells}", flush=True)

    if arguments.out:
        record.write(arguments.out, found)


if __name__ == "__main__":
    main()
