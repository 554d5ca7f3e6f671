"""A loss in double precision keeps gradients that single precision rounds away, and proofs know it."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

import gradindex
from gradindex.gradients import in_double
from gradindex.search import bounds

CLASSES, FEATURES, ROWS = 4, 6, 300


class Linear:
    """A linear classifier in either framework that is sure of nearly all samples, and its gradients in float64."""

    def __init__(self, framework, scale=2.0):
        rng = np.random.default_rng(3)
        self.weight = (scale * rng.normal(size=(FEATURES, CLASSES))).astype(np.float32)
        self.x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
        self.y = (self.x @ self.weight).argmax(1)
        self.y[::10] = rng.integers(0, CLASSES, len(self.y[::10]))
        self.framework = framework
        kept = np.linalg.norm(self.truth(), axis=1) > 1e-12  # below, double precision rounds, too
        self.x, self.y = self.x[kept], self.y[kept]
        if framework == "torch":
            import torch

            self.model = torch.nn.Linear(FEATURES, CLASSES, bias=False)
            with torch.no_grad():
                self.model.weight.copy_(torch.from_numpy(self.weight.T))
            self.loss = torch.nn.CrossEntropyLoss()
        else:
            import keras

            self.model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES, use_bias=False)])
            self.model.layers[0].set_weights([self.weight])
            self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def job(self, loss=None):
        return gradindex.Job(self.model, loss or gradindex.InDouble(self.loss), (self.x, self.y))

    def truth(self):
        """The gradients (n, P) in the order of the model's parameter."""
        outputs = self.x.astype(np.float64) @ self.weight.astype(np.float64)
        p = np.exp(outputs - outputs.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(p)), self.y] = 0
        p[np.arange(len(p)), self.y] = -p.sum(1)
        outer = np.einsum("nc,nf->ncf" if self.framework == "torch" else "nc,nf->nfc", p, self.x.astype(np.float64))
        return outer.reshape(len(p), -1)


def turned_by_rounding(engine, x, y):
    engine.settle(x[:2], y[:2])
    return in_double.directions(engine, engine.outputs(x), y)


@pytest.fixture(params=["torch", "tensorflow"])
def linear(request):
    return Linear(request.param)


def relative(found, truth):
    return np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth, axis=1)


def test_gradients_are_right_however_sure_the_model_is(linear):
    truth = linear.truth()
    double, single = linear.job().engine, linear.job(linear.loss).engine
    assert np.linalg.norm(truth, axis=1).min() < 1e-9
    assert relative(double.gradients(linear.x, linear.y).gradients, truth).max() < 1e-4
    assert relative(single.gradients(linear.x, linear.y).gradients, truth).max() > 0.1
    rows = gradindex.exact_gradients(linear.job(), np.arange(len(truth)))  # the loop
    assert relative(rows, truth).max() < 1e-4


def test_every_way_of_computing_agrees(linear):
    engine, truth = linear.job().engine, linear.truth()
    direction = np.random.default_rng(0).normal(size=engine.size)
    dots, losses = engine.directional(linear.x, linear.y, direction.astype(np.float32))
    scale = np.linalg.norm(truth, axis=1) * np.linalg.norm(direction)
    assert (np.abs(dots - truth @ direction) / scale).max() < 1e-4
    assert np.isfinite(losses).all()
    batched = engine.batched_gradients(linear.x[:20], linear.y[:20]).gradients
    assert relative(batched, truth[:20]).max() < 1e-4


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_products_are_those_of_the_gradients_however_much_these_are_rounding(framework, tmp_path):
    """Forward mode that rounds otherwise made cosines of 1.1."""
    linear = Linear(framework, scale=8.0)
    job = linear.job(linear.loss)
    gradients = job.engine.gradients(linear.x, linear.y).gradients
    norms = np.linalg.norm(gradients, axis=1)
    rows = np.flatnonzero(norms > 0)[:20]
    assert (relative(gradients[rows], linear.truth()[rows]) > 0.05).any()
    for row in rows:
        dots, _ = job.engine.directional(linear.x, linear.y, gradients[row] / norms[row])
        assert dots[row] == pytest.approx(norms[row], rel=1e-5)
        assert (np.abs(dots) <= norms * (1 + 1e-5)).all()
    index = gradindex.build(job, tmp_path / "index", progress=False)
    scores = index.explain(linear.x[rows], linear.y[rows], k=5).scores
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)


