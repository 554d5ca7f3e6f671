"""A quantised base under float adapters, on a CPU; in the environment of .ci/optional."""

import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")

import peft
import torch

from gradindex import hugging_face
from gradindex.gradients.torch.model import differentiable
from tests.language import kit
from tests.language.test_peft import pytestmark as pytestmark
from tests.language.test_peft import stir, truth


@pytest.mark.filterwarnings("ignore")
def test_weights_that_were_packed_for_inference_have_gradients_again():
    """On a processor without AVX-512 BF16, nothing is packed, and there is nothing to test."""
    quantised = pytest.importorskip("bitsandbytes").nn
    torch.manual_seed(0)
    layer = quantised.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(64, 64)})
    x = torch.randn(3, 64)
    plain = layer.to("cpu").train()(x)
    layer.eval()(x)
    if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this processor has no packed form")
    differentiable(torch.nn.Sequential(layer))
    asked = x.requires_grad_()
    out = layer(asked)
    torch.testing.assert_close(out, plain, rtol=1e-2, atol=1e-2)
    out.sum().backward()
    assert asked.grad.abs().sum() > 0
    with torch.no_grad():
        layer(x)
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


def assert_adapters_rows(base, words):
    base.requires_grad_(False)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = stir(peft.get_peft_model(base, config))
    job = hugging_face.causal_lm(model, words, kit.TEXTS)
    kit.assert_rows(job, truth(model, words), 1e-3)
    assert kit.paths(job) == {"factored"}, job.engine.paths
    assert all("lora" in one.name for one in job.engine.parameters)
    before = job.engine.state_hashes()
    return job, before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(bits):
    quantised = pytest.importorskip("bitsandbytes").nn
    words = kit.tokenizer()
    config = kit.config("llama", len(words))
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 64, 32  # blocks of 64
    torch.manual_seed(0)
    base = kit.transformers.AutoModelForCausalLM.from_config(config)
    for name, layer in list(base.named_modules()):
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            sizes = layer.in_features, layer.out_features
            if bits == 4:
                found = quantised.Linear4bit(*sizes, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            else:
                found = quantised.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
            found.load_state_dict({"weight": layer.weight.data})
            base.set_submodule(name, found.to("cpu").requires_grad_(False))
    with torch.no_grad():
        base(input_ids=torch.tensor([[3, 4, 5]]))
    assert not base.model.layers[0].self_attn.q_proj.weight.is_floating_point()
    assert_adapters_rows(base, words)


@pytest.mark.filterwarnings("ignore")
def test_torchao():
    quantization = pytest.importorskip("torchao").quantization
    words = kit.tokenizer()
    base = kit.causal("llama", len(words))
    quantization.quantize_(
        base,
        quantization.Int8WeightOnlyConfig(),
        filter_fn=lambda layer, name: isinstance(layer, torch.nn.Linear) and "lm_head" not in name,
    )
    job, before = assert_adapters_rows(base, words)
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    weight = dict(job.model.named_parameters())[name]
    weight.data.qdata[0, 0] += 1
    assert {one for one, value in job.engine.state_hashes().items() if value != before[one]} == {name}
