"""What a Keras model and a loss remember comes back after each pass: states of layers, averages of a loss."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import keras  # noqa: E402

from gradindex.gradients import batch_loss  # noqa: E402
from gradindex.gradients.tensorflow.engine import TensorFlowEngine  # noqa: E402

L = keras.layers
N, CLASSES = 8, 3
Y = np.arange(N) % CLASSES
CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def steps(model, loss, x, variables):
    """Gradients (n, P) of training steps, each from variables that are zeros."""
    rows, weights = [], [v.value for v in model.trainable_variables]
    for i in range(N):
        for variable in variables:
            variable.assign(tf.zeros_like(variable))
        with tf.GradientTape() as tape:
            value = loss(Y[i : i + 1], model(x[i : i + 1], training=False))
        rows.append(np.concatenate([np.ravel(part) for part in tape.gradient(value, weights)]))
    for variable in variables:
        variable.assign(tf.zeros_like(variable))
    return np.stack(rows)


def assert_right(model, loss, x, variables):
    want = steps(model, loss, x, variables)
    engine = TensorFlowEngine(model, loss)
    for _ in range(2):
        np.testing.assert_allclose(engine.gradients(x, Y).gradients, want, atol=1e-5)
        np.testing.assert_allclose(engine.sample_gradient(x[3:4], Y[3:4]).gradients[0], want[3], atol=1e-5)
    assert not any(np.any(np.asarray(variable)) for variable in variables)


def test_a_stateful_recurrent_layer():
    x = np.random.default_rng(0).normal(size=(N, 4, 3)).astype(np.float32)
    layer = L.LSTM(4, stateful=True)
    model = keras.Sequential([L.Input(batch_shape=(1, 4, 3)), layer, L.Dense(CLASSES)])
    assert_right(model, CE, x, [state.value for state in layer.states])


class Centred(keras.losses.Loss):
    def __init__(self):
        super().__init__()
        self.centre = tf.Variable(tf.zeros(CLASSES), trainable=False)

    def call(self, y, out):
        loss = keras.losses.sparse_categorical_crossentropy(y, out - self.centre, from_logits=True)
        self.centre.assign(0.5 * self.centre + 0.5 * tf.stop_gradient(out[0]))
        return loss


@pytest.mark.parametrize("held", ["attribute", "closure"])
def test_a_loss_that_remembers(held):
    x = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    model, own = keras.Sequential([L.Input((4,)), L.Dense(CLASSES)]), Centred()
    loss = own if held == "attribute" else lambda y, out: own(y, out)
    assert_right(model, loss, x, [own.centre])


@pytest.mark.parametrize("noise", [tf.random.normal, keras.random.normal])
def test_a_loss_that_draws_random_numbers(noise):
    x = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    model = keras.Sequential([L.Input((4,)), L.Dense(CLASSES)])
    with pytest.raises(ValueError, match=r"The loss of one sample is .* at first, then .*: it draws random numbers"):
        TensorFlowEngine(model, lambda y, out: CE(y, out + noise(tf.shape(out)))).gradients(x, Y)


def test_what_counts_as_a_small_loss():
    x = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    engine = TensorFlowEngine(keras.Sequential([L.Input((4,)), L.Dense(CLASSES)]), lambda y, out: 1e-7 * CE(y, out))
    engine.gradients(x, Y)
    assert engine.loss_unit == pytest.approx(1e-7 * np.log(CLASSES), rel=1e-4)


def test_two_values_of_a_loss():
    batch_loss.check_same(1.0, 1.00001)
    with pytest.raises(ValueError, match="it draws random numbers, or remembers"):
        batch_loss.check_same(1.0, 1.001)
