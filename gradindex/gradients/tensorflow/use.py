"""What one use of a parameter leaves behind, once the graph has run: factors of the per-sample gradient.

A weight seen as a matrix (rows × columns, in memory order) has the per-sample gradient Σ_t r_t c_tᵀ over T
positions. A `Use` can `form` that sum for a few samples at a time, and most can also hand out the factors.
Tensors here are eager, outside any graph, and read as arrays that share their memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import DTypeLike, NDArray

from gradindex.compiled import filters, ghost_norms, outer_products, patches
from gradindex.compiled.squares import squares
from gradindex.gradients.parameter import Floats

_CONTRACT = 0.02  # nanoseconds for a multiply-add of an einsum


class Scratch:
    """Memory for what is formed block after block: fresh pages cost as much as the work on them."""

    def __init__(self) -> None:
        self._memory: dict[Any, NDArray[Any]] = {}

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> Floats:
        """Return an array (n, …) to be filled; it is the memory that was taken before."""
        size, kind = int(np.prod(shape)), np.dtype(dtype)
        if kind not in self._memory or len(self._memory[kind]) < size:
            self._memory[kind] = np.empty(size, kind)
        return self._memory[kind][:size].reshape(shape)


class Use(ABC):
    """One use of one parameter by a batch of b samples."""

    positions: int | None = None
    """T, if the gradient has factors; else None."""
    form_cost: float = 0.0
    """Nanoseconds, about, to form one sample's gradient."""
    bytes_per_sample: int = 0
    """Working memory of `factors` for a sample."""

    @abstractmethod
    def form(self, block: slice, scratch: Scratch) -> Floats:
        """Return the per-sample gradients (block, size) of these samples; not to be changed."""

    def factors(self, block: slice, scratch: Scratch) -> tuple[NDArray[Any], Floats]:
        """Return row factors (block, T, rows), or (block, T) of row numbers, and column factors."""
        raise NotImplementedError

    def along(self, matrix: Floats, block: slice, scratch: Scratch) -> NDArray[np.float64]:
        """Return ⟨Σ_t r_t c_tᵀ, matrix⟩ (block,) from the factors, for a matrix (R, C)."""
        rows, columns = self.factors(block, scratch)
        found: NDArray[np.float64] = np.einsum(
            "btc,btc->b", matrix[rows] if rows.ndim == 2 else rows @ matrix, columns, dtype=np.float64
        )
        return found

    def ghost_cost(self) -> float:
        """Return about how many nanoseconds one sample's squared norm takes from the factors."""
        return np.inf

    def ghost(self, block: slice) -> NDArray[np.float64] | None:
        """Return squared norms (block,) in a way of this use's own, if there is one."""
        return None


class Direct(Use):
    """A small gradient, formed inside the graph: (b, size)."""

    def __init__(self, gradients: tf.Tensor) -> None:
        self._gradients = array(gradients)

    def form(self, block: slice, scratch: Scratch) -> Floats:
        """Return the per-sample gradients (block, size)."""
        return self._gradients[block]


class Constant(Use):
    """A gradient (size,) that all samples have alike."""

    def __init__(self, gradient: Floats) -> None:
        self.gradient = gradient

    def form(self, block: slice, scratch: Scratch) -> Floats:
        """Return the per-sample gradients (block, size)."""
        return np.tile(self.gradient, (block.stop - block.start, 1))


class Outer(Use):
    """Dense factors: rows (b, T, R) and columns (b, T, C)."""

    def __init__(self, rows: tf.Tensor, columns: tf.Tensor) -> None:
        self.rows, self.columns = array(upcast(rows)), array(upcast(columns))
        _, self.positions, self.height = self.rows.shape
        self.width = self.columns.shape[2]
        self.form_cost = outer_products.cost(self.positions, self.height, self.width)

    def form(self, block: slice, scratch: Scratch) -> Floats:
        """Return the per-sample gradients (block, R·C)."""
        rows, columns = self.factors(block, scratch)
        out = scratch.take((len(rows), self.height, self.width), rows.dtype)
        if rows.dtype == np.float32:
            outer_products.outer(rows, columns, out)
        else:
            np.matmul(rows.transpose(0, 2, 1), columns, out=out)
        return out.reshape(len(out), -1)

    def factors(self, block: slice, scratch: Scratch) -> tuple[NDArray[Any], Floats]:
        """Return rows (block, T, R) and columns (block, T, C)."""
        return self.rows[block], self.columns[block]

    def ghost_cost(self) -> float:
        """Return the cost of two Gram matrices."""
        return ghost_norms.cost(self.positions or 0, self.height, self.width)

    def ghost(self, block: slice) -> NDArray[np.float64] | None:
        """Return squared norms from two Gram matrices, or two norms."""
        rows, columns = self.rows[block], self.columns[block]
        if self.positions == 1:
            return squares(flat(rows)) * squares(flat(columns))
        return ghost_norms.squared(rows, columns) if rows.dtype == np.float32 else None


