"""Rules of elementwise operations, matrix products, einsums and look-ups."""

import tensorflow as tf

from gradindex.gradients.tensorflow.capture import Layout, NoRule, Recipe, Tap, Weight, direct, rule, upcast
from gradindex.gradients.tensorflow.use import Contraction, Outer, Touched

_SMALL = 1 << 16  # numbers of a matrix whose gradients may be formed for a whole batch


@rule("AddV2", "Add", "BiasAdd", "Sub", "Mul", "BroadcastTo")
def elementwise(op: tf.Operation, i: int, weight: Weight) -> Tap:
    """Biases, scales of normalisations, PReLU, positions: ∇w = Σ δ·∂y/∂w over the axes that w lacks."""
    if op.type == "BroadcastTo" and i != 0:
        raise NoRule(op.type)
    output, shape = op.outputs[0], weight.tensor.shape
    rank = output.shape.rank
    if op.type == "BiasAdd" and op.get_attr("data_format") == b"NCHW" and rank is not None:
        shape = tf.TensorShape([*shape, *[1] * (rank - 2)])
    if rank is None or (shape.rank == rank and shape[0] != 1):
        raise NoRule("a weight that differs between samples")
    sign = -1 if op.type == "Sub" and i == 1 else 1
    missing = [a for a in range(1, rank) if a < rank - shape.rank or shape[a - rank] == 1]

    def make(delta: tf.Tensor, at: Layout) -> Recipe:
        product = upcast(delta * op.inputs[1 - i]) if op.type == "Mul" else sign * upcast(delta)
        if missing == list(range(1, rank - 1)):
            sums = tf.reduce_sum(at.positions(product), 1)
        else:
            sums = tf.reduce_sum(at.fold(product), [1, *(axis + 1 for axis in missing)])
        return direct(weight, tf.reshape(sums, tf.concat([[at.samples], tf.shape(weight.tensor)], 0)))

    return Tap(output, make)


@rule("MatMul", "BatchMatMulV2", "BatchMatMulV3")
def matmul(op: tf.Operation, i: int, weight: Weight) -> Tap:
    """Matrix products, y = x W: ∇W = Σ_t x_t δ_tᵀ; of a small part or function of a weight, formed in the graph."""
    single = op.type == "MatMul"
    turned = op.get_attr("transpose_a" if single else "adj_x")
    if i != 1 or turned or weight.tensor.shape.rank != 2:
        raise NoRule(op.type)
    if not weight.is_view and weight.tensor.shape.num_elements() > _SMALL:
        raise NoRule("a matrix product with a function of weights")
    across = op.get_attr("transpose_b" if single else "adj_y")
    flipped = across != weight.flipped
    width = weight.tensor.shape[1 if across else 0]

    def make(delta: tf.Tensor, at: Layout) -> Recipe:
        x = tf.reshape(op.inputs[0], [at.samples, -1, width])
        if not weight.is_view:
            first, second = (at.positions(delta), x) if across else (x, at.positions(delta))
            return direct(weight, tf.matmul(upcast(first), upcast(second), transpose_a=True))
        rows, columns = (at.positions(delta), x) if flipped else (x, at.positions(delta))
        return Recipe(Outer, (rows, columns), {})

    return Tap(op.outputs[0], make)


@rule("Einsum")
def einsum(op: tf.Operation, i: int, weight: Weight) -> Tap:
    """Σ x·w over the letters that the output lacks; ∇w is the same sum of x·δ, kept apart by sample."""
    left, _, out = op.get_attr("equation").decode().replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or "." in left + out or any(len(set(term)) < len(term) for term in (*terms, out)):
        raise NoRule("Einsum")
    w, x = terms[i], terms[1 - i]
    if not weight.is_view or weight.flipped or out[:1] not in x or out[0] in w or not set(w) <= set(x) | set(out):
        raise NoRule("Einsum")
    batch = out[0]
    inputs, outputs = [a for a in w if a not in out], [a for a in w if a not in x]
    places = "".join(a for a in x if a in out and a != batch)
    order = w == "".join(inputs + outputs)
    plain = set(inputs) | set(outputs) == set(w) and (order or w == "".join(outputs + inputs))

    def make(delta: tf.Tensor, at: Layout) -> Recipe:
        if not plain or not inputs or not outputs or set(x) != set(batch + places) | set(inputs):
            a = tf.einsum(f"{x}->{batch}{x.replace(batch, '')}", op.inputs[1 - i])
            equation = f"{batch}{x.replace(batch, '')},{out}->{batch}{w}"
            return Recipe(Contraction, (a, delta), {"equation": equation})
        a = tf.einsum(f"{x}->{batch}{places}{''.join(inputs)}", op.inputs[1 - i])
        d = tf.einsum(f"{out}->{batch}{places}{''.join(outputs)}", delta)
        a = tf.reshape(a, [at.samples, -1, _size(weight, w, inputs)])
        d = tf.reshape(d, [at.samples, -1, _size(weight, w, outputs)])
        return Recipe(Outer, (a, d) if order else (d, a), {})

    return Tap(op.outputs[0], make, foldable=False)


def _size(weight: Weight, letters: str, some: list[str]) -> int:
    size = 1
    for letter in some:
        size *= weight.tensor.shape[letters.index(letter)]
    return size


@rule("GatherV2")
def gather(op: tf.Operation, i: int, weight: Weight) -> Tap:
    """Embeddings, y_t = W[x_t]: only touched rows have a gradient."""
    axis = tf.get_static_value(op.inputs[2])
    if i != 0 or axis != 0 or op.get_attr("batch_dims") or weight.tensor.shape.rank != 2:
        raise NoRule("GatherV2")
    if not weight.is_view or weight.flipped:
        raise NoRule("GatherV2")

    def make(delta: tf.Tensor, at: Layout) -> Recipe:
        numbers = tf.reshape(op.inputs[1], [at.samples, -1])
        return Recipe(Touched, (numbers, at.positions(delta)), {"rows": weight.tensor.shape[0]})

    return Tap(op.outputs[0], make)
