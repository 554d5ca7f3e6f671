"""What an engine has to know of a torch module, and how its inputs had better lie."""

import hashlib
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from gradindex.data.names import Leaf, Tree
from gradindex.gradients.parameter import Parameter
from gradindex.gradients.torch.state import kept

HALF = torch.bfloat16, torch.float16
MAKE_LEAVES = {torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__}

# functional_call and the modes of submodules change the module for a moment, attention switches are the process's:
# one thread at a time.
_one_at_a_time = threading.RLock()


def differentiable(model: nn.Module) -> nn.Module:
    """Return a model whose layers of 4-bit weights keep the form that gradients pass through.

    On processors with AVX-512 BF16, bitsandbytes (0.50) packs the weights of a ``Linear4bit`` for inference at the
    first forward pass in evaluation mode whose input needs no gradient. From then on gradients end there, without a
    word.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # which unpacks the weights in place
    return model


@contextmanager
def inference(
    model: nn.Module, device: torch.device, fused: bool = False, beside: Sequence[object] = ()
) -> Iterator[None]:
    """Inference mode for layers, gradients only where asked for, and everything put back afterwards.

    `fused`: with fused attention kernels, which are faster, but know neither vmap nor forward mode. `beside`: modules
    and objects whose state is put back, too, see `gradindex.gradients.torch.beside`.
    """
    with _one_at_a_time:
        modes = [(module, module.training) for module in model.modules()]
        scaled = [
            (module.weight, module.weight.detach().clone())
            for module, _ in modes
            if getattr(module, "max_norm", None) is not None  # embeddings that rescale what they look up
        ]
        fastpath = torch.backends.mha.get_fastpath_enabled()
        devices = [device] if device.type == "cuda" else []
        try:
            for module, _ in modes:
                module.training = False
            torch.backends.mha.set_fastpath_enabled(False)
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.random.fork_rng(devices),
                eagerly(),
                nullcontext() if fused else sdpa_kernel(SDPBackend.MATH),
                kept(model, beside),
            ):
                yield
        finally:
            for weight, original in scaled:
                weight.detach().copy_(original)
            torch.backends.mha.set_fastpath_enabled(fastpath)
            for module, mode in modes:
                module.training = mode


def with_derivatives(function: Callable[[], Tree]) -> Tree:
    """Return what `function` returns; with gradients switched on if it takes some itself, as forces of an energy."""
    if torch.is_grad_enabled():
        return function()
    try:
        return function()
    except RuntimeError as error:
        if "require grad" not in str(error):
            raise
        with torch.enable_grad():
            return function()


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Within it, what `torch.utils.checkpoint` would compute again in the backward pass is computed once and kept.

    The values are the same. What watches a forward pass could not tell the second call of a layer from the first.
    """
    with _one_at_a_time:
        before = {name: getattr(checkpoint, name) for name in _CHECKPOINTS}
        try:
            for name, simple in _CHECKPOINTS.items():
                setattr(checkpoint, name, simple)
            yield
        finally:
            for name, original in before.items():
                setattr(checkpoint, name, original)


class _Called:
    """In place of reentrant checkpointing's autograd function."""

    @staticmethod
    def apply(function: Callable[..., Tree], preserve_random_state: bool, *args: Tree) -> Tree:
        return function(*args)


def _watch_nothing(*args: Tree, **kwargs: Tree) -> Iterator[None]:
    """In place of the generator around a checkpointed call, which is entered once before and once after it."""
    yield


_CHECKPOINTS = {
    name: simple
    for name, simple in {
        "CheckpointFunction": _Called,
        "_checkpoint_without_reentrant_generator": _watch_nothing,
    }.items()
    if hasattr(checkpoint, name)
}


class Seen(TorchFunctionMode):
    """Notes of what runs within it whether it computes with half precision, as autocast does, and makes leaves."""

    half = makes_leaves = False

    def __torch_function__(
        self,
        func: Callable[..., Tree],
        types: Sequence[type],
        args: tuple[Tree, ...] = (),
        kwargs: dict[str, Tree] | None = None,
    ) -> Tree:
        """Call `func`, and look at what it returns."""
        result = func(*args, **kwargs or {})
        self.makes_leaves = self.makes_leaves or func in MAKE_LEAVES
        self.half = self.half or (isinstance(result, torch.Tensor) and result.dtype in HALF)
        return result


