"""The tables of Hanawa et al. (2021) beside ours: ``python benchmarks/hanawa.py --cases vehicle-logreg …``.

Our choices where the study says nothing: features of the tables as they are in the files (``--scaling raw``), MNIST
divided by 255; batches, epochs, widths and initialisation in `hanawa_cases.py`; its learning rate falls from 1e-3 to 0
over the second half of the CNN's training; the model of the last epoch. mnist-cnn-100 is trained as the study's
published code has it. Models are trained in float32; gradients are computed in float64, with ``--single`` in float32,
and matrices in float64; with ``--published`` IF and FK have the published code's matrices, in single precision.

Other than tables of a case: ``--variants`` changes one choice at a time; ``--sure`` divides queries into those that the
CNN is sure of and others; ``--merge``, ``--markdown`` and ``--meet`` join, print and count saved results.
"""

import argparse
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import hanawa_cases as cases
import hanawa_tables as tables
import numpy as np
import record
import torch
from hanawa_published import published
from torch import nn

import gradindex
from gradindex import relevance
from gradindex.compute import queries
from gradindex.evaluation import criteria, evaluate

MATRICES = ["IF", "cos-IF", "l2-IF", "FK", "cos-FK", "l2-FK"]


def case_of(name, options):
    """Return a case with what the command line changes in it."""
    changes = {"epochs": options.epochs, "scaling": options.scaling}
    return replace(cases.CASES[name], **{what: value for what, value in changes.items() if value is not None})


def run(name, options, chosen=None):
    """Run the tests on a case and return the result."""
    loss = nn.functional.cross_entropy
    loss = gradindex.InDouble(loss) if options.loss_in_double else loss
    single = options.single or options.published
    experiment = cases.experiment(chosen or case_of(name, options), models=options.models, single=single, loss=loss)
    own = {"fisher": options.fisher, "solver": options.solver, "samples": options.samples}
    with published() if options.published else nullcontext():
        return evaluate(
            experiment,
            options.metrics or (MATRICES if options.published else tables.names(name)),
            options.tests,
            repeats=options.repeats,
            seed=options.seed,
            labels=options.labels,
            through_index=options.index,
            options={"damping": "study"} if options.published else {**own, "damping": "study"},
        )


def variants(name, options):
    """Print and return means over the repeats, and accuracies, with one choice changed at a time."""
    found = {}
    for variant in options.variants or cases.VARIANTS:
        result = run(name, options, cases.varied(case_of(name, options), variant))
        found[variant] = {test: {one: result.mean(test, one) for one in rows} for test, rows in result.values.items()}
        found[variant]["accuracy"] = float(np.mean(result.accuracy["class"]))
        print(f"{variant:28} accuracy {found[variant]['accuracy']:.2f}")
        for test in result.values:
            print(
                f"  {test:16}", " ".join(f"{one} {mean:.2f}" for one, mean in found[variant][test].items()), flush=True
            )
    return found


def sure(name, options):
    """Print and return the class test's rates of queries that a model is sure of, and of the others.

    Sure are queries whose probability rounds to 1 in single precision: p − 1 is 0 there, and their gradient is what
    pushes the other classes down, without what pulls their own up.
    """
    found = []
    for seed in range(options.seed, options.seed + options.repeats):
        for single in (True, False):
            experiment = cases.experiment(case_of(name, options), models=options.models, single=single)
            split = experiment.split(seed)
            job = experiment.job(split, split.y_train, 10, seed)
            predicted = np.asarray(queries.predicted(job.engine, split.x_test, split.y_train))
            chosen = np.random.default_rng(seed).permutation(len(predicted))[: experiment.queries]
            x, y = split.x_test[chosen], predicted[chosen]
            p = torch.as_tensor(job.engine.outputs(x)).float().softmax(dim=1).numpy()
            is_sure = p[np.arange(len(y)), y] == 1
            found.append({"seed": seed, "single": single, "sure": float(is_sure.mean())})
            print(f"seed {seed}, {'single' if single else 'double'} precision, {is_sure.mean():.2f} are sure", end="")
            for one, metric in relevance.metrics(options.metrics or ("GD", "GC", "l2-grad"), job).items():
                passed = criteria.passes(metric.scores(x, y), split.y_train, y)
                rates = {"sure": passed[is_sure], "others": passed[~is_sure]}
                found[-1][one] = {who: float(part.mean()) if len(part) else None for who, part in rates.items()}
                print(f"; {one} {found[-1][one]}", end="")
            print(flush=True)
    return found


def folder(text):
    """Return the folder of that name; it is made."""
    path = Path(text)
    path.mkdir(parents=True, exist_ok=True)
    return path


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=cases.CASES, default=["vehicle-mlp", "vehicle-logreg"])
    parser.add_argument("--tests", nargs="+", default=["class", "subclass", "randomization"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="other than the case's own")
    parser.add_argument("--metrics", nargs="+")
    parser.add_argument("--single", action="store_true", help="gradients in single precision, as models are trained")
    parser.add_argument("--published", action="store_true", help="single precision, matrices as the study's code has")
    parser.add_argument("--loss-in-double", action="store_true", help="of a model in single precision")
    parser.add_argument("--fisher", default="true", choices=("true", "mean"))
    parser.add_argument("--scaling", choices=("minmax", "standard", "raw"), help="of the tables; raw")
    parser.add_argument(
        "--labels", default="own", choices=("own", "fixed", "both"), help="of the random model's queries"
    )
    parser.add_argument("--index", action="store_true", help="answer through a FAISS index as well")
    parser.add_argument("--suffix", default="", help="of the result file's name")
    parser.add_argument("--models", type=folder, help="folder where trained models are kept and found again")
    parser.add_argument("--solver", default="auto", choices=("auto", "exact", "ekfac"), help="of IF and FK")
    parser.add_argument("--samples", type=int, default=1, help="of EKFAC: labels drawn a sample")
    parser.add_argument("--merge", nargs="+", help="only join result files of one case, of other seeds or metrics")
    parser.add_argument("--markdown", action="store_true", help="only print the saved results as tables")
    parser.add_argument("--meet", action="store_true", help="only count saved intervals that meet the study's (--out)")
    parser.add_argument("--variants", nargs="*", choices=cases.VARIANTS, help="other choices of training (--out)")
    parser.add_argument("--sure", action="store_true", help="queries that a model is sure of, and others (--out)")
    record.add_out(parser)
    return parser.parse_args()


def main():
    options = parse()
    torch.set_num_threads(1)
    name, found = options.cases[0], None
    if options.markdown:
        tables.markdown(options.cases, options.suffix)
    elif options.merge:
        tables.merge(name, options.merge, options.suffix)
    elif options.meet:
        found = tables.meeting()
        print(found)
    elif options.variants is not None:
        found = variants(name, options)
    elif options.sure:
        found = sure(name, options)
    else:
        for name in options.cases:
            start = time.perf_counter()
            result = run(name, options)
            tables.save(result, name, options.suffix)
            tables.compare(name, result.to_dict(), options.suffix)
            print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    if options.out and found is not None:
        record.write(options.out, found)


if __name__ == "__main__":
    main()
