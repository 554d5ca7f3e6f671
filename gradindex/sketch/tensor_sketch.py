"""TensorSketch in lanes of vectors: Keras' MLP is built 1.2 times as fast as with SciPy (`benchmarks/clever.py`).

Each sample has its own lane. What takes its place is `countsketch._tensor_sketch`, for sizes that are no power of two.
The circular convolution of CS u and CS v is half the imaginary part of z ⊛ z for z = CS u + i·CS v, so one complex
transform serves both factors, and the spectrum is squared as it comes: forward by decimation in frequency, back by
decimation in time (Gentleman & Sande 1966, Cooley & Tukey 1965), so that no step puts it in order. u and v are
brought to one length before, or the longer one's rounding would drown the shorter one.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from gradindex.compiled.emit import LANES, Emit
from gradindex.compiled.jit import compiled
from gradindex.sketch.lanes import add_lanes, count_lanes

if TYPE_CHECKING:
    from llvmlite import ir
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context as Typing
    from numba.core.typing.templates import Signature

_IN_CACHE = 256  # numbers a lane: from so many on, a block's transforms are finished before the next block's


def serves(dim: int, samples: int) -> bool:
    """Whether sketches of this size, of so many samples, are made here."""
    return dim >= 16 and dim & (dim - 1) == 0 and samples > LANES // 4


@cache
def twiddles(dim: int) -> NDArray[np.float32]:
    """Return exp(−2πi·jk/n) for j = 1, 2, 3 as cosines, then sines, of each k < n/4, for n = dim, dim/4, …."""
    rows = []
    while dim >= 4:
        angles = -2 * np.pi / dim * np.outer(np.arange(dim // 4), [1, 2, 3])
        rows.append(np.hstack([np.cos(angles), np.sin(angles)]))
        dim //= 4
    return np.concatenate(rows).astype(np.float32)


def _four(back: bool) -> Callable[..., None]:
    """Return the intrinsic that makes four complex vectors, `step` bytes apart, to their transform of size four.

    The twiddles come after it forwards, and conjugated before it backwards.
    """

    @intrinsic
    def butterfly(
        typing: "Typing", real: types.Type, imaginary: types.Type, step: types.Type, factors: types.Type
    ) -> "tuple[Signature, Callable[..., ir.Value]]":
        def generate(
            context: "BaseContext", builder: "ir.IRBuilder", signature: "Signature", args: "Sequence[ir.Value]"
        ) -> "ir.Value":
            real, imaginary, step, factors = args
            emit = Emit(builder)
            offsets = [builder.mul(step, step.type(i)) for i in range(4)]
            places = [[emit.pointer(builder.add(side, offset)) for offset in offsets] for side in (real, imaginary)]
            table = emit.pointer(factors)
            turns = [emit.spread(builder.load(emit.at(table, i))) for i in range(6)]
            add, subtract = builder.fadd, builder.fsub
            values = [(emit.load(places[0][i]), emit.load(places[1][i])) for i in range(4)]

            def turned(value: "tuple[ir.Value, ir.Value]", i: int) -> "tuple[ir.Value, ir.Value]":
                (a, b), c, s = value, turns[i - 1], turns[i + 2]
                s = builder.fneg(s) if back else s
                real = emit.multiply_add(a, c, builder.fneg(builder.fmul(b, s)))
                return real, emit.multiply_add(a, s, builder.fmul(b, c))

            def both(
                operation: "Callable[..., ir.Value]", x: "tuple[ir.Value, ir.Value]", y: "tuple[ir.Value, ir.Value]"
            ) -> "tuple[ir.Value, ir.Value]":
                return operation(x[0], y[0]), operation(x[1], y[1])

            if back:
                first, second, third, fourth = values[0], *(turned(values[i], i) for i in (1, 2, 3))
                t0, t1 = both(add, first, third), both(subtract, first, third)
                t2, (a, b) = both(add, second, fourth), both(subtract, second, fourth)
                t3 = builder.fneg(b), a
                found = [both(add, t0, t2), both(add, t1, t3), both(subtract, t0, t2), both(subtract, t1, t3)]
            else:
                t0, t1 = both(add, values[0], values[2]), both(subtract, values[0], values[2])
                t2, (a, b) = both(add, values[1], values[3]), both(subtract, values[1], values[3])
                t3 = b, builder.fneg(a)
                found = [both(add, t0, t2), both(add, t1, t3), both(subtract, t0, t2), both(subtract, t1, t3)]
                found = [found[0], *(turned(found[i], i) for i in (1, 2, 3))]
            for i, (a, b) in enumerate(found):
                emit.store(a, places[0][i])
                emit.store(b, places[1][i])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), generate

    made: Callable[..., None] = butterfly
    return made


_forward_four, _backward_four = _four(False), _four(True)


@intrinsic
def _pair(typing: "Typing", side: types.Type, step: types.Type) -> "tuple[Signature, Callable[..., ir.Value]]":
    """Make two vectors, `step` bytes apart, to their sum and difference."""

    def generate(
        context: "BaseContext", builder: "ir.IRBuilder", signature: "Signature", args: "Sequence[ir.Value]"
    ) -> "ir.Value":
        emit = Emit(builder)
        places = [emit.pointer(args[0]), emit.pointer(builder.add(*args))]
        a, b = (emit.load(place) for place in places)
        emit.store(builder.fadd(a, b), places[0])
        emit.store(builder.fsub(a, b), places[1])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def _add_square(
    typing: "Typing", real: types.Type, imaginary: types.Type, real_sum: types.Type, imaginary_sum: types.Type
) -> "tuple[Signature, Callable[..., ir.Value]]":
    """Add the squares of a vector of complex numbers to another."""

    def generate(
        context: "BaseContext", builder: "ir.IRBuilder", signature: "Signature", args: "Sequence[ir.Value]"
    ) -> "ir.Value":
        emit = Emit(builder)
        places = [emit.pointer(arg) for arg in args]
        a, b, first, second = (emit.load(place) for place in places)
        first = emit.multiply_add(builder.fsub(a, b), builder.fadd(a, b), first)
        emit.store(first, places[2])
        emit.store(emit.multiply_add(builder.fadd(a, a), b, second), places[3])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@compiled()
def _stages(real: int, imaginary: int, begin: int, size: int, last: int, turns: int, at: int, end: int) -> None:
    """Transform forward the `end - begin` numbers from `begin` on, in blocks of `size` down to blocks of `last`."""
    while size > last and size >= 4:
        quarter = size // 4
        for block in range(begin, end, size):
            for k in range(quarter):
                place = 4 * LANES * (block + k)
                _forward_four(real + place, imaginary + place, 4 * LANES * quarter, turns + 24 * (at + k))
        at += quarter
        size = quarter
    if size == 2:
        for k in range(begin, end, 2):
            _pair(real + 4 * LANES * k, 4 * LANES)
            _pair(imaginary + 4 * LANES * k, 4 * LANES)


@compiled()
def _forward(real: int, imaginary: int, dim: int, turns: int) -> None:
    """Transform vectors of complex numbers; frequencies come out of order."""
    size, at = dim, 0
    while size > _IN_CACHE:
        _stages(real, imaginary, 0, size, size // 4, turns, at, dim)
        at += size // 4
        size //= 4
    for begin in range(0, dim, size):
        _stages(real, imaginary, begin, size, 1, turns, at, begin + size)


@compiled()
def _backward(real: int, imaginary: int, dim: int, turns: int) -> None:
    """Undo `_forward`, but for the factor `dim`."""
    size, at = dim, 0
    while size >= 4:
        at += size // 4
        size //= 4
    if size == 2:
        for k in range(0, dim, 2):
            _pair(real + 4 * LANES * k, 4 * LANES)
            _pair(imaginary + 4 * LANES * k, 4 * LANES)
    while size < dim:
        quarter = size
        size *= 4
        at -= quarter
        for block in range(0, dim, size):
            for k in range(quarter):
                place = 4 * LANES * (block + k)
                _backward_four(real + place, imaginary + place, 4 * LANES * quarter, turns + 24 * (at + k))


@compiled()
def _largest(values: NDArray[np.float32]) -> Any:
    """Return the largest absolute value; as whole numbers their bits have the same order, NaN above all."""
    largest, bits = np.empty(1, np.int32), values.view(np.int32)
    top = np.int32(0)
    for i in range(len(bits)):
        top = max(top, bits[i] & np.int32(0x7FFFFFFF))
    largest[0] = top
    return largest.view(np.float32)[0]


@compiled()
def _balance(
    rows: NDArray[np.float32], columns: NDArray[np.float32], first: NDArray[np.float32], second: NDArray[np.float32]
) -> None:
    """Write factors for both sides of each lane that leave the product, and make both sides equally large."""
    for lane in range(LANES):
        first[lane] = second[lane] = 0
        if lane < len(rows):
            left, right = np.float64(_largest(rows[lane])), np.float64(_largest(columns[lane]))
            if left > 0 and right > 0:
                first[lane], second[lane] = np.sqrt(right / left), np.sqrt(left / right)
            elif left != left or right != right:
                first[lane] = second[lane] = np.nan


@compiled()
def tensor_sketch(
    out: NDArray[np.float32], rows: NDArray[np.float32], columns: NDArray[np.float32], row_buckets: NDArray[np.uint32],
    row_signs: NDArray[np.float32], column_buckets: NDArray[np.uint32], column_signs: NDArray[np.float32],
    turns: NDArray[np.float32],
) -> None:  # fmt: skip
    """Add the sketches of Σ_t r_t c_tᵀ, of rows (n, T, R) and columns (n, T, C), to `out` (n, dim).

    Tables go on, with signs 0, for LANES numbers beyond R and C. `turns` are `twiddles`.
    """
    n, dim = out.shape
    positions, height, width = rows.shape[1], rows.shape[2], columns.shape[2]
    memory = np.empty((4, dim, LANES), np.float32)
    real, imaginary = memory[0].ctypes.data, memory[1].ctypes.data
    real_sum, imaginary_sum = memory[2].ctypes.data, memory[3].ctypes.data
    first, second = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    spare, other = np.zeros((LANES, 1, height), np.float32), np.zeros((LANES, 1, width), np.float32)
    for begin in range(0, n, LANES):
        some = min(LANES, n - begin)
        memory[2:] = 0
        for t in range(positions):
            left, right = rows[begin : begin + some, t], columns[begin : begin + some, t]
            _balance(left, right, first, second)
            memory[:2] = 0
            if some < LANES:
                spare[:some, 0], other[:some, 0] = left, right
                source, row_step, target, column_step = spare.ctypes.data, height, other.ctypes.data, width
            else:
                source, row_step = rows[begin, t].ctypes.data, positions * height
                target, column_step = columns[begin, t].ctypes.data, positions * width
            count_lanes(source, 4 * row_step, height, row_buckets, row_signs, first, real)
            count_lanes(target, 4 * column_step, width, column_buckets, column_signs, second, imaginary)
            _forward(real, imaginary, dim, turns.ctypes.data)
            for k in range(0, 4 * LANES * dim, 4 * LANES):
                _add_square(real + k, imaginary + k, real_sum + k, imaginary_sum + k)
        _backward(real_sum, imaginary_sum, dim, turns.ctypes.data)
        add_lanes(memory[3], np.float32(0.5 / dim), out[begin : begin + some])
