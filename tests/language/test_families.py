"""Each family of language models: the rows of a job are those of plain training steps on the same texts."""

import pytest

transformers = pytest.importorskip("transformers")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from gradindex import hugging_face  # noqa: E402
from tests.language import kit  # noqa: E402

CAUSAL = ["gpt2", "llama", "gemma", "qwen", "mistral", "mixtral", "qwen-moe"]


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_models(kind):
    tokenizer = kit.tokenizer()
    model = kit.causal(kind, len(tokenizer)).eval()
    job = hugging_face.causal_lm(model, tokenizer, kit.TEXTS)
    truth = []
    for text in kit.TEXTS:
        ids = tokenizer(text)["input_ids"]
        truth.append(kit.gradient(model, input_ids=ids, attention_mask=[1] * len(ids), labels=ids))
    kit.assert_rows(job, truth)
    assert kit.paths(job) == {"factored"}, job.engine.paths


def test_every_expert_is_counted():
    tokenizer = kit.tokenizer()
    model = kit.causal("mixtral", len(tokenizer)).eval()
    job = hugging_face.causal_lm(model, tokenizer, kit.TEXTS)
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    assert job.engine.size == sum(sizes.values())
    experts = [name for name in sizes if ".experts." in name]
    assert len(experts) == 4
    found, places = kit.rows(job), {one.name: place for one, place in job.engine.slices()}
    for name in experts:
        each = found[:, places[name]].reshape(len(found), 4, -1)
        assert (np.abs(each).sum(axis=(0, 2)) > 0).all()  # each of the four was chosen by some text
    before = model.config._experts_implementation
    kit.rows(job)
    assert model.config._experts_implementation == before


