"""What one use of a parameter leaves behind, once the graph has run: factors of the per-sample gradient.

A weight seen as a matrix (rows × columns, in memory order) has the per-sample gradient Σ_t r_t c_tᵀ over T
positions. A `Use` can `form` that sum for a few samples at a time, and most can also hand out the factors.
Tensors here are eager, outside any graph.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradindex.gradients.layers import patches
from gradindex.sketch.scatter import squares

_MULTIPLY, _COPY = 0.02, 0.3  # nanoseconds for a multiply-add of a batched product, and for a number copied


class Use(ABC):
    """One use of one parameter by a batch of b samples."""

    positions: int | None = None
    """T, if the gradient has factors; else None."""
    form_cost: float = 0.0
    """Nanoseconds, about, to form one sample's gradient."""
    bytes_per_sample: int = 0
    """Working memory of `form` and `factors` for a sample, beyond the gradient."""

    @abstractmethod
    def form(self, block: slice) -> NDArray[Any]:
        """Return the per-sample gradients (block, size) of these samples; not to be changed."""

    def factors(self, block: slice) -> tuple[Any, Any]:
        """Return row factors (block, T, rows), or (block, T) of row numbers, and column factors."""
        raise NotImplementedError


class Direct(Use):
    """A small gradient, formed inside the graph: (b, size)."""

    def __init__(self, gradients: Any) -> None:
        self._gradients = array(gradients)

    def form(self, block: slice) -> NDArray[Any]:
        """Return the per-sample gradients (block, size)."""
        return self._gradients[block]


class Outer(Use):
    """Dense factors: rows (b, T, R) and columns (b, T, C)."""

    def __init__(self, rows: Any, columns: Any) -> None:
        self.rows, self.columns = Samples(rows), Samples(columns)
        self.width = columns.shape[2]
        _, self.positions, width = rows.shape
        self.form_cost = self.positions * (width * columns.shape[2] * _MULTIPLY + width * _COPY)
        self.bytes_per_sample = 4 * self.positions * width if self.positions > 1 else 0

    def form(self, block: slice) -> NDArray[Any]:
        """Return the per-sample gradients (block, R·C)."""
        rows, columns = self.factors(block)
        return flat(tf.matmul(rows, columns, transpose_a=True))

    def factors(self, block: slice) -> tuple[Any, Any]:
        """Return rows (block, T, R) and columns (block, T, C)."""
        return self.rows[block], self.columns[block]

    @staticmethod
    def joined(uses: Sequence["Outer"]) -> "Outer":
        """Return the sum of several uses as one with all their positions."""
        if len(uses) == 1:
            return uses[0]
        return Outer(
            tf.concat([use.rows.tensor for use in uses], 1), tf.concat([use.columns.tensor for use in uses], 1)
        )


class Contraction(Use):
    """An einsum of two tensors that start with the samples; no factors."""

    def __init__(self, left: Any, right: Any, equation: str) -> None:
        self._left, self._right, self._equation = Samples(left), Samples(right), equation
        self.form_cost = float(np.prod(left.shape[1:])) * right.shape[-1] * 10 * _MULTIPLY

    def form(self, block: slice) -> NDArray[Any]:
        """Return the per-sample gradients (block, size)."""
        return flat(tf.einsum(self._equation, self._left[block], self._right[block]))


class Touched(Use):
    """Rows of an embedding: numbers (b, T) of the touched rows, and their gradients (b, T, C)."""

    def __init__(self, numbers: Any, columns: Any, rows: int) -> None:
        self._numbers, self._columns, self._rows = Samples(numbers), Samples(columns), rows
        self.positions, width = columns.shape[1:]
        self.form_cost = (self.positions + rows * 0.2) * width

    def form(self, block: slice) -> NDArray[Any]:
        """Return the per-sample gradients (block, rows·C), mostly zeros."""
        numbers, columns = (array(factor) for factor in self.factors(block))
        out = np.zeros((len(numbers), self._rows, columns.shape[2]), columns.dtype)
        np.add.at(out, (np.arange(len(out))[:, None], numbers), columns)
        return out.reshape(len(out), -1)

    def factors(self, block: slice) -> tuple[Any, Any]:
        """Return row numbers (block, T) and columns (block, T, C)."""
        return self._numbers[block], self._columns[block]


