import logging
import threading

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import keras  # noqa: E402

from gradindex.gradients import loop  # noqa: E402
from gradindex.gradients.engine import PathFailed  # noqa: E402
from gradindex.gradients.tensorflow.engine import TensorFlowEngine  # noqa: E402

L = keras.layers
CLASSES = 3


def rows(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ints(high, *shape):
    return np.random.default_rng(1).integers(0, high, shape)


def head(*layers, shape, **options):
    return keras.Sequential([L.Input(shape, **options), *layers, L.Dense(CLASSES, activation="softmax")])


class Splits(keras.Model):
    """Takes two arguments, and has a head that the loss does not see."""

    def __init__(self):
        super().__init__()
        self.first, self.second = L.Dense(4, activation="tanh"), L.Dense(CLASSES)
        self.head = L.Dense(2, name="unused_head")

    def call(self, a, b, training=False):
        hidden = self.first(a) + self.first(b)
        self.head(hidden)
        return self.second(hidden)


class Logits(keras.Model):
    """Returns an object; leaves `training` out of its call."""

    class Output:
        def __init__(self, logits):
            self.logits = logits

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(CLASSES)

    def call(self, x):
        return self.Output(self.dense(x))


def built(model, *inputs):
    model(*inputs)
    return model


def transformer():
    x = L.Input((6, 4))
    h = L.LayerNormalization()(x + L.MultiHeadAttention(2, 3)(x, x))
    return keras.Model(x, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(h)))


def vision_transformer():
    x = L.Input((8, 8, 2))
    h = L.Reshape((16, 6))(L.Conv2D(6, 2, strides=2)(x))
    h = h + L.MultiHeadAttention(2, 3)(h, h)
    return keras.Model(x, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(h)))


def two_inputs(container):
    a, b = L.Input((4,), name="a"), L.Input((2,), name="b")
    out = L.Dense(CLASSES)(L.Concatenate()([L.Dense(3, activation="relu")(a), b]))
    return keras.Model(container(a, b), out)


def nested():
    inner = keras.Sequential([L.Input((4,)), L.Dense(5, activation="tanh"), L.Dropout(0.5)])
    x = L.Input((4,))
    return keras.Model(x, L.Dense(CLASSES)(inner(inner(inner(x)[:, :4])[:, :4])))


X = rows(5, 4)
IMAGES = rows(5, 8, 8, 2)
SERIES = rows(5, 6, 4)
WORDS = ints(9, 5, 6)
Y = ints(CLASSES, 5)
MODELS = {
    "dense": lambda: (head(L.Dense(8, activation="relu"), shape=(4,)), X),
    "conv2d": lambda: (
        head(
            L.Conv2D(4, 3, activation="relu"),
            L.BatchNormalization(),
            L.MaxPooling2D(2),
            L.Dropout(0.5),
            L.AveragePooling2D(3),
            L.Flatten(),
            shape=(8, 8, 2),
        ),
        IMAGES,
    ),
    "conv1d": lambda: (head(L.Conv1D(3, 3, dilation_rate=2), L.GlobalMaxPooling1D(), shape=(6, 4)), SERIES),
    "transposed": lambda: (
        head(L.Conv2DTranspose(3, 3, strides=2), L.GlobalAveragePooling2D(), shape=(8, 8, 2)),
        IMAGES,
    ),
    "depthwise, separable": lambda: (
        head(
            L.DepthwiseConv2D(3, depth_multiplier=2),
            L.SeparableConv2D(4, 3, activation="relu"),
            L.GlobalAveragePooling2D(),
            shape=(8, 8, 2),
        ),
        IMAGES,
    ),
    "embedding": lambda: (
        head(L.Embedding(9, 4), L.GlobalAveragePooling1D(), shape=(6,), dtype="int32"),
        WORDS,
    ),
    "masked": lambda: (
        head(L.Embedding(9, 4, mask_zero=True), L.GlobalAveragePooling1D(), shape=(6,), dtype="int32"),
        WORDS,
    ),
    "lstm": lambda: (head(L.LSTM(5), shape=(6, 4)), SERIES),
    "gru, any length": lambda: (head(L.GRU(3), shape=(None, 4)), SERIES),
    "layer norm": lambda: (head(L.Dense(5), L.LayerNormalization(), shape=(4,)), X),
    "group norm": lambda: (
        head(L.Conv2D(4, 3), L.GroupNormalization(2), L.GlobalMaxPooling2D(), shape=(8, 8, 2)),
        IMAGES,
    ),
    "attention": lambda: (transformer(), SERIES),
    "vision transformer": lambda: (vision_transformer(), IMAGES),
    "nested, shared": lambda: (nested(), X),
    "dict": lambda: (two_inputs(lambda a, b: {"a": a, "b": b}), {"a": X, "b": X[:, :2]}),
    "list": lambda: (two_inputs(lambda a, b: [a, b]), (X, X[:, :2])),
    "two arguments": lambda: (built(Splits(), X, X), (X, X[::-1])),
    "object": lambda: (built(Logits(), X), X),
    "unused rank": lambda: (head(L.EinsumDense("ab,cb->ac", 5, bias_axes="c"), shape=(4,)), X),
}


