"""What has to be known of a language model: whether it is whole, what it takes, how long its texts may be."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Model

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_NO_LIMIT = 1 << 20  # a tokenizer that knows no limit says 10**30
_ADVICE = (
    "Save it whole (trainer.save_model, or model.save_pretrained with the state dict that accelerator.get_state_dict "
    "gathers), open it with from_pretrained in one process, and give that model."
)


class _Config(Protocol):
    """What is read of a model's configuration."""

    is_encoder_decoder: bool
    num_labels: int
    problem_type: str | None
    id2label: dict[int, str]


def whole(model: Model) -> "nn.Module":
    """Return the module itself, out of wrappers that change nothing.

    Raises
    ------
    ValueError
        If no process holds all of its parameters, or adapters were merged into them.
    """
    for wrapper in ("_orig_mod", "module"):
        names = {kind.__name__ for kind in type(model).__mro__}
        if wrapper == "_orig_mod" or names & {"DataParallel", "DistributedDataParallel"}:
            model = getattr(model, wrapper, model)
    if parts := _parts(model):
        raise ValueError(
            f"The model is in parts: {parts}. No process holds a gradient of all of it, so that there is no row to "
            f"store. {_ADVICE}"
        )
    if merged := [name for name, module in model.named_modules() if getattr(module, "merged", False) is True]:
        raise ValueError(
            f"The adapters of {merged[0]!r} and {len(merged) - 1} more modules are merged into the weights, so that "
            "their own have no gradient. Take them out (model.unmerge_adapter()); or give merge_and_unload()'s model "
            "with requires_grad_(True), whose gradients are those of the whole weights."
        )
    from gradindex.gradients.torch.model import differentiable

    return differentiable(model)


def _parts(model: "nn.Module") -> str:
    """Return what says that a model is sharded; nothing if it is whole."""
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
            return f"{name or type(module).__name__} is fully sharded (FSDP)"
        if kinds & {"DeepSpeedEngine", "PipelineModule", "PipelineStage"}:
            return f"{name or type(module).__name__} is a {type(module).__name__}"
    for name, value in model.named_parameters():
        if any(kind.__name__ == "DTensor" for kind in type(value.data).__mro__ + type(value).__mro__):
            return f"{name} is a DTensor, sharded over devices (FSDP 2 or tensor parallel)"
        if hasattr(value, "ds_id"):
            return f"{name} is held by DeepSpeed's ZeRO"
        if value.device.type == "meta":
            return f"{name} is on the meta device, offloaded to the host or a disk"
    if int(getattr(model, "_tp_size", 1) or 1) > 1:
        return f"its layers are split over {model._tp_size} devices (tensor parallel)"
    devices = {str(value.device) for value in model.parameters()}
    return f"its parameters are on {', '.join(sorted(devices))} (device_map)" if len(devices) > 1 else ""


def base(model: "nn.Module") -> "nn.Module":
    """Return the model within PEFT's wrapper, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) and hasattr(model, "peft_config") else model


def config_of(model: "nn.Module") -> _Config:
    """Return a model's configuration; raises TypeError if it has none."""
    found: _Config | None = getattr(base(model), "config", None)
    if found is None:
        raise TypeError(
            f"{type(model).__name__} has no `config`: expected a model of transformers, or one in PEFT's wrapper. "
            "For any other torch module, make a gradindex.Job of it, its loss and encoded texts."
        )
    return found


def arguments(model: "nn.Module") -> frozenset[str]:
    """Return the names of what a model's ``forward`` takes, that of the model within PEFT's wrapper, too."""
    return frozenset(inspect.signature(base(model).forward).parameters)


def longest(model: "nn.Module", tokenizer: "PreTrainedTokenizerBase | None", wanted: int | None) -> int | None:
    """Return the most tokens of a text: `wanted`, but no more than the model has positions for; None for no limit."""
    config = config_of(model)
    text_config = getattr(config, "get_text_config", lambda: config)()
    limits = [wanted, getattr(text_config, "max_position_embeddings", None), getattr(text_config, "n_positions", None)]
    if getattr(text_config, "model_type", "") in ("t5", "mt5", "umt5"):
        limits = [wanted]  # relative positions, of any number
    limits.append(getattr(tokenizer, "model_max_length", None))
    found = [int(limit) for limit in limits if limit is not None and 0 < limit < _NO_LIMIT]
    virtual = max((getattr(one, "num_virtual_tokens", 0) or 0 for one in _adapters(model)), default=0)
    return min(found) - virtual if found else None


def _adapters(model: "nn.Module") -> Iterator[object]:
    adapters = getattr(model, "peft_config", None)
    yield from adapters.values() if isinstance(adapters, dict) else ()


@dataclass(frozen=True)
class Shifted:
    """Makes a decoder's inputs of labels, as its model does.

    Parameters
    ----------
    model
        A model that reads one text and writes another.
    """

    model: "nn.Module"

    def __call__(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return inputs (t,) for labels (t,)."""
        import torch

        make = getattr(base(self.model), "prepare_decoder_input_ids_from_labels", None)
        if make is None:
            raise TypeError(
                f"{type(base(self.model)).__name__} does not say how its decoder's inputs are made of labels: give "
                "samples with decoder_input_ids, by from_trainer and a collator that adds them."
            )
        found: NDArray[np.int32] = (
            make(labels=torch.from_numpy(labels.astype(np.int64))[None])[0].numpy().astype(np.int32)
        )
        return found