def test_products_with_one_output_a_sample():
    """Outputs (b,), which have no second dimension to sum over."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1), torch.nn.Flatten(0))
    y = (x[:, 0] > 0).astype(np.float32)
    engine = gradindex.Job(model, torch.nn.BCEWithLogitsLoss(), (x, y)).engine
    direction = np.random.default_rng(1).normal(size=engine.size).astype(np.float32)
    dots, losses = engine.directional(x, y, direction)
    found = engine.gradients(x, y)
    np.testing.assert_allclose(dots, found.gradients @ direction, atol=1e-6)
    np.testing.assert_allclose(losses, found.losses, rtol=1e-5)


def test_errors_of_directions_cover_those_that_are_there(linear):
    engine, truth = linear.job().engine, linear.truth()
    turned = turned_by_rounding(engine, linear.x, linear.y)
    assert turned.shape == (len(truth),) and turned.dtype == np.float32
    known = ~np.isnan(turned)  # not where all four outputs are negative
    assert known.mean() > 0.8
    assert turned[known].max() < 1e-3
    found = engine.gradients(linear.x, linear.y).gradients.astype(np.float64)
    off = np.linalg.norm(unit(found) - unit(truth), axis=1)
    norms = np.linalg.norm(found, axis=1).astype(np.float32)
    assert (off <= bounds.evaluation_error(norms, bounds.unit(engine), turned)).all()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_errors_are_large_where_outputs_themselves_nearly_cancel():
    """The error f − y of a regression with |f| far above it is rounding of f, which no loss can mend."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3)).astype(np.float32)
    model = torch.nn.Linear(3, 1)
    with torch.no_grad():
        model.bias.fill_(1000.0)
    y = model(torch.from_numpy(x)).detach().numpy() + np.float32([[1e-3]] * 10 + [[500.0]] * 10)
    engine = gradindex.Job(model, gradindex.InDouble(torch.nn.MSELoss()), (x, y), task="regression").engine
    turned = turned_by_rounding(engine, x, y)
    assert turned[:10].min() > 0.1
    assert turned[10:].max() < 1e-4


def test_errors_are_not_known_behind_a_softmax_nor_for_other_losses():
    torch = pytest.importorskip("torch")
    x, y = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), np.arange(8) % 3
    for last, loss in (
        (torch.nn.Softmax(-1), torch.nn.CrossEntropyLoss()),
        (torch.nn.LogSoftmax(-1), torch.nn.NLLLoss()),
    ):
        engine = gradindex.Job(
            torch.nn.Sequential(torch.nn.Linear(3, 3), last), gradindex.InDouble(loss), (x, y)
        ).engine
        assert np.isnan(turned_by_rounding(engine, x, y)).all()
    engine = gradindex.Job(torch.nn.Linear(3, 3), torch.nn.CrossEntropyLoss(), (x, y)).engine
    assert turned_by_rounding(engine, x, y) is None
    engine = gradindex.Job(torch.nn.Linear(3, 3), gradindex.InDouble(torch.nn.CrossEntropyLoss()), (x, y)).engine
    assert in_double.directions(engine, None, y) is None


def test_certified_answers_take_fewer_checks_and_are_those_of_double_precision(linear, tmp_path):
    linear = Linear(linear.framework, scale=4.0)
    truth = linear.truth()
    ids = np.flatnonzero(np.linalg.norm(truth, axis=1) > 1e-6)[:40]
    cosines = unit(truth)[ids] @ unit(truth).T
    best = -np.sort(-cosines, axis=1)[:, :5]
    sketch, checked = gradindex.Landmark(landmarks=60, dims=20), {}
    for name, job in (("double", linear.job()), ("single", linear.job(linear.loss))):
        index = gradindex.build(job, tmp_path / name, sketch=sketch)
        found = index.explain(ids=ids, k=5, certify=True)
        assert found.proved.all()
        checked[name] = found.checked.mean()
        if name == "double":
            np.testing.assert_allclose(np.take_along_axis(cosines, found.ordered_indices, 1), best, atol=2e-4)
            assert index.store.columns["rounding"].dtype == np.float32
        else:
            assert "rounding" not in index.store.columns
    assert checked["double"] < 0.5 * checked["single"], checked


def test_room_for_rounding_comes_back_with_a_loss_in_single_precision(tmp_path):
    linear = Linear("torch")
    sketch = gradindex.Landmark(landmarks=20, dims=8)
    gradindex.build(linear.job(), tmp_path / "i", sketch=sketch)
    index = gradindex.load(tmp_path / "i", linear.job(linear.loss))
    np.testing.assert_array_equal(
        bounds.errors(index), bounds.evaluation_error(index.store.norms, bounds.unit(index.job.engine))
    )
    assert "rounding" not in gradindex.build(linear.job(), tmp_path / "j").store.columns  # no bounds, no need


def test_rows_added_and_compacted_keep_their_errors(tmp_path):
    linear = Linear("torch")
    half = gradindex.Job(linear.model, gradindex.InDouble(linear.loss), (linear.x[:150], linear.y[:150]))
    index = gradindex.build(half, tmp_path / "i", sketch=gradindex.Landmark(landmarks=20, dims=8))
    whole = linear.job()
    index = gradindex.add(tmp_path / "i", whole)
    index.remove([0, 200])
    gradindex.compact(tmp_path / "i")
    index = gradindex.load(tmp_path / "i", whole)
    turned = in_double.directions(whole.engine, whole.engine.outputs(linear.x), linear.y)
    np.testing.assert_array_equal(index.store.columns["rounding"], np.delete(turned, [0, 200]))


