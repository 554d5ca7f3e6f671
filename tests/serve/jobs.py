"""Jobs that a served index is opened with."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

import gradindex
from tests.jobs import digits, digits_job, longer_job

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def pictures_job():
    """The digits, with pictures, class names and a column of texts."""
    x, _ = digits()
    return digits_job(
        render=lambda i: x[i].reshape(8, 8),
        class_names=NAMES,
        columns={"writer": np.where(np.arange(len(x)) % 2, "<b>odd</b>", "even")},
    )


def keras_job():
    """The same digits and a small Keras model."""
    import keras

    x, y = digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return gradindex.Job(model, loss, (x, y), render=lambda i: x[i].reshape(8, 8), class_names=NAMES)


class Bag(nn.Module):
    """Classifies the mean of token embeddings (b, tokens)."""

    def __init__(self):
        super().__init__()
        self.embedding, self.last = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        return self.last(self.embedding(tokens).mean(1))


class Letters(Bag):
    """The same for a list of one text."""

    def forward(self, texts):
        return super().forward(torch.tensor([[ord(letter) % 20 for letter in text] for text in texts]))


def texts():
    """Sixty sequences of 3 to 6 tokens, and classes out of 3."""
    random = np.random.default_rng(0)
    return [random.integers(0, 20, 3 + i % 4) for i in range(60)], random.integers(0, 3, 60)


def tokens_job():
    """Texts as token numbers, of several lengths."""
    x, y = texts()
    torch.manual_seed(0)
    return gradindex.Job(Bag(), nn.CrossEntropyLoss(), (x, y), render=lambda i: " ".join(map(str, x[i])))


def texts_job():
    """Texts as strings."""
    x, y = texts()
    torch.manual_seed(0)
    words = ["".join(chr(97 + token) for token in one) for one in x]
    return gradindex.Job(Letters(), nn.CrossEntropyLoss(), (words, y))


def grown_job():
    """As many digits as the file says that $GRADINDEX_TEST_ROWS names, as a data set that grows."""
    return longer_job(int(Path(os.environ["GRADINDEX_TEST_ROWS"]).read_text()))


def words_job():
    """A small language model with its tokenizer."""
    from gradindex import hugging_face
    from tests.language.kit import TEXTS, causal, tokenizer

    words = tokenizer()
    return hugging_face.causal_lm(causal("llama", len(words)), words, TEXTS)
