"""Derivatives of single tokens' losses in Keras, beside a loop of tapes."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from gradindex.gradients.engine import PathFailed  # noqa: E402
from gradindex.gradients.tensorflow.engine import TensorFlowEngine  # noqa: E402

WORDS = 11


class NextToken:
    """The mean cross-entropy of the next token."""

    def per_token(self, y, output):
        each = keras.losses.sparse_categorical_crossentropy(y[:, 1:], output[:, :-1], from_logits=True)
        return tf.pad(each, [[0, 0], [1, 0]]) / (tf.cast(tf.shape(y)[1], each.dtype) - 1)

    def __call__(self, y, output):
        return tf.reduce_mean(tf.reduce_sum(self.per_token(y, output), 1))


def model(penalty=None):
    keras.utils.set_random_seed(0)
    words = keras.layers.Input((None,), dtype="int32")
    x = keras.layers.Embedding(WORDS, 6)(words)
    x = keras.layers.Conv1D(5, 3, padding="causal", activation="tanh")(x)
    return keras.Model(words, keras.layers.Dense(WORDS, kernel_regularizer=penalty)(x))


@pytest.fixture(scope="module")
def case():
    made = model()
    return (
        made,
        TensorFlowEngine(made, NextToken()),
        np.random.default_rng(0).integers(0, WORDS, (2, 6)).astype(np.int32),
    )


def test_products_are_those_of_a_loop_over_tokens(case):
    made, engine, ids = case
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((2, engine.size)).astype(np.float32)
    products, losses = engine.token_products(ids, ids, directions)
    want, truth = np.zeros((2, 2, 6)), np.zeros((2, 6))
    for i in range(2):
        for j in range(6):
            with tf.GradientTape() as tape:
                each = NextToken().per_token(tf.constant(ids[i : i + 1]), made(ids[i : i + 1]))[0, j]
            grads = tape.gradient(each, [v.value for v in made.trainable_variables], unconnected_gradients="zero")
            flat = np.concatenate([tf.reshape(tf.convert_to_tensor(grad), [-1]).numpy() for grad in grads])
            want[:, i, j], truth[i, j] = directions @ flat, float(each)
    assert_allclose(products, want, atol=1e-5)
    assert np.abs(want).max() > 0.1
    assert_allclose(losses, truth, atol=1e-6)
    assert_allclose(engine.token_products(ids, ids, directions[1])[0], want[1], atol=1e-5)
    assert_allclose(products[0].sum(axis=1), engine.directional(ids, ids, directions[0])[0], atol=1e-5)
    assert_allclose(engine.token_losses(ids[:1], ids[:1]), truth[0], atol=1e-6)
    assert_allclose(engine.token_gradient(ids[:1], ids[:1], 3).gradients[0] @ directions[0], want[0, 0, 3], atol=1e-5)


def test_penalties_belong_to_no_token(case):
    penalised = model("l2")

    class WithPenalty(NextToken):
        def __call__(self, y, output):
            return super().__call__(y, output) + tf.add_n(penalised.losses)

    engine = TensorFlowEngine(penalised, WithPenalty())
    with pytest.raises(PathFailed, match="a penalty on the weights, which belongs to no token"):
        engine.token_products(case[2], case[2], np.ones(engine.size, np.float32))


def test_losses_without_tokens_are_refused(case):
    engine = TensorFlowEngine(case[0], lambda y, output: NextToken()(y, output))
    with pytest.raises(TypeError, match="says nothing of single tokens"):
        engine.token_products(case[2], case[2], np.ones(engine.size, np.float32))
