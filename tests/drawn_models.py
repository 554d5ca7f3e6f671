"""Torch models, losses and data drawn at random, what is right of them, and a judge of what gradindex says.

A number draws a stack of layers, what happens between them (branches on the batch, gradients of their own, buffers that
forward writes, targets under no_grad), hooks, a loss with or without a penalty, the form of the output, a dtype, and a
selection of parameters; the model is trained a little. What is right is a loop of plain training steps in evaluation
mode, each from the same state, that uses nothing of gradindex; `drawn_judge` compares.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import gradindex
from tests import drawn_losses as losses
from tests import drawn_parts as parts

TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
_STEPS = 12  # of training


@dataclass
class Drawn:
    """A model with its loss and data, partly trained. `kinds` says what was drawn, by the name of the choice."""

    seed: int
    kinds: dict[str, str]
    model: parts.Network
    loss: losses.Loss
    x: Any
    y: torch.Tensor
    parameters: Any

    @property
    def half(self) -> bool:
        """Whether the model computes in half precision."""
        return self.kinds["dtype"] == "bfloat16"

    @property
    def tolerance(self) -> float:
        """What scores may be off, relative to the norms' product."""
        return HALF_TOLERANCE if self.half else TOLERANCE

    def job(self) -> gradindex.Job:
        """Return the job."""
        task = "classification" if self.kinds["labels"] == "classes" else "regression"
        return gradindex.Job(self.model, self.loss, (self.x, self.y), parameters=self.parameters, task=task)


def draw(seed: int, samples: int | None = None) -> Drawn:
    """Return the model that a number draws; of so many samples, or about 100 to 200."""
    rng = np.random.default_rng(seed)
    pick = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731
    samples = samples or int(rng.integers(100, 200))
    kinds = {"trunk": pick(parts.TRUNKS), "dtype": pick(("float32",) * 16 + ("float64", "float64", "bfloat16"))}
    kinds["middle"] = pick(parts.OF_BATCHES if rng.random() < 0.3 else parts.SOUND)
    if kinds["dtype"] == "bfloat16" and kinds["middle"] in parts.STEPS:
        kinds["middle"] = "plain"  # steps of numbers with 8 bits: any two ways of computing take different sides
    kinds["hook"], kinds["output"] = pick(parts.HOOKS), pick(("tensor", "tensor", *parts.STRUCTURES))
    kinds["labels"] = pick(("classes", "classes", "numbers"))
    table = losses.CLASS_LOSSES if kinds["labels"] == "classes" else losses.NUMBER_LOSSES
    kinds["loss"] = pick(tuple(table))
    kinds["penalty"] = pick(("none",) * 7 + ("all", "rare"))
    kinds["inputs"] = pick(("one", "one", "one", "dict", "tuple"))
    kinds["selected"] = pick(("all", "all", "all", "last_layer", "pattern"))
    flags = {"norm": int(rng.integers(3)), "a": int(rng.integers(2)), "b": int(rng.integers(2))}
    table_kinds = {"padding_idx": pick((None, 0)), "scale_grad_by_freq": bool(rng.random() < 0.3)}
    flags |= table_kinds | {"max_norm": 1.5 if rng.random() < 0.2 else None}
    tied = kinds["trunk"] == "texts" and kinds["labels"] == "classes" and flags["max_norm"] is None and flags["a"]
    kinds["tied"] = str(bool(tied))
    if kinds["trunk"] == "texts":
        kinds["table"] = ", ".join(name for name in ("padding_idx", "scale_grad_by_freq", "max_norm") if flags[name])
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of training with hooks, and of losses
        torch.manual_seed(seed)
        return _made(seed, kinds, flags, rng, pick(parts.ACTIVATIONS), table[kinds["loss"]], samples)


