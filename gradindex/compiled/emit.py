"""Vector instructions: builds are 1.1 to 1.5 times as fast as with BLAS and numba (`benchmarks/clever.py`).

A transformer's is slower, for its choice of ways.

For compiled loops in which the compiler by itself would not find them. LLVM makes them for any processor.
"""

from collections.abc import Callable

import llvmlite.binding
from llvmlite import ir

_I = ir.IntType(64)
_FLOAT = ir.FloatType()


def lanes() -> int:
    """Return how many numbers a vector register of this processor holds (or two registers, where they are short)."""
    try:
        return 16 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 8
    except RuntimeError:  # a processor that LLVM does not know
        return 8


LANES = lanes()
_VECTOR = ir.VectorType(_FLOAT, LANES)


class Emit:
    """Vector instructions at the end of a function that is being compiled."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def pointer(self, address: ir.Value) -> ir.Value:
        """Return an address (an integer) as a pointer to numbers."""
        return self.builder.inttoptr(address, _FLOAT.as_pointer())

    def at(self, pointer: ir.Value, index: ir.Value | int) -> ir.Value:
        """Return a pointer to the number at `index`."""
        return self.builder.gep(pointer, [_I(index) if isinstance(index, int) else index])

    def load(self, pointer: ir.Value, mask: ir.Value | None = None) -> ir.Value:
        """Return a vector; numbers beyond the mask are not touched and count as zeros."""
        place = self.builder.bitcast(pointer, _VECTOR.as_pointer())
        if mask is None:
            found = self.builder.load(place)
            found.align = 4
            return found
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        name = f"llvm.masked.load.v{LANES}f32.p0"
        kind = ir.FunctionType(_VECTOR, [place.type, ir.IntType(32), mask.type, _VECTOR])
        return self.builder.call(self._function(name, kind), [place, ir.IntType(32)(4), mask, zero])

    def store(self, vector: ir.Value, pointer: ir.Value, mask: ir.Value | None = None) -> None:
        """Write a vector, or those of its numbers that the mask keeps."""
        place = self.builder.bitcast(pointer, _VECTOR.as_pointer())
        if mask is None:
            self.builder.store(vector, place).align = 4
            return
        name = f"llvm.masked.store.v{LANES}f32.p0"
        kind = ir.FunctionType(ir.VoidType(), [_VECTOR, place.type, ir.IntType(32), mask.type])
        self.builder.call(self._function(name, kind), [vector, place, ir.IntType(32)(4), mask])

    def spread(self, number: ir.Value) -> ir.Value:
        """Return a vector of equal numbers."""
        kind = ir.VectorType(number.type, LANES)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, number, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def first(self, count: ir.Value) -> ir.Value:
        """Return the mask of the first `count` numbers of a vector."""
        numbers = ir.Constant(ir.VectorType(_I, LANES), list(range(LANES)))
        return self.builder.icmp_signed("<", numbers, self.spread(count))

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """Return a·b + c."""
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        return self.builder.call(self._function(f"llvm.fmuladd.v{LANES}f32", kind), [a, b, c])

    def loop(
        self, count: ir.Value, carried: list[ir.Value], body: Callable[[list[ir.Value]], list[ir.Value]]
    ) -> list[ir.Value]:
        """Emit a loop of at least one turn; `body` maps the values carried from turn to turn."""
        builder = self.builder
        before, inside, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(inside)
        builder.position_at_end(inside)
        turn = builder.phi(_I)
        values = [builder.phi(value.type) for value in carried]
        found = body(values)
        following, end = builder.add(turn, _I(1)), builder.block
        for phi, begin, new in zip([turn, *values], [_I(0), *carried], [following, *found], strict=True):
            phi.add_incoming(begin, before)
            phi.add_incoming(new, end)
        builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
        builder.position_at_end(after)
        return found

    def _function(self, name: str, kind: ir.FunctionType) -> ir.Function:
        known = self.builder.module.globals
        return known[name] if name in known else ir.Function(self.builder.module, kind, name)

    def transposed(self, vectors: list[ir.Value]) -> list[ir.Value]:
        """Return the transpose of a square of numbers, given and returned as its LANES rows.

        Interleaving row i with row i + LANES/2 rotates the bits of (row, column) by one.
        """
        half = LANES // 2
        for _ in range(LANES.bit_length() - 1):
            pairs = [(vectors[i], vectors[i + half]) for i in range(half)]
            vectors = [self._interleaved(a, b, begin) for a, b in pairs for begin in (0, half)]
        return vectors

    def _interleaved(self, a: ir.Value, b: ir.Value, begin: int) -> ir.Value:
        order = [i + LANES * side for i in range(begin, begin + LANES // 2) for side in (0, 1)]
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), LANES), order))
