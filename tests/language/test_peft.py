"""Adapters: PEFT's kinds, merged and taken out again, one of several; rows are those of plain training steps."""

import pytest

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from gradindex import hugging_face  # noqa: E402
from tests.language import kit  # noqa: E402

# What peft calls, and says while a model with virtual tokens generates.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{one}")
    for one in ("`is_gradient_checkpointing` is deprecated", "`past_key_values` is deprecated", "Position ids are not")
]

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
KINDS = {
    "LoRA": lambda: peft.LoraConfig(**LORA, task_type="CAUSAL_LM"),
    "LoRA, rank-stabilised": lambda: peft.LoraConfig(**LORA, use_rslora=True, task_type="CAUSAL_LM"),
    "DoRA": lambda: peft.LoraConfig(**LORA, use_dora=True, task_type="CAUSAL_LM"),
    "LoRA and whole modules": lambda: peft.LoraConfig(**LORA, modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    "IA3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def words():
    return kit.tokenizer()


def stir(model):
    """Give adapters that begin at zero other numbers, so that no gradient vanishes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.eval()


def truth(model, words):
    encoded = (words(text)["input_ids"] for text in kit.TEXTS)
    return [kit.gradient(model, input_ids=ids, attention_mask=[1] * len(ids), labels=ids) for ids in encoded]


@pytest.mark.parametrize("kind", KINDS)
def test_adapters(kind, words):
    model = stir(peft.get_peft_model(kit.causal("llama", len(words)), KINDS[kind]()))
    job = hugging_face.causal_lm(model, words, kit.TEXTS)
    trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert job.engine.size == trainable
    kit.assert_rows(job, truth(model, words))
    assert kit.paths(job) == {"factored"}, job.engine.paths


def test_gpt2s_transposed_layers_and_checkpoints(words):
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = stir(peft.get_peft_model(kit.causal("gpt2", len(words)), config))
    wanted = truth(model, words)
    model.base_model.model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    job = hugging_face.causal_lm(model, words, kit.TEXTS)
    kit.assert_rows(job, wanted)
    assert kit.paths(job) == {"factored"}, job.engine.paths


def test_merged_adapters_are_refused_until_they_are_taken_out(words):
    model = stir(peft.get_peft_model(kit.causal("llama", len(words)), KINDS["LoRA"]()))
    wanted = truth(model, words)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"are merged into the weights.*Take them out \(model.unmerge_adapter"):
        hugging_face.causal_lm(model, words, kit.TEXTS)
    model.unmerge_adapter()
    kit.assert_rows(hugging_face.causal_lm(model, words, kit.TEXTS), wanted, 1e-3)
    whole = model.merge_and_unload().requires_grad_(True)
    job = hugging_face.causal_lm(whole, words, kit.TEXTS)
    kit.assert_rows(job, truth(whole, words))


def test_one_of_several_adapters(words):
    model = peft.get_peft_model(kit.causal("llama", len(words)), KINDS["LoRA"](), adapter_name="first")
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    stir(model)
    model.set_adapter("second")
    stir(model)
    job = hugging_face.causal_lm(model, words, kit.TEXTS)
    assert all(".second." in one.name for one in job.engine.parameters)
    kit.assert_rows(job, truth(model, words))
    model.set_adapter("first")
    job = hugging_face.causal_lm(model, words, kit.TEXTS)
    assert all(".first." in one.name for one in job.engine.parameters)
    kit.assert_rows(job, truth(model, words))


def test_half_precision_under_float_adapters(words):
    base = kit.causal("llama", len(words)).to(torch.bfloat16)
    model = stir(peft.get_peft_model(base, KINDS["LoRA"](), autocast_adapter_dtype=True))
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    job = hugging_face.causal_lm(model, words, kit.TEXTS)
    found, wanted = kit.rows(job), np.array(truth(model, words))
    cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert (cosines > 0.999).all()
    assert kit.paths(job) == {"factored"}, job.engine.paths


def test_answers_of_a_model_with_virtual_tokens(words):
    model = stir(peft.get_peft_model(kit.causal("llama", len(words)), KINDS["prompt tuning"]()))
    job = hugging_face.causal_lm(model, words, kit.TEXTS)
    assert len(job.texts.answer("the red fox", max_new_tokens=4).split()) <= 4
    with pytest.warns(UserWarning, match="were cut at 61 tokens"):  # 64 positions, 3 of them virtual
        hugging_face.causal_lm(model, words, [*kit.TEXTS, "fox " * 62])