def loss_of(model):
    if isinstance(model, Logits):
        return lambda y, out: keras.losses.sparse_categorical_crossentropy(y, out.logits, from_logits=True)
    logits = getattr(model.layers[-1], "activation", None) is not keras.activations.softmax
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits or isinstance(model, Splits))


def way(engine):
    return rows(engine.size, seed=2)


def assert_close(got, want, tolerance=1e-5):
    assert got.shape == want.shape
    scale = np.linalg.norm(want, axis=1).max(initial=0.0) if want.ndim == 2 else np.abs(want).max(initial=0.0)
    assert np.abs(got - want).max(initial=0.0) <= tolerance * scale


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_batched_and_directional_equal_the_loop(make):
    model, x = make()
    engine = TensorFlowEngine(model, loss_of(model))
    before, names = engine.state_hashes(), [v.path for v in model.variables]
    truth = loop.gradients(engine, x, Y)
    fast = engine.batched_gradients(x, Y)
    assert fast.gradients.shape == (5, engine.size)
    assert fast.gradients.dtype == fast.losses.dtype == np.float32
    assert_close(fast.gradients, truth.gradients)
    np.testing.assert_allclose(fast.losses, truth.losses, rtol=1e-5)
    np.testing.assert_allclose(fast.outputs, truth.outputs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(engine.outputs(x), truth.outputs, rtol=1e-4, atol=1e-6)
    assert engine.state_hashes() == before
    assert [v.path for v in model.variables] == names
    if isinstance(model, Logits):
        with pytest.raises(TypeError, match="made of tensors, got Output"):
            engine.directional(x, Y, way(engine))
        return
    np.testing.assert_allclose(engine.losses(truth.outputs, Y), truth.losses, rtol=1e-4)
    direction = way(engine)
    dots, losses = engine.directional(x, Y, direction)
    assert_close(dots, truth.gradients @ direction, 1e-4)
    np.testing.assert_allclose(losses, truth.losses, rtol=1e-5)


def test_the_oracle_is_the_gradient_of_the_model_as_it_is():
    model, x = MODELS["conv2d"]()
    loss = loss_of(model)
    engine = TensorFlowEngine(model, loss)
    for i in range(2):
        with tf.GradientTape() as tape:
            value = loss(Y[i : i + 1], model(x[i : i + 1], training=False))
        grads = tape.gradient(value, model.trainable_variables)
        want = np.concatenate([g.numpy().ravel() for g in grads])
        got = engine.sample_gradient(x[i : i + 1], Y[i : i + 1])
        np.testing.assert_allclose(got.gradients[0], want, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(got.losses[0], value, rtol=1e-6)
    assert [p.name for p in engine.parameters] == [v.path for v in model.trainable_variables]


def test_one_graph_for_all_batch_sizes_and_weights_are_read_anew():
    model, x = MODELS["dense"]()
    engine = TensorFlowEngine(model, loss_of(model))
    for size in (5, 1, 0, 3):
        got = engine.batched_gradients(x[:size], Y[:size])
        assert_close(got.gradients, loop.gradients(engine, x[:size], Y[:size]).gradients)
        dots, losses = engine.directional(x[:size], Y[:size], way(engine))
        assert dots.shape == losses.shape == got.losses.shape == (size,)
    assert next(iter(engine._graph_gradients.values()))._function.experimental_get_tracing_count() == 1
    assert engine._graph_directional._function.experimental_get_tracing_count() == 1
    model.set_weights([2 * weight for weight in model.get_weights()])
    truth = loop.gradients(engine, x, Y)
    assert_close(engine.batched_gradients(x, Y).gradients, truth.gradients)
    assert_close(engine.directional(x, Y, way(engine))[0], truth.gradients @ way(engine), 1e-4)


def test_the_model_is_left_as_it_came():
    model, x = MODELS["conv2d"]()
    model.compile("adam", loss_of(model))
    model.fit(x, Y, epochs=1, verbose=0)
    model.layers[1].trainable = True
    engine = TensorFlowEngine(model, loss_of(model))
    state = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    flags = [layer.trainable for layer in model.layers]
    engine.gradients(x, Y)
    engine.outputs(x)
    engine.directional(x, Y, way(engine))
    after = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    assert len(after) == len(state)
    assert all(np.array_equal(a, b) for a, b in zip(after, state, strict=True))
    assert [layer.trainable for layer in model.layers] == flags
    model.fit(x, Y, epochs=1, verbose=0)  # still trains


def test_what_updates_itself_in_inference_does_not():
    class Counter(L.Layer):
        def __init__(self):
            super().__init__()
            self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)
            self.seeds = keras.random.SeedGenerator(1)

        def call(self, x):
            self.seen.assign_add(1.0)
            return x + 0.0 * keras.random.normal(keras.ops.shape(x), seed=self.seeds)

    model = head(Counter(), shape=(4,))
    before = [v.numpy() for v in model.variables]
    engine = TensorFlowEngine(model, loss_of(model))
    engine.gradients(X, Y)
    engine.outputs(X)
    with pytest.raises(PathFailed, match="draws random numbers in evaluation mode"):
        engine.directional(X, Y, way(engine))
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.variables, strict=True))
    assert engine.frozen == ()  # a statistic is not a frozen parameter


