"""Every Keras layer with a rule, by value against the one-sample loop."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import keras  # noqa: E402

from gradindex.gradients import loop  # noqa: E402
from gradindex.gradients.tensorflow.engine import TensorFlowEngine  # noqa: E402
from gradindex.sketch import CountSketch, Identity  # noqa: E402

L = keras.layers
CLASSES = 3
IMAGE, ODD, LINE, CUBE, FLAT, WORDS = (8, 7, 4), (7, 5, 4), (9, 4), (5, 4, 6, 2), (4,), None


def series(*layers):
    return [*layers, L.GlobalAveragePooling1D()]


def images(*layers):
    return [*layers, L.GlobalMaxPooling2D()]


def cubes(*layers):
    return [*layers, L.GlobalAveragePooling3D()]


# What each model starts with, the input's shape, and its layers before the last Dense.
CASES = {
    "dense": (FLAT, lambda: [L.Dense(5, "tanh"), L.Dense(4, use_bias=False)]),
    "dense on a sequence": (LINE, lambda: series(L.Dense(5, "relu"))),
    "dense on images": (IMAGE, lambda: images(L.Dense(5, "gelu"))),
    "dense, many positions": ((33, 4), lambda: series(L.Dense(3, "tanh"))),
    "einsum": (LINE, lambda: [L.EinsumDense("abc,cde->abde", (9, 2, 3), bias_axes="de"), L.Flatten()]),
    "einsum, turned": (LINE, lambda: [L.EinsumDense("abc,dc->adb", (5, 9), bias_axes="d"), L.Flatten()]),
    "einsum, one kernel a place": (LINE, lambda: [L.EinsumDense("abc,cb->ab", (9,), bias_axes="b")]),
    "conv1d": (LINE, lambda: series(L.Conv1D(5, 3, 2, activation="relu"))),
    "conv1d, causal, dilated": (LINE, lambda: series(L.Conv1D(5, 3, padding="causal", dilation_rate=2))),
    "conv1d, same, dilated": (LINE, lambda: series(L.Conv1D(5, 4, padding="same", dilation_rate=2))),
    "conv1d, groups": (LINE, lambda: series(L.Conv1D(6, 3, groups=2, padding="same"))),
    "conv1d, groups, dilated": (LINE, lambda: series(L.Conv1D(6, 3, groups=2, dilation_rate=2))),
    "conv2d": (IMAGE, lambda: images(L.Conv2D(5, (3, 2), activation="relu"))),
    "conv2d, same": (ODD, lambda: images(L.Conv2D(5, (4, 3), padding="same"))),
    "conv2d, same, strides": (IMAGE, lambda: images(L.Conv2D(5, (2, 3), 2, padding="same"))),
    "conv2d, strides beyond the kernel": (ODD, lambda: images(L.Conv2D(5, (1, 2), 3))),
    "conv2d, dilated": (ODD, lambda: images(L.Conv2D(5, (2, 3), dilation_rate=2))),
    "conv2d, same, dilated": (ODD, lambda: images(L.Conv2D(5, 3, dilation_rate=(2, 3), padding="same"))),
    "conv2d, groups": (IMAGE, lambda: images(L.Conv2D(6, (3, 2), 2, groups=2, padding="same"))),
    "conv2d, 1x1": (IMAGE, lambda: images(L.Conv2D(5, 1), L.Conv2D(4, 1, 2))),
    "conv3d": (CUBE, lambda: cubes(L.Conv3D(4, (3, 2, 1), activation="relu"))),
    "conv3d, same, strides": (CUBE, lambda: cubes(L.Conv3D(4, (2, 3, 2), (2, 1, 2), padding="same"))),
    "conv3d, groups, dilated": (CUBE, lambda: cubes(L.Conv3D(4, 2, groups=2), L.Conv3D(3, 2, dilation_rate=2))),
    "depthwise": (IMAGE, lambda: images(L.DepthwiseConv2D((3, 2), depth_multiplier=2, activation="relu"))),
    "depthwise, same, strides": (ODD, lambda: images(L.DepthwiseConv2D(3, 2, padding="same"))),
    "depthwise, dilated": (IMAGE, lambda: images(L.DepthwiseConv2D(3, padding="same", dilation_rate=2))),
    "depthwise 1d": (LINE, lambda: series(L.DepthwiseConv1D(3, 2, depth_multiplier=3))),
    "separable": (IMAGE, lambda: images(L.SeparableConv2D(5, 3, 2, "same", depth_multiplier=2))),
    "separable 1d": (LINE, lambda: series(L.SeparableConv1D(5, 3, activation="relu"))),
    "transposed": (ODD, lambda: images(L.Conv2DTranspose(5, (3, 2), 2, activation="relu"))),
    "transposed, same": (ODD, lambda: images(L.Conv2DTranspose(5, (4, 3), (2, 3), "same"))),
    "transposed, dilated": (ODD, lambda: images(L.Conv2DTranspose(5, 3, padding="same", dilation_rate=2))),
    "transposed 1d": (LINE, lambda: series(L.Conv1DTranspose(5, 3, 2, "same"))),
    "transposed 3d": (CUBE, lambda: cubes(L.Conv3DTranspose(3, 2, 2))),
    "embedding": (WORDS, lambda: series(L.Embedding(9, 5), L.Dense(4, "tanh"))),
    "embedding, masked": (WORDS, lambda: series(L.Embedding(9, 5, mask_zero=True))),
    "batch norm": (IMAGE, lambda: images(L.Conv2D(6, 3), L.BatchNormalization(), L.ReLU())),
    "batch norm, first": (FLAT, lambda: [L.BatchNormalization(), L.Dense(3, "tanh")]),
    "layer norm": (LINE, lambda: series(L.LayerNormalization(), L.Dense(4, "relu"))),
    "layer norm, some axes": (IMAGE, lambda: images(L.LayerNormalization(axis=(1, 3)))),
    "group norm": (IMAGE, lambda: images(L.GroupNormalization(2), L.Conv2D(3, 2))),
    "rms norm": (LINE, lambda: series(L.RMSNormalization(), L.Dense(4, "relu"))),
    "prelu": (IMAGE, lambda: images(L.PReLU(), L.PReLU(shared_axes=[1, 2]), L.Conv2D(3, 2))),
    "lstm": (LINE, lambda: [L.LSTM(5)]),
    "lstm, both ways": (LINE, lambda: [L.Bidirectional(L.LSTM(3, return_sequences=True)), L.LSTM(4)]),
    "gru": (LINE, lambda: [L.GRU(4)]),
    "gru, reset before, backwards": (
        LINE,
        lambda: [L.GRU(4, reset_after=False, go_backwards=True, return_sequences=True), L.GRU(3, reset_after=False)],
    ),
    "layer norm, spectral": (FLAT, lambda: [L.LayerNormalization(), L.SpectralNormalization(L.Dense(4, "tanh"))]),
    "lstm, masked": (LINE, lambda: [L.Masking(), L.LSTM(3)]),
    "gru, masked, both ways": (
        LINE,
        lambda: series(L.Masking(), L.Bidirectional(L.GRU(3, return_sequences=True))),
    ),
    "lstm, masked, both ways, twice": (
        WORDS,
        lambda: [
            L.Embedding(9, 4, mask_zero=True),
            L.Bidirectional(L.LSTM(3, return_sequences=True), merge_mode="sum"),
            L.Bidirectional(L.LSTM(3)),
        ],
    ),
    "time distributed": ((3, 6, 5, 2), lambda: [L.TimeDistributed(L.Conv2D(3, 2, activation="relu")), L.Flatten()]),
    "separable 1d, strides": (LINE, lambda: series(L.SeparableConv1D(5, 3, 2, "same", depth_multiplier=2))),
    "transposed 3d, same": (CUBE, lambda: cubes(L.Conv3DTranspose(3, (2, 3, 2), (2, 1, 2), "same"))),
    "simple rnn": (LINE, lambda: [L.SimpleRNN(4, return_sequences=True), L.Flatten()]),
}


def sequential(name):
    shape, layers = CASES[name]
    inputs = L.Input((6,), dtype="int32") if shape is None else L.Input(shape)
    return keras.Sequential([inputs, *layers(), L.Dense(CLASSES)]), data(shape)


def data(shape, samples=5):
    random = np.random.default_rng(0)
    if shape is None:
        return random.integers(0, 9, (samples, 6))
    values = random.normal(size=(samples, *shape)).astype(np.float32)
    if shape == LINE:  # sequences that end early, for what masks
        values[1, 4:], values[2, 2:], values[4, 1:] = 0, 0, 0
    return values


Y = np.random.default_rng(1).integers(0, CLASSES, 5)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def shuffled(model):
    """Give every weight another value, so that none is zero or one by its initialiser."""
    random = np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + random.normal(scale=0.3, size=variable.shape).astype(np.float32))
    for variable in model.non_trainable_variables:
        if variable.dtype == "float32":
            variable.assign(random.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    return model


def check(engine, x, y=Y, path="factored"):
    """Norms, formed gradients and embeddings' dot products are those of the loop, for batches of 5, 1 and 0."""
    truth = loop.gradients(engine, x, y)
    scale = np.linalg.norm(truth.gradients, axis=1).max()
    count = CountSketch(64).bind(engine.parameters, seed=7)
    whole = Identity().bind(engine.parameters, seed=0)
    for size in (5, 1, 0):
        xs, ys = tf.nest.map_structure(lambda leaf: leaf[:size], x), y[:size]  # noqa: B023
        want = truth.gradients[:size]
        got = engine.gradients(xs, ys)
        assert got.gradients.shape == want.shape
        assert np.abs(got.gradients - want).max(initial=0) <= 1e-5 * scale
        np.testing.assert_allclose(got.losses, truth.losses[:size], rtol=1e-5)
        for projector in (count, whole):
            found = engine.embed(xs, ys, projector)
            np.testing.assert_allclose(found.norms, np.linalg.norm(want.astype(float), axis=1), rtol=1e-5)
            plain = projector(engine.parameters, want)
            assert np.abs(found.sketches @ found.sketches.T - plain @ plain.T).max(initial=0) <= 1e-5 * scale**2
            assert np.abs(found.sketches - plain).max(initial=0) <= 1e-5 * scale
    if path is not None:
        assert set(engine.paths.values()) == {path}, engine.paths


