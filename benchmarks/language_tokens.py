"""Answers for every token of a query beside the answer for one: times, and differences from a loop of training steps.

    python benchmarks/language_tokens.py [--models gpt2-lora llama] [--threads 1 2] [--repeats 3] [--out FILE]

Two models of random weights, by Hugging Face's classes: GPT-2 small with low-rank adapters of its attention (the only
weights that train), and a Llama shape of 4 layers of 512, all of whose weights train. Each model and number of threads
is a process of its own, with an index of texts of 64 tokens. In it, four questions about a query take turns, each for
50 proponents and 50 opponents, every turn with another query: `one` (one token: ``tokens=-1``), `whole` (the text),
`each` (``tokens="each"``: the text, and all its tokens by themselves) and `found` (of the answer to `whole`, the tokens
of all texts that were found, ``result.tokens``). Times are the processor's for one thread, so that what else runs on
the machine counts for little, and the clock's for several, which share the work; the C library keeps its memory, as in
`gradients.py`.

`worst` is the largest difference of a query token's score from that of a plain backward pass on this token's loss, for
the first proponents, relative to the largest of these scores; and the same for the tokens of the texts found.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
from gradients import KEPT

FLOOR, AIM = 3.0, 1.5  # of each/one
MODELS = "gpt2-lora", "llama"
TOKENS, NEIGHBOURS, ROWS = 64, 50, 200
HEAD = "| model | threads | parameters | one (s) | whole (s) | each (s) | found (s) | each/one | found/one | worst |"


def model_of(name: str, quick: bool) -> tuple[Any, int]:
    """Return a model and how many tokens it knows."""
    import torch
    import transformers

    torch.manual_seed(0)
    if name == "llama":
        words = 60 if quick else 8000
        sizes = {"hidden_size": 16 if quick else 512, "intermediate_size": 24 if quick else 1376}
        heads = {"num_hidden_layers": 1 if quick else 4, "num_attention_heads": 2 if quick else 8}
        config = transformers.LlamaConfig(vocab_size=words, max_position_embeddings=128, **sizes, **heads)
        return transformers.LlamaForCausalLM(config).eval(), words
    words = 60 if quick else 50257
    small = (
        {"vocab_size": words, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        if quick
        else {}
    )
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=128, **small)).eval()
    model.requires_grad_(False)
    for block in model.transformer.h:
        block.attn.c_attn = adapted(block.attn.c_attn)
    return model, words


def adapted(layer: Any, rank: int = 8) -> Any:
    """Return a layer with a low-rank adapter beside it (LoRA), both of whose matrices are there already."""
    import torch

    class Adapted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inputs, outputs = layer.weight.shape  # of Hugging Face's Conv1D
            self.layer = layer
            self.down = torch.nn.Linear(inputs, rank, bias=False)
            self.up = torch.nn.Linear(rank, outputs, bias=False)

        def forward(self, x: Any) -> Any:
            return self.layer(x) + self.up(self.down(x))

    return Adapted()


class NextToken:
    """The mean cross-entropy of the next token, and each token's share of it."""

    def per_token(self, output: Any, y: Any) -> Any:
        import torch.nn.functional as F

        targets = y[:, 1:]
        each = F.cross_entropy(output.logits[:, :-1].transpose(1, 2), targets, reduction="none")
        return F.pad(each / (targets != -100).sum(1, keepdim=True).clamp(min=1), (1, 0))

    def __call__(self, output: Any, y: Any) -> Any:
        return self.per_token(output, y).sum(1).mean()


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured of one model, with the threads that this process has."""
    import torch

    import gradindex

    torch.set_num_threads(options.threads[0])
    k, rows, tokens = (3, 20, 10) if options.quick else (options.neighbours, options.rows, TOKENS)
    model, words = model_of(name, options.quick)
    rng = np.random.default_rng(0)
    ids, asked = (rng.integers(1, words, (count, tokens)) for count in (rows, options.repeats + 1))
    job = gradindex.Job(model, NextToken(), ({"input_ids": ids}, ids), task="regression")
    with tempfile.TemporaryDirectory() as folder:
        index = gradindex.build(job, f"{folder}/index", sketch=gradindex.CountSketch(1024), progress=False)

        def ask(turn: int, which: Any = None) -> Any:
            query = asked[turn][None]
            return index.explain({"input_ids": query}, query, k=k, rerank=k, tokens=which)

        results: dict[str, Any] = {}
        works = {
            "one": lambda turn: ask(turn, -1),
            "whole": lambda turn: results.update(whole=ask(turn)),
            "each": lambda turn: results.update(each=ask(turn, "each")),
            "found": lambda turn: results["whole"].tokens(0),
        }
        now = time.process_time if options.threads[0] == 1 else time.perf_counter
        times: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(options.repeats + 1):  # the first finds out what the model is like
            for work, call in works.items():
                begin = now()
                call(turn)
                if turn:
                    times[work].append(now() - begin)
        seconds = {work: float(np.median(taken)) for work, taken in times.items()}
        worst = differences(job, results, asked[-1], 1 if options.quick else 2)
        methods = {"each": results["each"].meta["params"]["token_method"], "found": results["whole"].tokens(0).method}
    ratios = {f"{work}/one": seconds[work] / seconds["one"] for work in ("whole", "each", "found")}
    shape = {"tokens": tokens, "neighbours": k, "rows": rows, "parameters": job.engine.size}
    about = {"model": name, "threads": options.threads[0], **shape, "paths": sorted(set(job.engine.paths.values()))}
    return about | {"seconds": seconds, **ratios, "worst": worst, "methods": methods, "floor": FLOOR, "aim": AIM}


def differences(job: Any, results: dict[str, Any], query: Any, count: int) -> float:
    """Return the largest relative difference of tokens' scores from those of a backward pass for each token."""
    import torch

    chosen = [parameter for parameter in job.model.parameters() if parameter.requires_grad]

    def step(ids: Any, token: int | slice) -> Any:
        one = torch.tensor(ids[None])
        loss = job.loss_fn.per_token(job.model(input_ids=one), one)[0, token].sum()
        grads = torch.autograd.grad(loss, chosen, allow_unused=True, materialize_grads=True)
        return torch.cat([grad.flatten() for grad in grads]).double()

    each, off = results["each"], []
    whole = step(query, slice(None))
    for rank in range(count):
        ids = job.source.take(each.ordered_indices[0, rank : rank + 1]).x["input_ids"][0]
        other = step(ids, slice(None))
        pairs = [(query, other, each.token_scores[0, :, rank]), (ids, whole, results["whole"].tokens(rank).scores)]
        for text, along, found in pairs:
            want = np.array([float(step(text, token) @ along) for token in range(len(text))])
            want /= float(whole.norm() * other.norm())
            off.append(float(np.abs(found - want).max() / np.abs(want).max()))
    return max(off)


