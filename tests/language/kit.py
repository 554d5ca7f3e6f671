"""Small language models with random weights, a tokenizer made on the spot, and the plain loop that tells the truth."""

from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gradindex.job import Job

TEXTS = [
    "the red fox reads a book",
    "a small cat sings",
    "the blue whale writes a long letter to the fox",
    "a fox and a cat play chess in the rain",
    "whales sing",
    "the cat reads the letter",
    "a long red book of songs",
    "the rain sings to the whale and the cat",
]
CHATML = (
    "{% for m in messages %}<|start|>{{ m['role'] }} {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant {% endif %}"
)
SPECIAL = ["<pad>", "<eos>", "<unk>", "<mask>", "<cls>", "<sep>", "<|start|>", "<|end|>"]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
}


def tokenizer(kind: str = "words", **options: Any) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of words, of bytes ("bytes", as GPT-2's), or of words between two marks ("bert")."""
    found = Tokenizer(models.BPE() if kind == "bytes" else models.WordLevel(unk_token="<unk>"))
    more = ["user", "assistant", "system", "yes", "no", "B", "C", "0", "1"]
    if kind == "bytes":
        found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    else:
        found.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    found.train_from_iterator([*TEXTS, " ".join(more)], trainer)
    if kind == "bert":
        marks = [(name, found.token_to_id(name)) for name in ("<cls>", "<sep>")]
        found.post_processor = processors.TemplateProcessing(
            single="<cls> $A <sep>", pair="<cls> $A <sep> $B:1 <sep>:1", special_tokens=marks
        )
        options = {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>", **options}
        options["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        **options,
    )


def config(kind: str, words: int, **options: Any) -> Any:
    common = {"vocab_size": words, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    if kind == "gpt2":
        return transformers.GPT2Config(**common, n_embd=16, n_layer=2, n_head=2, n_positions=64, **options)
    if kind == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
        return transformers.T5Config(**common, **sizes, decoder_start_token_id=0, **options)
    makers = {
        "llama": transformers.LlamaConfig,
        "gemma": transformers.Gemma3TextConfig,
        "qwen": transformers.Qwen3Config,
        "mistral": transformers.MistralConfig,
        "mixtral": transformers.MixtralConfig,
        "qwen-moe": transformers.Qwen3MoeConfig,
        "bert": transformers.BertConfig,
    }
    own: dict[str, Any] = {
        "gemma": {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4},
        "qwen": {"num_key_value_heads": 1, "head_dim": 8},
        "mistral": {"num_key_value_heads": 1, "sliding_window": 4},
        "mixtral": {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2},
        "qwen-moe": {
            "num_key_value_heads": 1,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
        },
    }.get(kind, {})
    return makers[kind](**common, **SMALL, **{**own, **options})


def causal(kind: str, words: int, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config(kind, words, **options))


def gradient(model: Any, **inputs: Any) -> np.ndarray:
    """The gradient (P,) of the model's own loss of one sample by ``.backward()``, in the order of its parameters."""
    return of_loss(model, model(**{name: torch.as_tensor(value)[None] for name, value in inputs.items()}).loss)


def of_loss(model: Any, loss: torch.Tensor) -> np.ndarray:
    model.zero_grad()
    loss.backward()
    found = [
        (torch.zeros_like(one) if one.grad is None else one.grad).float().flatten()
        for one in model.parameters()
        if one.requires_grad
    ]
    model.zero_grad()
    return torch.cat(found).numpy()


def rows(job: Job, ids: Any = None) -> np.ndarray:
    """The gradients (n, P) that the job's engine makes by its own paths."""
    batch = job.source.take(np.arange(len(job.source)) if ids is None else np.asarray(ids))
    return job.engine.gradients(batch.x, batch.y).gradients


def assert_rows(job: Job, truth: list[np.ndarray], tolerance: float = 2e-4) -> None:
    found = rows(job)
    assert found.shape == np.shape(truth)
    lengths = np.linalg.norm(truth, axis=1)
    assert (lengths > 0).all()
    assert (np.linalg.norm(found - np.array(truth), axis=1) <= tolerance * lengths).all()


def paths(job: Job) -> set[str]:
    return set(job.engine.paths.values())


def save(folder: str) -> None:
    """Put a small chat model and its tokenizer where ``from_pretrained`` finds them."""
    words = tokenizer(chat_template=CHATML)
    causal("llama", len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
