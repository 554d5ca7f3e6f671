"""What the watch finds: rows, exact products and audits against a plain backward loop, where a fast way is wrong."""

import json
import logging
import time
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gradindex
from gradindex.compute import exact, watch
from gradindex.compute.held_queries import HeldQueries, compare
from gradindex.data.source import Batch
from gradindex.gradients.signals import FACTORS, FORWARD
from gradindex.gradients.torch.engine import TorchEngine
from gradindex.gradients.ways import STEPS, WayDiffers

N, CLASSES = 160, 4


def data(n=N, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % CLASSES
    return (rng.normal(size=(CLASSES, 12))[y] + rng.normal(size=(n, 12))).astype(np.float32), y


def plain(model, loss, x, y):
    """Gradients (n, P) float64 by `.backward()`, one sample at a time."""
    rows = []
    for i in range(len(y)):
        model.zero_grad()
        loss(model(torch.as_tensor(x[i : i + 1])), torch.as_tensor(y[i : i + 1])).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double().numpy().copy())
    model.zero_grad()
    return np.stack(rows)


def rows_of(job, **options):
    return np.concatenate([block.sketches for block in gradindex.embed(job, sketch=gradindex.Identity(), **options)])


def cosines(gradients):
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    return unit @ unit.T


class Net(torch.nn.Module):
    """An MLP whose forward pass can be interfered with."""

    def __init__(self, interfere=lambda h, x: h):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.c = torch.nn.Linear(12, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, CLASSES)
        self.interfere = interfere

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(torch.tanh(self.b(self.interfere(h, x))))


def reversing(h, x):
    if h.requires_grad:
        h.register_hook(lambda g: -g)
    return h


def clipping(h, x):
    if h.requires_grad:
        h.register_hook(lambda g: g.clamp(-0.02, 0.02))
    return h


def any_of_the_batch(h, x):
    return 2 * h if (x > 2.6).any() else h


def of_the_whole_batch(h, x):
    return h - 0.3 * h.mean(0, keepdim=True) * (len(h) > 1)


class Straight(torch.autograd.Function):
    """Rounds; its gradient is that of doing nothing."""

    @staticmethod
    def forward(ctx, h):
        return (h * 4).round() / 4

    @staticmethod
    def backward(ctx, g):
        return g


INTERFERING = {
    "reversed": reversing,
    "clipped": clipping,
    "branch": any_of_the_batch,
    "mixed": of_the_whole_batch,
    "straight-through": lambda h, x: Straight.apply(h),
}