class NoLeaves(TorchFunctionMode):
    """Lets no output of a layer be made to need gradients, which `torch.func` forbids and has no need of."""

    def __torch_function__(
        self,
        func: Callable[..., Tree],
        types: Sequence[type],
        args: tuple[Tree, ...] = (),
        kwargs: dict[str, Tree] | None = None,
    ) -> Tree:
        """Call any other `func`."""
        return args[0] if func in MAKE_LEAVES else func(*args, **kwargs or {})


def devices() -> list[str]:
    """Return the names of the devices that torch sees."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] or ["cpu"]


def check_device(device: object) -> None:
    """Raise TypeError unless `device` is None or something that names a device."""
    if device is not None and not isinstance(device, str | int | torch.device):
        raise TypeError(f"`device` must be None, a string, an integer or a torch.device, got {type(device).__name__}.")


def eagerly() -> AbstractContextManager[object]:
    """Within it, compiled submodules and functions run as they were written: what they call has to be seen."""
    compiling = "torch._dynamo" in sys.modules  # importing it takes seconds
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


def has_inputs_first(model: nn.Module, name: str) -> bool:
    """Whether the weight is stored (in, out): transposed convolutions and Hugging Face's Conv1D."""
    kind = type(dict(model.named_modules(remove_duplicate=False))[name.rpartition(".")[0]]).__name__
    return name.endswith("weight") and (re.match(r"(Lazy)?ConvTranspose\dd$", kind) is not None or kind == "Conv1D")


def check_values(named: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError if parameters have no shape yet, or values that no gradient passes."""
    for name, value in named.items():
        if isinstance(value, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"The parameter {name!r} has no shape yet: call the model once with a sample of the dataset."
            )
        if value.is_inference():
            raise ValueError(
                f"The parameter {name!r} was made under torch.inference_mode(), where gradients end: make the model "
                "outside of it, or use torch.no_grad() there."
            )


def check_real(named: Mapping[str, torch.Tensor]) -> None:
    """Raise TypeError naming the complex ones of some parameters."""
    complex_ones = [name for name, value in named.items() if value.is_complex()]
    if complex_ones:
        raise TypeError(
            f"Expected real parameters, got complex ones: {', '.join(complex_ones)}. Select others by `parameters`."
        )


def state_hashes(model: nn.Module) -> dict[str, str]:
    """Return the sha256 of every parameter and buffer by name."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: hashlib.sha256(_bytes(value.detach())).hexdigest() for name, value in tensors.items()}


def _bytes(tensor: torch.Tensor) -> bytes:
    """Return the memory of a tensor, or of all that one of several is made of, as quantised weights are."""
    parts = getattr(tensor, "__tensor_flatten__", None)
    if parts is not None:
        return b"".join(_bytes(getattr(tensor, name)) for name in parts()[0])
    found: bytes = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return found


def channels_last(leaf: Leaf) -> Leaf:
    """Return images (b, C, height, width) with their channels last in memory, and anything else as it is."""
    if not isinstance(leaf, torch.Tensor) or leaf.dim() != 4 or not leaf.is_floating_point():
        return leaf
    _, channels, height, width = leaf.shape
    strides = (channels * height * width, 1, width * channels, channels)  # so that one channel counts as last, too
    return torch.empty_strided(leaf.shape, strides, dtype=leaf.dtype, device=leaf.device).copy_(leaf)


def describe(model: nn.Module, trainable: Sequence[str], chosen: Sequence[str]) -> tuple[Parameter, ...]:
    """Return what is to be known of the chosen parameters, of those that are trainable."""
    named = dict(model.named_parameters())
    return tuple(
        Parameter(
            name=name,
            position=trainable.index(name),
            shape=tuple(named[name].shape),
            dtype=str(named[name].dtype).removeprefix("torch."),
            outputs_first=not has_inputs_first(model, name),
        )
        for name in chosen
    )
