"""From a Trainer: its samples, its loss, what it is asked and answers."""

import pytest

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
pytest.importorskip("accelerate")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from gradindex import hugging_face  # noqa: E402
from tests.language import kit  # noqa: E402


@pytest.fixture(scope="module")
def words():
    return kit.tokenizer()


def trainer(model, data, collator, tmp_path, words=None, kind=transformers.Trainer, **options):
    options = {
        "per_device_train_batch_size": 1,
        "max_steps": 2,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **options,
    }
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, **options
    )
    return kind(model=model, args=args, train_dataset=data, data_collator=collator, processing_class=words)


def tokens(words, **options):
    rows = [words(text, **options) for text in kit.TEXTS]
    return datasets.Dataset.from_dict(
        {name: [row[name] for row in rows] for name in ("input_ids", "attention_mask")} | {"number": list(range(8))}
    )


def test_a_causal_model_from_training_to_its_proponents(words, tmp_path):
    import gradindex

    model = kit.causal("llama", len(words))
    collator = transformers.DataCollatorForLanguageModeling(words, mlm=False)
    one = trainer(model, tokens(words), collator, tmp_path, words)
    one.train()
    job = hugging_face.from_trainer(one, columns=["number"])
    model.eval()
    truth = [kit.gradient(model, input_ids=ids, labels=ids) for ids in (words(text)["input_ids"] for text in kit.TEXTS)]
    kit.assert_rows(job, truth)
    assert kit.paths(job) == {"factored"}, job.engine.paths
    assert job.columns["number"].to_pylist() == list(range(8))
    assert job.loss_fn.reduction == "mean"
    index = gradindex.build(job, tmp_path / "index")
    result = index.explain(*job.texts.encode(prompt="the red fox reads", answer=" a book"), k=3)
    assert 0 in result.ordered_indices[0]
    assert job.texts.text(0) == kit.TEXTS[0]


def test_padding_and_masked_labels_of_a_dataset(words, tmp_path):
    data = tokens(words, padding="max_length", max_length=16)
    data = data.map(
        lambda row: {"labels": [t if m else -100 for t, m in zip(row["input_ids"], row["attention_mask"], strict=True)]}
    )
    data = data.map(lambda row: {"labels": [-100, -100, *row["labels"][2:]]}, remove_columns=["number"])
    model = kit.causal("gpt2", len(words))
    job = hugging_face.from_trainer(trainer(model, data, transformers.default_data_collator, tmp_path, words))
    model.eval()
    truth = [
        kit.gradient(model, **{name: row[name] for name in ("input_ids", "attention_mask", "labels")})
        for row in list(data)[2:]
    ]
    batch = job.source.take(np.arange(2, 8))
    found = job.engine.gradients(batch.x, batch.y).gradients
    np.testing.assert_allclose(found, truth, atol=2e-4 * np.linalg.norm(truth, axis=1).max())
    assert [len(ids) for ids in batch.x["input_ids"]] == [sum(row["attention_mask"]) for row in list(data)[2:]]


@pytest.mark.parametrize(("size", "steps", "how"), [(1, 1, "mean"), (4, 1, "sum"), (1, 4, "sum")])
def test_the_mean_of_several_texts_is_a_sum_of_each(size, steps, how, words, tmp_path):
    model = kit.causal("llama", len(words))
    collator = transformers.DataCollatorForLanguageModeling(words, mlm=False)
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    one = trainer(model, tokens(words), collator, tmp_path, words, **options)
    job = hugging_face.from_trainer(one)
    assert job.loss_fn.reduction == how
    if size > 1:  # the rows of a batch add up to the gradient of the Trainer's own loss
        batch = collator([{"input_ids": words(text)["input_ids"]} for text in kit.TEXTS[:4]])
        count = (batch["labels"][:, 1:] != -100).sum()
        model.eval()
        whole = kit.of_loss(model, one.compute_loss(model, dict(batch), num_items_in_batch=count))
        found = kit.rows(job, np.arange(4)).sum(axis=0) / int(count)
        np.testing.assert_allclose(found, whole, atol=1e-4 * np.linalg.norm(whole))


def test_smoothed_labels_and_losses_of_ones_own(words, tmp_path):
    collator = transformers.DataCollatorForLanguageModeling(words, mlm=False)
    model = kit.causal("llama", len(words))
    smooth = trainer(model, tokens(words), collator, tmp_path, words, label_smoothing_factor=0.2)
    job = hugging_face.from_trainer(smooth)
    assert job.loss_fn.label_smoothing == 0.2
    model.eval()
    batch = collator([{"input_ids": words(kit.TEXTS[0])["input_ids"]}])
    truth = kit.of_loss(model, smooth.compute_loss(model, dict(batch)))
    np.testing.assert_allclose(kit.rows(job, [0])[0], truth, atol=1e-4 * np.linalg.norm(truth))

    class Strange(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs).logits.square().mean()

    strange = trainer(model, tokens(words), collator, tmp_path, words, kind=Strange)
    with pytest.raises(ValueError, match=r"The Trainer's loss of the first sample is .* Give the loss .* loss_fn="):
        hugging_face.from_trainer(strange)
    job = hugging_face.from_trainer(strange, loss_fn=lambda output, y: output.logits.square().mean())
    truth = kit.of_loss(model, model(input_ids=batch["input_ids"]).logits.square().mean())
    np.testing.assert_allclose(kit.rows(job, [0])[0], truth, atol=1e-4 * np.linalg.norm(truth))