@pytest.mark.parametrize("name", INTERFERING)
def test_rows_and_exact_scores_are_those_of_training_steps(name, tmp_path):
    model, loss, (x, y) = Net(INTERFERING[name]), torch.nn.CrossEntropyLoss(), data()
    g = plain(model, loss, x, y)
    job = gradindex.Job(model, loss, (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        rows = rows_of(job, batch_size=40)
        index = gradindex.build(job, tmp_path / "index", sketch=gradindex.CountSketch(64), progress=False)
        found = index.explain(ids=range(6), k=5)
        single = index.explain(ids=[7], k=5)
        held_out = index.explain(x[:2] * 0.9, y[:2], k=5)
    assert np.abs(rows - g).max() <= 1e-5 * np.abs(g).max()
    true = cosines(g)
    for queries, result in ((range(6), found), ([7], single)):
        assert result.exact.all()
        for line, query in enumerate(queries):
            assert np.abs(result.scores[line] - true[query][result.ordered_indices[line]]).max() < 1e-4
    q = plain(model, loss, x[:2] * np.float32(0.9), y[:2])
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    for line in range(2):
        want = unit @ (q[line] / np.linalg.norm(q[line]))
        assert np.abs(held_out.scores[line] - want[held_out.ordered_indices[line]]).max() < 1e-4
    assert found.meta["params"]["compared"]["rows"] >= 64


def test_a_penalty_in_the_loss_is_seen_and_named(tmp_path, caplog):
    model, (x, y) = Net(), data()

    def loss(output, y):
        return F.cross_entropy(output, y) + 1e-2 * sum(p.pow(2).sum() for p in model.parameters())

    g = plain(model, loss, x, y)
    job = gradindex.Job(model, loss, (x, y))
    assert np.abs(rows_of(job) - g).max() <= 1e-5 * np.abs(g).max()
    assert set(job.engine.paths.values()) == {"loop"}
    assert "loss reads weights: the loss depends on 'a.weight', 'a.bias', 'b.weight'" in caplog.text
    index = gradindex.build(
        job, tmp_path / "i", sketch=gradindex.Landmark(landmarks=32, dims=16), overwrite=True, progress=False
    )
    result = index.explain(ids=[3], k=4, certify=True)
    assert result.proved.all() and result.meta["params"]["exact_method"] == STEPS
    order = np.argsort(-cosines(g)[3], kind="stable")[:4]
    assert result.ordered_indices[0].tolist() == order.tolist()


def test_a_fault_in_a_few_batches_changes_these_shards_alone(tmp_path, caplog):
    """From row 96 on, the factored path mixes up samples: shards before it keep their path, all are right."""
    model, loss, (x, y) = Net(), torch.nn.CrossEntropyLoss(), data()
    job = gradindex.Job(model, loss, (x, y))
    engine = job.engine
    right = engine.factored_embed
    first = [torch.as_tensor(x[96 + 16 * i]) for i in range(4)]

    def mixed(x, y, names, projector):
        found = right(x, y, names, projector)
        if len(y) == 16 and any(torch.equal(torch.as_tensor(x[0]), one) for one in first):
            found.sketches[:], found.norms[:] = found.sketches[::-1].copy(), found.norms[::-1].copy()
        return found

    engine.factored_embed = mixed
    index = gradindex.build(job, tmp_path / "index", sketch=gradindex.Identity(), shard_rows=16, progress=False)
    g = plain(model, loss, x, y)
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    assert np.abs(index.store.gather(np.arange(N)) - unit).max() < 1e-3
    assert np.abs(index.store.norms / np.linalg.norm(g, axis=1) - 1).max() < 1e-4
    assert caplog.text.count("so the next way is taken: ['vmap']") == 4
    assert set(engine.paths.values()) == {"factored"}  # as the header says
    assert "4 shards made again" in str(watch.of_store(index.store))
    later = gradindex.load(tmp_path / "index", gradindex.Job(model, loss, (x, y)))
    assert later.explain(ids=[5], k=3).meta["params"]["exact_method"] == STEPS


def test_records_stand_beside_shards_and_are_shown(tmp_path):
    model, loss, (x, y) = Net(), torch.nn.CrossEntropyLoss(), data()
    index = gradindex.build(gradindex.Job(model, loss, (x, y)), tmp_path / "index", shard_rows=50, progress=False)
    saved = [json.loads((tmp_path / "index/watch" / f"{n:06d}.json").read_text()) for n in range(4)]
    assert [one["rows"] for one in saved] == [20, 20, 20, 4] and max(one["error"] for one in saved) <= 1e-5
    assert all(np.log10(one["error"]) == int(np.log10(one["error"])) for one in saved if one["error"])
    index.check()
    index.add((x[:30], y[:30]))
    index.remove([1, 2])
    before = watch.of_store(index.store)
    assert before.rows == 64 + 30
    index.compact()
    index = gradindex.load(tmp_path / "index", index.job)
    assert watch.of_store(index.store) == before
    index.check()


def test_drawn_rows_are_as_many_as_promised():
    rows = 1_000_000
    shards = [watch.draw(5, start, start + 50_000, rows) for start in range(0, rows, 50_000)]
    assert all(len(one) == 25 and (np.diff(one) > 0).all() for one in shards)
    assert len(watch.draw(5, 0, 10_000, rows)) == 8 and len(watch.draw(5, 0, 100, 100)) == 64
    assert watch.draw(5, 0, 3, 3).tolist() == [0, 1, 2]
    assert (watch.draw(5, 0, 500, 1000) == watch.draw(5, 0, 500, 1000)).all()
    assert (watch.draw(6, 0, 500, 1000) != watch.draw(5, 0, 500, 1000)).any()


def test_rows_are_compared_once_for_the_same_question(monkeypatch):
    model, loss, (x, y) = Net(), torch.nn.CrossEntropyLoss(), data()
    job = gradindex.Job(model, loss, (x, y))
    steps = []
    right = TorchEngine.sample_gradient
    monkeypatch.setattr(TorchEngine, "sample_gradient", lambda self, x, y: steps.append(1) or right(self, x, y))
    counts = []
    for options in ({}, {}, {"seed": 1}, {"batch_size": 16}):
        steps.clear()
        list(gradindex.embed(job, **options))
        counts.append(len(steps))
    assert counts == [8 + 64, 0, 64, 64]


class Off(TorchEngine):
    """An engine one of whose ways is off by 1 %."""

    def directional(self, x, y, direction):
        dots, losses = super().directional(x, y, direction)
        return 1.01 * dots, losses


def test_a_way_that_disagrees_is_not_used_again(tmp_path, caplog):
    model, loss, (x, y) = Net(), torch.nn.CrossEntropyLoss(), data()
    job = gradindex.Job(model, loss, (x, y))
    index = gradindex.build(job, tmp_path / "index", progress=False)
    object.__setattr__(index.job, "engine", Off(model, loss))
    result = index.explain(ids=[5], k=5)
    true = cosines(plain(model, loss, x, y))[5]
    assert np.abs(result.scores[0] - true[result.ordered_indices[0]]).max() < 1e-5
    assert (
        result.meta["params"]["exact_method"] == "double backward"
        and "forward mode is off by up to 0.01" in caplog.text
    )
    assert not index.job.engine.ways.usable(FORWARD) and index.job.engine.ways.usable(FACTORS)
    assert index.explain(ids=[6], k=5).meta["params"]["exact_method"] == "double backward"


def test_factors_that_disagree_are_replaced_by_training_steps(tmp_path, monkeypatch, caplog):
    from gradindex.compute.held_queries import HeldQueries

    model, loss, (x, y) = Net(), torch.nn.CrossEntropyLoss(), data()
    sketch = gradindex.Landmark(landmarks=32, dims=16)
    index = gradindex.build(gradindex.Job(model, loss, (x, y)), tmp_path / "i", sketch=sketch, progress=False)
    right = HeldQueries.dots
    monkeypatch.setattr(HeldQueries, "dots", lambda self, batch: (1.02 * (f := right(self, batch))[0], f[1]))
    result = index.explain(ids=[5, 9], k=3, certify=True)
    true = cosines(plain(model, loss, x, y))
    assert result.meta["params"]["exact_method"] == STEPS and "factors is off by up to 0.0" in caplog.text
    for line, query in enumerate((5, 9)):
        assert result.ordered_indices[line].tolist() == np.argsort(-true[query], kind="stable")[:3].tolist()
        assert result.proved[line]


def test_a_scan_takes_training_steps_where_factors_disagree(monkeypatch):
    from gradindex.compute.held_queries import HeldQueries

    model, loss, (x, y) = Net(), torch.nn.CrossEntropyLoss(), data()
    job = gradindex.Job(model, loss, (x, y))
    list(gradindex.embed(job))
    monkeypatch.setattr(exact, "_SMALL", 0)
    right = HeldQueries.dots
    monkeypatch.setattr(HeldQueries, "dots", lambda self, batch: (-(f := right(self, batch))[0], f[1]))
    g = plain(model, loss, x, y)
    queries = Batch(np.arange(2), x[:2], y[:2])
    found = np.hstack([dots for _, dots, _ in exact.scan(job.engine, job.source, queries, g[:2])])
    assert np.abs(found - g[:2] @ g.T).max() < 1e-4 * (np.linalg.norm(g, axis=1) ** 2).max()


def test_stored_rows_that_are_wrong_prove_nothing(tmp_path):
    """Of an index that an earlier version built, rows are compared when an answer first calls itself proved."""
    model, loss, (x, y) = Net(), torch.nn.CrossEntropyLoss(), data()
    sketch = gradindex.Landmark(landmarks=32, dims=16)
    job = gradindex.Job(model, loss, (x, y))
    gradindex.build(job, tmp_path / "i", sketch=sketch, progress=False)
    for file in (tmp_path / "i/watch").iterdir():
        file.unlink()
    index = gradindex.load(tmp_path / "i", job)
    assert index.explain(ids=[5], k=3, certify=True).proved.all()
    assert index.at_hand.compared.rows == 64
    index = gradindex.load(tmp_path / "i", job)
    shard = index.store.shards[0]
    index.store.norms[:] = 2 * index.store.norms
    assert shard is not None and not index.explain(ids=[5], k=3, certify=True).proved.any()


def test_scores_of_samples_that_changed_are_not_exact(tmp_path):
    model, loss, (x, y) = Net(), torch.nn.CrossEntropyLoss(), data()
    x = x.copy()
    index = gradindex.build(gradindex.Job(model, loss, (x, y)), tmp_path / "i", progress=False)
    before = index.explain(ids=[5], k=4, kernel="grad_dot")
    assert before.exact.all()
    x[before.ordered_indices[0][1]] *= 3
    with pytest.warns(UserWarning, match="is not the stored one"):
        after = index.explain(ids=[5], k=4, kernel="grad_dot")
    changed = after.ordered_indices[0] == before.ordered_indices[0][1]
    assert (after.exact[0] == ~changed).all() and not after.proved.any()


def test_tables_that_are_tied_to_a_head_are_held(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.e, self.l, self.h = (
                torch.nn.Embedding(50, 8),
                torch.nn.Linear(8, 8),
                torch.nn.Linear(8, 50, bias=False),
            )
            self.h.weight = self.e.weight

        def forward(self, tokens):
            return self.h(torch.tanh(self.l(self.e(tokens))).mean(1))

    rng, loss = np.random.default_rng(0), torch.nn.CrossEntropyLoss()
    x, y = rng.integers(0, 50, (60, 5)), rng.integers(0, 50, 60)
    model = Tied()
    sketch = gradindex.Landmark(landmarks=16, dims=8)
    index = gradindex.build(gradindex.Job(model, loss, (x, y)), tmp_path / "i", sketch=sketch, progress=False)
    result = index.explain(ids=range(6), k=3, certify=True)
    true = cosines(plain(model, loss, x, y))
    assert result.meta["params"]["exact_method"] == FACTORS and result.proved.all()
    for line in range(6):
        assert np.abs(result.scores[line] - true[line][result.ordered_indices[line]]).max() < 1e-5
        assert result.ordered_indices[line].tolist() == np.argsort(-true[line], kind="stable")[:3].tolist()


def test_statistics_of_the_batch_are_refused(tmp_path):
    x, y = data(30)
    layers = torch.nn.Linear(12, 6), torch.nn.BatchNorm1d(6, track_running_stats=False), torch.nn.Linear(6, CLASSES)
    job = gradindex.Job(torch.nn.Sequential(*layers), torch.nn.CrossEntropyLoss(), (x, y))
    with pytest.raises(ValueError, match="'1' has no running statistics, so that it takes those of the batch"):
        gradindex.build(job, tmp_path / "i", progress=False)
    with pytest.raises(ValueError, match="'1' has no running statistics"):  # and so it is when asked again
        gradindex.build(job, tmp_path / "i", progress=False)


def test_an_audit_says_when_exact_scores_are_not(tmp_path, monkeypatch):
    model, loss, (x, y) = Net(), torch.nn.CrossEntropyLoss(), data(400)
    index = gradindex.build(gradindex.Job(model, loss, (x, y)), tmp_path / "i", progress=False)
    good = index.verify(queries=10, k=5)
    assert good.recall == 1 and good.steps > 1000 and good.steps_error < 1e-5
    assert "exact values against training steps" in str(good)
    right = exact.candidate_dots

    def off(*args, **options):
        found = right(*args, **options)
        return exact.Evaluated(found.dots * 0.9, found.losses, found.method)

    monkeypatch.setattr(exact, "candidate_dots", off)
    assert 0.05 < index.verify(queries=10, k=5).steps_error < 0.11


def test_gradients_that_are_all_zero_are_refused(tmp_path):
    x, _ = data(40)
    model = Net()

    def contrastive(output, y):
        scores = output @ output.T
        return F.cross_entropy(scores, torch.arange(len(scores)))

    with pytest.raises(ValueError, match=r"the first two have .* together, alone 0 and 0"):
        gradindex.build(gradindex.Job(model, contrastive, (x, np.arange(40))), tmp_path / "a", progress=False)

    class InBatch(Net):
        def forward(self, x):
            z = super().forward(x)
            return z @ z.T

    def loss(scores, y):
        return F.cross_entropy(scores, torch.arange(len(scores)))

    with pytest.raises(ValueError, match="gradients of all 40 samples are zero"):
        gradindex.build(gradindex.Job(InBatch(), loss, (x, np.arange(40))), tmp_path / "b", progress=False)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ordinary_losses_are_not_refused(reduction):
    x, y = data(30)
    for loss in (
        torch.nn.CrossEntropyLoss(reduction=reduction),
        torch.nn.CrossEntropyLoss(reduction=reduction, label_smoothing=0.1),
        lambda output, y: F.multi_margin_loss(output, y, reduction=reduction),
    ):
        assert len(list(gradindex.embed(gradindex.Job(Net(), loss, (x, y))))) == 1


def test_class_weights_that_cancel_are_named(caplog):
    x, y = data(30)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    list(gradindex.embed(gradindex.Job(Net(), torch.nn.CrossEntropyLoss(weight=weight), (x, y))))
    assert "class weights cancel: cross_entropy with `weight` and reduction='mean'" in caplog.text
    assert "reduction='sum'" in caplog.text
    caplog.clear()
    list(gradindex.embed(gradindex.Job(Net(), torch.nn.CrossEntropyLoss(weight=weight, reduction="sum"), (x, y))))
    assert "cancel" not in caplog.text


def test_a_hook_that_steps_is_refused_and_undone():
    x, y = data(20)
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([model.a.weight], 0.1)

    def step(parameter):
        optimizer.step()
        optimizer.zero_grad()

    model.a.weight.register_post_accumulate_grad_hook(step)
    with pytest.raises(ValueError, match=r"hook changes the weights of 'a\.weight' in the backward pass"):
        list(gradindex.embed(gradindex.Job(model, torch.nn.CrossEntropyLoss(), (x, y))))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_grad_is_put_back():
    x, y = data(20)
    model = Net()
    model.a.weight.grad = torch.ones_like(model.a.weight)
    kept = model.a.weight.grad
    list(gradindex.embed(gradindex.Job(model, torch.nn.CrossEntropyLoss(), (x, y))))
    assert model.a.weight.grad is kept and (kept == 1).all() and model.b.weight.grad is None


def test_training_steps_that_are_not_the_same_each_time_end_the_build(tmp_path):
    class Counting(Net):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x * (1 + Counting.calls % 7))

    x, y = data(60)
    job = gradindex.Job(Counting(), torch.nn.CrossEntropyLoss(), (x, y))
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"samples \[.*each time they are computed one by one"),
    ):
        gradindex.build(job, tmp_path / "i", progress=False)


