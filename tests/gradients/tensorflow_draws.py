"""Drawn Keras models and losses, each with the plain loop that its gradients are compared with.

``draw(seed)`` is one case, a stack of layers × a twist × a loss × a form of the output × a policy of types;
``errors(case, folder)`` what an index says of it, against a tape around model and loss of one sample at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import gradindex

L = keras.layers
CLASSES, SAMPLES, WIDTH = 3, 20, 5


@tf.custom_gradient
def clipped(x):
    return tf.identity(x), lambda dy: tf.clip_by_norm(dy, 0.05)


@keras.ops.custom_gradient
def turned(x):
    return keras.ops.multiply(x, 1.0), lambda dy: keras.ops.multiply(dy, -0.5)


class Counts(L.Layer):
    """Counts its calls and keeps a running mean, and uses both as they were before."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.mean = self.add_weight(shape=(WIDTH,), initializer="zeros", trainable=False)

    def call(self, x):
        before = keras.ops.cast(keras.ops.convert_to_tensor(self.mean), x.dtype)
        self.calls.assign_add(1.0)
        self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.cast(keras.ops.mean(x, 0), self.mean.dtype))
        return x - before


class Noise(L.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x):
        return x + 0.1 * keras.random.normal(keras.ops.shape(x), dtype=x.dtype, seed=self.seeds)


def slope(x, function):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return y + 0.1 * tape.gradient(y, x)


TWISTS: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda model, h: h,
    "silu": lambda model, h: keras.activations.silu(h),
    "custom gradient": lambda model, h: clipped(h),
    "keras custom gradient": lambda model, h: turned(h),
    "stopped": lambda model, h: h * tf.stop_gradient(tf.tanh(model.mid(h))),
    "cond": lambda model, h: tf.cond(tf.reduce_any(h > 0.8), lambda: 2 * h, lambda: tf.tanh(h)),
    "where": lambda model, h: tf.where(tf.reduce_any(h > 0.8), 2 * h, tf.tanh(h)),
    "early exit": lambda model, h: tf.while_loop(lambda h: tf.reduce_max(h) > 0.6, lambda h: (h * 0.8,), [h])[0],
    "python": lambda model, h: 2 * h if tf.reduce_any(h > 0.8) else tf.tanh(h),
    "counts": lambda model, h: model.counts(h),
    "noise": lambda model, h: model.noise(h),
    "tape": lambda model, h: slope(h, tf.tanh),
    "normal": lambda model, h: model.normal(h),
    "add_loss": lambda model, h: model.note(h),
    "shared": lambda model, h: model.mid(tf.tanh(model.mid(h))),
}

OUTPUTS: dict[str, Callable[[Any, Any], Any]] = {
    "tensor": lambda out, h: out,
    "dict with a number": lambda out, h: {"out": out, "size": tf.reduce_mean(h)},
    "tuple with a state": lambda out, h: (out, tf.stack([h, h])),
    "nested": lambda out, h: {"out": out, "more": [h, {"turned": tf.transpose(h)}]},
    "two": lambda out, h: {"out": out, "hidden": h},
}


def images():
    return [L.Conv2D(3, 2, activation="relu"), L.BatchNormalization(), L.Flatten(), L.Dense(WIDTH)]


def texts():
    return [L.Embedding(9, 4, mask_zero=True), L.SimpleRNN(WIDTH, recurrent_initializer="glorot_uniform")]


# Shape of a sample (None: texts), and layers that end with (b, WIDTH).
STACKS: dict[str, tuple[Any, Callable[[], list[Any]]]] = {
    "dense": ((4,), lambda: [L.Dense(6, "tanh"), L.Dense(WIDTH, "gelu")]),
    "regularized": (
        (4,),
        lambda: [L.Dense(6, "tanh", kernel_regularizer="l2"), L.Dense(WIDTH, bias_regularizer="l1")],
    ),
    "active": ((4,), lambda: [L.Dense(6, "tanh", activity_regularizer="l2"), L.Dense(WIDTH, kernel_regularizer="l2")]),
    "conv": ((4, 4, 2), images),
    "recurrent": (None, texts),
    "sequence": ((3, 4), lambda: [L.Dense(4, "relu"), L.LayerNormalization(), L.Flatten(), L.Dense(WIDTH)]),
}

POLICIES = ("float32", "float64", "mixed_float16", "mixed_bfloat16", "frozen float64", "frozen bfloat16")


class Drawn(keras.Model):
    """Body, twist, head, and an output of some form."""

    def __init__(self, stack, twist, output, policy):
        kind = policy.removeprefix("frozen ")
        head = "float32" if kind != policy else kind
        super().__init__(dtype=kind)
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(kind)
        try:
            self.body = STACKS[stack][1]()
            for layer in self.body if kind != policy else ():
                layer.trainable = False
            keras.config.set_dtype_policy(head)
            self.last = L.Dense(CLASSES)
            if twist in ("stopped", "shared"):
                self.mid = L.Dense(WIDTH)
            if twist in ("counts", "noise", "normal", "add_loss"):
                makes = {"counts": Counts, "noise": Noise, "normal": L.BatchNormalization, "add_loss": Note}
                setattr(self, {"add_loss": "note"}.get(twist, twist), makes[twist]())
        finally:
            keras.config.set_dtype_policy(before)
        self.twist, self.form, self.head = TWISTS[twist], OUTPUTS[output], head

    def call(self, x):
        for layer in self.body:
            x = layer(x)
        hidden = self.twist(self, keras.ops.cast(x, self.last.compute_dtype))
        return self.form(self.last(hidden), hidden)


