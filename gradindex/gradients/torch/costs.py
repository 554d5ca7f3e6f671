"""Whether `vmap` pays: by what its pass and the loop's do, counted, so that a path does not depend on the clock.

`vmap` takes an LSTM apart into its time steps, and writes b gradients of a large layer to fresh memory, where the loop
writes one after another to the same. Of 13 models on a loaded machine, times of one batch differed by a factor of five
from run to run; counts do not.
"""

from collections.abc import Callable, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradindex.data.names import Tree
from gradindex.runtime.log import log

_OPERATION, _FRESH, _WARM = 10.0, 0.004, 0.002  # microseconds: a call; a number written to fresh and to warm memory
_BATCH = 32  # samples that share the calls of a batched pass
_MARGIN = 1.5  # estimates are as rough


def pays(batched: Callable[[], Tree], samples: int, single: Callable[[], Tree]) -> bool:
    """Whether a pass of many samples at once runs, and takes less time than one pass for each.

    Parameters
    ----------
    batched
        A pass of `samples` samples.
    samples
        How many.
    single
        A pass of one.
    """
    try:
        with _Counted() as together:
            batched()
    except Exception as error:  # what a model does that `vmap` does not know
        log.debug("vmap does not run: %s", error)
        return False
    with _Counted() as alone:
        single()
    at_once = together.calls * _OPERATION + together.numbers * _BATCH / samples * _FRESH
    in_turn = _BATCH * (alone.calls * _OPERATION + alone.numbers * _WARM)
    return bool(at_once <= _MARGIN * in_turn)


class _Counted(TorchDispatchMode):
    """Counts operations, and the numbers they write to memory that none of their arguments has."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.numbers = 0, 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Tree],
        types: Sequence[type],
        args: tuple[Tree, ...] = (),
        kwargs: dict[str, Tree] | None = None,
    ) -> Tree:
        """Call `func`, and count."""
        result = func(*args, **(kwargs or {}))
        given = set(map(_storage, tree_leaves((args, kwargs))))
        self.calls += 1
        self.numbers += sum(
            one.numel() for one in tree_leaves(result) if isinstance(one, torch.Tensor) and _storage(one) not in given
        )
        return result


def _storage(value: Tree) -> int:
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else 0
