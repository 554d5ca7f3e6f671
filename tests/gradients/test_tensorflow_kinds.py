"""Keras models and losses that do more than a batch of plain layers, by value against a tape around model and loss."""

import logging
import warnings

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import keras  # noqa: E402

from gradindex.gradients import batch_loss  # noqa: E402
from gradindex.gradients.engine import PathFailed  # noqa: E402
from gradindex.gradients.tensorflow.engine import TensorFlowEngine  # noqa: E402
from gradindex.sketch import CountSketch, Identity  # noqa: E402

L = keras.layers
CLASSES, N = 3, 8
X = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, CLASSES, N)
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def plain(model, loss, x, y, weights=None):
    """Gradients (b, P) as a user computes them, one sample at a time, and their losses."""
    rows, losses = [], []
    weights = model.trainable_variables if weights is None else weights
    for i in range(len(y)):
        state = [v.numpy() for v in model.non_trainable_variables]
        with tf.GradientTape() as tape:
            one = {k: v[i : i + 1] for k, v in x.items()} if isinstance(x, dict) else x[i : i + 1]
            value = tf.reduce_sum(loss(y[i : i + 1], model(one, training=False)))
        found = tape.gradient(value, [v.value for v in weights])
        rows.append(
            np.concatenate(
                [
                    np.zeros(np.prod(v.shape))
                    if g is None
                    else np.asarray(tf.cast(tf.convert_to_tensor(g), tf.float64)).ravel()
                    for v, g in zip(weights, found, strict=True)
                ]
            )
        )
        losses.append(float(value))
        for variable, before in zip(model.non_trainable_variables, state, strict=True):
            variable.assign(before)
    return np.stack(rows), np.array(losses)