class Note(L.Layer):
    """Adds a loss of its own."""

    def call(self, x):
        self.add_loss(0.3 * keras.ops.mean(x**2))
        return x


def wide(y, out):
    return tf.cast(out, tf.float32) if out.dtype in (tf.float16, tf.bfloat16) else out


def weighted(y, out):
    weight = tf.gather(tf.constant([0.5, 1.0, 3.0], out.dtype), y)
    return tf.reduce_mean(weight * tf.cast(keras.losses.sparse_categorical_crossentropy(y, out, True), out.dtype))


def smoothed(y, out):
    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)(tf.one_hot(y, CLASSES), out)


def branching(sample):
    label, logits = sample
    return tf.cond(tf.reduce_max(logits) > 0.3, lambda: tf.reduce_mean(logits**2), lambda: logits[label])


LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "mean": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "sum": keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
    "none": lambda y, out: keras.losses.sparse_categorical_crossentropy(y, out, from_logits=True),
    "weighted": weighted,
    "smoothed": smoothed,
    "squares": lambda y, out: tf.reduce_mean((tf.one_hot(y, CLASSES, dtype=out.dtype) - out) ** 2, -1),
    "branching": lambda y, out: tf.map_fn(branching, (y, out), fn_output_signature=out.dtype),
    "clipped": lambda y, out: LOSSES["mean"](y, clipped(out)),
}

EXTRAS: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda model, out: 0.0,
    "losses": lambda model, out: tf.add_n([tf.cast(one, tf.float32) for one in model.losses] or [0.0]),
    "weights": lambda model, out: 0.1 * tf.cast(keras.ops.sum(model.last.kernel**2), tf.float32),
    "values": lambda model, out: 0.1 * tf.cast(tf.nn.l2_loss(model.last.kernel.value), tf.float32),
}


@dataclass
class Case:
    """One drawn case; `half` where some of it is computed in half precision."""

    about: str
    model: Any
    loss: Callable[[Any, Any], Any]
    x: Any
    y: Any
    half: bool


def draw(seed: int) -> Case:
    """Return a case, always the same for a seed."""
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    pick = lambda names: str(random.choice(list(names)))  # noqa: E731
    stack, twist, loss, extra, output = map(pick, (STACKS, TWISTS, LOSSES, EXTRAS, OUTPUTS))
    policy = pick(POLICIES) if random.random() < 0.5 else "float32"
    model, shape = Drawn(stack, twist, output, policy), STACKS[stack][0]
    kind = np.float64 if random.random() < 0.2 else np.float32
    x = random.integers(0, 9, (SAMPLES, 3)) if shape is None else random.normal(size=(SAMPLES, *shape)).astype(kind)
    y = random.integers(0, CLASSES, SAMPLES)
    model(x[:1])
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + random.normal(scale=0.2, size=variable.shape).astype(np.float32))

    def of(y, out):
        main = out[0] if output == "tuple with a state" else out if output == "tensor" else out["out"]
        value = tf.cast(tf.reduce_sum(LOSSES[loss](y, wide(y, main))), tf.float32)
        if output == "two":
            value += tf.reduce_mean(tf.cast(out["hidden"], tf.float32) ** 2)
        return value + EXTRAS[extra](model, out)

    about = f"{seed}: {stack}, {twist}, {loss} + {extra}, {output}, {policy}"
    return Case(about, model, of, x, y, "float16" in policy)


def plain(case: Case) -> Any:
    """Return the gradients (n, P) as a user computes them, one sample at a time; statistics are put back each time."""
    rows, weights = [], case.model.trainable_variables
    state = [variable.numpy() for variable in case.model.non_trainable_variables]
    for i in range(len(case.y)):
        with tf.GradientTape() as tape:
            value = case.loss(case.y[i : i + 1], case.model(case.x[i : i + 1], training=False))
        found = tape.gradient(value, [v.value for v in weights])
        dense = [
            tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g) for v, g in zip(weights, found, strict=True)
        ]
        rows.append(np.concatenate([np.asarray(tf.cast(one, tf.float64)).ravel() for one in dense]))
        for variable, before in zip(case.model.non_trainable_variables, state, strict=True):
            variable.assign(before)
    return np.stack(rows)


def errors(case: Case, folder: Any) -> dict[str, float]:
    """Return how far rows, and scores that are said to be exact, are from the plain loop's."""
    want = plain(case)
    norms = np.linalg.norm(want, axis=1)
    job = gradindex.Job(case.model, case.loss, (case.x, case.y))
    rows = np.concatenate([block.sketches for block in gradindex.embed(job, sketch=gradindex.Identity())])
    index = gradindex.build(job, folder, overwrite=True, progress=False)
    result = index.explain(case.x[:4], case.y[:4], k=5)
    unit = want / np.maximum(norms, 1e-30)[:, None]
    true = np.take_along_axis(unit[:4] @ unit.T, np.maximum(result.ordered_indices, 0), 1)
    exact = np.asarray(result.exact) & (result.ordered_indices >= 0)
    return {
        "rows": float((np.linalg.norm(rows - want, axis=1) / np.maximum(norms, 1e-3 * norms.max())).max()),
        "scores": float(np.abs(np.where(exact, result.scores - true, 0)).max()),
    }