def test_the_loss_given_stays_as_it_was(linear):
    wrapped = gradindex.InDouble(linear.loss)
    assert wrapped.loss_fn is not linear.loss
    if linear.framework == "tensorflow":
        assert linear.loss.dtype == "float32"
        return
    import torch

    weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    double = gradindex.InDouble(weighted)
    assert weighted.weight.dtype == torch.float32
    found = double(torch.zeros(2, 4), torch.tensor([0, 3]))
    assert found.dtype == torch.float64
    again = pickle.loads(pickle.dumps(double))
    assert again(torch.zeros(2, 4), torch.tensor([0, 3])) == found


def test_functions_dicts_and_labels_of_floats():
    torch = pytest.importorskip("torch")
    loss = gradindex.InDouble(lambda output, y: ((output["out"] - y) ** 2).mean())
    assert (
        loss({"out": torch.ones(1, 2), "kind": torch.ones(1, dtype=torch.int64)}, torch.zeros(1, 2)).dtype
        == torch.float64
    )
    with pytest.raises(TypeError, match="callable"):
        gradindex.InDouble("mse")


def test_outputs_that_are_objects_are_embedded_and_their_errors_not_known(tmp_path):
    """As Hugging Face's are: the loss takes `output.logits`, and could not take the array alone."""
    torch = pytest.importorskip("torch")
    linear = Linear("torch")

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear.model

        def forward(self, x):
            return SimpleNamespace(logits=self.inner(x))

    loss = gradindex.InDouble(lambda output, y: torch.nn.functional.cross_entropy(output.logits, y))
    job = gradindex.Job(Wrapped(), loss, (linear.x, linear.y))
    index = gradindex.build(job, tmp_path / "i", sketch=gradindex.Landmark(landmarks=20, dims=8))
    assert "rounding" not in index.store.columns
    assert relative(job.engine.gradients(linear.x, linear.y).gradients, linear.truth()).max() < 1e-4


def test_many_outputs_are_moved_in_parts(linear, monkeypatch):
    engine = linear.job().engine
    engine.settle(linear.x[:2], linear.y[:2])
    outputs = engine.outputs(linear.x)
    whole = in_double.directions(engine, outputs, linear.y)
    monkeypatch.setattr(in_double, "_AT_ONCE", 7 * CLASSES)
    np.testing.assert_allclose(in_double.directions(engine, outputs, linear.y), whole, rtol=1e-5)


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_build_says_that_gradients_are_rounding(framework, tmp_path, caplog):
    linear = Linear(framework, scale=8.0)
    truth = linear.truth()
    gradindex.build(linear.job(linear.loss), tmp_path / "single", progress=False)
    (said,) = [record.getMessage() for record in caplog.records if "InDouble" in record.getMessage()]
    single = linear.job(linear.loss).engine.gradients(linear.x, linear.y).gradients
    share = 100 * np.mean(relative(single, truth) > 0.05)
    assert abs(float(said.split("about ")[1].split(" %")[0]) - share) < 5
    caplog.clear()
    gradindex.build(linear.job(), tmp_path / "double", progress=False)
    assert "rounding" not in caplog.text


def test_a_softmax_inside_the_model_is_noticed(tmp_path, caplog):
    import keras

    linear = Linear("tensorflow", scale=8.0)
    model = keras.Sequential([linear.model, keras.layers.Softmax()])
    job = gradindex.Job(model, keras.losses.SparseCategoricalCrossentropy(), (linear.x, linear.y))
    gradindex.build(job, tmp_path / "index", progress=False)
    (said,) = [record.getMessage() for record in caplog.records if "logits" in record.getMessage()]
    found = job.engine.gradients(linear.x, linear.y).gradients
    share = 100 * np.mean(relative(found, linear.truth()) > 0.05)
    assert abs(float(said.split("about ")[1].split(" %")[0]) - share) < 8


def test_nothing_is_said_of_small_losses_that_do_not_round(tmp_path, caplog):
    """Squared errors of 9e-8 are differences of 3e-4."""
    import torch

    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    model = torch.nn.Linear(4, 1)
    with torch.no_grad():
        y = model(torch.from_numpy(x)).numpy() + np.float32(3e-4)
    job = gradindex.Job(model, torch.nn.MSELoss(), (x, y), task="regression")
    gradindex.build(job, tmp_path / "index", progress=False)
    assert gradindex.load(tmp_path / "index", job).store.columns["loss"].max() < 1e-6
    assert "rounding" not in caplog.text


def test_a_loss_that_fails_in_double_precision_stops_no_build(tmp_path, caplog):
    import torch

    linear = Linear("torch", scale=8.0)

    def loss(output, y):
        if output.dtype != torch.float32:
            raise TypeError("float32 only")
        return torch.nn.functional.cross_entropy(output, y)

    gradindex.build(linear.job(loss), tmp_path / "index", progress=False)
    assert "rounding" not in caplog.text