def test_unused_parameters_are_named_and_count_as_zeros():
    model, x = MODELS["two arguments"]()
    engine = TensorFlowEngine(model, loss_of(model))
    with pytest.warns(UserWarning, match="does not depend on 2 parameters: .*unused_head/kernel"):
        found = engine.gradients(x, Y)
    for parameter, place in engine.slices():
        assert np.any(found.gradients[:, place]) != ("unused_head" in parameter.name)
    assert set(engine.paths.values()) == {"factored"}


def test_float64_models_stay_so():
    model = keras.Sequential(
        [L.Input((4,), dtype="float64"), L.Dense(5, "tanh", dtype="float64"), L.Dense(3, dtype="float64")]
    )
    loss = lambda y, out: tf.reduce_mean((tf.one_hot(y, 3, dtype=out.dtype) - out) ** 2)  # noqa: E731
    engine = TensorFlowEngine(model, loss)
    truth = loop.gradients(engine, X, Y)
    fast = engine.batched_gradients(X, Y)
    assert truth.gradients.dtype == fast.gradients.dtype == fast.losses.dtype == np.float64
    np.testing.assert_allclose(fast.gradients, truth.gradients, rtol=1e-12, atol=1e-14)
    dots, _ = engine.directional(X, Y, way(engine))
    np.testing.assert_allclose(dots, truth.gradients @ way(engine), rtol=1e-11)


def test_mixed_precision_runs():
    model = keras.Sequential([L.Input((4,)), L.Dense(8, "relu", dtype="mixed_bfloat16"), L.Dense(3, dtype="float32")])
    engine = TensorFlowEngine(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    truth = loop.gradients(engine, X, Y)
    assert truth.gradients.dtype == np.float32
    assert_close(engine.batched_gradients(X, Y).gradients, truth.gradients, 2e-2)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int64, bool])
def test_inputs_of_any_type_are_what_the_model_makes_of_them(dtype):
    model, _ = MODELS["dense"]()
    x = ints(2, 5, 4).astype(dtype)
    engine = TensorFlowEngine(model, loss_of(model))
    want = loop.gradients(engine, x.astype(np.float32), Y)
    assert_close(engine.gradients(x, Y).gradients, want.gradients)


