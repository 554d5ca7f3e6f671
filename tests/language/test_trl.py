"""From TRL's SFTTrainer; in the environment of .ci/optional."""

import pytest

pytest.importorskip("trl")
pytest.importorskip("peft")

import datasets
import numpy as np
import peft
import torch
import trl

from gradindex import hugging_face
from tests.language import kit
from tests.language.test_doors import CHATS

# What TRL and PEFT say of themselves, of packing without flash attention, and of a chat template without its marks.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:trl"),
]


@pytest.fixture(scope="module")
def words():
    return kit.tokenizer(chat_template=kit.CHATML)


def trained(words, tmp_path, data, adapters=None, **options):
    options = {"per_device_train_batch_size": 1, **options}
    args = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    model = kit.causal("llama", len(words))
    data = datasets.Dataset.from_list(data)
    found = trl.SFTTrainer(model, args=args, train_dataset=data, processing_class=words, peft_config=adapters)
    found.train()
    return found


def truth(trainer, ids):
    """The gradient of the Trainer's own loss of each row alone."""
    loader, model = trainer.get_train_dataloader(), trainer.model.eval()
    batches = (dict(loader.collate_fn([loader.dataset[i]])) for i in ids)
    return np.array([kit.of_loss(model, trainer.compute_loss(model, batch)) for batch in batches])


TEXTS = [{"text": text} for text in kit.TEXTS]
PAIRS = [{"prompt": "the red fox ", "completion": text} for text in kit.TEXTS]
CONVERSATIONS = [{"messages": chat} for chat in CHATS * 4]
LORA = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("data", "adapters", "options"),
    [(TEXTS, None, {}), (TEXTS, LORA, {}), (PAIRS, None, {}), (CONVERSATIONS, LORA, {})],
    ids=["texts", "LoRA", "completions", "conversations"],
)
def test_rows_are_those_of_the_trainers_loss(data, adapters, options, words, tmp_path):
    trainer = trained(words, tmp_path, data, adapters, **options)
    noted = {mode: {name: list(values) for name, values in each.items()} for mode, each in trainer._metrics.items()}
    job = hugging_face.from_trainer(trainer)
    assert {mode: dict(each) for mode, each in trainer._metrics.items()} == noted
    kit.assert_rows(job, list(truth(trainer, range(8))))
    assert kit.paths(job) == {"factored"}, job.engine.paths
    query = {"prompt": "a cat", "answer": "sings"} if data is CONVERSATIONS else {"text": kit.TEXTS[0]}
    x, y = job.texts.encode(**query)
    if data is TEXTS:
        first = job.source.take(np.array([0]))
        assert x["input_ids"][0].tolist() == first.x["input_ids"][0].tolist()  # with the end that TRL puts there
        assert y[0].tolist() == first.y[0].tolist()
    if data is CONVERSATIONS:
        assert x["input_ids"][0].tolist() == job.source.take(np.array([0])).x["input_ids"][0].tolist()


def test_several_texts_a_step_are_sums(words, tmp_path):
    trainer = trained(words, tmp_path, TEXTS, per_device_train_batch_size=4)
    job = hugging_face.from_trainer(trainer)
    counts = [len(ids) - 1 for ids in job.source.take(np.arange(8)).x["input_ids"]]
    kit.assert_rows(job, list(truth(trainer, range(8)) * np.array(counts)[:, None]))


def test_packed_rows_are_documents(words, tmp_path):
    trainer = trained(words, tmp_path, TEXTS, packing=True, max_length=24)
    job = hugging_face.from_trainer(trainer)
    assert len(trainer.train_dataset) < len(job.source) == 8
    alone = hugging_face.causal_lm(trainer.model.eval(), words, kit.TEXTS, add_eos=True, reduction="sum")
    order = [kit.TEXTS.index(job.texts.text(i)) for i in range(8)]
    kit.assert_rows(job, list(kit.rows(alone, order)))
    begin = 0
    for row, whole in zip(trainer.train_dataset, truth(trainer, range(len(trainer.train_dataset))), strict=True):
        ids = np.arange(begin, begin + len(row["seq_lengths"]))
        counted = sum(length - 1 for length in row["seq_lengths"])
        found = kit.rows(job, ids).sum(axis=0) / counted
        np.testing.assert_allclose(found, whole, atol=2e-4 * np.linalg.norm(whole))
        begin += len(ids)


def test_rows_that_were_wrapped_are_samples(words, tmp_path):
    trainer = trained(words, tmp_path, TEXTS, packing=True, max_length=24, packing_strategy="wrapped")
    with pytest.warns(UserWarning, match="rows have 24 tokens, which is where the Trainer cuts them"):
        job = hugging_face.from_trainer(trainer)
    assert len(job.source) == len(trainer.train_dataset)
    kit.assert_rows(job, list(truth(trainer, range(len(job.source)))))


def test_texts_without_padding_are_samples(words, tmp_path):
    trainer = trained(words, tmp_path, TEXTS, padding_free=True, max_length=None, per_device_train_batch_size=2)
    job = hugging_face.from_trainer(trainer, reduction="mean")
    kit.assert_rows(job, list(truth(trainer, range(8))))


def test_documents_that_see_each_other_are_refused(words, tmp_path, monkeypatch):
    trainer = trained(words, tmp_path, TEXTS, packing=True, max_length=24)
    with torch.no_grad():
        for value in trainer.model.parameters():
            value.mul_(10)  # so that attention decides more
    real = type(trainer.model.model).forward

    def forward(self, *args, position_ids=None, **kwargs):  # an attention that does not know of documents
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(trainer.model.model), "forward", forward)
    with pytest.raises(
        ValueError, match=r"of its \d documents alone .*: attention passes from one document to the next"
    ):
        hugging_face.from_trainer(trainer)
    assert len(hugging_face.from_trainer(trainer, packing=False).source) == len(trainer.train_dataset)
    assert torch.is_grad_enabled()
