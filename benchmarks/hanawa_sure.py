"""The class test for queries that the CNN is sure of, and for the others: ``python benchmarks/hanawa_sure.py``.

Sure are queries whose probability rounds to 1 in single precision: p − 1 is 0 there, and their gradient is what pushes
the other classes down, without what pulls their own up.
"""

import argparse

import hanawa
import numpy as np
import record
import torch

from gradindex import relevance
from gradindex.compute import queries
from gradindex.evaluation import criteria


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="mnist-cnn-100", choices=[name for name in hanawa.CASES if "cnn" in name])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", type=hanawa.folder, help="folder where trained models are kept and found again")
    record.add_out(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in range(arguments.repeats):
        for single in (True, False):
            experiment = hanawa.experiment(arguments.case, models=arguments.models, single=single)
            split = experiment.split(seed)
            job = experiment.job(split, split.y_train, 10, seed)
            predicted = np.asarray(queries.predicted(job.engine, split.x_test, split.y_train))
            chosen = np.random.default_rng(seed).permutation(len(predicted))[: experiment.queries]
            x, y = split.x_test[chosen], predicted[chosen]
            p = torch.as_tensor(job.engine.outputs(x)).float().softmax(dim=1).numpy()
            sure = p[np.arange(len(y)), y] == 1
            found.append({"seed": seed, "single": single, "sure": float(sure.mean())})
            print(f"seed {seed}, {'single' if single else 'double'} precision, {sure.mean():.2f} are sure", end="")
            for name, metric in relevance.metrics(("GD", "GC", "l2-grad"), job).items():
                passed = criteria.passes(metric.scores(x, y), split.y_train, y)
                found[-1][name] = {"sure": float(passed[sure].mean()), "others": float(passed[~sure].mean())}
                print(f"; {name} {passed[sure].mean():.2f}, others {passed[~sure].mean():.2f}", end="")
            print(flush=True)

    if arguments.out:
        record.write(arguments.out, found)


if __name__ == "__main__":
    main()
