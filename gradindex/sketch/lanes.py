"""Counting numbers of many samples into buckets at once, each in its own lane of a vector.

What `tensor_sketch.py` gains rests on it (`benchmarks/clever.py`).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from gradindex.compiled.emit import LANES, Emit
from gradindex.compiled.jit import compiled

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.context import Context as Typing
    from numba.core.typing.templates import Signature


@intrinsic
def _count_square(
    typing: "Typing",
    values: types.Type,
    step: types.Type,
    count: types.Type,
    buckets: types.Type,
    signs: types.Type,
    factors: types.Type,
    into: types.Type,
) -> "tuple[Signature, Callable[..., ir.Value]]":
    """Count LANES numbers, or `count` of them, of each of LANES samples, whose numbers are `step` bytes apart.

    Number i goes to the vector into[buckets[i]], times signs[i] and each lane's factor. Rows are turned to lanes in
    registers, so that one addition serves all samples. The tables must go on for a whole vector, with signs 0.
    """

    def generate(
        context: "BaseContext", builder: ir.IRBuilder, signature: "Signature", args: Sequence[ir.Value]
    ) -> ir.Value:
        values, step, count, buckets, signs, factors, into = args
        emit = Emit(builder)
        mask, factor = emit.first(count), emit.load(emit.pointer(factors))
        rows = [
            emit.load(emit.pointer(builder.add(values, builder.mul(step, step.type(i)))), mask) for i in range(LANES)
        ]
        table = builder.inttoptr(buckets, ir.IntType(32).as_pointer())
        sign, target = emit.pointer(signs), emit.pointer(into)
        for i, vector in enumerate(emit.transposed(rows)):
            bucket = builder.zext(builder.load(builder.gep(table, [step.type(i)])), step.type)
            place = emit.at(target, builder.mul(bucket, step.type(LANES)))
            weight = builder.fmul(emit.spread(builder.load(emit.at(sign, i))), factor)
            emit.store(emit.multiply_add(vector, weight, emit.load(place)), place)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


@intrinsic
def _add_turned(
    typing: "Typing", lanes: types.Type, factor: types.Type, out: types.Type, step: types.Type
) -> "tuple[Signature, Callable[..., ir.Value]]":
    """Add the transpose of LANES vectors, times a factor, to rows `step` bytes apart."""

    def generate(
        context: "BaseContext", builder: ir.IRBuilder, signature: "Signature", args: Sequence[ir.Value]
    ) -> ir.Value:
        lanes, factor, out, step = args
        emit = Emit(builder)
        begin, spread = emit.pointer(lanes), emit.spread(factor)
        vectors = [emit.load(emit.at(begin, i * LANES)) for i in range(LANES)]
        for i, vector in enumerate(emit.transposed(vectors)):
            place = emit.pointer(builder.add(out, builder.mul(step, step.type(i))))
            emit.store(emit.multiply_add(vector, spread, emit.load(place)), place)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32, types.intp, types.intp), generate


@compiled()
def add_lanes(lanes: NDArray[np.float32], factor: object, out: NDArray[np.float32]) -> None:
    """Add numbers (dim, LANES), each sample's in its lane, times a factor, to `out` (n, dim), n at most LANES."""
    n, dim = out.shape
    if n == LANES and dim % LANES == 0:
        for k in range(0, dim, LANES):
            _add_turned(lanes[k].ctypes.data, factor, out[0, k:].ctypes.data, 4 * dim)
        return
    for lane in range(n):
        for k in range(dim):
            out[lane, k] += factor * lanes[k, lane]


@compiled()
def count_lanes(
    values: int,
    step: int,
    size: int,
    buckets: NDArray[np.uint32],
    signs: NDArray[np.float32],
    factors: NDArray[np.float32],
    into: int,
) -> None:
    """Count `size` numbers, from the address `values` on, of LANES samples `step` bytes apart, to vectors at `into`."""
    table, sign, factor = buckets.ctypes.data, signs.ctypes.data, factors.ctypes.data
    for i in range(0, size, LANES):
        _count_square(values + 4 * i, step, size - i, table + 4 * i, sign + 4 * i, factor, into)