def _made(seed: int, kinds: dict[str, str], flags: Any, rng: Any, activation: Any, base: Any, samples: int) -> Drawn:
    dtype, tied = getattr(torch, kinds["dtype"]), kinds["tied"] == "True"
    rare = float(rng.choice([0.03, 0.3, 0.7]))  # share of samples that take a branch, or that a hook clips
    middle = parts.Middle(kinds["middle"], 0.0)
    outputs = parts.TOKENS if tied else parts.CLASSES
    trunk = parts.Trunk(kinds["trunk"], activation, flags)
    model = parts.Network(trunk, middle, outputs, kinds["output"], tied).to(dtype)
    x = trunk.example(samples)
    x = x.to(dtype) if x.is_floating_point() else x
    y = torch.randint(0, parts.CLASSES, (samples,))
    y = y if kinds["labels"] == "classes" else torch.randn(samples, outputs).to(dtype)
    penalty = kinds["penalty"] if kinds["labels"] == "classes" or kinds["penalty"] == "none" else "all"
    loss = losses.Loss(base, model, penalty, float(rng.choice([1e-4, 1e-2])), bool(rng.random() < 0.4))
    _train(model, loss, x, y)
    if kinds["penalty"] != "none" and kinds["labels"] == "classes":
        y[:3] = (y[:3] + 1) % parts.CLASSES  # the first gradients are large beside the penalty
    _switch_on(model, loss, kinds, x, y, rare)
    gain = 0.5 + torch.rand(samples).to(dtype)
    inputs = {"one": x, "dict": {"x": x, "gain": gain}, "tuple": (x, gain)}[kinds["inputs"]]
    names = [name for name, _ in model.named_parameters()]
    kept = {"all": None, "last_layer": "last_layer", "pattern": "middle|head" if "head.weight" in names else "middle"}
    return Drawn(seed, kinds, model, loss, inputs, y, kept[kinds["selected"]])


def _train(model: Any, loss: Any, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    model.eval()


def _switch_on(model: Any, loss: Any, kinds: dict[str, str], x: torch.Tensor, y: torch.Tensor, rare: float) -> None:
    """Set the thresholds so that a share of the samples is touched, and begin to do what was drawn."""
    middle, weight = model.middle, model.middle.linear.weight
    with torch.no_grad():
        h = model.trunk(x)
        h = torch.tanh(middle.linear(h)) + h
    values = {"any_branch": h[:, 0], "all_branch": -h[:, 1], "early_exit": h.mean(1)}.get(kinds["middle"], h.amax(1))
    at = float(values.float().quantile(1 - rare))
    sizes = []
    for i in range(24):
        model.zero_grad()
        loss(model(x[i : i + 1]), y[i : i + 1]).sum().backward()
        sizes.append(float(weight.grad.abs().max()))
    model.zero_grad()
    clips = max(float(np.quantile(sizes, 1 - rare)), 1e-6)
    middle.at = clips if "hook" in kinds["middle"] else -at if kinds["middle"] == "all_branch" else at
    parts.attach(kinds["hook"], model, clips)
    middle.on = loss.on = True


def rows_of(tree: Any, rows: Any) -> Any:
    """Return some samples of inputs that may be a dict or a tuple."""
    if isinstance(tree, dict):
        return {name: part[rows] for name, part in tree.items()}
    return tuple(part[rows] for part in tree) if isinstance(tree, tuple) else tree[rows]


def truth(drawn: Drawn) -> np.ndarray:
    """Return the gradients (n, P) float64 of plain training steps, each from the same state."""
    model, named = drawn.model, dict(drawn.model.named_parameters())
    chosen = [named[name] for name in _selected(drawn, list(named))]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = []
    for i in range(len(drawn.y)):
        one = rows_of(drawn.x, slice(i, i + 1))
        model.zero_grad(set_to_none=True)
        output = model(**one) if isinstance(one, dict) else model(*one) if isinstance(one, tuple) else model(one)
        loss = drawn.loss(output, drawn.y[i : i + 1]).sum()
        if loss.requires_grad:
            loss.backward()
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
        rows.append(torch.cat([g.detach().double().flatten() for g in flat]).numpy())
        model.load_state_dict(before)
    model.zero_grad(set_to_none=True)
    return np.stack(rows)


def _selected(drawn: Drawn, names: list[str]) -> list[str]:
    if drawn.parameters is None:
        return names
    if drawn.parameters == "last_layer":
        owner = names[-1].rpartition(".")[0]
        return [name for name in names if name.rpartition(".")[0] == owner]
    return [name for name in names if re.search(drawn.parameters, name)]


def state(model: Any) -> dict[str, Any]:
    """Return everything about a model, and torch, that has to stay as it was, as comparable values."""
    bits = {name: value.detach().clone().flatten().view(torch.uint8) for name, value in model.state_dict().items()}
    found: dict[str, Any] = {name: value.numpy().tobytes() for name, value in bits.items()}
    for name, value in model.named_parameters():
        found[f"{name}.grad"] = None if value.grad is None else value.grad.float().numpy().tobytes()
        found[f"{name} hooks"] = len(value._backward_hooks or {})
    for name, module in model.named_modules():
        found[f"{name} mode"] = module.training, len(module._forward_hooks), len(module._backward_hooks)
    return found | {"random state": torch.get_rng_state().numpy().tobytes(), "grad": torch.is_grad_enabled()}
