"""Small unsupervised models in both frameworks, with one-sample gradients written out by hand."""

import numpy as np

SIDE, LATENT, WORDS = 12, 3, 9
RNG = np.random.default_rng(0)
X = RNG.random((14, SIDE)).astype(np.float32)
Z = RNG.random((3, SIDE)).astype(np.float32)
TEXTS = RNG.integers(0, WORDS, (10, 6))


class TorchKit:
    """Models and naive gradients in torch."""

    @staticmethod
    def autoencoder():
        """A model and ``loss_fn(output, x)``, mean reduced."""
        from torch import nn

        model = _seeded(lambda: nn.Sequential(nn.Linear(SIDE, 5), nn.Tanh(), nn.Linear(5, SIDE)))
        return model, nn.functional.mse_loss

    @staticmethod
    def vae():
        """A model and ``loss_fn(model, x, noise)``: the negative ELBO with a Bernoulli decoder, (b,)."""
        import torch
        from torch import nn

        def loss_fn(model, x, noise):
            mean, spread = model["encoder"](x).chunk(2, dim=1)
            out = model["decoder"](mean + torch.exp(spread / 2) * noise)
            misfit = nn.functional.binary_cross_entropy_with_logits(out, x, reduction="none").sum(dim=1)
            return misfit - (1 + spread - mean**2 - spread.exp()).sum(dim=1) / 2

        def make():
            encoder = nn.Sequential(nn.Linear(SIDE, 7), nn.Tanh(), nn.Linear(7, 2 * LATENT))
            decoder = nn.Sequential(nn.Linear(LATENT, 7), nn.Tanh(), nn.Linear(7, SIDE))
            return nn.ModuleDict({"encoder": encoder, "decoder": decoder})

        return _seeded(make), loss_fn

    @staticmethod
    def language_model():
        """A causal model of token ids (b, t) and its token loss, ``loss_fn(output, x)``."""
        import torch
        from torch import nn

        class Causal(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(WORDS, 8)
                self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
                self.head = nn.Linear(8, WORDS)

            def forward(self, tokens):
                mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
                return self.head(self.layer(self.embedding(tokens), src_mask=mask, is_causal=True))

        def loss_fn(output, tokens):
            return nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

        del torch
        return _seeded(Causal), loss_fn

    @staticmethod
    def gradients(model, loss, x):
        """Return one-sample gradients (n, P) of ``loss(x_i)``."""
        import torch

        parameters = [p for p in model.parameters() if p.requires_grad]
        model.eval()
        rows = [torch.autograd.grad(loss(torch.from_numpy(x[i : i + 1])), parameters) for i in range(len(x))]
        model.train()
        return np.stack([torch.cat([g.flatten() for g in row]).numpy() for row in rows])

    @staticmethod
    def mean(values):
        """Return the mean of scalars (or of one-element tensors)."""
        return sum(value.sum() for value in values) / len(values)

    @staticmethod
    def tensor(array):
        """Return an array as a tensor."""
        import torch

        return torch.from_numpy(array)

    @staticmethod
    def array(tensor):
        """Return a tensor as an array."""
        return tensor.detach().numpy()

    @staticmethod
    def weights(model):
        """Return copies of all weights."""
        return [value.numpy().copy() for value in model.state_dict().values()]

    @staticmethod
    def load(model, state):
        """Put weights into the model."""
        model.load_state_dict(state)

    @staticmethod
    def move(model, random):
        """Change all weights in place."""
        for value in model.state_dict().values():
            value += TorchKit.tensor(random.normal(0, 0.2, value.shape).astype(np.float32))

    @staticmethod
    def train(model):
        """Put the model into training mode."""
        model.train()

    @staticmethod
    def trains(model):
        """Whether every part of it is in training mode."""
        return all(module.training for module in model.modules())

    @staticmethod
    def call_loss(loss_fn, output, x):
        """Call a loss of the output in the framework's order."""
        return loss_fn(output, x)


class KerasKit:
    """Models and naive gradients in Keras."""

    @staticmethod
    def autoencoder():
        """A model and ``loss_fn(x, output)``."""
        import keras

        keras.utils.set_random_seed(0)
        layers = [keras.Input((SIDE,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(SIDE)]
        return keras.Sequential(layers), keras.losses.MeanSquaredError()

    @staticmethod
    def vae():
        """A model and ``loss_fn(model, x, noise)``, (b,)."""
        import keras
        import tensorflow as tf

        keras.utils.set_random_seed(0)

        class VAE(keras.Model):
            def __init__(self):
                super().__init__()
                dense = keras.layers.Dense
                self.encoder = keras.Sequential([keras.Input((SIDE,)), dense(7, "tanh"), dense(2 * LATENT)])
                self.decoder = keras.Sequential([keras.Input((LATENT,)), dense(7, "tanh"), dense(SIDE)])

            def call(self, x):
                return self.decoder(self.encoder(x)[:, :LATENT])

        def loss_fn(model, x, noise):
            mean, spread = tf.split(model.encoder(x), 2, axis=1)
            out = model.decoder(mean + tf.exp(spread / 2) * noise)
            misfit = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(x, out), axis=1)
            return misfit - tf.reduce_sum(1 + spread - mean**2 - tf.exp(spread), axis=1) / 2

        model = VAE()
        model(X[:1])
        return model, loss_fn

    @staticmethod
    def language_model():
        """A causal model of token ids (b, t) and its token loss, ``loss_fn(x, output)``."""
        import keras

        keras.utils.set_random_seed(0)
        layers = keras.layers
        inputs = keras.Input((TEXTS.shape[1],), dtype="int64")
        hidden = layers.LSTM(8, return_sequences=True)(layers.Embedding(WORDS, 8)(inputs))
        model = keras.Model(inputs, layers.Dense(WORDS)(hidden))
        token_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return model, lambda tokens, output: token_loss(tokens[:, 1:], output[:, :-1])

    @staticmethod
    def gradients(model, loss, x):
        """Return one-sample gradients (n, P) of ``loss(x_i)``."""
        import tensorflow as tf

        rows = []
        for i in range(len(x)):
            with tf.GradientTape() as tape:
                value = loss(tf.convert_to_tensor(x[i : i + 1]))
            found = tape.gradient(value, model.trainable_variables)
            rows.append(np.concatenate([tf.reshape(tf.convert_to_tensor(g), [-1]).numpy() for g in found]))
        return np.stack(rows)

    @staticmethod
    def mean(values):
        """Return the mean of scalars (or of one-element tensors)."""
        import tensorflow as tf

        return tf.add_n([tf.reduce_sum(value) for value in values]) / len(values)

    @staticmethod
    def tensor(array):
        """Return an array as a tensor."""
        import tensorflow as tf

        return tf.convert_to_tensor(array)

    @staticmethod
    def array(tensor):
        """Return a tensor as an array."""
        return tensor.numpy()

    @staticmethod
    def weights(model):
        """Return copies of all weights."""
        return [np.array(value) for value in model.get_weights()]

    @staticmethod
    def load(model, state):
        """Put weights into the model."""
        model.set_weights(state)

    @staticmethod
    def move(model, random):
        """Change all weights in place."""
        for variable in model.weights:
            variable.assign(variable + random.normal(0, 0.2, variable.shape).astype(np.float32))

    @staticmethod
    def train(model):
        """Keras models have no mode."""

    @staticmethod
    def trains(model):
        """Keras models have no mode."""
        return True

    @staticmethod
    def call_loss(loss_fn, output, x):
        """Call a loss of the output in the framework's order."""
        return loss_fn(x, output)


KITS = {"pytorch": TorchKit, "tensorflow": KerasKit}


def _seeded(make):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def same_weights(torch_model, keras_model):
    """Copy a torch model's weights into a Keras one of dense layers."""
    arrays = [p.detach().numpy() for p in torch_model.parameters()]
    keras_model.set_weights([a.T if a.ndim == 2 else a for a in arrays])
