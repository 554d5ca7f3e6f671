"""Models, losses and training of counterfactual_banks.py.

``train(case, model, x, y, seed, after)`` calls ``after(epoch, state, learning rate)`` behind every epoch, `state` a
function that returns it.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from counterfactual_data import PAD, minilm_files


def seeded(build: Callable[[], Any]) -> Callable[[int], Any]:
    """Return ``make(seed)``: the model that `build` returns, its weights drawn with this seed."""

    def make(seed: int) -> Any:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build()

    return make


def cnn_digits() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def cnn_digits_keras(seed: int) -> Any:
    import keras

    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 1)),
        layers.Conv2D(8, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dense(10),
    ])  # fmt: skip


def mlp(*widths: int) -> Any:
    from torch import nn

    parts: list[Any] = []
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def cnn_fashion() -> Any:
    """11,478 parameters."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(8, 20, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(20 * 49, 10),
    )  # fmt: skip


def transformer(words: int, length: int, width: int, layers: int, heads: int, classes: int, causal: bool) -> Any:
    """Return a pre-norm transformer over word numbers, which classifies their mean, or with `causal` every place."""
    import torch
    from torch import nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, h, mask):
            x = self.before(h)
            parts = [f(x).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)]
            mixed = nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask)
            h = h + self.out(mixed.transpose(1, 2).flatten(2))
            return h + self.narrow(nn.functional.gelu(self.wide(self.between(h))))

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
            self.layers = nn.ModuleList(Layer() for _ in range(layers))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
            self.register_buffer("numbers", torch.arange(length), persistent=False)
            self.register_buffer("past", torch.ones(length, length).tril().bool(), persistent=False)

        def forward(self, x):
            there = x != PAD
            mask = self.past[None, None] if causal else there[:, None, None, :]
            h = self.words(x) + self.places(self.numbers)
            for layer in self.layers:
                h = layer(h, mask)
            h = self.norm(h)
            if causal:
                return self.head(h)
            weight = there.to(h.dtype)[..., None]
            return self.head((h * weight).sum(1) / weight.sum(1))

    return Reader()


def minilm(classes: int) -> Any:
    """Return all-MiniLM-L6-v2, without dropout and with its embeddings frozen, and a linear layer on the mean word."""
    import json

    from safetensors.torch import load
    from torch import nn
    from transformers import BertConfig, BertModel

    files = minilm_files()
    config = BertConfig(
        **json.loads(files["config.json"]) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        attn_implementation="eager",
    )

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(config, add_pooling_layer=False)
            self.bert.load_state_dict(load(files["model.safetensors"]), strict=False)
            self.bert.embeddings.requires_grad_(False)
            self.head = nn.Linear(config.hidden_size, classes)

        def forward(self, x):
            there = (x != PAD).to(self.head.weight.dtype)
            # A mask of pairs is taken as it is; one of words is looked at first, which batched gradients cannot follow.
            mask = (there[:, None, None, :] - 1).expand(-1, 1, x.shape[1], -1) * 1e9
            h = self.bert(input_ids=x, attention_mask=mask).last_hidden_state
            return self.head((h * there[..., None]).sum(1) / there.sum(1, keepdim=True))

    return Encoder()


def torch_classes() -> Any:
    from torch import nn

    return nn.CrossEntropyLoss()


def torch_words() -> Any:
    """Return the loss of language models: the mean over a text's words."""
    import torch

    def loss(output: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(output.flatten(0, -2), y.flatten(), ignore_index=PAD)

    return loss


def keras_classes() -> Any:
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


LOSSES = {
    ("torch", "classes"): torch_classes,
    ("torch", "words"): torch_words,
    ("tensorflow", "classes"): keras_classes,
}


def states_of(model: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def descend(case: Any, model: Any, x: Any, y: Any, seed: int, after: Callable[..., None]) -> None:
    """Adam, or with ``momentum`` SGD, over batches in an order drawn by the seed; the rate falls by a cosine."""
    import torch

    x, y = torch.as_tensor(x), torch.as_tensor(y)
    if "momentum" in case.options:
        optimiser = torch.optim.SGD(model.parameters(), case.rate, case.options["momentum"], weight_decay=case.decay)
    else:
        optimiser = torch.optim.Adam(model.parameters(), case.rate, weight_decay=case.decay)
    steps = -(-len(x) // case.batch)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps * case.epochs)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for epoch in range(1, case.epochs + 1):
        rate = falling.get_last_lr()[0]
        for rows in torch.randperm(len(x), generator=order).split(case.batch):
            optimiser.zero_grad()
            case.loss_fn(model(x[rows]), y[rows]).backward()
            optimiser.step()
            falling.step()
        after(epoch, partial(states_of, model), rate)
    model.eval()


def converge(case: Any, model: Any, x: Any, y: Any, seed: int, after: Callable[..., None]) -> None:
    """L-BFGS on the mean loss plus decay / 2 · ‖θ‖², which has one minimum: every seed ends there."""
    import torch

    x, y = torch.as_tensor(x), torch.as_tensor(y)
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=case.options["steps"], tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> Any:
        optimiser.zero_grad()
        squares = sum((one**2).sum() for one in model.parameters())
        loss = case.loss_fn(model(x), y) + case.decay / 2 * squares
        loss.backward()
        return loss

    for epoch in range(1, case.epochs + 1):
        optimiser.step(objective)
        after(epoch, partial(states_of, model), 1.0)


def descend_keras(case: Any, model: Any, x: Any, y: Any, seed: int, after: Callable[..., None]) -> None:
    """Do what `descend` does, in a compiled step of TensorFlow."""
    import keras
    import tensorflow as tf

    x, y = tf.constant(x), tf.constant(y)
    steps = -(-len(x) // case.batch)
    rates = keras.optimizers.schedules.CosineDecay(case.rate, steps * case.epochs)
    optimiser = keras.optimizers.Adam(rates)
    optimiser.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def step(rows: Any) -> None:
        with tf.GradientTape() as tape:
            loss = case.loss_fn(tf.gather(y, rows), model(tf.gather(x, rows), training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimiser.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    order = np.random.default_rng(seed)
    for epoch in range(1, case.epochs + 1):
        rate = float(rates((epoch - 1) * steps))
        mixed = order.permutation(len(x))
        for begin in range(0, len(x), case.batch):
            step(tf.constant(mixed[begin : begin + case.batch]))
        after(epoch, model.get_weights, rate)