class Contraction(Use):
    """An einsum of two tensors that start with the samples; no factors."""

    def __init__(self, left: tf.Tensor, right: tf.Tensor, equation: str) -> None:
        self._left, self._right, self._equation = upcast(left), upcast(right), equation
        self.form_cost = float(np.prod(left.shape[1:])) * right.shape[-1] * 10 * _CONTRACT

    def form(self, block: slice, scratch: Scratch) -> Floats:
        """Return the per-sample gradients (block, size)."""
        return flat(tf.einsum(self._equation, self._left[block], self._right[block]))


class Touched(Use):
    """Rows of an embedding: numbers (b, T) of the touched rows, and their gradients (b, T, C)."""

    def __init__(self, numbers: tf.Tensor, columns: tf.Tensor, rows: int) -> None:
        self._numbers, self._columns, self._rows = array(numbers), array(upcast(columns)), rows
        self.positions, width = columns.shape[1:]
        self.form_cost = (self.positions + rows * 0.2) * width

    def form(self, block: slice, scratch: Scratch) -> Floats:
        """Return the per-sample gradients (block, rows·C), mostly zeros."""
        numbers, columns = self.factors(block, scratch)
        out = scratch.take((len(numbers), self._rows, columns.shape[2]), columns.dtype)
        out[:] = 0
        np.add.at(out, (np.arange(len(out))[:, None], numbers), columns)
        return out.reshape(len(out), -1)

    def factors(self, block: slice, scratch: Scratch) -> tuple[NDArray[Any], Floats]:
        """Return row numbers (block, T) and columns (block, T, C)."""
        return self._numbers[block], self._columns[block]

    def ghost_cost(self) -> float:
        """Return the cost of the columns' Gram matrix."""
        return ghost_norms.cost(self.positions or 0, 1, self._columns.shape[2])


