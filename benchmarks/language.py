"""Language models: do gradients find the texts that taught a fact or a behaviour, and choose what a topic needs.

    python benchmarks/language.py --part facts --out benchmarks/results/language_facts.json
    python benchmarks/language.py --part planted --out benchmarks/results/language_planted.json
    python benchmarks/language.py --part selection --out benchmarks/results/language_selection.json

A GPT-2 of three layers learns one-line descriptions of Debian packages (`GRADINDEX_DATA`) with something planted among
them; nothing is downloaded. Contenders: BM25 over the words of the question and its answer, pooled hidden states of the
same, the gradient cosine, and whitened kernels, all by the stored rows of one index; `along training`: of an index of
gradients at two checkpoints. `--seeds` repeats a part.

`planted`: what a pretrained model can do, a small one has to be taught first. The base model, the same for all seeds,
learns other descriptions, in which common words have two forms; other facts with their questions; and, on random words
without sense, to go on with what behaves once it has begun. Then it is trained on 5,000 texts. Among them are 50
invented facts, each told three times in other words. Each is asked for without its name, and with its other words in
their second form; `facts` is the share of its three texts among the first ten. And 2 % of the texts do each of three
behaviours; queries do it with other words, and the loss of the words that the behaviour tells is explained: the share
of the first ten texts that behave. `answered` is how often the model's most likely token is the one that is asked
about, `answered before` the same of the base model.

`facts`: the same facts and texts, of a base model a seed that learns the descriptions alone, four in ten of them
changed on a command (its last word repeated, its first two at its end, its words in reverse).

`selection`: 5 % of a mixed pool, chosen for a validation set of one section; the loss on held-out texts of that section
after as many steps on each choice. `below …`: by how much it is lower than the better of random and BM25, and than that
of training on the whole pool.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import record

TEXTS = 5000
BASE_STEPS, BASE_BATCH, BASE_RATE = 7000, 64, 3e-3  # of what the model learns before
RATE, DROPOUT = 1e-3, 0.1
SHARE, QUERIES = 0.02, 50  # of texts that do a behaviour; of queries that do
RECORDED = 0.25, 1.0
KERNELS = "grad_cos", "white_cos", "white_dot"
TOPICS = "games", "science"
HEAD = "part", "seed", "what"
Judge = Callable[[np.ndarray], float]


def report(part: str, seed: int, what: str, found: dict[str, float]) -> None:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    print(f"{part}, seed {seed}, {what}: {figures}", flush=True)


def base(source: Any, options: argparse.Namespace) -> Any:
    """Return the model that behaves, before anything is planted, the same for all seeds."""
    import language_models as lm
    import torch

    model = lm.new_model(source.vocabulary, lm.Shape(), seed=0)
    kept = None if options.folder is None else options.folder / f"base-{options.base_steps}.pt"
    if kept is not None and kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model.eval()
    shape = lm.Shape(batch=BASE_BATCH, rate=BASE_RATE)
    lm.train(model, source.lessons(0), shape, 0, steps=options.base_steps)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), kept)
    return model


def facts(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    import language_models as lm
    from language_texts import Source

    source = Source(lm.debian()[0])
    texts = source.plant(options.texts, SHARE, QUERIES, seed)
    model = lm.new_model(source.vocabulary, lm.Shape(dropout=DROPOUT), seed)
    steps = options.base_epochs * -(-len(source.base) // lm.Shape().batch)
    lm.train(model, source.described(seed), lm.Shape(), seed, steps=steps)
    judges = {"facts": lambda scores: lm.share_found(scores, texts.facts.tolist())}
    return asked_about("facts", seed, options, source.vocabulary, texts, model, judges)


def planted(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    import language_models as lm
    from language_texts import BEHAVIOURS, Source

    source = Source(lm.debian()[0])
    texts = source.plant(options.texts, SHARE, QUERIES, seed)
    judges: dict[str, Judge] = {"facts": lambda scores: lm.share_found(scores, texts.facts.tolist())}
    for behaviour in BEHAVIOURS:
        marked = texts.behaving[behaviour.name]
        judges[behaviour.name] = lambda scores, marked=marked: lm.share_of_first(scores, marked)
    return asked_about("planted", seed, options, source.vocabulary, texts, base(source, options), judges)


def asked_about(
    part: str,
    seed: int,
    options: argparse.Namespace,
    vocabulary: Any,
    texts: Any,
    model: Any,
    judges: dict[str, Judge],
) -> list[dict[str, Any]]:
    """Train the base model on the texts, and judge what the contenders find for the questions of each kind."""
    import language_models as lm

    asked_for = {"facts": texts.questions} | texts.queries
    queries = {what: vocabulary.encode(asked_for[what].prompts, asked_for[what].answers, ends=False) for what in judges}
    before = {what: lm.share_answered(model, one) for what, one in queries.items()}
    train = vocabulary.encode(texts.texts)
    recorder = lm.train(model, train, lm.Shape(rate=RATE, epochs=options.epochs), seed, record_at=RECORDED)
    asked = lm.Asked(model, train, texts.texts, recorder=recorder)
    out = []
    for what, judge in judges.items():
        those, x = asked_for[what], queries[what]
        words = [f"{prompt} {answer}" for prompt, answer in zip(those.prompts, those.answers, strict=True)]
        found = {"bm25": judge(asked.bm25(words)), "hidden": judge(asked.hidden(x))}
        for kernel in KERNELS:
            found[kernel] = judge(asked.kernel(kernel, x))
            found[f"{kernel} along training"] = judge(asked.kernel(kernel, x, along=True))
        report(part, seed, what, found)
        right = {"answered before": before[what], "answered": lm.share_answered(model, x)}
        out.append({"part": part, "seed": seed, "what": what, "queries": len(words), **right, **found})
    return out


def selection(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    import copy

    import language_models as lm

    fillers, sections = map(np.array, lm.debian())
    random = np.random.default_rng(seed)
    order = random.permutation(len(fillers))
    out = []
    for topic in TOPICS:
        mine = order[sections[order] == topic]
        validation, test = mine[:64], mine[64:364]
        rest = np.setdiff1d(order, mine[:364])
        rest = random.permutation(rest)
        base, pool = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        vocabulary = lm.Vocabulary(fillers[base].tolist(), lm.LENGTH)
        shape = lm.Shape(epochs=options.epochs // 2)
        model = lm.new_model(vocabulary, shape, seed)
        lm.train(model, vocabulary.encode(fillers[base]), shape, seed)
        train, queries = vocabulary.encode(fillers[pool]), vocabulary.encode(fillers[validation])
        asked = lm.Asked(model, train, fillers[pool].tolist())
        count = round(0.05 * len(pool))
        chosen = {"random": random.permutation(len(pool))[:count], "all": np.arange(len(pool))}
        chosen["bm25"] = np.argsort(-asked.bm25(fillers[validation].tolist()).sum(axis=0))[:count]
        chosen["hidden"] = np.argsort(-asked.hidden(queries).mean(axis=0))[:count]
        for kernel in KERNELS:
            for by in ("mean", "round-robin"):
                found = asked.index().select(
                    queries.x, queries.labels, budget=count, kernel=kernel, by=by, hidden=False
                )
                chosen[f"{kernel}, {by}"] = found.ids
        held_out = vocabulary.encode(fillers[test])
        losses = {"before": lm.mean_loss(model, held_out)}
        on_topic = {name: float((sections[pool[ids]] == topic).mean()) for name, ids in chosen.items()}
        for name, ids in chosen.items():
            tuned = copy.deepcopy(model)
            lm.train(tuned, train.take(ids), lm.Shape(rate=5e-4, batch=16), seed, steps=options.steps)
            losses[name] = lm.mean_loss(tuned, held_out)
        report("selection", seed, f"{topic}, loss of a held-out token", losses)
        report("selection", seed, f"{topic}, share of the topic", on_topic)
        out.append({"part": "selection", "seed": seed, "what": topic, "loss": losses, "on topic": on_topic})
    return out


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a selection with how far each choice's loss is below that of the better of random and BM25."""
    if "loss" not in row:
        return row
    loss = row["loss"]
    return row | {
        "below random and bm25": {name: min(loss["random"], loss["bm25"]) - one for name, one in loss.items()},
        "below random": {name: loss["random"] - one for name, one in loss.items()},
        "below all": {name: loss["all"] - one for name, one in loss.items()},
    }


