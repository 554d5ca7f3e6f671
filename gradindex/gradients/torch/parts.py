"""A batch in parts, one on each core: 1.25 to 1.5 times as fast as torch's own threads (`benchmarks/clever.py`).

Convolutions and large products scale to several threads; the many small steps of an embedding (an LSTM's, per-sample
products, sketches) do not. Parts of a batch, each computed by one thread, keep every core at work in all of them:
measured on two cores, ResNet-18 1.3 times as fast, a transformer and a BiLSTM 1.5 times.

Each part has a copy of the modules that shares the parameters, as ``DataParallel`` makes them, so that what a module
keeps in its attributes during a call does not reach the other parts.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gradindex.compiled.threads import use_one_thread
from gradindex.data.source import Tree, leaves, map_leaves
from gradindex.gradients.parameter import Floats
from gradindex.runtime.log import log

_Result = TypeVar("_Result")
LEAST = 8
"""Samples of a part: of fewer, large layers' products are slower in one thread each (ResNet-50, 4: 0.9 times)."""
_INTERRUPTIONS = 16  # about so many, of the pass that finds out whether parts can be computed at once


def split(samples: int, threads: int) -> list[slice]:
    """Return the parts of a batch: one for each thread, of `LEAST` samples or more."""
    count = max(1, min(threads, samples // LEAST))
    bounds = [samples * number // count for number in range(count + 1)]
    return [slice(begin, end) for begin, end in pairwise(bounds)]


def at_once(work: Callable[[int], _Result], parts: int, threads: int) -> list[_Result]:
    """Return `work` of each part's number, all at once; a share of `threads` each. All are done even if one raises."""
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def one(number: int) -> _Result:
        with torch.no_grad(), torch.autocast("cpu", dtype=autocast[1], enabled=autocast[0]):
            return work(number)

    pool = _pool(os.getpid(), parts, max(1, threads // parts), threads)
    found = [pool.submit(one, number) for number in range(parts)]
    wait(found)
    return [each.result() for each in found]


@cache
def _pool(process: int, workers: int, threads: int, before: int) -> ThreadPoolExecutor:
    """Return a pool of threads that compute with `threads` each.

    torch keeps the number for each thread, but hands the last one that was set on to threads that start later, at
    their first operation: so all start now, and the number `before` is set again.
    """
    started = threading.Barrier(workers + 1)

    def start() -> None:
        torch.get_num_threads()  # or the first operation would set the number anew
        torch.set_num_threads(threads)
        use_one_thread()
        started.wait()

    pool = ThreadPoolExecutor(workers, "gradindex-parts", start)
    for _ in range(workers):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(before)
    return pool


def replica(model: nn.Module) -> nn.Module:
    """Return a copy of a module and its submodules that shares parameters, buffers and what else they hold.

    Plain lists, dictionaries and sets in their attributes are copied, too.
    """
    copies: dict[int, Any] = {}
    for module in model.modules():
        copy = copies[id(module)] = module.__new__(type(module))
        copy.__dict__ = {name: _own(value) for name, value in module.__dict__.items()}
        copy._parameters, copy._buffers = module._parameters.copy(), module._buffers.copy()
    for module in model.modules():
        copies[id(module)]._modules = {
            name: None if child is None else copies[id(child)] for name, child in module._modules.items()
        }
    return copies[id(model)]


def _own(value: Tree) -> Tree:
    return value.copy() if type(value) in (dict, list, set) else value


def others(inputs: Tree) -> Tree | None:
    """Return other samples of the same shapes, for `is_undisturbed`; None if these are all alike."""
    found = map_leaves(lambda leaf: leaf.flip(0) * 0.5 if leaf.is_floating_point() else leaf.flip(0), inputs)
    same = all(torch.equal(one, other) for one, other in zip(leaves(inputs), leaves(found), strict=True))
    return None if same else found


def can_be_copied(model: nn.Module) -> bool:
    """Whether `replica` knows how: modules written in Python, whose attributes are in their ``__dict__``."""
    return not any(
        isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod") for module in model.modules()
    )


def is_undisturbed(gradients: Callable[[], Floats], interrupt: Callable[[], object]) -> bool:
    """Whether gradients stay the same when `interrupt` is called now and then between torch functions.

    It should call a copy of the model with other samples: what changes them meets outside the modules, such as in a
    dictionary that hooks share. Not so either if random numbers are drawn, whose order would be left to chance.
    """
    alone = _Interruptions()
    try:
        with alone:
            expected = gradients()
        if alone.random or not np.isfinite(expected).all():
            return False
        with _Interruptions(max(1, alone.calls // _INTERRUPTIONS), interrupt):
            found = gradients()
    except Exception as error:
        log.info("parts of a batch cannot be computed at once: %s", error)
        return False
    return np.allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max(initial=0))


class _Interruptions(TorchFunctionMode):
    """Calls `interrupt` between the torch functions of what runs within it, and notes whether they draw random numbers.

    Outside all other modes, so that what `interrupt` calls is not seen by them.
    """

    def __init__(self, every: int = 0, interrupt: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.calls, self.random = 0, False
        self._every, self._interrupt = every, interrupt

    def __torch_function__(
        self,
        func: Callable[..., Tree],
        types: Sequence[type],
        args: tuple[Tree, ...] = (),
        kwargs: dict[str, Tree] | None = None,
    ) -> Tree:
        """Call `func`, after an interruption every so many calls."""
        kwargs = kwargs or {}
        self.calls += 1
        if self._every and self.calls % self._every == 0:
            self._interrupt()
        state = torch.get_rng_state()
        result = func(*args, **kwargs)
        own = any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))
        self.random = self.random or own or not torch.equal(state, torch.get_rng_state())
        return result
