"""The slow truth: per-sample gradients by plain loops, the kernels by hand, and small models to try them on.

Nothing here uses gradindex. A `Kit` offers the same few things for torch and for Keras, so that a test
written once holds for both.
"""

import copy
import functools
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

KERNELS = ("grad_dot", "grad_cos", "grad_asym_dot")
EPS = 1e-7


def kernel(name, queries, train, eps=EPS):
    """Kernel values (m, n) of gradients (m, P) and (n, P), pair by pair in float64."""
    queries, train = np.asarray(queries, np.float64), np.asarray(train, np.float64)
    out = np.empty((len(queries), len(train)))
    for i, q in enumerate(queries):
        for j, t in enumerate(train):
            dot = float((q * t).sum())
            if name == "grad_dot":
                out[i, j] = dot
            elif name == "grad_cos":
                out[i, j] = dot / (float((q * q).sum()) ** 0.5 * float((t * t).sum()) ** 0.5 + eps)
            elif name == "grad_asym_dot":
                out[i, j] = dot / (float((t * t).sum()) + eps)
            else:
                raise AssertionError(name)
    return out


@functools.cache
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.images[order] / 16).astype(np.float32), data.target[order].astype(np.int64)
    for array in (x, y):
        array.flags.writeable = False
    return x[:1000], y[:1000], x[1000:], y[1000:]


def points(n, seed=0, dim=4):
    """Return n random inputs (n, dim) float32 and their classes out of 3, int64."""
    random = np.random.default_rng(seed)
    return random.standard_normal((n, dim)).astype(np.float32), random.integers(0, 3, n)


class Kit(ABC):
    """One framework: models to copy freely, losses, and the naive loop."""

    name: str
    """The explainer's word for the framework."""

    def explainer(self, model, loss, *args, **options):
        from gradindex import GradientSimilarity

        return GradientSimilarity(model, loss, *args, backend=self.name, **options)

    @abstractmethod
    def gradients(self, model, loss, x, y) -> np.ndarray:
        """Gradients (n, P) float64 of a copy of the model in inference mode, one sample at a time."""

    @abstractmethod
    def mlp(self, inputs=4, outputs=3, seed=0, activation=None, double=False) -> Any:
        """A small dense network with a hidden layer of 6; its output is `activation`'s."""

    @abstractmethod
    def cnn(self) -> Any:
        """A fresh copy of a small CNN, with dropout, trained briefly on the digits."""

    @abstractmethod
    def double(self, model) -> Any:
        """A copy of the model in float64."""

    @abstractmethod
    def images(self, x) -> np.ndarray:
        """Digits (n, 8, 8) with the channel axis where this framework has it."""

    @abstractmethod
    def tensor(self, array) -> Any: ...

    @abstractmethod
    def array(self, tensor) -> np.ndarray: ...

    @abstractmethod
    def predict(self, model, x) -> np.ndarray: ...

    @abstractmethod
    def state(self, model) -> dict[str, np.ndarray]:
        """Copies of every parameter and statistic."""

    @abstractmethod
    def with_batchnorm(self) -> Any:
        """Dense 4 → 6, BatchNorm whose statistics are not the initial ones, dropout, Dense 6 → 3."""

    @abstractmethod
    def with_unused_head(self) -> tuple[Any, str]:
        """A model 4 → 3 with a head that the output does not depend on, and the name of a parameter of it."""

    @abstractmethod
    def freeze(self, model) -> int:
        """Freeze the first layer; return how many parameters that are."""

    @abstractmethod
    def freeze_all(self, model) -> None: ...

    @abstractmethod
    def recorder(self) -> tuple[Any, list]:
        """A model 4 → 3 that takes lists of objects with four numbers, and the list of inputs that it saw."""

    @abstractmethod
    def two_inputs(self, as_dict) -> Any:
        """A model of inputs a (n, 4) and b (n, 2), as a dict or a tuple, to 3 outputs."""

    @abstractmethod
    def losses(self) -> dict[str, Any]:
        """The cross-entropy of logits with class labels under several shapes and reductions."""

    @property
    def loss(self):
        return self.losses()["mean"]

    @abstractmethod
    def named_loss(self, name) -> Any:
        """'one_hot', 'binary_logits', 'binary_probabilities', 'mse', or 'classes' (one that can be saved)."""