class Patches(Use):
    """A convolution: `large` (b, *space, C) is cut into patches, one for each position of `small` (b, …, R).

    Rows are patches (kernel, then channel), columns are `small`, each group of channels with its own. Patches are
    cut only for a sketch from factors, and for what is not in single precision.
    """

    def __init__(self, large: tf.Tensor, small: tf.Tensor, **geometry: Any) -> None:
        self._at = patches.geometry(large.shape, small.shape, **geometry)
        self._large, self._small = array(upcast(large)), array(upcast(small))
        self._depthwise = geometry.get("depthwise", False)
        at, outputs = self._at, small.shape[-1]
        self.positions = at.positions if at.groups == 1 else None
        self.form_cost = outer_products.cost(at.positions, at.length // at.groups, outputs)
        self.bytes_per_sample = 4 * at.positions * at.length

    def form(self, block: slice, scratch: Scratch) -> Floats:
        """Return the per-sample gradients (block, kernel·C·R)."""
        large, small = self._large[block], self._small[block]
        if self._depthwise:
            return patches.depthwise(large, small, self._at)
        if large.dtype == np.float32:
            out = scratch.take((len(large), self._at.length // self._at.groups, small.shape[-1]), np.float32)
            filters.form(large, small, out, self._at)
            return out.reshape(len(out), -1)
        cut, flat_small = self.factors(block, Scratch())
        grouped = cut.reshape(len(cut), self._at.positions, self._at.taps, self._at.groups, -1)
        other = flat_small.reshape(len(small), self._at.positions, self._at.groups, -1)
        return flat(np.einsum("ntkgc,ntgo->nkcgo", grouped, other, optimize=True))

    def factors(self, block: slice, scratch: Scratch) -> tuple[NDArray[Any], Floats]:
        """Return patches (block, T, kernel·C), valid until the next call, and `small` (block, T, R)."""
        large, small = self._large[block], self._small[block]
        out = scratch.take((len(large), self._at.positions, self._at.length), large.dtype)
        patches.cut(large, out, self._at)
        return out, small.reshape(len(small), self._at.positions, -1)

    def ghost_cost(self) -> float:
        """Return the cost of the Gram matrices of pixels, from which that of patches is added up, and of `small`."""
        return ghost_norms.convolution_cost(self._at, self._small.shape[-1])

    def ghost(self, block: slice) -> NDArray[np.float64] | None:
        """Return squared norms from the Gram matrices of pixels and of `small`."""
        large, small = self._large[block], self._small[block]
        return ghost_norms.of_convolution(large, small, self._at) if large.dtype == np.float32 else None


def array(tensor: tf.Tensor) -> Floats:
    """Return the values of an eager tensor, not copied, not to be changed."""
    return np.asarray(tensor)


def flat(tensor: tf.Tensor) -> Floats:
    """Return the values of an eager tensor as (b, size)."""
    values = array(tensor)
    return values.reshape(len(values), -1)


def upcast(tensor: tf.Tensor) -> tf.Tensor:
    """Return half precision as float32, anything else as it is."""
    return tf.cast(tensor, tf.float32) if tensor.dtype in (tf.bfloat16, tf.float16) else tensor


def squared_norms(uses: Sequence[Use], block: slice) -> NDArray[np.float64]:
    """Return ‖Σ_t r_t c_tᵀ‖² (b,) from factors alone: Σ_{t,u} ⟨r_t, r_u⟩⟨c_t, c_u⟩.

    The ghost norm of Li et al. (2022), https://arxiv.org/abs/2110.05679, for any mix of dense factors and
    embeddings (whose r_t are one-hot), so that tied weights and layers called twice need no formed gradient.
    """
    own = uses[0].ghost(block) if len(uses) == 1 else None
    if own is not None:
        return own
    parts = [use.factors(block, Scratch()) for use in uses]
    total = np.zeros(len(parts[0][1]), np.float64)
    for i, (rows, columns) in enumerate(parts):
        total += _overlap(rows, columns, rows, columns)
        for other_rows, other_columns in parts[i + 1 :]:
            total += 2 * _overlap(rows, columns, other_rows, other_columns)
    return np.maximum(total, 0)


def _overlap(
    rows: tf.Tensor, columns: tf.Tensor, other_rows: tf.Tensor, other_columns: tf.Tensor
) -> NDArray[np.float64]:
    sizes = np.ones(len(columns))
    factors = []
    for values in (rows, columns, other_rows, other_columns):
        if len(values.shape) == 3 and values.shape[1] * values.shape[2]:  # products of small ones would vanish
            largest = tf.reduce_max(tf.abs(values), [1, 2], keepdims=True)
            largest = tf.where(largest > 0, largest, tf.ones_like(largest))
            sizes *= array(largest)[:, 0, 0]
            values = values / largest
        factors.append(values)
    return sizes * _scaled_overlap(*factors)


def _scaled_overlap(
    rows: tf.Tensor, columns: tf.Tensor, other_rows: tf.Tensor, other_columns: tf.Tensor
) -> NDArray[np.float64]:
    inner = tf.matmul(columns, other_columns, transpose_b=True)
    dense, other_dense = len(rows.shape) == 3, len(other_rows.shape) == 3
    if dense and other_dense:
        inner *= tf.matmul(rows, other_rows, transpose_b=True)
    elif dense:
        inner *= tf.transpose(tf.gather(tf.transpose(rows, [0, 2, 1]), other_rows, batch_dims=1), [0, 2, 1])
    elif other_dense:
        inner *= tf.gather(tf.transpose(other_rows, [0, 2, 1]), rows, batch_dims=1)
    else:
        inner *= tf.cast(tf.cast(rows, tf.int64)[:, :, None] == tf.cast(other_rows, tf.int64)[:, None], inner.dtype)
    return np.asarray(tf.reduce_sum(tf.cast(inner, tf.float64), [1, 2]), np.float64)