@pytest.mark.parametrize("kind", ["bert", "t5"])
@pytest.mark.parametrize("several", [False, True])
def test_classifiers(kind, several):
    tokenizer = kit.tokenizer("bert")
    problem = "multi_label_classification" if several else "single_label_classification"
    torch.manual_seed(0)
    config = kit.config(kind, len(tokenizer), num_labels=3, problem_type=problem)
    config.eos_token_id = tokenizer.sep_token_id
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    labels = [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]] * 4 if several else [0, 1, 2, 0, 1, 2, 0, 1]
    data = [{"text": text, "label": label} for text, label in zip(kit.TEXTS, labels, strict=True)]
    job = hugging_face.sequence_classification(model, tokenizer, data)
    truth = []
    for text, label in zip(kit.TEXTS, labels, strict=True):
        ids = tokenizer(text)["input_ids"]
        truth.append(kit.gradient(model, input_ids=ids, attention_mask=[1] * len(ids), labels=label))
    kit.assert_rows(job, truth)
    assert kit.paths(job) == {"factored"}, job.engine.paths
    assert job.class_names == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_a_classifier_of_pairs_and_of_numbers():
    tokenizer = kit.tokenizer("bert")
    torch.manual_seed(0)
    config = kit.config("bert", len(tokenizer), num_labels=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    data = [{"text": text, "other": "whales sing", "label": i / 4} for i, text in enumerate(kit.TEXTS)]
    job = hugging_face.sequence_classification(model, tokenizer, data, pair="other")
    truth = []
    for row in data:
        inputs = dict(tokenizer(row["text"], row["other"]))
        assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
        truth.append(kit.gradient(model, **inputs, labels=row["label"]))
    kit.assert_rows(job, truth)
    assert job.task == "regression"


def test_a_tagger():
    tokenizer = kit.tokenizer("bert")
    torch.manual_seed(0)
    names = {0: "O", 1: "animal", 2: "thing"}
    config = kit.config("bert", len(tokenizer), id2label=names)
    model = transformers.AutoModelForTokenClassification.from_config(config).eval()
    tags = ["animal" if word in ("fox", "cat", "whale") else "O" for text in kit.TEXTS for word in text.split()]
    left = iter(tags)
    data = [{"tokens": text.split(), "tags": [next(left) for _ in text.split()]} for text in kit.TEXTS]
    job = hugging_face.token_classification(model, tokenizer, data)
    numbers = {name: number for number, name in names.items()}
    truth = []
    for row in data:
        labels = [-100, *(numbers[tag] for tag in row["tags"]), -100]
        truth.append(
            kit.gradient(
                model, input_ids=tokenizer(row["tokens"], is_split_into_words=True)["input_ids"], labels=labels
            )
        )
    kit.assert_rows(job, truth)
    assert kit.paths(job) == {"factored"}, job.engine.paths
    _x, y = job.texts.encode("the fox reads")
    assert set(job.texts.answer("the fox reads").split()) <= set(numbers)
    assert (y != -100).sum() == 3
    assert y[0, 0] == -100


def test_a_model_that_reads_and_writes():
    tokenizer = kit.tokenizer("bert")
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(kit.config("t5", len(tokenizer))).eval()
    data = [{"source": a, "target": b} for a, b in zip(kit.TEXTS, kit.TEXTS[::-1], strict=True)]
    job = hugging_face.seq2seq(model, tokenizer, data)
    truth = []
    for row in data:
        ids, labels = (tokenizer(row[name])["input_ids"] for name in ("source", "target"))
        truth.append(kit.gradient(model, input_ids=ids, attention_mask=[1] * len(ids), labels=labels))
    kit.assert_rows(job, truth)
    assert kit.paths(job) == {"factored"}, job.engine.paths
    x, y = job.texts.encode(prompt=data[0]["source"], answer=data[0]["target"])
    assert job.texts.pieces_of(x, y) == job.texts.pieces(0)
    assert "".join(job.texts.pieces(0)).split() == ["<cls>", *data[0]["target"].split(), "<sep>"]
    assert job.texts.text(0) == f"{data[0]['source']}\n{data[0]['target']}"
    assert isinstance(job.texts.answer("the red fox", max_new_tokens=3), str)


def test_masks_are_drawn_once():
    tokenizer = kit.tokenizer("bert")
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_config(kit.config("bert", len(tokenizer))).eval()
    job = hugging_face.masked_lm(model, tokenizer, kit.TEXTS, mask_probability=0.3, seed=3)
    batch = job.source.take(np.arange(len(kit.TEXTS)))
    truth = []
    for text, x, y in zip(kit.TEXTS, batch.x["input_ids"], batch.y, strict=True):
        ids, chosen = np.array(tokenizer(text)["input_ids"]), y != -100
        assert chosen.any()
        assert (y[chosen] == ids[chosen]).all()
        assert (x[~chosen] == ids[~chosen]).all()
        assert not chosen[[0, -1]].any()
        truth.append(kit.gradient(model, input_ids=x.astype(np.int64), labels=y.astype(np.int64)))
    kit.assert_rows(job, truth)
    assert kit.paths(job) == {"factored"}, job.engine.paths
    again = hugging_face.masked_lm(model, tokenizer, kit.TEXTS, mask_probability=0.3, seed=3)
    assert all(map(np.array_equal, again.source.take(np.arange(8)).y, batch.y))
    other = hugging_face.masked_lm(model, tokenizer, kit.TEXTS, mask_probability=0.3, seed=4)
    assert not all(map(np.array_equal, other.source.take(np.arange(8)).y, batch.y))
    assert job.texts.text(2) == kit.TEXTS[2]
    _, y = job.texts.encode(prompt="the red <mask> reads", answer="fox")
    assert y.tolist() == [[-100, -100, -100, tokenizer.convert_tokens_to_ids("fox"), -100, -100]]
    assert job.texts.answer("the red <mask> reads") in tokenizer.get_vocab()
    with pytest.raises(ValueError, match=r"has 1 masks .* the answer 2 tokens: expected one for each"):
        job.texts.encode(prompt="the red <mask> reads", answer="fox cat")


def test_losses_of_tokens_add_up():
    tokenizer = kit.tokenizer()
    model = kit.causal("llama", len(tokenizer)).eval()
    data = [{"prompt": "the red fox", "completion": " reads a book"}, {"prompt": "a cat", "completion": " sings"}]
    for reduction in ("mean", "sum"):
        job = hugging_face.causal_lm(model, tokenizer, data, reduction=reduction)
        for i in (0, 1):
            x, y = (
                torch.as_tensor(part)
                for part in (job.source.take(np.array([i])).x["input_ids"][0], job.source.take(np.array([i])).y[0])
            )
            output = model(input_ids=x[None].long())
            each = job.loss_fn.per_token(output, y[None].long())
            assert each.shape == (1, len(x))
            assert ((each[0] > 0) == (y != -100)).all()
            torch.testing.assert_close(each.sum(), job.loss_fn(output, y[None].long()))
            logs = torch.log_softmax(output.logits[0], -1)
            place = int(np.flatnonzero(y != -100)[0])
            weight = 1 if reduction == "sum" else 1 / int((y != -100).sum())
            torch.testing.assert_close(each[0, place], -weight * logs[place - 1, x[place]])
