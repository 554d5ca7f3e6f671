"""Language models: do gradients find the texts that taught a fact or a behaviour, and choose what a topic needs.

    python benchmarks/language.py --part facts --out benchmarks/results/language_facts.json
    python benchmarks/language.py --part behaviours --out benchmarks/results/language_behaviours.json
    python benchmarks/language.py --part selection --out benchmarks/results/language_selection.json

A GPT-2 of three layers is trained on one-line descriptions of Debian packages (`GRADINDEX_DATA`) with something planted
among them; nothing is downloaded. Contenders: BM25 over the words of the question and its answer, pooled hidden states
of the same, the gradient cosine, and whitened kernels, all by the stored rows of one index. `--seeds` repeats a part.

`facts`: 50 invented facts, each told three times in other words, among 5,000 texts. Each is asked for without its name,
and with its other words in a second form, which the descriptions use as often; the share of its three texts among the
first ten. `behaviours`: 2 % of 5,000 texts do something that words do not show; queries do it with other words. The
loss of the behaving tokens alone is explained; the share of the first ten that behave. `selection`: 5 % of a mixed
pool, chosen for a validation set of one section; the loss on held-out texts of that section after as many steps on
each choice.
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

TEXTS, LENGTH = 5000, 24
KERNELS = "grad_cos", "white_cos", "white_dot"
TOPICS = "games", "science"


def report(part: str, seed: int, what: str, found: dict[str, float]) -> None:
    figures = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    print(f"{part}, seed {seed}, {what}: {figures}", flush=True)


def contenders(asked: Any, judge: Callable[[np.ndarray], float]) -> dict[str, float]:
    """Return what `judge` says of each contender's scores (m, n)."""
    found = {"bm25": judge(asked.bm25()), "hidden": judge(asked.hidden())}
    return found | {kernel: judge(asked.kernel(kernel)) for kernel in KERNELS}


def facts(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    import language_models as lm
    from language_texts import plant_facts

    fillers, _ = lm.debian()
    planted = plant_facts(fillers, options.texts, seed)
    vocabulary = lm.Vocabulary(planted.texts, LENGTH)
    train, shape = vocabulary.encode(planted.texts), lm.Shape(epochs=options.epochs)
    queries = vocabulary.encode(planted.questions, planted.answers, ends=False)
    model = lm.new_model(vocabulary, shape, seed)
    lm.train(model, train, shape, seed)
    texts = [f"{question} {answer}" for question, answer in zip(planted.questions, planted.answers, strict=True)]
    asked = lm.Asked(model, train, planted.texts, queries, texts)
    found = contenders(asked, lambda scores: lm.share_found(scores, planted.where.tolist()))
    report("facts", seed, "share of the paraphrases among the first ten", found)
    answered = lm.share_answered(model, queries)
    return [{"part": "facts", "seed": seed, "what": "facts", **found, "answered": answered}]


def behaviours(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    import language_models as lm
    from language_texts import BEHAVIOURS, plant_behaviour

    fillers, _ = lm.debian()
    out = []
    for behaviour in BEHAVIOURS:
        planted = plant_behaviour(behaviour, fillers, options.texts, 0.02, 50, seed)
        vocabulary = lm.Vocabulary(planted.texts, LENGTH)
        train, shape = vocabulary.encode(planted.texts), lm.Shape(epochs=options.epochs)
        queries = vocabulary.encode(planted.prompts, planted.behaving, ends=False)
        model = lm.new_model(vocabulary, shape, seed)
        lm.train(model, train, shape, seed)
        texts = [f"{prompt} {answer}" for prompt, answer in zip(planted.prompts, planted.behaving, strict=True)]
        asked = lm.Asked(model, train, planted.texts, queries, texts)
        found = contenders(asked, lambda scores, marked=planted.marked: lm.share_of_first(scores, marked))
        report("behaviours", seed, f"{behaviour.name} ({len(texts)} queries), share of the first ten", found)
        out.append({"part": "behaviours", "seed": seed, "what": behaviour.name, **found})
    return out


def selection(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    import copy

    import language_models as lm

    from gradindex.search.lexical import Bm25

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
        vocabulary = lm.Vocabulary(fillers[base].tolist(), LENGTH)
        shape = lm.Shape(epochs=options.epochs // 2)
        model = lm.new_model(vocabulary, shape, seed)
        lm.train(model, vocabulary.encode(fillers[base]), shape, seed)
        train, queries = vocabulary.encode(fillers[pool]), vocabulary.encode(fillers[validation])
        asked = lm.Asked(model, train, fillers[pool].tolist(), queries, fillers[validation].tolist())
        count = round(0.05 * len(pool))
        chosen = {"random": random.permutation(len(pool))[:count], "all": np.arange(len(pool))}
        bm25 = Bm25(asked.train_texts)
        chosen["bm25"] = np.argsort(-sum(bm25(text) for text in asked.query_texts))[:count]
        chosen["hidden"] = np.argsort(-asked.hidden().mean(axis=0))[:count]
        asked.kernel("grad_cos")
        for kernel in KERNELS:
            for by in ("mean", "round-robin"):
                found = asked.index.select(queries.x, queries.labels, budget=count, kernel=kernel, by=by, hidden=False)
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


PARTS = {"facts": facts, "behaviours": behaviours, "selection": selection}


def options_from(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[10, 11, 12])
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200, help="of a choice's training")
    parser.add_argument("--folder", type=Path, help="keep each seed's result here, and take up what is there")
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
    if options.out:
        record.write(options.out, rows)


if __name__ == "__main__":
    main()
