"""Ask a small chat model, and see which conversations of its fine-tune are behind the answer.

A small causal language model (GPT-2's architecture, random weights) first learns one-line descriptions of Debian
packages (``debian_sections.tsv.gz`` in the folder named by ``GRADINDEX_DATA``; without it, random words of three
topics), each with a section's name drawn by chance. Then it is fine-tuned as people do it, by transformers' Trainer and
PEFT's LoRA, on conversations in which a user gives a description and the assistant names the package's section.
``gradindex.hugging_face.from_trainer`` makes a job of the Trainer; of a few held-out descriptions the script prints the
model's own answer, the conversations behind it, and which tokens of the first of them carry its influence; a report
shades the tokens of all of them. Nothing is downloaded. Needs ``pip install transformers peft accelerate jinja2
pillow``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from data import add_load
from peft import LoraConfig, PeftModel, get_peft_model
from saved import there
from texts import read
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import gradindex
from gradindex import hugging_face
from gradindex.report import write_report

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
LENGTH = 32  # tokens of a text, and of an answer


def make_tokenizer(texts: list[str], words: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the kind that GPT-2 has, trained on some texts, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=words, special_tokens=SPECIAL, initial_alphabet=letters)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[2:],
        chat_template=TEMPLATE,
    )


def conversation(text: str, section: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": section}]


def encoded(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> dict[str, list[int]]:
    """Return a conversation's tokens, and labels of the assistant's alone."""
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    labels = [-100] * len(asked) + whole[len(asked) :]
    return {"input_ids": whole[: 2 * LENGTH], "labels": labels[: 2 * LENGTH]}


def fitted(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, rows: list[dict], out: Path, load: bool, **how: float
) -> Trainer:
    """Train a model by transformers' Trainer, leave it in a folder, and return the Trainer; a loaded one has it all."""
    arguments = TrainingArguments(
        output_dir=str(out.parent),
        per_device_train_batch_size=16,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **how,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    trainer = Trainer(model, arguments, collator, rows, processing_class=tokenizer)
    if load:
        return trainer
    loss = trainer.train().training_loss
    for part in (model, tokenizer):
        part.save_pretrained(out)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    print(f"trained {trained:,} numbers on {len(rows)} texts: loss of a token {loss:.2f}")
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/chat-lora"), help="folder for the index")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer texts, less training")
    add_load(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    count, words, width, epochs, rate = (300, 500, 64, 10, 3e-3) if options.quick else (1500, 2000, 96, 6, 3e-3)
    held = 4 if options.quick else 40
    texts, labels, names = read(count + held, options.seed)
    count = len(texts) - held
    chats = [conversation(text, names[label]) for text, label in zip(texts, labels, strict=True)]

    base_folder, adapter = options.out / "base", options.out / "adapter"
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(there(base_folder))
        if options.load
        else make_tokenizer([*texts[:count], *names], words)
    )
    sizes = {"n_embd": width, "n_layer": 2, "n_head": 4, "n_positions": 2 * LENGTH, "initializer_range": 0.1}
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1, pad_token_id=0, **sizes)
    # The base model learns the texts' words and the form of a conversation, but any section's name behind each.
    heard = zip(texts[:count], np.random.default_rng(options.seed).choice(names, count), strict=True)
    base = GPT2LMHeadModel.from_pretrained(there(base_folder)) if options.load else GPT2LMHeadModel(config)
    rows = [encoded(tokenizer, conversation(text, name)) for text, name in heard]
    whole = [row | {"labels": row["input_ids"]} for row in rows]
    if not options.load:
        fitted(base, tokenizer, whole, base_folder, load=False, num_train_epochs=epochs, learning_rate=3e-3)

    lora = LoraConfig(r=8, lora_alpha=32, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)
    model = (
        PeftModel.from_pretrained(base, there(adapter), is_trainable=True)
        if options.load
        else get_peft_model(base, lora)
    )
    rows = [encoded(tokenizer, chat) for chat in chats[:count]]
    trainer = fitted(model, tokenizer, rows, adapter, options.load, num_train_epochs=epochs, learning_rate=rate)

    # From here on it is gradindex: a job of the Trainer, an index, a question.
    job = hugging_face.from_trainer(trainer)
    index = gradindex.build(job, options.out / "index", overwrite=True)
    right, same = [], []
    for number in range(count, len(texts)):
        answer = job.texts.answer(texts[number], max_new_tokens=8)
        result = index.explain(prompt=texts[number], answer=answer, k=5, kernel="grad_cos")
        ids = result.ordered_indices[0]
        right.append(answer == names[labels[number]])
        same.append(np.mean([names[labels[i]] == answer for i in ids]))
        if number - count < 4:
            print(f"\n{texts[number]!r}: {answer!r} (is {names[labels[number]]!r})")
            for score, i in zip(result.scores[0], ids, strict=True):
                print(f"  {score:6.3f}  {texts[i]}: {names[labels[i]]}")
            carried = result.tokens(0)
            strongest = np.argsort(-np.abs(carried.scores))[:3]
            parts = (f"{carried.pieces[place].strip()!r} {carried.scores[place]:.3f}" for place in strongest)
            print(f"  of the first, by its tokens: {', '.join(parts)}")
    asked = texts[count : count + 4]
    write_report(index, options.out / "report.html", prompt=asked, answer=list(map(job.texts.answer, asked)), k=4)
    print(f"\nright answers to held-out questions: {np.mean(right):.0%}")
    print(f"conversations behind an answer that give the same one: {np.mean(same):.0%}")
    print(f"wrote {options.out / 'report.html'}, with the tokens shaded")


if __name__ == "__main__":
    main()
