"""Transformers of Hugging Face, built from a configuration with random weights, by the factored path."""

from typing import Any

import numpy as np
import pytest
import torch

from gradindex.gradients.torch.engine import TorchEngine
from tests.gradients.test_torch_layers import assert_as_the_loop

transformers = pytest.importorskip("transformers")

TOKENS, LENGTH = 50, 7
SMALL: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 12,
}
GPT2 = {"vocab_size": TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12}
T5 = {"vocab_size": TOKENS, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
CLASSIFIERS = {
    "BERT": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
    "BERT, eager": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**SMALL, attn_implementation="eager")
    ),
    "T5": lambda: transformers.T5ForSequenceClassification(
        transformers.T5Config(**T5, eos_token_id=TOKENS - 1, decoder_start_token_id=0)
    ),
}
LANGUAGE_MODELS = {
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    ),
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    "Gemma 3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**SMALL, num_key_value_heads=1, head_dim=8, sliding_window=4, pad_token_id=0)
    ),
}


def texts(b: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(b)
    ids = rng.integers(1, TOKENS - 1, (b, LENGTH))
    ids[:, -1] = TOKENS - 1
    mask = (np.arange(LENGTH) >= rng.integers(0, 4, (b, 1))).astype(np.int64)  # padded on the left
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name):
    torch.manual_seed(0)
    engine = TorchEngine(CLASSIFIERS[name](), lambda out, y: torch.nn.functional.cross_entropy(out.logits, y))
    for b in (5, 1):
        assert_as_the_loop(engine, texts(b), np.arange(b) % 2)
    assert set(engine.paths.values()) == {"factored"}, engine.paths


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models(name):
    def next_token(out: Any, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())

    torch.manual_seed(0)
    engine = TorchEngine(LANGUAGE_MODELS[name](), next_token)
    for b in (5, 1):
        x = texts(b)
        assert_as_the_loop(engine, x, x["input_ids"])
    assert set(engine.paths.values()) == {"factored"}, engine.paths


def test_the_loss_that_a_language_model_takes_itself():
    torch.manual_seed(0)
    engine = TorchEngine(LANGUAGE_MODELS["Llama"](), lambda out, y: out.loss)
    x = texts(5)
    x["labels"] = np.where(x["attention_mask"] > 0, x["input_ids"], -100)  # so that samples have unlike lengths
    assert_as_the_loop(engine, x, x["input_ids"])
    assert set(engine.paths.values()) == {"factored"}, engine.paths


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_a_mask_is_no_number_to_branch_on(dtype):
    """Transformers ask whether a mask is full, and go on without it then: a choice that no sample's value makes."""
    torch.manual_seed(0)
    engine = TorchEngine(CLASSIFIERS["BERT"](), lambda out, y: torch.nn.functional.cross_entropy(out.logits, y))
    x = texts(5)
    x["attention_mask"] = x["attention_mask"].astype(dtype)
    assert_as_the_loop(engine, x, np.arange(5) % 2)
    assert {signal.name for signal in engine.signals} == {"reading"}
    assert set(engine.paths.values()) == {"factored"}, engine.paths