class Torch(Kit):
    name = "pytorch"

    def gradients(self, model, loss, x, y):
        import torch

        model = copy.deepcopy(model).eval()
        wanted = [p for p in model.parameters() if p.requires_grad]
        rows = []
        for i in range(len(y)):
            value = loss(model(self._one(x, i)), self.tensor(y[i : i + 1])).sum()
            grads = torch.autograd.grad(value, wanted, allow_unused=True)
            grads = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, grads, strict=True)]
            rows.append(np.concatenate([g.numpy().ravel().astype(np.float64) for g in grads]))
        return np.stack(rows)

    def _one(self, x, i):
        return x[i : i + 1] if isinstance(x, list) else self.tensor(x[i : i + 1])

    def mlp(self, inputs=4, outputs=3, seed=0, activation=None, double=False):
        import torch
        from torch import nn

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs)]
        if activation == "sigmoid":
            layers.append(nn.Sigmoid())
        model = nn.Sequential(*layers)
        return model.double() if double else model

    def cnn(self):
        return copy.deepcopy(_torch_cnn())

    def double(self, model):
        return copy.deepcopy(model).double()

    def images(self, x):
        return np.ascontiguousarray(x[:, None])

    def tensor(self, array):
        import torch

        return torch.tensor(array)

    def array(self, tensor):
        return tensor.detach().numpy()

    def predict(self, model, x):
        import torch

        with torch.no_grad():
            return copy.deepcopy(model).eval()(self.tensor(x)).numpy()

    def state(self, model):
        return {name: value.numpy().copy() for name, value in model.state_dict().items()}

    def with_batchnorm(self):
        import torch
        from torch import nn

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
            for _ in range(3):
                model(torch.randn(16, 4) * 2 + 1)
        return model

    def with_unused_head(self):
        import torch
        from torch import nn

        class TwoHeads(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.spare = nn.Linear(4, 3), nn.Linear(4, 2)

            def forward(self, x):
                return self.used(x)

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return TwoHeads(), "spare.weight"

    def freeze(self, model):
        for parameter in model[0].parameters():
            parameter.requires_grad_(False)
        return 2

    def freeze_all(self, model):
        model.requires_grad_(False)

    def recorder(self):
        import torch
        from torch import nn

        seen = []

        class Recorder(nn.Module):
            def __init__(self):
                super().__init__()
                self.dense = nn.Linear(4, 3)

            def forward(self, x):
                seen.append(x)
                return self.dense(torch.tensor([numbers(item) for item in x], dtype=torch.float32))

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Recorder(), seen

    def two_inputs(self, as_dict):
        import torch
        from torch import nn

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.dense = nn.Linear(6, 3)

            def forward(self, a, b):
                return self.dense(torch.cat([a, b], 1))

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Two()

    def losses(self):
        from torch import nn
        from torch.nn import functional

        return {
            "mean": nn.CrossEntropyLoss(),
            "sum": nn.CrossEntropyLoss(reduction="sum"),
            "(1,)": nn.CrossEntropyLoss(reduction="none"),
            "(1,1)": lambda output, y: functional.cross_entropy(output, y, reduction="none")[:, None],
            "scalar": lambda output, y: -functional.log_softmax(output, 1)[0, y[0]],
        }

    def named_loss(self, name):
        from torch import nn
        from torch.nn import functional

        return {
            "classes": nn.CrossEntropyLoss(),
            "one_hot": lambda output, y: functional.cross_entropy(output, y.to(output.dtype)),
            "binary_logits": nn.BCEWithLogitsLoss(),
            "binary_probabilities": nn.BCELoss(),
            "mse": nn.MSELoss(),
        }[name]


class Keras(Kit):
    name = "tensorflow"

    def gradients(self, model, loss, x, y):
        import tensorflow as tf

        def one(inputs, target):
            with tf.GradientTape() as tape:
                output = model(x=inputs) if isinstance(inputs, list) else model(inputs, training=False)
                value = tf.reduce_sum(loss(target, output))
            variables = [v.value for v in model.trainable_variables]
            grads = tape.gradient(value, variables, unconnected_gradients="zero")
            return tf.concat([tf.reshape(tf.convert_to_tensor(g), [-1]) for g in grads], 0)

        if not isinstance(x, list):
            one = tf.function(one)
        rows = []
        for i in range(len(y)):
            inputs = x[i : i + 1] if isinstance(x, list) else tf.constant(x[i : i + 1])
            rows.append(one(inputs, tf.constant(y[i : i + 1])).numpy().astype(np.float64))
        return np.stack(rows)

    def mlp(self, inputs=4, outputs=3, seed=0, activation=None, double=False):
        import keras

        dtype = "float64" if double else "float32"
        glorot = [keras.initializers.GlorotUniform(seed + i) for i in range(2)]
        return keras.Sequential(
            [
                keras.Input((inputs,), dtype=dtype),
                keras.layers.Dense(6, "tanh", kernel_initializer=glorot[0], dtype=dtype),
                keras.layers.Dense(outputs, activation, kernel_initializer=glorot[1], dtype=dtype),
            ]
        )

    def cnn(self):
        model = _keras_cnn_layers()
        model.set_weights(_keras_cnn_weights())
        return model

    def double(self, model):
        copied = _keras_cnn_layers("float64")
        copied.set_weights([w.astype(np.float64) for w in model.get_weights()])
        return copied

    def images(self, x):
        return np.ascontiguousarray(x[..., None])

    def tensor(self, array):
        import tensorflow as tf

        return tf.constant(array)

    def array(self, tensor):
        return tensor.numpy()

    def predict(self, model, x):
        return model(self.tensor(x), training=False).numpy()

    def state(self, model):
        return {v.path: v.numpy().copy() for v in model.weights}

    def with_batchnorm(self):
        import keras

        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(6, kernel_initializer=keras.initializers.GlorotUniform(0)),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.5, seed=0),
                keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(1)),
            ]
        )
        for i in range(3):
            model(2 * np.random.default_rng(i).standard_normal((16, 4)).astype(np.float32) + 1, training=True)
        return model

    def with_unused_head(self):
        import keras

        class TwoHeads(keras.Model):
            def __init__(self):
                super().__init__()
                self.used = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(0))
                self.spare = keras.layers.Dense(2, name="spare")
                self.used.build((None, 4))
                self.spare.build((None, 4))

            def call(self, x):
                return self.used(x)

        model = TwoHeads()
        model(np.zeros((1, 4), np.float32))
        return model, "spare/kernel"

    def freeze(self, model):
        model.layers[0].trainable = False
        return 2

    def freeze_all(self, model):
        model.trainable = False

    def recorder(self):
        import keras
        import tensorflow as tf

        seen = []

        class Recorder(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(0))
                self.dense.build((None, 4))
                self.built = True

            def call(self, x):
                seen.append(x)
                return self.dense(tf.constant([numbers(item) for item in x], tf.float32))

        return Recorder(), seen

    def two_inputs(self, as_dict):
        import keras

        a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
        dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(0))
        out = dense(keras.layers.Concatenate()([a, b]))
        return keras.Model({"a": a, "b": b} if as_dict else (a, b), out)

    def losses(self):
        import keras

        class Sparse(keras.losses.SparseCategoricalCrossentropy):
            def __init__(self, reduction):
                super().__init__(from_logits=True, reduction=reduction)

        each = Sparse("none")
        return {
            "mean": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "sum": Sparse("sum"),
            "(1,)": each,
            "(1,1)": lambda y, output: each(y, output)[:, None],
            "scalar": lambda y, output: each(y, output)[0],
        }

    def named_loss(self, name):
        import keras

        return {
            "classes": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "one_hot": keras.losses.CategoricalCrossentropy(from_logits=True),
            "binary_logits": keras.losses.BinaryCrossentropy(from_logits=True),
            "binary_probabilities": keras.losses.BinaryCrossentropy(),
            "mse": keras.losses.MeanSquaredError(),
        }[name]