def line(result: dict[str, Any]) -> str:
    """Return a row of the table in Markdown; a ratio above its floor is bold."""
    seconds = [f"{result['seconds'][work]:.2f}" for work in ("one", "whole", "each", "found")]
    ratio = f"{result['each/one']:.2f}"
    cells = [result["model"], str(result["threads"]), f"{result['parameters']:,}", *seconds]
    cells += [ratio if result["each/one"] <= FLOOR else f"**{ratio}**", f"{result['found/one']:.2f}"]
    return "| " + " | ".join([*cells, f"{result['worst']:.1e}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS, help="proponents, and opponents, of a query")
    parser.add_argument("--rows", type=int, default=ROWS, help="texts of the index, 2 a neighbour at least")
    parser.add_argument("--quick", action="store_true", help="small models, once: whether it runs, not how fast")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # a process for a model and its threads
    record.add_out(parser)
    options = parser.parse_args()
    options.repeats = 1 if options.quick else options.repeats
    if options.one:
        print(json.dumps(measured(options.models[0], options)))
        return
    print(HEAD, "|---" * 10 + "|", sep="\n")
    results = []
    for model in options.models:
        for threads in options.threads:
            command = [sys.executable, __file__, "--one", "--models", model, "--threads", str(threads)]
            command += ["--neighbours", str(options.neighbours), "--rows", str(options.rows)]
            command += ["--repeats", str(options.repeats), *(["--quick"] if options.quick else [])]
            counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | KEPT | counts
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(line(results[-1]), flush=True)
            if options.out:
                record.write(Path(options.out), {"quick": options.quick, "rows": results})


if __name__ == "__main__":
    main()