one_hot = np.eye(CLASSES)[Y]
LOSSES = {
    "object": (keras.losses.SparseCategoricalCrossentropy(), Y),
    "no reduction": (keras.losses.SparseCategoricalCrossentropy(reduction="none"), Y),
    "sum": (keras.losses.SparseCategoricalCrossentropy(reduction="sum"), Y),
    "function": (keras.losses.sparse_categorical_crossentropy, Y),
    "(1, 1)": (lambda y, out: keras.losses.sparse_categorical_crossentropy(y, out)[:, None], Y),
    "column of labels": (keras.losses.SparseCategoricalCrossentropy(), Y[:, None]),
    "int32 labels": (keras.losses.SparseCategoricalCrossentropy(), Y.astype(np.int32)),
    "float labels": (keras.losses.SparseCategoricalCrossentropy(), Y.astype(np.float64)),
    "list of labels": (keras.losses.SparseCategoricalCrossentropy(), Y.tolist()),
    "one hot": (keras.losses.CategoricalCrossentropy(), one_hot),
    "one hot, function": (keras.losses.categorical_crossentropy, one_hot.astype(int)),
    "plain TensorFlow": (
        lambda y, out: tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, tf.math.log(out + 1e-30))),
        Y[:, None],
    ),
}


@pytest.mark.parametrize(("loss", "y"), LOSSES.values(), ids=LOSSES)
def test_losses_of_any_form_are_the_same_loss(loss, y):
    model, x = MODELS["dense"]()
    want = loop.gradients(TensorFlowEngine(model, keras.losses.SparseCategoricalCrossentropy()), x, Y)
    engine = TensorFlowEngine(model, loss)
    for got in (loop.gradients(engine, x, y), engine.batched_gradients(x, y)):
        assert_close(got.gradients, want.gradients)
        np.testing.assert_allclose(got.losses, want.losses, rtol=1e-5)
    dots, losses = engine.directional(x, y, way(engine))
    np.testing.assert_allclose(dots, want.gradients @ way(engine), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, want.losses, rtol=1e-5)
    np.testing.assert_allclose(engine.losses(want.outputs, y), want.losses, rtol=1e-4)


@pytest.mark.parametrize("y", [X[:, 0], X[:, :1], X[:, :1].astype(np.float64), ints(2, 5)])
@pytest.mark.parametrize("loss", [keras.losses.MeanSquaredError(), keras.losses.binary_crossentropy])
def test_one_output_takes_labels_of_either_rank(loss, y):
    model = keras.Sequential([L.Input((4,)), L.Dense(1, activation="sigmoid")])
    engine = TensorFlowEngine(model, loss)
    want = loop.gradients(TensorFlowEngine(model, loss), X, y.reshape(-1, 1).astype(np.float32))
    assert_close(engine.batched_gradients(X, y).gradients, want.gradients)


