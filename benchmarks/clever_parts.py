"""What `clever.py` takes out: each clever part of the package, and what stands in its place meanwhile."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from gradindex.compiled import filters, ghost_norms, outer_products, patches, threads
from gradindex.sketch import countsketch, tensor_sketch
from gradindex.store import shard

Changes = list[tuple[Any, str, Any]]  # (module or class, name, value)


@dataclass(frozen=True)
class Part:
    """A part, the modules it lies in, and what is changed to do without it (called once the frameworks are there)."""

    where: str
    twin: str
    changes: Callable[[str], Changes]
    threads: tuple[int, ...] = (1,)
    backends: tuple[str, ...] = ("torch", "keras")

    @contextlib.contextmanager
    def out(self, backend: str) -> Iterator[None]:
        """Do without it for a while."""
        with contextlib.ExitStack() as stack:
            for owner, name, value in self.changes(backend):
                stack.enter_context(mock.patch.object(owner, name, value))
            yield


class _Later(Future[Any]):
    """Work that is done when its result is wanted."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> Any:
        """Do it, the first time."""
        if not self.done():
            self.set_result(self._work())
        return super().result(timeout)


class InTurn(Executor):
    """In the place of a pool of threads: one piece of work after the other, in the thread that asks for it."""

    def __init__(self, workers: int = 1) -> None:
        self._given: list[_Later] = []

    def submit(self, work: Any, /, *args: Any, **keywords: Any) -> _Later:
        """Keep some work until its result is wanted."""
        self._given.append(_Later(lambda: work(*args, **keywords)))
        return self._given[-1]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do what nobody wanted a result of."""
        for one in self._given:
            one.result()


def outer(x: Any, d: Any, out: Any) -> None:
    """`outer_products.outer` by BLAS."""
    np.matmul(x.transpose(0, 2, 1), d, out=out)


def form(large: Any, small: Any, out: Any, at: Any) -> None:
    """`filters.form` by patches and BLAS."""
    cut = np.empty((len(large), at.positions, at.length), np.float32)
    patches.cut(large, cut, at)
    deltas = small.reshape(len(small), at.positions, -1)
    if at.groups == 1:
        np.matmul(cut.transpose(0, 2, 1), deltas, out=out)
        return
    grouped = cut.reshape(len(cut), at.positions, at.taps, at.groups, -1)
    products = np.einsum("ntkgc,ntgo->nkcgo", grouped, deltas.reshape(*deltas.shape[:2], at.groups, -1), optimize=True)
    out[...] = products.reshape(out.shape)


def squared(rows: Any, columns: Any) -> Any:
    """`ghost_norms.squared` by BLAS."""
    (first, scale), (second, other) = _gram(rows), _gram(columns)
    return np.maximum(np.einsum("ntu,ntu->n", first, second, dtype=np.float64), 0) * (scale * other) ** 2


def of_convolution(large: Any, small: Any, at: Any) -> Any:
    """`ghost_norms.of_convolution` by patches and BLAS."""
    cut = np.empty((len(large), at.positions, at.length), np.float32)
    patches.cut(large, cut, at)
    return squared(cut, small.reshape(len(small), at.positions, -1))


def _gram(vectors: Any) -> Any:
    largest = np.abs(vectors).max((1, 2), keepdims=True, initial=0)
    unit = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    return unit @ unit.transpose(0, 2, 1), largest[:, 0, 0].astype(np.float64)


def _without_registers(backend: str) -> Changes:
    if backend == "torch":  # has a way of its own, for larger kernels
        from gradindex.gradients.torch.rules import conv_channels_last

        return [(conv_channels_last, "_is_compiled", lambda *_: False)]
    found: Changes = [(outer_products, "outer", outer), (filters, "form", form)]
    return [*found, (ghost_norms, "squared", squared), (ghost_norms, "of_convolution", of_convolution)]


def _without_transform(backend: str) -> Changes:
    return [(tensor_sketch, "serves", lambda dim, samples: False)]


def _without_parts(backend: str) -> Changes:
    from gradindex.gradients.torch import parts

    return [(parts, "split", lambda samples, threads: [slice(0, samples)])]


PARTS = {
    "samples in lanes, TensorSketch": Part("sketch/tensor_sketch.py", "SciPy's transforms", _without_transform),
    "sums in registers": Part("compiled/outer_products.py", "patches and BLAS", _without_registers),
    "all emitted instructions": Part(
        "compiled/emit.py",
        "all of the above",
        lambda b: _without_transform(b) + _without_registers(b),
    ),
    "threads of compiled loops": Part(
        "compiled/threads.py", "one thread", lambda b: [(threads, "_WORTH_A_THREAD", 1 << 62)], (2,)
    ),
    "a batch in parts": Part("gradients/torch/parts.py", "torch's threads", _without_parts, (2,), ("torch",)),
    "threads of a shard": Part(
        "store/shard.py", "one after the other", lambda b: [(shard, "ThreadPoolExecutor", InTurn)], (2,)
    ),
    "vectors on the heap": Part(  # see `DIMS`
        "sketch/countsketch.py", "all at once", lambda b: [(countsketch, "_BLOCK_BYTES", 1 << 26)]
    ),
}
DIMS = {"vectors on the heap": 1000}  # numbers of the sketch: those that are no power of two are computed on the heap
READING = {"threads of a shard": PARTS["threads of a shard"]}
RELEASE = Part("store/shard.py", "nothing", lambda b: [(shard.Shard, "release", lambda self: None)])