def numbers(item):
    """Return the four numbers of an object: a dict's values, a text's code points, or an array's first."""
    if isinstance(item, dict):
        return [float(value) for value in item.values()]
    if isinstance(item, str):
        return [ord(letter) / 100 for letter in item]
    return np.asarray(item, np.float32)[:4].tolist()


@functools.cache
def kit(name) -> Kit:
    return {"pytorch": Torch, "tensorflow": Keras}[name]()


@functools.cache
def _torch_cnn():
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(72, 24),
            nn.ReLU(),
            nn.Linear(24, 10),
        )
        x, y, *_ = digits()
        x, y = torch.tensor(x[:, None]), torch.tensor(y)
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(3):
            for rows in torch.randperm(len(x)).split(50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _keras_cnn_layers(dtype="float32"):
    import keras

    glorot = [keras.initializers.GlorotUniform(i) for i in range(3)]
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), dtype=dtype),
            keras.layers.Conv2D(8, 3, activation="relu", kernel_initializer=glorot[0], dtype=dtype),
            keras.layers.MaxPool2D(2, dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            keras.layers.Dropout(0.2, seed=0, dtype=dtype),
            keras.layers.Dense(24, "relu", kernel_initializer=glorot[1], dtype=dtype),
            keras.layers.Dense(10, kernel_initializer=glorot[2], dtype=dtype),
        ]
    )


@functools.cache
def _keras_cnn_weights():
    import keras

    x, y, *_ = digits()
    model = _keras_cnn_layers()
    model.compile(keras.optimizers.Adam(5e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[..., None], y, batch_size=50, epochs=3, shuffle=False, verbose=0)
    return model.get_weights()