@pytest.mark.parametrize("name", CASES)
def test_layers(name):
    model, x = sequential(name)
    engine = TensorFlowEngine(shuffled(model), LOSS)
    before = engine.state_hashes()
    check(engine, x)
    assert engine.state_hashes() == before


class Own(keras.Model):
    """A kernel of its own, used twice and scaled; a tied, transposed table; a position table and a start token."""

    def __init__(self):
        super().__init__()
        self.table, self.dense = L.Embedding(9, 5), L.Dense(5, "tanh")
        self.places = L.Embedding(6, 5)
        self.kernel = self.add_weight(shape=(5, 5), name="kernel")
        self.scale = self.add_weight(shape=(5,), name="scale", initializer="ones")

    def call(self, words):
        h = self.table(words) + self.places(keras.ops.arange(6))
        h = self.dense(self.dense(h)) * keras.ops.softplus(self.scale)
        h = keras.ops.tanh(keras.ops.matmul(keras.ops.matmul(h, self.kernel), self.kernel))
        return keras.ops.mean(keras.ops.matmul(h, keras.ops.transpose(self.table.embeddings)), 1)


class TwoOutputs(keras.Model):
    """Takes a dict and returns one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = L.Dense(4, "tanh"), L.Dense(CLASSES)

    def call(self, inputs):
        hidden = self.first(inputs["a"]) + self.first(inputs["b"])
        return {"hidden": hidden, "out": self.second(hidden)}


def nested():
    inner = keras.Sequential([L.Input((4,)), L.Dense(5, "tanh"), L.Dropout(0.5)])
    x = L.Input((4,))
    return keras.Model(x, L.Dense(CLASSES)(inner(inner(inner(x)[:, :4])[:, :4])))


def attention():
    x = L.Input((9, 4))
    h = L.LayerNormalization()(x + L.MultiHeadAttention(2, 3)(x, x))
    return keras.Model(x, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(h)))


def masked_attention():
    x = L.Input((9, 4))
    h = L.MultiHeadAttention(2, 3)(x, x, attention_mask=keras.ops.not_equal(x[:, :, 0], 0)[:, None])
    h = L.GroupQueryAttention(3, 4, 2)(h, h)
    return keras.Model(x, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(h)))


def nested_recurrent():
    """An encoder within a model within a model, called twice."""
    words = [L.Input((6,), dtype="int32") for _ in range(3)]
    encoder = keras.Model(words[0], L.LSTM(4)(L.Embedding(9, 5)(words[0])))
    pair = keras.Model(words[1], L.Concatenate()([encoder(words[1]), encoder(words[1][:, ::-1])]))
    return keras.Model(words[2], L.Dense(CLASSES)(pair(words[2])))


def test_attention_nested_and_shared_layers():
    cases = ((nested(), FLAT), (attention(), LINE), (masked_attention(), LINE), (nested_recurrent(), WORDS))
    for model, shape in cases:
        check(TensorFlowEngine(shuffled(model), LOSS), data(shape))


def test_a_subclass_with_tied_weights_and_weights_of_its_own():
    model = Own()
    model(data(None))
    check(TensorFlowEngine(shuffled(model), LOSS), data(None))


def test_cells_of_a_kind_without_a_rule():
    """Their loop is vectorised over samples, which TensorFlow does not do for one sample."""
    cells = L.RNN([L.LSTMCell(3), L.GRUCell(4)])
    engine = TensorFlowEngine(shuffled(keras.Sequential([L.Input((9, 4)), cells, L.Dense(CLASSES)])), LOSS)
    check(engine, data(LINE), path=None)
    assert sorted(set(engine.paths.values())) == ["factored", "vmap"]


def test_several_inputs_and_outputs():
    model, x = TwoOutputs(), {"a": data(FLAT), "b": data(FLAT)[::-1]}
    model(x)

    def loss(y, out):
        return LOSS(y, out["out"]) + tf.reduce_mean(out["hidden"] ** 2)

    check(TensorFlowEngine(shuffled(model), loss), x)


LOSSES = {
    "class": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "sum": keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
    "function": lambda y, out: keras.losses.sparse_categorical_crossentropy(y, out, from_logits=True),
    "own": lambda y, out: tf.reduce_mean(tf.square(tf.one_hot(y, CLASSES) - out)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_of_any_reduction(loss):
    model, x = sequential("dense")
    check(TensorFlowEngine(shuffled(model), loss), x)


def test_only_what_has_no_rule_takes_the_next_rung():
    class Powers(L.Layer):
        def build(self, shape):
            self.power = self.add_weight(shape=(shape[-1],), initializer="ones", name="power")

        def call(self, x):
            return tf.abs(x) ** tf.convert_to_tensor(self.power)

    model = keras.Sequential([L.Input((4,)), L.Dense(5), Powers(name="powers"), L.Dense(CLASSES)])
    engine = TensorFlowEngine(shuffled(model), LOSS)
    check(engine, data(FLAT), path=None)
    other = {name: path for name, path in engine.paths.items() if path != "factored"}
    assert other == {name: "vmap" for name in engine.paths if name.endswith("powers/power")}
    assert len(other) == 1


def test_an_exception_in_the_middle_leaves_the_model_as_it_was():
    model, x = sequential("lstm")
    engine = TensorFlowEngine(model, LOSS)
    engine.gradients(x, Y)
    before, unroll = engine.state_hashes(), model.layers[0].unroll

    def fails(*args, **kwargs):
        raise RuntimeError("in the middle")

    model.layers[-1].call = fails
    with pytest.raises(RuntimeError, match="in the middle"):
        engine.factored_gradients(x[:, :7], Y, [p.name for p in engine.parameters])
    del model.layers[-1].call
    assert model.layers[0].unroll is unroll is False
    assert engine.state_hashes() == before
    check(engine, x)


def test_weights_are_read_anew_and_one_graph_serves_all_batches():
    model, x = sequential("conv2d")
    engine = TensorFlowEngine(model, LOSS)
    check(engine, x)
    check(TensorFlowEngine(shuffled(model), LOSS), x)
    check(engine, x)
    (graph,) = engine._factored._graphs.values()
    assert graph._function.experimental_get_tracing_count() == 1


def test_a_selection_of_parameters():
    model, x = sequential("conv2d")
    engine = TensorFlowEngine(shuffled(model), LOSS, parameters="last_layer")
    check(engine, x)
    whole = TensorFlowEngine(model, LOSS).gradients(x, Y).gradients
    np.testing.assert_allclose(engine.gradients(x, Y).gradients, whole[:, -engine.size :], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [3, 17])
def test_blocks_of_samples_make_no_difference(size, monkeypatch):
    monkeypatch.setattr("gradindex.gradients.tensorflow.passes._BLOCK_BYTES", size * 2000)
    for name in ("conv2d, same", "depthwise", "dense, many positions", "conv2d, groups"):
        model, x = sequential(name)
        check(TensorFlowEngine(shuffled(model), LOSS), x)


def test_batches_that_are_taken_in_parts_equal_single_samples(monkeypatch):
    monkeypatch.setattr("gradindex.gradients.tensorflow.engine._PART_BYTES", 1)  # 32 samples, or what is left
    model, _ = sequential("conv2d")
    engine = TensorFlowEngine(shuffled(model), LOSS)
    x, y = data(IMAGE, 101), np.arange(101) % CLASSES
    projector = CountSketch(64).bind(engine.parameters, seed=7)
    whole = engine.embed(x, y, projector)
    truth = loop.gradients(engine, x, y)
    norms = np.linalg.norm(truth.gradients, axis=1)
    np.testing.assert_allclose(whole.norms, norms, rtol=1e-5)
    assert np.abs(whole.sketches - projector(engine.parameters, truth.gradients)).max() <= 1e-5 * norms.max()
    np.testing.assert_allclose(whole.losses, truth.losses, rtol=1e-5)
    np.testing.assert_allclose(whole.outputs, truth.outputs, rtol=1e-4, atol=1e-5)
    again = engine.embed(x, y, projector)
    assert (again.sketches == whole.sketches).all()


@pytest.mark.parametrize("failing", [0, 1])
def test_memory_that_runs_out_in_one_part_is_reported(failing, monkeypatch):
    monkeypatch.setattr("gradindex.gradients.tensorflow.engine._PART_BYTES", 1)  # 32 samples, or what is left
    model, _ = sequential("dense")
    engine = TensorFlowEngine(model, LOSS)
    x, y = data(FLAT, 80), np.arange(80) % CLASSES
    projector = CountSketch(64).bind(engine.parameters, seed=7)
    want = engine.embed(x, y, projector)
    run, begun = engine._factored.run, []

    def fails(inputs, *rest):
        begun.append(len(inputs))
        if np.array_equal(inputs[0], x[32 * failing]):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        return run(inputs, *rest)

    with monkeypatch.context() as failure:
        failure.setattr(engine._factored, "run", fails)
        with pytest.raises(tf.errors.ResourceExhaustedError):
            engine.embed(x, y, projector)
    assert begun == [32] * (failing + 1)
    assert set(engine.paths.values()) == {"factored"}
    assert (engine.embed(x, y, projector).sketches == want.sketches).all()
