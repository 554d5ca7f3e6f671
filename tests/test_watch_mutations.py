"""Ways of computing broken on purpose, after the first batch was found right: the watch finds every fault.

Each fault touches half of the rows (or products) or more. With the watch, what is stored and answered is right, because
it was made again on another path; without it, it is wrong, which shows that nothing else would have found the fault.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import gradindex
from gradindex.compute import blocks, held_queries
from gradindex.compute.watch import RowWatch
from gradindex.gradients.results import Embedded, PerSample
from gradindex.gradients.torch import engine as torch_engine
from gradindex.gradients.torch import passes
from gradindex.gradients.torch.use import Direct, Touched
from gradindex.gradients.ways import Ways
from gradindex.sketch.countsketch import CountSketchProjector
from gradindex.sketch.landmark import LandmarkProjector
from gradindex.sketch.unit_rows import normalise

SAMPLES, SHARD, BATCH = 160, 40, 20
RIGHT, WRONG = 3e-3, 5e-3  # errors of rows, which are stored in half precision, and of scores
FOUND = "the next way is taken", "trying the next way", "training steps are taken"
LOSS = nn.CrossEntropyLoss()


def _mlp():
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)), torch.randn(SAMPLES, 8)


def _conv():
    layers = nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(100, 4)
    return nn.Sequential(*layers), torch.randn(SAMPLES, 2, 5, 5)


def _texts():
    return nn.Sequential(nn.Embedding(10, 6, padding_idx=0), nn.Flatten(), nn.Linear(30, 4)), torch.randint(
        0, 10, (SAMPLES, 5)
    )


def _vmapped():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.table = nn.Linear(8, 4), nn.Parameter(torch.randn(4, 4, 4))

        def forward(self, x):
            h = torch.tanh(self.first(x))
            return torch.einsum("bi,oij,bj->bo", h, self.table, h) + h

    return Odd(), torch.randn(SAMPLES, 8)


MODELS = {"mlp": _mlp, "conv": _conv, "texts": _texts, "vmapped": _vmapped}


class Fault(NamedTuple):
    """What is broken: `arm` does it to a job, by monkeypatch; `asked` tells what comes of it."""

    model: str
    asked: str
    arm: Callable[[pytest.MonkeyPatch, gradindex.Job], None]


def _uses(change: Callable[[str, list[Any]], list[Any]]) -> Any:
    """Change what a layer's rule gives, by the parameter's name."""

    def arm(patch, job):
        for kind in (passes.Sketches, passes.Rows):
            call = kind.__call__

            def wrapped(self, name, uses, call=call):
                changed = change(name, list(uses))
                if changed:
                    call(self, name, changed)

            patch.setattr(kind, "__call__", wrapped)

    return arm


def _formed(wanted: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def changed(name, uses):
        return [Direct(change(use.form(slice(None)).clone())) for use in uses] if name == wanted else uses

    return _uses(changed)


def _embedded(change: Callable[..., Embedded]) -> Any:
    """Change what a batch gives, unless training steps made it."""

    def arm(patch, job):
        embed = blocks._embed

        def wrapped(engine, batch, projector):
            found = embed(engine, batch, projector)
            return found if set(engine.paths.values()) == {"loop"} else change(batch, found)

        patch.setattr(blocks, "_embed", wrapped)

    return arm


def _scaled(found: Embedded, by: Any) -> Embedded:
    by = np.broadcast_to(by, len(found.norms))
    return Embedded(found.sketches * by[:, None].astype(np.float32), found.norms * by, found.losses, found.outputs)


def _swapped(batch, found):
    if batch.ids[0] < 2 * SHARD:  # from the third shard on
        return found
    return Embedded(found.sketches[::-1].copy(), found.norms[::-1].copy(), found.losses, found.outputs)


def _last_batch(batch, found):
    return _scaled(found, 1.1) if batch.ids[0] % SHARD == SHARD - BATCH else found


def _norms(batch, found):
    return Embedded(found.sketches, found.norms * 1.02, found.losses, found.outputs)


def _turned(batch, found):
    turned = np.linalg.norm(found.sketches, axis=1, keepdims=True) / found.sketches.shape[1] ** 0.5
    return Embedded(found.sketches + 0.02 * turned, found.norms, found.losses, found.outputs)


def _lose_hook(patch, job):
    job.model[0].weight.register_hook(lambda g: 0.5 * g)  # after hooks were looked for


def _method(owner: Any, name: str, change: Callable[..., Any]) -> Any:
    """Change what a method or function returns; `change` gets that and the arguments."""

    def arm(patch, job):
        function = getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **options: change(function(*args, **options), *args))

    return arm


def _fails(*args, **options):
    raise NotImplementedError("no forward mode")


def _no_forward_mode(then: Any) -> Any:
    def arm(patch, job):
        patch.setattr(type(job.engine), "directional", _fails)
        then(patch, job)

    return arm


def _flipped_sign(patch, job):
    add = CountSketchProjector.add_factors
    flip = lambda self, out, parameter, rows, columns: add(self, out, parameter, -rows, columns)  # noqa: E731
    patch.setattr(CountSketchProjector, "add_factors", flip)
    patch.setattr(passes.Sketches, "_cheapest", lambda self, parameter, uses: (uses[0].positions == 1, False))


def _landmark_rows(patch, job):
    add = LandmarkProjector.add
    patch.setattr(LandmarkProjector, "add", lambda self, out, p, g: add(self, out, p, g))
    factors = LandmarkProjector.add_factors
    scaled = lambda self, out, p, rows, columns: factors(self, out, p, 1.02 * rows, columns)  # noqa: E731
    patch.setattr(LandmarkProjector, "add_factors", scaled)
    patch.setattr(passes.Sketches, "_cheapest", lambda self, parameter, uses: (uses[0].positions == 1, False))


def _times(value: float) -> Any:
    return lambda found, *args: (found[0] * value, *found[1:])


FAULTS = {
    "one layer's rule scaled by 1.01": Fault("mlp", "rows", _formed("2.weight", lambda g: 1.01 * g)),
    "a bias dropped": Fault("mlp", "rows", _uses(lambda name, uses: [] if name == "2.bias" else uses)),
    "a term of a convolution dropped": Fault(
        "conv", "rows", _formed("0.weight", lambda g: g * (torch.arange(g.shape[1]) % 9 != 4))
    ),
    "a convolution's channels mixed": Fault(
        "conv", "rows", _formed("0.weight", lambda g: g.view(len(g), 4, -1).flip(1).flatten(1))
    ),
    "a norm's gradient dropped": Fault("conv", "rows", _uses(lambda name, uses: [] if name == "2.weight" else uses)),
    "an embedding's rows of another sample": Fault(
        "texts",
        "rows",
        _uses(
            lambda name, uses: [
                Touched(use.numbers.roll(1, 0), use.columns, use.rows) if isinstance(use, Touched) else use
                for use in uses
            ]
        ),
    ),
    "samples swapped from the third shard on": Fault("mlp", "rows", _embedded(_swapped)),
    "the last batch of every shard": Fault("mlp", "rows", _embedded(_last_batch)),
    "every second row": Fault("mlp", "rows", _embedded(lambda batch, found: _scaled(found, 1 + 0.1 * (batch.ids % 2)))),
    "the norm alone": Fault("conv", "rows", _embedded(_norms)),
    "the direction alone": Fault("mlp", "rows", _embedded(_turned)),
    "a mean over the batch": Fault("mlp", "rows", _embedded(lambda batch, found: _scaled(found, 1 / len(batch)))),
    "a hook lost": Fault("mlp", "rows", _lose_hook),
    "vmap's rows scaled": Fault(
        "vmapped",
        "rows",
        _method(
            torch_engine.TorchEngine,
            "some_gradients",
            lambda found, *args: PerSample(1.05 * found.gradients, found.losses, found.outputs),
        ),
    ),
    "a sketch's sign flipped": Fault("mlp", "rows", _flipped_sign),
    "coordinates with landmarks scaled": Fault("mlp", "landmarks", _landmark_rows),
    "forward mode off by 1 %": Fault("mlp", "one", _method(torch_engine.TorchEngine, "directional", _times(1.01))),
    "forward mode's candidates mixed": Fault(
        "mlp", "one", _method(torch_engine.TorchEngine, "directional", lambda found, *args: (found[0][::-1], found[1]))
    ),
    "double backward off by 1 %": Fault(
        "mlp", "one", _no_forward_mode(_method(torch_engine.TorchEngine, "directional_twice", _times(1.01)))
    ),
    "factors' products of another query": Fault(
        "mlp", "several", _method(held_queries.HeldQueries, "dots", lambda found, *args: (found[0][::-1], found[1]))
    ),
    "factors off by 1 %": Fault("mlp", "several", _method(held_queries.HeldQueries, "dots", _times(1.01))),
    "formed gradients off by 1 %": Fault(
        "conv",
        "formed",
        _method(
            torch_engine.TorchEngine,
            "factored_gradients",
            lambda found, *args: PerSample(1.01 * found.gradients, found.losses, found.outputs),
        ),
    ),
    "factors in a proof": Fault("mlp", "certify", _method(held_queries.HeldQueries, "dots", _times(0.98))),
}


def _job(model: str) -> tuple[gradindex.Job, Callable[[], np.ndarray]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, x = MODELS[model]()
        y = torch.randint(0, 4, (SAMPLES,))
    job = gradindex.Job(module, LOSS, (x, y))
    job.engine.settle(x[:8], y[:8])  # the first batch is right
    assert "loop" not in job.engine.paths.values()
    return job, lambda: _truth(module, x, y)


def _truth(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    rows = []
    for i in range(len(y)):
        model.zero_grad()
        LOSS(model(x[i : i + 1]), y[i : i + 1]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double().numpy())
    model.zero_grad()
    return np.stack(rows)


def _row_error(index: Any, true: np.ndarray) -> float:
    norms = np.linalg.norm(true, axis=1)
    projector = index.projector
    want = normalise(projector.finish(projector(index.job.engine.parameters, true.astype(np.float32)), norms))
    off = np.linalg.norm(index.store.gather(np.arange(len(true))) - want, axis=1)
    return float(max(off.max(), (np.abs(index.store.norms - norms) / norms).max()))


def _score_error(index: Any, true: np.ndarray, asked: str) -> float:
    ids = {"one": [7], "certify": [7, 21]}.get(asked, [3, 7, 12, 21])
    found = index.explain(ids=ids, k=5, certify=asked == "certify")
    units = true / np.linalg.norm(true, axis=1, keepdims=True)
    want = np.take_along_axis(units[ids] @ units.T, found.ordered_indices, 1)
    return float(np.abs(found.scores - want).max())


def _error(fault: Fault, folder: Any) -> float:
    """Return the error of what comes of a fault."""
    job, truth = _job(fault.model)
    proves = fault.asked in ("certify", "landmarks")
    options = {"sketch": gradindex.Landmark(landmarks=32, dims=16) if proves else gradindex.CountSketch(128)}
    options |= {"shard_rows": SHARD, "batch_size": BATCH, "progress": False, "row_type": "float16"}
    of_rows = fault.asked in ("rows", "landmarks")
    index = None if of_rows else gradindex.build(job, folder, **options)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ValueError):
        fault.arm(patch, job)
        if not of_rows:
            return _score_error(index, truth(), fault.asked)
        index = gradindex.build(job, folder, **options)
    return 0.0 if index is None else _row_error(index, truth())


@pytest.fixture
def unwatched(monkeypatch):
    """The watch switched off."""
    for owner, names in ((RowWatch, ["look"]), (Ways, ["check", "check_row", "check_rows"])):
        for name in names:
            monkeypatch.setattr(owner, name, lambda *args, **options: None)


@pytest.mark.parametrize("name", FAULTS)
def test_the_watch_finds(name, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "gradindex")
    assert _error(FAULTS[name], tmp_path / "index") < RIGHT
    assert any(text in caplog.text for text in FOUND)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore")
def test_nothing_else_finds(name, tmp_path, unwatched):
    assert _error(FAULTS[name], tmp_path / "index") > WRONG