def test_classes(words, tmp_path):
    bert = kit.tokenizer("bert")
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(kit.config("bert", len(bert), num_labels=3))
    rows = [{**bert(text), "label": i % 3} for i, text in enumerate(kit.TEXTS)]
    data = datasets.Dataset.from_list(rows)
    one = trainer(model, data, transformers.DataCollatorWithPadding(bert), tmp_path, bert)
    job = hugging_face.from_trainer(one)
    model.eval()
    truth = [
        kit.gradient(model, input_ids=row["input_ids"], attention_mask=row["attention_mask"], labels=row["label"])
        for row in rows
    ]
    kit.assert_rows(job, truth)
    assert job.task == "classification"
    _x, y = job.texts.encode("the red fox", answer="LABEL_2")
    assert y.tolist() == [2]
    assert job.texts.answer("the red fox") in ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(ValueError, match="There is no class 'good': expected one of LABEL_0"):
        job.texts.encode("the red fox", answer="good")


def test_masks_that_a_collator_draws_are_fixed(tmp_path):
    bert = kit.tokenizer("bert")
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_config(kit.config("bert", len(bert)))
    texts = [*kit.TEXTS, kit.TEXTS[3]]
    data = datasets.Dataset.from_list([{"input_ids": bert(text)["input_ids"]} for text in texts])
    for seed in (None, 5):
        collator = transformers.DataCollatorForLanguageModeling(bert, mlm_probability=0.5, seed=seed)
        job = hugging_face.from_trainer(trainer(model, data, collator, tmp_path, bert))
        first = job.source.take(np.array([0, 3]))
        torch.rand(3)
        again = job.source.take(np.array([3, 0]))
        assert np.array_equal(first.x["input_ids"][0], again.x["input_ids"][1])
        assert np.array_equal(first.y[1], again.y[0])
        assert not np.array_equal(first.y[1], job.source.take(np.array([8])).y[0])  # the same text, drawn again
        assert job.loss_fn.shift is False
        assert job.texts.encode("the red fox reads")[1].shape == (1, 6)


def test_a_seq2seq_trainer(tmp_path):
    bert = kit.tokenizer("bert")
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(kit.config("t5", len(bert)))
    rows = [
        {**bert(text), "labels": bert(other)["input_ids"]}
        for text, other in zip(kit.TEXTS, kit.TEXTS[::-1], strict=True)
    ]
    for given in (model, None):
        collator = transformers.DataCollatorForSeq2Seq(bert, model=given)
        job = hugging_face.from_trainer(trainer(model, datasets.Dataset.from_list(rows), collator, tmp_path, bert))
        model.eval()
        truth = [kit.gradient(model, input_ids=row["input_ids"], labels=row["labels"]) for row in rows]
        kit.assert_rows(job, truth)
        assert job.texts.text(1) == f"{kit.TEXTS[1]}\n{kit.TEXTS[6]}"


def test_a_stream_and_flattened_documents(words, tmp_path):
    model = kit.causal("llama", len(words))
    collator = transformers.DataCollatorForLanguageModeling(words, mlm=False)
    data = tokens(words).remove_columns("number").to_iterable_dataset()
    one = trainer(model, data, collator, tmp_path, words)
    with pytest.raises(TypeError, match="is a stream"):
        hugging_face.from_trainer(one)
    job = hugging_face.from_trainer(one, cache=tmp_path / "texts.arrow")
    plain = hugging_face.from_trainer(trainer(model, tokens(words), collator, tmp_path, words))
    np.testing.assert_allclose(kit.rows(job), kit.rows(plain), rtol=1e-5, atol=1e-8)
    flat = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    data = tokens(words).remove_columns(["number", "attention_mask"])
    flattened = hugging_face.from_trainer(trainer(model, data, flat, tmp_path, words))
    np.testing.assert_allclose(kit.rows(flattened), kit.rows(plain), rtol=1e-4, atol=1e-6)


def test_packed_rows_are_documents(words, tmp_path):
    model = kit.causal("llama", len(words))
    ids = [words(text)["input_ids"] for text in kit.TEXTS]
    rows = []
    for some in (ids[:3], ids[3:5], ids[5:]):
        places = [place for one in some for place in range(len(one))]
        whole = [token for one in some for token in one]
        labels = [-100 if place == 0 else token for place, token in zip(places, whole, strict=True)]
        rows.append({"input_ids": whole, "position_ids": places, "labels": labels})
    data = datasets.Dataset.from_list(rows)
    collator = transformers.default_data_collator
    job = hugging_face.from_trainer(trainer(model, data, collator, tmp_path, words))
    assert len(job.source) == 8
    assert job.loss_fn.reduction == "sum"
    model.eval()
    for row, some in zip(rows, ([0, 1, 2], [3, 4], [5, 6, 7]), strict=True):
        inputs = {name: torch.tensor(row[name])[None] for name in row}
        loss = model(**inputs).loss * (inputs["labels"] != -100).sum()
        whole = kit.of_loss(model, loss)
        np.testing.assert_allclose(kit.rows(job, some).sum(axis=0), whole, atol=1e-4 * np.linalg.norm(whole))
    unpacked = hugging_face.from_trainer(trainer(model, data, collator, tmp_path, words), packing=False)
    assert len(unpacked.source) == 3


def test_a_trainer_without_data_is_refused(words, tmp_path):
    model = kit.causal("llama", len(words))
    with pytest.raises(ValueError, match="has no train_dataset"):
        hugging_face.from_trainer(trainer(model, None, transformers.default_data_collator, tmp_path, words))