def test_no_labels():
    model = head(shape=(4,))
    engine = TensorFlowEngine(model, lambda y, out: -tf.math.log(tf.reduce_max(out, axis=-1)))
    truth = loop.gradients(engine, X, None)
    assert_close(engine.batched_gradients(X, None).gradients, truth.gradients)
    np.testing.assert_allclose(
        engine.directional(X, None, way(engine))[0], truth.gradients @ way(engine), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("weight", [1.0, 40.0])  # saturated: probabilities round to 0 and 1
def test_a_cross_entropy_finds_the_logits_on_every_path(weight):
    model = keras.Sequential([L.Input((4,)), L.Dense(CLASSES, activation="softmax")])
    model.set_weights([weight * w for w in model.get_weights()])
    engine = TensorFlowEngine(model, keras.losses.SparseCategoricalCrossentropy())
    truth = loop.gradients(engine, X, Y)
    fast = engine.batched_gradients(X, Y)
    assert_close(fast.gradients, truth.gradients)
    np.testing.assert_allclose(fast.losses, truth.losses, rtol=1e-4, atol=1e-6)
    dots, losses = engine.directional(X, Y, way(engine))
    assert_close(dots, truth.gradients @ way(engine), 1e-4)
    np.testing.assert_allclose(losses, truth.losses, rtol=1e-4, atol=1e-6)


def test_a_softmax_without_kept_logits_is_the_same_on_every_path():
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(CLASSES)

        def call(self, x):
            return tf.nn.softmax(50.0 * self.dense(x))

    model = built(Plain(), X)
    engine = TensorFlowEngine(model, keras.losses.SparseCategoricalCrossentropy())
    truth = loop.gradients(engine, X, Y)
    np.testing.assert_allclose(engine.batched_gradients(X, Y).losses, truth.losses, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(engine.directional(X, Y, way(engine))[1], truth.losses, rtol=1e-4, atol=1e-6)


def test_masked_sequences_mask_the_loss(caplog):
    model = head(L.Embedding(9, 4, mask_zero=True), L.Dense(4), shape=(6,), dtype="int32")
    words, y = ints(3, 5, 6), ints(CLASSES, 5, 6)
    engine = TensorFlowEngine(model, keras.losses.SparseCategoricalCrossentropy())
    truth = loop.gradients(engine, words, y)
    assert_close(engine.batched_gradients(words, y).gradients, truth.gradients)
    dots, losses = engine.directional(words, y, way(engine))
    assert_close(dots, truth.gradients @ way(engine), 1e-4)
    np.testing.assert_allclose(losses, truth.losses, rtol=1e-5)


def test_what_cannot_be_vectorised_goes_through_the_loop(caplog, monkeypatch):
    monkeypatch.setattr(TensorFlowEngine, "factored_names", lambda engine, x: frozenset())
    model = head(L.Embedding(9, 4, mask_zero=True), L.LSTM(3, return_sequences=True), shape=(6,), dtype="int32")
    words, y = ints(3, 5, 6), ints(CLASSES, 5, 6)
    engine = TensorFlowEngine(model, keras.losses.SparseCategoricalCrossentropy())
    with caplog.at_level(logging.WARNING):
        got = engine.gradients(words, y)
    # TensorFlow has warnings of its own on newer Pythons.
    assert [record.name for record in caplog.records if record.name != "tensorflow"] == ["gradindex"]
    assert set(engine.paths.values()) == {"loop"}
    dots, _ = engine.directional(words, y, way(engine))
    assert_close(dots, got.gradients @ way(engine), 1e-4)


def test_a_model_that_mixes_samples_is_found_out():
    class Mixes(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(CLASSES, activation="softmax")

        def call(self, x):
            if tf.executing_eagerly():
                x = 2.0 * x
            return self.dense(x)

    model = built(Mixes(), X)
    engine = TensorFlowEngine(model, keras.losses.SparseCategoricalCrossentropy())
    with pytest.warns(UserWarning, match="differ from the one-sample loop"):
        got = engine.gradients(X, Y)
    assert_close(got.gradients, loop.gradients(engine, X, Y).gradients)


def test_objects_go_through_the_loop():
    class Reads(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(CLASSES, activation="softmax")

        def call(self, x):
            if isinstance(x, list):
                x = tf.stack([tf.constant(item["row"]) for item in x])
            return self.dense(x)

    model = built(Reads(), X)
    model._convert_input_args = False
    model._allow_non_tensor_positional_args = True
    engine = TensorFlowEngine(model, keras.losses.SparseCategoricalCrossentropy())
    want = loop.gradients(engine, X, Y).gradients
    assert_close(engine.gradients([{"row": row} for row in X], Y).gradients, want)
    arrays = TensorFlowEngine(model, keras.losses.SparseCategoricalCrossentropy())
    assert_close(arrays.gradients(list(X), Y).gradients, want)
    with pytest.raises(TypeError, match="cannot be batched"):
        engine.batched_gradients([{"row": row} for row in X], Y)


def test_selection_frozen_and_names():
    model = keras.Sequential(
        [
            L.Input((8, 8, 2)),
            L.Conv2D(4, 3, name="conv"),
            L.BatchNormalization(name="bn"),
            L.GlobalMaxPooling2D(),
            L.Dense(5, name="hidden"),
            L.Dense(CLASSES, activation="softmax", name="last"),
        ],
        name="m",
    )
    loss = keras.losses.SparseCategoricalCrossentropy()
    whole = TensorFlowEngine(model, loss)
    assert whole.frozen == ()
    assert whole.parameters[0].name == "m/conv/kernel"
    full = whole.batched_gradients(IMAGES, Y).gradients
    last = TensorFlowEngine(model, loss, parameters="last_layer")
    assert [p.name for p in last.parameters] == ["m/last/kernel", "m/last/bias"]
    assert [p.position for p in last.parameters] == [6, 7]
    assert_close(last.batched_gradients(IMAGES, Y).gradients, full[:, -last.size :])
    direction = rows(last.size)
    assert_close(last.directional(IMAGES, Y, direction)[0], full[:, -last.size :] @ direction, 1e-4)
    model.get_layer("conv").trainable = False
    model.get_layer("bn").trainable = False
    engine = TensorFlowEngine(model, loss)
    assert engine.frozen == ("m/conv/kernel", "m/conv/bias", "m/bn/gamma", "m/bn/beta")
    assert_close(engine.batched_gradients(IMAGES, Y).gradients, full[:, -engine.size :])
    model.trainable = False
    with pytest.raises(ValueError, match="no trainable parameters"):
        TensorFlowEngine(model, loss)


def test_equal_paths_are_numbered():
    inner = [keras.Sequential([L.Input((4,)), L.Dense(4, name="dense")], name="block") for _ in range(2)]

    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = inner

        def call(self, x):
            return self.blocks[1](self.blocks[0](x))

    model = built(Twice(), X)
    engine = TensorFlowEngine(model, keras.losses.MeanSquaredError())
    names = [p.name for p in engine.parameters]
    assert len(set(names)) == 4
    assert names[2] == names[0] + ":2"
    assert set(engine.state_hashes()) == set(names)


def test_state_hashes_see_weights_and_statistics():
    model, x = MODELS["conv2d"]()
    engine = TensorFlowEngine(model, loss_of(model))
    before = engine.state_hashes()
    assert any("moving_mean" in name for name in before)
    assert not any("seed" in name for name in before)
    model(x, training=True)
    changed = {name for name, digest in engine.state_hashes().items() if digest != before[name]}
    assert changed
    assert all("moving" in name for name in changed)


def test_bad_models_and_devices():
    loss = keras.losses.MeanSquaredError()
    with pytest.raises(ValueError, match=r"not built.*Call the model once"):
        TensorFlowEngine(keras.Sequential([L.Dense(2)]), loss)
    with pytest.raises(TypeError, match=r"Keras 3 model, got builtins\.int"):
        TensorFlowEngine(3, loss)
    for device in (0, 1.5, object()):
        with pytest.raises(TypeError, match="`device` must be None or a string, got"):
            TensorFlowEngine(head(shape=(4,)), loss, device=device)
    for device in ("banana", "GPU:7"):
        with pytest.raises(ValueError, match=f"no device '{device}'. Expected one of: /device:CPU:0"):
            TensorFlowEngine(head(shape=(4,)), loss, device=device)
    with pytest.raises(TypeError, match="loss_fn must return a tensor, got float"):
        TensorFlowEngine(head(shape=(4,)), lambda y, out: 0.5).sample_gradient(X[:1], Y[:1])
    with pytest.raises(TypeError, match="not one tensor"):
        TensorFlowEngine(keras.Model(i := L.Input((4,)), [L.Dense(2)(i), L.Dense(3)(i)]), loss).outputs(X)


@pytest.mark.parametrize(
    "device",
    ["cpu", "CPU:0", "/device:CPU:0", tf.DeviceSpec(device_type="CPU"), tf.config.list_logical_devices("CPU")[0]],
)
def test_devices(device):
    model, x = MODELS["dense"]()
    engine = TensorFlowEngine(model, loss_of(model), device=device)
    assert_close(engine.gradients(x, Y).gradients, loop.gradients(engine, x, Y).gradients)


def test_two_outputs():
    i = L.Input((4,))
    model = keras.Model(i, {"a": L.Dense(2)(i), "b": L.Dense(3, activation="softmax")(i)})

    def loss(y, out):
        return tf.reduce_sum(out["a"] ** 2, -1) + keras.losses.sparse_categorical_crossentropy(y, out["b"])

    engine = TensorFlowEngine(model, loss)
    truth = loop.gradients(engine, X, Y)
    fast = engine.batched_gradients(X, Y)
    assert fast.outputs is None
    assert_close(fast.gradients, truth.gradients)
    direction = rows(engine.size)
    assert_close(engine.directional(X, Y, direction)[0], truth.gradients @ direction, 1e-4)


def test_threads_do_not_disturb_each_other():
    models = [MODELS["conv2d"]() for _ in range(3)]
    engines = [TensorFlowEngine(model, loss_of(model)) for model, _ in models]
    found = [None] * len(engines)

    def work(i):
        found[i] = engines[i].batched_gradients(models[i][1], Y).gradients

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(engines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine, (_, x), got in zip(engines, models, found, strict=True):
        assert_close(got, loop.gradients(engine, x, Y).gradients)
