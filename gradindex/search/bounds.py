"""Upper bounds of kernel values over all rows of an index, and what they prove.

A kernel value is cos(q, t)·w(t), w from the two norms alone (`kernels.weights`). A Landmark row bounds the cosine
from above by ⟨p_q, p_t⟩ + ρ_q ρ_t and from below by ⟨p_q, p_t⟩ − ρ_q ρ_t; any other row by ±1.

What "proved" means in floating point: the answer is the one that evaluating every row would give, as long as each
evaluation errs by at most `evaluation_error`·w. Measured, evaluations err by 1e-6·w, but a gradient that is small
because numbers of order one cancelled (p − 1 of a saturated softmax) keeps the rounding of those, so the error grows
with the largest norm over its own. The query's gradient is that of one pass, for its row and for its values. What is
not modelled is a unit so near its kink that two passes take different sides.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex.ann.selection import Selection
from gradindex.data.source import Ids
from gradindex.defaults import BLOCK_ROWS
from gradindex.gradients import in_double
from gradindex.gradients.engine import Engine
from gradindex.kernels import Kernel

if TYPE_CHECKING:
    from gradindex.index.index import Index

EVALUATION = 1e-5
"""Error of an evaluated cosine that a proof allows for: ten times what was measured."""
_HALF, _TINY = 2.0**-11, 2.0**-25  # float16: half a unit in the last place, relative, and of subnormals
_SINGLE, _DOUBLE = 2.0**-24, 2.0**-53
_ERRORS = "errors of evaluations", 0.0
_NO_BOUND = 3.0  # more than any evaluated cosine, also over a norm that was rounded to twice or half of itself


def row_error(width: int, coordinates: float) -> float:
    """Return how much the inner product of a query's row with a stored one may be off, both of unit norm.

    Stored rows are rounded to float16: relative errors of 2⁻¹¹ come to 2⁻¹¹ in the product (Cauchy–Schwarz), those of
    subnormal numbers to 2⁻²⁵ √width. Float32 products add width·2⁻²⁴. `coordinates` bounds the error of p on either
    side; it counts twice more as rows are scaled to unit norm after ρ was rounded up.
    """
    return 1.01 * _HALF + _TINY * math.sqrt(width) + width * _SINGLE + 4.1 * coordinates


def unit(engine: Engine) -> float:
    """Return the rounding of the model's numbers, relative: 2⁻²⁴ for single precision."""
    halves = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
    engine = getattr(engine, "_engine", engine)  # whose gradients others are made of
    own = float(np.finfo(engine.dtype).eps) / 2
    layers: Any = getattr(getattr(engine, "model", None), "_flatten_layers", list)()
    kinds = {parameter.dtype for parameter in engine.parameters} | {getattr(x, "compute_dtype", "") for x in layers}
    return max((halves.get(kind, own) for kind in kinds), default=own)


