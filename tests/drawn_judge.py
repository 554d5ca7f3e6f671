"""The judge of drawn models: what gradindex says of them beside plain training steps."""

import re
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import gradindex
from tests.drawn_models import Drawn, rows_of, state, truth

KERNELS = ("grad_cos", "grad_dot", "grad_asym_dot")
NAMED = re.compile(r"hook|loss|batch|random|zero|evaluation mode|weights|statistic", re.IGNORECASE)
"""What a refusal has to name."""
_ROUNDING = 2.0**-22
_K = 5


@dataclass
class Verdict:
    """What was found of one drawn model.

    `refused`, the message if the model was refused; `crashed`, any other error; `rows`, the largest error of an
    embedded row over its length; `scores`, the largest error of a score that was marked exact over the norms' product;
    `counted` scores; `unproved`, answers that were marked as proved and are not the true ones, of `proofs`; `changed`,
    what of the model's state was not put back; `paths`, how the rows were made.
    """

    seed: int
    kinds: dict[str, str]
    refused: str = ""
    crashed: str = ""
    rows: float = 0.0
    wrong_rows: int = 0
    scores: float = 0.0
    counted: int = 0
    proofs: int = 0
    unproved: int = 0
    changed: list[str] = field(default_factory=list)
    paths: dict[str, int] = field(default_factory=dict)
    methods: list[str] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    tolerance: float = 1e-3

    @property
    def unnamed(self) -> bool:
        """Whether a refusal does not say what is wrong."""
        return bool(self.refused) and not NAMED.search(self.refused)

    @property
    def right(self) -> bool:
        """Whether nothing that gradindex said was wrong: a refusal that names what is wrong is right."""
        told = self.scores <= self.tolerance and not self.unproved
        return told and not self.changed and not self.crashed and not self.unnamed


def judge(drawn: Drawn, folder: Path, thorough: bool = True) -> Verdict:
    """Compare what gradindex says of a drawn model with the truth; unless `thorough`, rows or fewer answers."""
    found = Verdict(drawn.seed, drawn.kinds, tolerance=drawn.tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            true = truth(drawn)
        except Exception as error:
            raise AssertionError(f"no plain training step of {drawn.seed}: {drawn.kinds}") from error
        before = state(drawn.model)
        try:
            _ask(drawn, true, folder, found, thorough)
        except (ValueError, TypeError, NotImplementedError) as error:
            found.refused = " ".join(str(error).split())[:300] or type(error).__name__
        except Exception as error:
            found.crashed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        after = state(drawn.model)
    found.changed = [name for name in before if before[name] != after.get(name)]
    return found


def _ask(drawn: Drawn, true: np.ndarray, folder: Path, found: Verdict, thorough: bool) -> None:
    job = drawn.job()
    if thorough or drawn.seed % 4 == 1:
        _embed(job, drawn, true, found)
    if not thorough and drawn.seed % 4 == 1:
        return
    rng, sure = np.random.default_rng(drawn.seed), drawn.seed % 3 == 0
    sketch = gradindex.Landmark(landmarks=48, dims=24) if sure else gradindex.CountSketch(256)
    index = gradindex.build(job, folder / str(drawn.seed), sketch=sketch, progress=False)
    found.signals = [signal.name for signal in job.engine.signals or ()]
    found.paths = dict(Counter(job.engine.paths.values()))
    some = np.sort(rng.choice(len(true), 4, replace=False))
    kernel = KERNELS[drawn.seed % 2 + 1]
    _compare(index.explain(ids=some[:1], k=_K), "grad_cos", true, some[:1], found)
    _compare(index.explain(ids=some, k=_K, kernel=kernel), kernel, true, some, found)
    if thorough:
        x, y = rows_of(drawn.x, some[:3]), drawn.y[some[:3]]
        _compare(index.explain(x, y, k=_K), "grad_cos", true, some[:3], found)
        _compare(index.explain(ids=some[:1], k=_K, kernel=kernel), kernel, true, some[:1], found)
    if sure:
        _compare(index.explain(ids=some[:2], k=_K, certify=True), "grad_cos", true, some[:2], found)
    elif thorough:
        _compare(index.explain(ids=some[:2], k=_K, kernel=kernel, certify=True), kernel, true, some[:2], found)


def _embed(job: gradindex.Job, drawn: Drawn, true: np.ndarray, found: Verdict) -> None:
    rows = np.concatenate([block.sketches for block in gradindex.embed(job, sketch=gradindex.Identity())])
    lengths = np.maximum(np.linalg.norm(true, axis=1), 1e-30)
    errors = np.linalg.norm(rows - true, axis=1) / (lengths + _ROUNDING * lengths.max() / drawn.tolerance)
    found.rows, found.wrong_rows = float(errors.max()), int((errors > drawn.tolerance).sum())


def _compare(answer: Any, kernel: str, true: np.ndarray, queries: np.ndarray, found: Verdict) -> None:
    """Compare scores that are marked exact, and answers that are marked as proved, with those of true gradients."""
    found.methods.append(answer.meta["params"]["exact_method"])
    norms = np.linalg.norm(true, axis=1)
    for prefix, sign, ids in (("", 1, answer.ordered_indices), ("opponent_", -1, answer.opponent_indices)):
        for line, query in enumerate(queries):
            there = answer.data[f"{prefix}exact"][line] & (ids[line] >= 0)
            cosines = _divide(true @ true[query], norms * norms[query])
            weights = _weights(kernel, norms[query], norms)
            rounding = _ROUNDING * norms.max() / np.maximum(np.minimum(norms, norms[query]), 1e-30)
            at = ids[line][there]
            scores = answer.data[f"{prefix}scores"][line][there]
            off = _divide(np.abs(scores - cosines[at] * weights[at]), weights[at]) - rounding[at]
            found.scores, found.counted = max(found.scores, float(off.max(initial=0))), found.counted + len(at)
            if answer.data[f"{prefix}proved"][line]:
                found.proofs += 1
                best = np.sort(-sign * cosines * weights)[:_K]
                got = np.sort(-sign * cosines[ids[line]] * weights[ids[line]])
                room = ((found.tolerance + rounding) * weights)[ids[line]].max()
                found.unproved += bool((got - best > room).any())


def _weights(kernel: str, query: float, norms: np.ndarray) -> np.ndarray:
    """Return what a cosine is multiplied by, for each training sample."""
    if kernel == "grad_cos":
        return np.ones(len(norms))
    return query * norms if kernel == "grad_dot" else _divide(np.full(len(norms), query), norms)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