def check(model, loss, x=X, y=Y, tolerance=1e-5, path=None, signals=()):
    """Rows, norms and every way of exact products are the plain loop's, or refused; returns the engine."""
    want, losses = plain(model, loss, x, y)
    state = [v.numpy() for v in model.variables]
    engine = TensorFlowEngine(model, loss)
    size = np.linalg.norm(want, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embedded = engine.embed(x, y, Identity().bind(engine.parameters, seed=0))
    assert {signal.name for signal in engine.find_signals(x, y)} == set(signals)
    assert np.linalg.norm(embedded.sketches - want, axis=1).max() <= tolerance * size.max()
    np.testing.assert_allclose(embedded.norms, size, rtol=max(tolerance, 1e-5), atol=1e-7)
    np.testing.assert_allclose(embedded.losses, losses, rtol=max(tolerance, 1e-5), atol=1e-6)
    one = engine.sample_gradient(tf.nest.map_structure(lambda leaf: leaf[:1], x), y[:1])
    assert np.abs(one.gradients[0] - want[0]).max() <= tolerance * size.max()
    assert ways(engine, x, y, want, tolerance)
    assert all(np.array_equal(v.numpy(), before) for v, before in zip(model.variables, state, strict=True))
    if path is not None:
        assert set(engine.paths.values()) == {path}
    return engine


def ways(engine, x, y, want, tolerance):
    """Every way of exact products gives those of the plain loop's gradients, or refuses."""
    direction = np.random.default_rng(2).normal(size=engine.size).astype(np.float32)
    blocked = frozenset().union(*(signal.blocks for signal in engine.find_signals(x, y)))
    for name, way in (
        ("forward mode", engine.directional),
        ("double backward", engine.directional_twice),
    ):
        if name in blocked:
            with pytest.raises(PathFailed):
                way(x, y, direction)
            continue
        dots, _ = way(x, y, direction)
        scale = np.linalg.norm(want, axis=1).max() * np.linalg.norm(direction)
        assert np.abs(dots - want @ direction).max() <= tolerance * scale, name
    return True


def mlp(*middle, **options):
    layers = [L.Input((4,)), L.Dense(6, "tanh", **options), *middle, L.Dense(CLASSES, **options)]
    return keras.Sequential(layers)


def lifted(call, **parts):
    """A model from a function of (self, x), with some layers."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = L.Dense(6, "tanh"), L.Dense(CLASSES)
            for name, part in parts.items():
                setattr(self, name, part)

        def call(self, x):
            return call(self, x)

    model = Model()
    model(X)
    return model


def with_losses(model, of=CE):
    return lambda y, out: of(y, out) + tf.add_n(model.losses)


# Losses that read more than the outputs.


def test_weight_penalties_are_one_vector_for_all_samples():
    model = mlp(kernel_regularizer=keras.regularizers.L1L2(1e-2, 3e-2))
    check(model, with_losses(model), path="factored")


@pytest.mark.parametrize("strength", [1e-2, 1.0])
def test_a_penalty_is_added_to_sketches_that_are_made_of_factors(strength):
    penalty = keras.regularizers.L2(strength)
    layers = [L.Embedding(9, 48, embeddings_regularizer=penalty), L.Flatten(), L.Dense(200, "relu")]
    layers += [L.Dense(200, "relu", kernel_regularizer=penalty), L.Dense(CLASSES)]
    model, x = keras.Sequential([L.Input((2,), dtype="int32"), *layers]), np.arange(2 * N).reshape(N, 2) % 9
    want, _ = plain(model, with_losses(model), x, Y)
    engine = TensorFlowEngine(model, with_losses(model))
    projector = CountSketch(64).bind(engine.parameters, seed=0)
    found = engine.embed(x, Y, projector)
    norms = np.linalg.norm(want, axis=1)
    np.testing.assert_allclose(found.norms, norms, rtol=1e-5)
    assert np.abs(found.sketches - projector(engine.parameters, want.astype(np.float32))).max() <= 1e-5 * norms.max()
    assert set(engine.paths.values()) == {"factored"}


def test_a_loss_that_has_no_gradient_counts_as_a_value():
    def call(self, x):
        self.add_loss(tf.reduce_mean(tf.stop_gradient(x) ** 2))
        return self.out(self.hidden(x))

    model = lifted(call)
    check(model, with_losses(model), path="vmap", signals=["past the outputs"])


def test_a_penalty_follows_the_weights():
    model = mlp(kernel_regularizer="l2")
    engine = check(model, with_losses(model), path="factored")
    model.set_weights([3 * w for w in model.get_weights()])
    want, _ = plain(model, with_losses(model), X, Y)
    np.testing.assert_allclose(engine.gradients(X, Y).gradients, want, rtol=1e-4, atol=1e-5)


def test_a_penalty_of_an_unused_weight():
    model = lifted(lambda self, x: self.out(self.hidden(x)) + 0.0 * self.more(x)[:, :1], more=L.Dense(2))
    loss = lambda y, out: CE(y, out) + keras.ops.sum(model.more.kernel**2)  # noqa: E731
    check(model, loss, path="factored")


def test_activity_regularizers_and_add_loss_see_one_sample():
    model = mlp(L.ActivityRegularization(l2=0.1))
    check(model, with_losses(model), path="vmap", signals=["past the outputs"])

    def call(self, x):
        hidden = self.hidden(x)
        self.add_loss(tf.reduce_mean(hidden**2))
        return self.out(hidden)

    model = lifted(call)
    check(model, with_losses(model), path="vmap", signals=["past the outputs"])


def test_losses_that_nobody_reads_cost_nothing():
    model = mlp(L.ActivityRegularization(l2=0.1), kernel_regularizer="l2")
    check(model, CE, path="factored")


def test_a_penalty_that_depends_on_the_sample():
    model = mlp()
    kernel = model.layers[0].kernel
    check(model, lambda y, out: CE(y, out) * tf.reduce_sum(kernel**2), path="vmap", signals=["past the outputs"])


def test_a_penalty_on_the_variables_themselves():
    model = mlp()
    inner = [v.value for v in model.trainable_variables]  # TensorFlow's, not Keras's
    loss = lambda y, out: CE(y, out) + 0.1 * tf.add_n([tf.nn.l2_loss(v) for v in inner])  # noqa: E731
    check(model, loss, path="loop", signals=["variable as it is"])


def test_what_layers_collected_before_is_kept():
    model = mlp(L.ActivityRegularization(l2=0.1))
    model(X)
    before = [float(one) for one in model.losses]
    engine = TensorFlowEngine(model, with_losses(model))
    engine.gradients(X[:3], Y[:3])
    assert [float(one) for one in model.losses] == before


# Custom gradients and what a forward pass does with a batch.


@tf.custom_gradient
def clipped(x):
    return tf.identity(x), lambda dy: tf.clip_by_norm(dy, 0.05)


@keras.ops.custom_gradient
def reversed_gradient(x):
    return keras.ops.multiply(x, 1.0), lambda dy: -0.5 * dy


@pytest.mark.parametrize(("function", "path"), [(clipped, "vmap"), (reversed_gradient, "factored")])
def test_custom_gradients(function, path):
    model = lifted(lambda self, x: self.out(function(self.hidden(x))))
    check(model, CE, path=path, signals=["custom gradient"])


def test_custom_gradients_in_the_loss():
    model = mlp()
    check(model, lambda y, out: CE(y, clipped(out)), path="vmap", signals=["custom gradient"])


def test_silu_has_its_own_derivative():
    check(mlp(L.Activation("silu")), CE, path="factored")


def test_a_target_from_the_same_weights():
    def call(self, x):
        hidden = self.hidden(x)
        return {"out": self.out(hidden), "target": tf.stop_gradient(self.out(hidden + 0.1))}

    def loss(y, out):
        return CE(y, out["out"]) + tf.reduce_mean((out["out"] - out["target"]) ** 2)

    check(lifted(call), loss, path="factored")


def test_a_gradient_inside_the_model():
    def call(self, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            hidden = self.hidden(x)
        return self.out(hidden) + tf.reduce_sum(tape.gradient(hidden, x) ** 2, -1, keepdims=True)

    check(lifted(call), CE)


BRANCHES = {
    "tf.cond": lambda x: tf.cond(tf.reduce_any(x > 1.0), lambda: 2.0 * x, lambda: tf.tanh(x)),
    "where": lambda x: tf.where(tf.reduce_any(x > 1.0), 2.0 * x, tf.tanh(x)),
    "loop": lambda x: tf.while_loop(lambda h: tf.reduce_max(h) > 0.5, lambda h: (0.7 * h,), [x])[0],
}


@pytest.mark.parametrize("branch", BRANCHES)
def test_branches_on_the_batch(branch):
    assert 0 < (X.max(1) > 1).sum() < N
    model = lifted(lambda self, x: self.out(BRANCHES[branch](self.hidden(x) * 2.0)))
    names = {"tf.cond": ["branch", "reduction"], "where": ["reduction"], "loop": ["branch", "reduction"]}
    engine = check(model, CE, signals=names[branch])
    assert "factored" not in engine.paths.values()


def test_branches_in_python():
    model = lifted(lambda self, x: self.out(self.hidden(x) if tf.reduce_any(x > 1.5) else self.hidden(2.0 * x)))
    check(model, CE, path="loop", signals=["no graph"])


def test_loops_of_a_fixed_number_of_steps_are_no_branch():
    def call(self, x):
        return self.out(tf.while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, self.hidden(h)[:, :4]), [0, x])[1])

    check(lifted(call), CE)


def test_recurrent_layers_have_no_signal():
    model = keras.Sequential([L.Input((None, 4)), L.Masking(), L.GRU(3), L.Dense(CLASSES)])
    check(model, CE, np.stack([X, X[::-1], X], 1), path="factored", tolerance=2e-5)


def test_embeddings_with_masks_and_batch_statistics_have_no_signal():
    model = keras.Sequential(
        [
            L.Input((5,), dtype="int32"),
            L.Embedding(7, 4, mask_zero=True),
            L.BatchNormalization(),
            L.GlobalAveragePooling1D(),
            L.Dense(CLASSES),
        ]
    )
    check(model, CE, np.random.default_rng(3).integers(0, 7, (N, 5)), path="factored")


# State.


class Average(L.Layer):
    """Subtracts a running mean that every call updates, read before or after."""

    def __init__(self, after, known=True):
        super().__init__()
        self.after = after
        zeros = tf.zeros((6,))
        self.mean = self.add_weight(shape=(6,), initializer="zeros", trainable=False) if known else tf.Variable(zeros)
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        before = tf.convert_to_tensor(self.mean)
        self.mean.assign(0.9 * before + 0.1 * tf.reduce_mean(x, 0))
        self.count.assign_add(1.0)
        return x - (tf.convert_to_tensor(self.mean) if self.after else before)


def test_variables_that_a_call_updates_do_not_drift():
    model = mlp(Average(after=False))
    model(X)
    engine = check(model, CE, path="factored")
    assert engine.state_hashes() == TensorFlowEngine(model, CE).state_hashes()
    check(mlp(Average(after=True)), CE, path="loop", signals=["reduction", "updated variable"])


def test_variables_that_keras_does_not_know_do_not_drift():
    layer = Average(after=True, known=False)
    model = mlp(layer)
    layer.mean.assign(tf.range(6.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = TensorFlowEngine(model, CE)
        first = engine.gradients(X, Y).gradients
        engine.outputs(X)
        with pytest.raises(PathFailed, match="Keras does not know"):
            engine.directional(X, Y, first[0])
        again = engine.gradients(X, Y).gradients
    assert np.array_equal(first, again)
    np.testing.assert_array_equal(layer.mean.numpy(), np.arange(6.0))
    assert set(engine.paths.values()) == {"loop"}


def test_random_numbers_in_evaluation_mode_are_the_same_each_time():
    class Noise(L.Layer):
        def __init__(self, seeded):
            super().__init__()
            self.seeds = keras.random.SeedGenerator(1) if seeded else None

        def call(self, x):
            return x + keras.random.normal(tf.shape(x), seed=self.seeds)

    for seeded in (True, False):
        engine = TensorFlowEngine(mlp(Noise(seeded)), CE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, again = engine.gradients(X, Y).gradients, engine.gradients(X, Y).gradients
        assert np.array_equal(first, again)
        assert np.array_equal(engine.outputs(X), engine.outputs(X))
        assert set(engine.paths.values()) == {"loop"}
        assert [signal.name for signal in engine.find_signals(X, Y)] == ["random numbers"]


def test_a_step_of_an_optimizer_inside_the_gradient_is_refused():
    @tf.custom_gradient
    def stepping(x):
        def gradient(dy):
            models[0].hidden.kernel.assign_add(tf.ones_like(models[0].hidden.kernel))
            return dy

        return tf.identity(x), gradient

    models = [lifted(lambda self, x: self.out(stepping(self.hidden(x))))]
    model = models[0]
    before = model.get_weights()
    engine = TensorFlowEngine(model, CE)
    with pytest.raises(ValueError, match=r"changes the weights .*kernel' in the backward pass.*Remove it"):
        engine.sample_gradient(X[:1], Y[:1])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


# Types.


@pytest.mark.parametrize(("body", "head", "tolerance"), [
    ("float64", "float32", 1e-5),
    ("bfloat16", "float32", 2e-2),
    ("float16", "float32", 5e-3),
    ("mixed_float16", "mixed_float16", 1e-2),
    ("float32", "float64", 1e-5),
])  # fmt: skip
@pytest.mark.parametrize("frozen", [True, False])
def test_types_of_body_and_head(body, head, tolerance, frozen):
    model = keras.Sequential(
        [
            L.Input((4,)),
            L.Dense(6, "tanh", dtype=body, trainable=not frozen),
            L.Dense(CLASSES, dtype=head),
            L.Activation("linear", dtype="float32"),
        ]
    )
    kinds = {v.dtype for v in model.trainable_variables}
    for x in (X, X.astype(np.float64)):
        engine = check(model, CE, x, tolerance=tolerance)
        assert engine.dtype == (np.float64 if "float64" in kinds else np.float32)


def test_labels_keep_their_type_where_the_loss_takes_it():
    seen = []

    def loss(y, out):
        seen.append(y.dtype)
        return tf.reduce_mean((tf.cast(out, tf.float64) - y) ** 2)

    values = np.random.default_rng(4).normal(size=(N, CLASSES))
    check(mlp(dtype="bfloat16"), loss, y=values, tolerance=2e-2)
    assert set(seen) == {tf.float64, np.dtype(np.float64)}  # ours, and the plain loop's


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_labels_in_a_dict_take_the_output_s_type(kind):
    model = lifted(lambda self, x: {"out": self.out(self.hidden(x))})
    values = np.random.default_rng(4).normal(size=(N, CLASSES)).astype(kind)
    engine = TensorFlowEngine(model, lambda y, out: tf.reduce_mean((out["out"] - y["out"]) ** 2))
    want, _ = plain(model, lambda y, out: tf.reduce_mean((out["out"] - y.astype(np.float32)) ** 2), X, values)
    np.testing.assert_allclose(engine.gradients(X, {"out": values}).gradients, want, rtol=1e-4, atol=1e-6)


# Outputs.


OUTPUTS = {
    "scalar": lambda out, h: {"out": out, "norm": tf.reduce_sum(tf.stop_gradient(h) ** 0.0)[None][0]},
    "state, batch second": lambda out, h: {"out": out, "state": tf.stack([h, h])},
    "tuple": lambda out, h: (out, h, tf.constant(1.0)),
    "nested": lambda out, h: {"out": out, "more": [h, {"time": tf.transpose(h)}]},
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_the_loss_does_not_read_cost_nothing(kind):
    def call(self, x):
        hidden = self.hidden(x)
        return OUTPUTS[kind](self.out(hidden), hidden)

    loss = lambda y, out: CE(y, out[0] if kind == "tuple" else out["out"])  # noqa: E731
    check(lifted(call), loss, path="factored")


def test_states_with_another_axis_of_samples_that_the_loss_reads():
    def call(self, x):
        hidden = self.hidden(x)
        return {"out": self.out(hidden), "state": tf.stack([hidden, hidden])}

    check(
        lifted(call),
        lambda y, out: CE(y, out["out"]) + tf.reduce_mean(out["state"] ** 2),
        path="vmap",
        signals=["another axis"],
    )


def test_an_output_that_is_the_loss():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def call(self, a, b):
            return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(b, self.net(a), from_logits=True))

    model = Model()
    x = {"a": X, "b": Y}
    model(**x)
    engine = TensorFlowEngine(model, lambda y, out: out)
    want, _ = plain(model.net, CE, X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = engine.gradients(x, Y).gradients
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)


def test_a_loss_of_pairs_is_refused():
    def loss(y, out):
        return keras.ops.mean(
            keras.losses.sparse_categorical_crossentropy(
                tf.range(tf.shape(out)[0]), out @ tf.transpose(out), from_logits=True
            )
        )

    engine = TensorFlowEngine(mlp(), loss)
    with pytest.raises(ValueError, match="loss of a batch is not made of the losses of its samples"):
        engine.embed(X, Y, Identity().bind(engine.parameters, seed=0))
    step = engine.sample_gradient(X[:1], Y[:1])
    assert not step.gradients.any()


def test_the_reason_for_a_slower_way_is_logged_once(caplog):
    engine = TensorFlowEngine(lifted(lambda self, x: self.out(clipped(self.hidden(x)))), CE)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            engine.gradients(X, Y)
    assert ["custom gradient" in record.getMessage() for record in caplog.records] == [True]


def test_the_loss_of_samples_together():
    engine = TensorFlowEngine(lifted(lambda self, x: {"out": self.out(self.hidden(x)), "in": x}), CE)
    engine.loss_fn = lambda y, out: CE(y, out["out"])
    each = [batch_loss.of(engine, X, Y)([i]) for i in (1, 4)]
    assert batch_loss.of(engine, X, Y)([1, 4]) == pytest.approx(np.mean(each), rel=1e-5)
    engine.loss_fn = lambda y, out: CE(y, out["other"])
    assert batch_loss.of(engine, X, Y)([1, 4]) is None
    numbers = TensorFlowEngine(lifted(lambda self, x: {"out": self.out(self.hidden(x)), "n": tf.constant(2.0)}), CE)
    numbers.loss_fn = lambda y, out: CE(y, out["out"])  # and might read n, of which there would be two
    assert batch_loss.of(numbers, X, Y)([1, 4]) is None