def evaluation_error(
    norms: NDArray[np.float32], rounding: float, directions: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Return how much an evaluated cosine with each row (n,) may err: 1e-5, more where gradients are small.

    `norms` (n,) are the rows' exact norms, `rounding` that of the model's numbers, see `unit`. `directions` (n,) are
    known errors of the gradients' directions, NaN where they are not known: there the loss was computed in double
    precision, and only numbers of that one cancelled. Norms that single precision holds with few digits give no bound.
    """
    wide = norms.astype(np.float64)
    share = np.divide(wide.max(initial=0), wide, out=np.zeros_like(wide), where=wide > 0)
    error: NDArray[np.float64] = max(EVALUATION, 8 * rounding) + rounding * share
    if directions is not None:
        better = EVALUATION + directions + _DOUBLE * share
        error = np.where(np.isnan(directions), error, np.maximum(better, 8 * rounding))
    error[(norms > 0) & (norms < np.finfo(np.float32).tiny)] = _NO_BOUND
    np.minimum(error, _NO_BOUND, out=error)
    return error


def errors(index: "Index") -> NDArray[np.float64]:
    """Return the `evaluation_error` of an index's rows (n,), by an index opened with its job."""
    engine = index.job.engine
    directions = index.store.columns.get(in_double.COLUMN) if in_double.is_double(engine) else None
    return evaluation_error(index.store.norms, unit(engine), directions)


def cosine_bounds(index: "Index", sketches: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return upper bounds (2, m, n) of cos(q, t) and of −cos(q, t) over all rows; None if the store has none.

    `sketches` are the queries' rows (m, width), of unit norm.
    """
    projector = index.projector
    if not projector.bounds_cosine:
        return None
    out = np.empty((2, len(sketches), len(index)), np.float32)
    error = np.float32(row_error(projector.width, projector.coordinate_error))
    dims, left = projector.coordinates, projector.lengths_left(sketches)
    for first, rows in index.store.blocks(BLOCK_ROWS):
        here = slice(first, first + len(rows))
        inner = sketches[:, :dims] @ rows[:, :dims].T
        rest = np.outer(left, projector.lengths_left(rows)) + error
        np.minimum(rest + inner, 1, out=out[0, :, here])
        np.minimum(rest - inner, 1, out=out[1, :, here])
    return out


def candidate_bounds(
    index: "Index", sketches: NDArray[np.float32], rows: NDArray[np.int64], cosines: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Return what evaluated cosines of queries with some rows of their own, (m, c), keep to; None without bounds.

    Parameters
    ----------
    index
        An index opened with its job.
    sketches
        The queries' rows (m, width), of unit norm.
    rows
        Rows (m, c), −1 for none.
    cosines
        Inner products (m, c) of the rows, which are the bounds themselves where rows have no residual.
    """
    projector = index.projector
    if not projector.bounds_cosine:
        return None
    there = np.maximum(rows, 0)
    if projector.inner_product_bounds:
        bounds = np.asarray(cosines, np.float64) + 1.01 * _HALF  # FAISS may hold rows scaled to unit norm once more
    else:
        bounds, dims = np.empty(rows.shape), projector.coordinates
        for line, sketch in enumerate(sketches):
            wide = index.store.gather(there[line])
            left = projector.lengths_left(wide) * projector.lengths_left(sketch[None])
            bounds[line] = wide[:, :dims] @ sketch[:dims] + left
    bounds = bounds + row_error(projector.width, projector.coordinate_error)
    return np.minimum(bounds, 1.0) + kept_errors(index)[there]


def kept_errors(index: "Index") -> NDArray[np.float64]:
    """Return the `errors` of an index's rows (n,), computed once."""
    orders = index.store.orders
    if _ERRORS not in orders:
        orders[_ERRORS] = errors(index)
    return orders[_ERRORS]


def proof(
    index: "Index",
    kernel: Kernel,
    eps: float,
    norms: NDArray[np.float64],
    checked: NDArray[np.int64],
    kth: NDArray[np.float64],
    selection: Selection | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which answers Cauchy–Schwarz alone proves (m,), and the largest bound of an unchecked row, else NaN.

    `checked` (m, c) are rows evaluated exactly (−1 for none), and `kth` (m,) the k-th exact values of the search (of
    minus the kernel for opponents; −inf where there are fewer).
    """
    bounds, order = _in_order(index, kernel, eps)
    order = order if selection is None else order[selection.mask[order]]
    left = np.full(len(norms), -np.inf)
    for line, norm in enumerate(norms):
        rows = checked[line][checked[line] >= 0]
        first = order[: len(rows) + 1]
        unchecked = first[~np.isin(first, rows)]
        if len(unchecked):
            left[line] = bounds[unchecked[0]] * (1 if kernel is Kernel.COS else norm)
    proved = (left == -np.inf) | (left < kth) | ((left == 0) & (kth == 0))
    return proved, np.where(proved, np.nan, left)


def _in_order(index: "Index", kernel: Kernel, eps: float) -> tuple[NDArray[np.float64], Ids]:
    """Return what an evaluation of each row (n,) may give at most, for a query of unit norm (grad_cos: of any).

    And the rows by that, descending. Both are kept, since an answer should not sort a million numbers.
    """
    eps = 0.0 if kernel is Kernel.COS else eps  # which can only lower a value
    key, orders = (f"bounds of {kernel}", eps), index.store.orders
    if key not in orders:
        norms = index.store.norms
        most = 1 + errors(index)
        bounds = (norms > 0) * most if kernel is Kernel.COS else kernels.weights(kernel, 1.0, norms, eps) * most
        orders[f"order by {kernel}", eps] = np.argsort(-bounds, kind="stable").astype(np.int64)
        orders[key] = bounds
    return orders[key], orders[f"order by {kernel}", eps]