def test_the_watch_costs_a_millisecond_of_a_warm_answer():
    model, loss, (x, y) = Net(), torch.nn.CrossEntropyLoss(), data()
    job = gradindex.Job(model, loss, (x, y))
    list(gradindex.embed(job))
    ways = job.engine.ways
    assert ways.due(FORWARD) == 8
    one = ways.truth(Batch(np.arange(1), x[:1], y[:1]))
    ways.check(FORWARD, [(one, one, one.norm**2)] * 16)
    ways._cost = 0.004
    assert [ways.due(FORWARD) for _ in range(9)] == [0, 0, 0, 1, 0, 0, 0, 1, 0]
    assert [ways.due(FORWARD, products=20) for _ in range(20)].count(1) == 1  # as often for each product
    assert ways.due(STEPS) == 0
    with pytest.raises(WayDiffers, match=r"forward mode is off by up to 0\.1 of the norms' product"):
        ways.check(FORWARD, [(one, one, 1.1 * one.norm**2)])
    assert not ways.usable(FORWARD)


def test_what_a_comparison_costs_is_its_training_step(monkeypatch):
    """Not what is left to do when that is taken: a warm answer would take one step each time."""
    job = gradindex.Job(Net(), torch.nn.CrossEntropyLoss(), data())
    list(gradindex.embed(job))
    ways, (x, y) = job.engine.ways, data()
    one = Batch(np.arange(1), x[:1], y[:1])
    gradient = ways.truth(one).gradient
    slow = job.engine.sample_gradient

    def step(*given):
        time.sleep(0.01)
        return slow(*given)

    monkeypatch.setattr(job.engine, "sample_gradient", step)
    candidates = np.arange(10)[None]
    for _ in range(2):
        exact.candidate_dots(job.engine, job.source, one, gradient[None], candidates)
    assert ways._cost >= 0.01
    held = HeldQueries(job.engine, one)
    ways._cost, ways._saved = np.inf, 0.0
    compare(job.engine, held, job.source.take(np.arange(4)), held.dots(job.source.take(np.arange(4)))[0])
    assert ways._cost >= 0.01


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level(logging.INFO, "gradindex")