class Patches(Use):
    """A convolution: `large` (b, *space, C) is cut into patches, one for each position of `small` (b, …, R).

    Rows are patches (kernel, then channel), columns are `small`, each group of channels with its own.

    A few samples' patches are copied into a buffer that is reused, and multiplied by one batched product, which
    takes as long as the layer's own weight gradient. Measured: ``tf.image.extract_patches`` and concatenated
    slices take some ten times the copying, ``Conv2DBackpropFilter`` sample by sample four times the whole, and
    patches that lie the other way round gain less in the product than they cost to copy.
    """

    def __init__(self, large: Any, small: Any, **geometry: Any) -> None:
        self._at = patches.geometry(large.shape, small.shape, **geometry)
        self._small = Samples(tf.reshape(small, [len(small), -1, small.shape[-1]]))
        self._large = upcast(large)
        self._groups, self._depthwise = self._at.groups, geometry.get("depthwise", False)
        positions, length = self._at.positions, self._at.length
        self.positions = positions if self._groups == 1 else None
        self.form_cost = positions * length * (_COPY + _MULTIPLY * small.shape[-1] / self._groups)
        self.bytes_per_sample = 4 * positions * length
        self._buffer: Any = None

    def form(self, block: slice) -> NDArray[Any]:
        """Return the per-sample gradients (block, kernel·C·R)."""
        small = self._small[block]
        if self._depthwise:
            return patches.depthwise(self._images(block), array(small), self._at)
        cut = self._cut(block)
        if self._groups == 1:
            return flat(tf.matmul(cut, small, transpose_a=True))
        grouped = tf.reshape(cut, [len(cut), self._at.positions, self._at.taps, self._groups, -1])
        other = tf.reshape(small, [len(small), self._at.positions, self._groups, -1])
        return flat(tf.einsum("ntkgc,ntgo->nkcgo", grouped, other))

    def factors(self, block: slice) -> tuple[Any, Any]:
        """Return patches (block, T, kernel·C) and `small` (block, T, R)."""
        return self._cut(block), self._small[block]

    def _images(self, block: slice) -> NDArray[Any]:
        return array(self._large)[block]

    def _cut(self, block: slice) -> Any:
        """Return the patches (block, T, kernel·C), valid until the next call."""
        large = self._images(block)
        if self._buffer is None or len(self._buffer) < len(large) or self._buffer.array.dtype != large.dtype:
            self._buffer = patches.Buffer((len(large), self._at.positions, self._at.length), large.dtype)
        patches.cut(large, self._buffer.array[: len(large)], self._at)
        return self._buffer.tensor if len(self._buffer) == len(large) else self._buffer.tensor[: len(large)]


class Samples:
    """A tensor (b, …) to be read in blocks of equal size; cut up at once, since each operation costs some time."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self._parts: dict[int, Any] = {}

    def __getitem__(self, block: slice) -> Any:
        """Return the samples of a block, half precision as float32; the first block tells the size."""
        samples, step = self.tensor.shape[0], block.stop - block.start
        if step == samples:
            return upcast(self.tensor)
        if block.start == 0:
            starts = range(0, samples, step)
            parts = tf.split(self.tensor, [min(step, samples - start) for start in starts])
            self._parts = dict(zip(starts, parts, strict=True))
        return upcast(self._parts[block.start])


def array(tensor: Any) -> NDArray[Any]:
    """Return the values of an eager tensor, not copied, not to be changed."""
    return np.asarray(tensor)


def flat(tensor: Any) -> NDArray[Any]:
    """Return the values of an eager tensor as (b, size)."""
    values = array(tensor)
    return values.reshape(len(values), -1)


def upcast(tensor: Any) -> Any:
    """Return half precision as float32, anything else as it is."""
    return tf.cast(tensor, tf.float32) if tensor.dtype in (tf.bfloat16, tf.float16) else tensor


def squared_norms(parts: Sequence[tuple[Any, Any]]) -> NDArray[np.float64]:
    """Return ‖Σ_t r_t c_tᵀ‖² (b,) from factors alone: Σ_{t,u} ⟨r_t, r_u⟩⟨c_t, c_u⟩.

    The ghost norm of Li et al. (2022), https://arxiv.org/abs/2110.05679, for any mix of dense factors and
    embeddings (whose r_t are one-hot), so that tied weights and layers called twice need no formed gradient.
    """
    total = np.zeros(len(parts[0][1]), np.float64)
    for i, (rows, columns) in enumerate(parts):
        if columns.shape[1] == 1 and len(rows.shape) == 3:
            total += squares(flat(rows)) * squares(flat(columns))
        else:
            total += _overlap(rows, columns, rows, columns)
        for other_rows, other_columns in parts[i + 1 :]:
            total += 2 * _overlap(rows, columns, other_rows, other_columns)
    return np.maximum(total, 0)


def _overlap(rows: Any, columns: Any, other_rows: Any, other_columns: Any) -> NDArray[np.float64]:
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


def _scaled_overlap(rows: Any, columns: Any, other_rows: Any, other_columns: Any) -> NDArray[np.float64]:
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
