"""A language model of a few hundred weights, its loss and the reader of its texts, for tests."""

import numpy as np
import torch
from torch import nn

from gradindex.data.text import IGNORED

TEXT = "<end> the a cat dog bird sat ran flew on under mat tree hill and then it slept barked sang"
WORDS = TEXT.split()
NUMBERS = {word: number for number, word in enumerate(WORDS)}


class TinyCausal(nn.Module):
    """Embeddings, one block of causal attention, a head."""

    def __init__(self, width=8):
        super().__init__()
        self.words, self.places = nn.Embedding(len(WORDS), width), nn.Embedding(24, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 12, dropout=0.1, batch_first=True)
        self.head = nn.Linear(width, len(WORDS), bias=False)

    def forward(self, input_ids):
        count = input_ids.shape[1]
        past = torch.full((count, count), float("-inf")).triu(1)
        x = self.words(input_ids) + self.places(torch.arange(count))
        return self.head(self.block(x, src_mask=past))


class NextToken:
    """Cross-entropy of the next token: a mean over the labelled tokens of a sample, or a sum."""

    def __init__(self, reduction="mean"):
        self.reduction = reduction

    def per_token(self, output, y):
        output = getattr(output, "logits", output)
        targets = y[:, 1:]
        each = nn.functional.cross_entropy(
            output[:, :-1].transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
        )
        if self.reduction == "mean":
            each = each / (targets != IGNORED).sum(1, keepdim=True).clamp(min=1)
        return nn.functional.pad(each, (1, 0))

    def __call__(self, output, y):
        return self.per_token(output, y).sum(1).mean()


class Reader:
    """Reads words that stand between spaces; the model answers with its most likely words."""

    def __init__(self, texts, model, longest=None):
        self.texts, self.model, self.longest = list(texts), model, longest

    def numbers(self, text):
        return np.array([NUMBERS[word] for word in text.split()], np.int64)

    def encode(self, text=None, *, prompt=None, answer=None, messages=None):
        if messages is not None:
            prompt, answer = self._prompt(messages[:-1]), messages[-1]["content"]
        if text is not None:
            numbers = self.numbers(text)
            return {"input_ids": numbers[None]}, numbers[None].copy()
        asked, said = self.numbers(prompt if isinstance(prompt, str) else self._prompt(prompt)), self.numbers(answer)
        labels = np.concatenate([np.full(len(asked), IGNORED), said])
        return {"input_ids": np.concatenate([asked, said])[None]}, labels[None]

    def text(self, i):
        return self.texts[i]

    def pieces(self, i):
        return self.texts[i].split()

    def pieces_of(self, x, y=None):
        return [WORDS[number] for number in np.asarray(x["input_ids"][0]).ravel()]

    def answer(self, prompt, max_new_tokens=64):
        numbers = self.numbers(prompt if isinstance(prompt, str) else self._prompt(prompt)).tolist()
        said = []
        with torch.no_grad():
            for _ in range(min(4, max_new_tokens)):
                said.append(int(self.model(torch.tensor([numbers + said]))[0, -1].argmax()))
        return " ".join(WORDS[number] for number in said)

    def _prompt(self, messages):
        return " ".join(message["content"] for message in messages)


def texts(count=60, seed=0):
    """Return sentences of several lengths."""
    rng = np.random.default_rng(seed)
    nouns, verbs, places = ["cat", "dog", "bird"], ["sat", "ran", "flew"], ["mat", "tree", "hill"]

    def one():
        clause = f"the {rng.choice(nouns)} {rng.choice(verbs)} {rng.choice(['on', 'under'])} a {rng.choice(places)}"
        return clause + (f" and then it {rng.choice(['slept', 'barked', 'sang'])}" if rng.random() < 0.5 else "")

    return [one() for _ in range(count)]


def job(count=60, reduction="mean", trained=20, loss=None, **options):
    """Return a job over `texts`, whose model saw them a few times."""
    import gradindex

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, lines = TinyCausal(), texts(count)
        reader = Reader(lines, model)
        ids = [reader.numbers(line) for line in lines]
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(trained):
            optimizer.zero_grad()
            sum(NextToken()(model(torch.tensor(one[None])), torch.tensor(one[None])) for one in ids[:20]).backward()
            optimizer.step()
        optimizer.zero_grad()
    model.eval()
    data = ({"input_ids": ids}, [one.copy() for one in ids])
    return gradindex.Job(model, loss or NextToken(reduction), data, texts=reader, task="regression", **options)