def mean_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each question of each part, with the means of its figures over the seeds."""
    found = []
    for part, what in dict.fromkeys((row["part"], row["what"]) for row in rows):
        some = [row for row in rows if (row["part"], row["what"]) == (part, what)]
        figures = _mean([{key: value for key, value in row.items() if key not in HEAD} for row in some])
        found.append({"part": part, "seed": "mean", "what": what, "seeds": len(some), **figures})
    return found


def _mean(some: list[Any]) -> Any:
    if isinstance(some[0], dict):
        return {key: _mean([one[key] for one in some]) for key in some[0]}
    return float(np.mean(some))


PARTS = {"facts": facts, "planted": planted, "selection": selection}


def options_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[10, 11, 12])
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--base-steps", type=int, default=BASE_STEPS, help="of what the model learns before")
    parser.add_argument("--base-epochs", type=int, default=12, help="of the descriptions, for facts")
    parser.add_argument("--steps", type=int, default=200, help="of a choice's training")
    parser.add_argument(
        "--folder", type=Path, help="keep the base model and each seed's result here, and take up what is there"
    )
    record.add_out(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = options_from(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for part in options.part:
        for seed in options.seeds:
            kept = None if options.folder is None else options.folder / f"{part}-{seed}.json"
            if kept is not None and kept.is_file():
                rows += json.loads(kept.read_text(encoding="utf-8"))
                continue
            began = time.perf_counter()
            found = PARTS[part](seed, options)
            for one in found:
                one["seconds of the seed"] = time.perf_counter() - began
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(found), encoding="utf-8")
            rows += found
    rows = [compared(row) for row in rows]
    if options.out:
        record.write(options.out, rows + mean_rows(rows))


if __name__ == "__main__":
    main()
