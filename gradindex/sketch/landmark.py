"""Landmarks: a gradient's exact coordinates in the span of a few training gradients, and the length left out.

With ḡ_1 … ḡ_L the landmarks' gradients scaled to unit norm, K = VΛVᵀ their Gram matrix and W = V_r Λ_r^(-1/2) the
whitening of its r leading directions, p(g) = Wᵀ [⟨ḡ_l, g⟩]_l / ‖g‖ is the orthogonal projection of g/‖g‖ onto those
directions (Nyström; Williams & Seeger 2001), and what it leaves out has the length ρ(g) = √(1 − ‖p‖²). So by
Cauchy–Schwarz |cos(g, h) − ⟨p_g, p_h⟩| ≤ ρ_g ρ_h, for any two gradients and any landmarks.

What is left out can be sketched, too: with B the orthonormal directions, CS(g/‖g‖ − Bp) = CS(g)/‖g‖ − CS(B) p, and
CS(B) = Wᵀ CS(ḡ_1 … ḡ_L). The error of a CountSketch of k numbers, about 1/√k of the product of lengths, is then one of
ρ_g ρ_h instead of 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Ids
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.gradients.projector import Projector
from gradindex.sketch.countsketch import CountSketchProjector
from gradindex.sketch.hashing import stream
from gradindex.sketch.touched import TouchedRows

if TYPE_CHECKING:
    from gradindex.sketch.captured import Recorder
    from gradindex.sketch.landmark_options import Landmark

UNIFORM, BY_NORM = "uniform", "norm"
SIDES, WHOLE, TOUCHED, NONE = "factors", "formed", "touched rows", "none"
_PURPOSE, _BY_NORM = 1 << 15, (1 << 15) + 1  # of the streams that draw landmarks; hashes use the small ones
_POOL = 8  # samples whose norms are computed, for each landmark
_PER_NS = 15.0  # multiply-adds in a nanosecond of a matrix product
_BLOCK_NUMBERS = 1 << 23
_UNIT = 2.0**-24  # rounding of float32
_LARGEST_ERROR = 1e-4  # of coordinates, from rounding: directions that would have more are dropped


@dataclass(frozen=True)
class Whitening:
    """How kernel values with L landmarks become coordinates.

    `matrix` (L, r) float64; `norms` (L,) float64 of the covered part of the landmarks' gradients; `error` bounds
    ‖Δp‖, the error of coordinates that were computed in float32.
    """

    matrix: NDArray[np.float64]
    norms: NDArray[np.float64]
    error: float


class LandmarkProjector(Projector):
    """Kernel values with L landmarks, (b, L), that `finish` turns into rows (p, ρ), or (p, s) of a residual's sketch.

    For the latter, what is added up is (b, L + k): a CountSketch of the gradient follows the kernel values.

    `touches`: embedding tables are kept as the rows that were looked up, whatever the memory. Stores whose landmarks
    were kept formed, or not at all, need that again.
    """

    bounds_cosine: ClassVar[bool] = True

    def __init__(
        self, options: "Landmark", parameters: Sequence[Parameter], seed: int, *, touches: bool = False
    ) -> None:
        self.options, self.seed, self.parameters, self.touches = options, seed, tuple(parameters), touches
        self.count = options.landmarks
        self._rest = CountSketchProjector(options.residual, parameters, seed) if options.residual else None
        self._directions = self._basis = np.zeros((options.landmarks, options.residual))  # sketches: landmarks', p's
        self.forms: dict[str, str] = {}
        """How each parameter's landmarks are kept: 'factors', 'formed', 'touched rows' of a table, or 'none' where it
        has no coordinates."""
        self._sides: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        self._whole: dict[str, NDArray[np.float32]] = {}
        self._touched: dict[str, TouchedRows] = {}
        self._whitening: Whitening | None = None

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Numbers that are added up for a sample."""
        return self.count + self.options.residual

    @property
    def width(self) -> int:
        """Numbers of a finished row."""
        return self.options.dim

    @property
    def coordinates(self) -> int:
        """Numbers of a finished row that are coordinates."""
        return self.options.dims

    @property
    def coordinate_error(self) -> float:
        """How far a row's coordinates may be from those of exact arithmetic, as the whitening of the landmarks says."""
        return self.whitening.error

    @property
    def inner_product_bounds(self) -> bool:
        """Whether the length left is a number of the row itself, so that inner products are bounds."""
        return self._rest is None

    def draw(self, rows: int) -> Ids:
        """Return the landmarks' ids out of `rows`, ascending; those among which `choose` chooses, if they are more."""
        random = np.random.Generator(stream(self.seed, 0, _PURPOSE))
        wanted = self.options.landmarks * (_POOL if self.by_norm else 1)
        return np.sort(random.choice(rows, min(wanted, rows), replace=False)).astype(np.int64)

    @property
    def by_norm(self) -> bool:
        """Whether landmarks are drawn in proportion to the norms of their gradients."""
        return self.options.draw == BY_NORM

    def choose(self, ids: Ids, norms: NDArray[np.float64]) -> Ids:
        """Return the landmarks out of `ids`, ascending, drawn in proportion to their `norms` without replacement.

        Those with the largest u^(1/norm), u uniform (Efraimidis & Spirakis 2006); gradients of zero only if need be.
        """
        drawn = np.random.Generator(stream(self.seed, 0, _BY_NORM)).random(len(ids))
        with np.errstate(divide="ignore"):
            keys = np.where(norms > 0, np.log(drawn) * (norms.max(initial=0) / norms), -np.inf)
        return np.sort(ids[np.argsort(-keys, kind="stable")[: self.options.landmarks]])

    def adopt(self, recorder: "Recorder") -> NDArray[np.float64]:
        """Take over recorded landmarks, scaled to unit norm; return the norms (L,) of their covered parts."""
        self.count, self.forms = recorder.count, recorder.forms
        self._sides, self._whole, self._touched = recorder.sides, recorder.whole, recorder.touched
        norms: NDArray[np.float64] = np.sqrt(np.maximum(np.diag(self._gram()), 0))
        scale = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)[:, None]  # beyond float32 for tiny ones
        for rows, _ in self._sides.values():
            np.multiply(rows, scale, out=rows, casting="unsafe")
        for gradients in self._whole.values():
            np.multiply(gradients, scale, out=gradients, casting="unsafe")
        for table in self._touched.values():
            table.scale(scale[:, 0])
        self._directions = self._sketched_landmarks()
        return norms

    def _sketched_landmarks(self) -> NDArray[np.float64]:
        """Return the CountSketches (L, k) of the landmarks' covered parts."""
        out = np.zeros((self.count, self.options.residual), np.float32)
        if self._rest is not None:
            by_name = {parameter.name: parameter for parameter in self.parameters}
            for name, (rows, columns) in self._sides.items():
                self._rest.add_factors(out, by_name[name], rows[:, None], columns[:, None])
            for name, gradients in self._whole.items():
                self._rest.add(out, by_name[name], gradients)
        return out.astype(np.float64)

    def whiten(self, norms: NDArray[np.float64]) -> Whitening:
        """Find the leading directions of the adopted landmarks, and use them."""
        weights = self._weights(norms)
        values, vectors = np.linalg.eigh(self._gram() * np.outer(weights, weights))
        values, vectors = values[::-1], vectors[:, ::-1]
        # Kernel values err by a few units of rounding, more where long gradients are multiplied whole, and a
        # direction divides that by √λ. Gradients themselves err in their sixth digit.
        longest = max((whole.shape[1] for whole in self._whole.values()), default=0)
        noise = _UNIT * (4 + math.sqrt(longest / 1024)) * math.sqrt(self.count)
        count = min(int((values > (noise / _LARGEST_ERROR) ** 2).sum()), self.options.dims)
        error = noise * float(weights.max()) / math.sqrt(values[count - 1]) if count else 0.0
        matrix = weights[:, None] * vectors[:, :count] / np.sqrt(values[:count])
        found = Whitening(matrix, norms, error + 64 * _UNIT)
        self.use(found)
        return found

    def _weights(self, norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the landmarks' weights (L,) in their Gram matrix, of mean square 1, for covered parts of these norms.

        Drawn in proportion to their norms, squares of weights as the norms make it an estimate of the second moment.
        """
        roots = np.sqrt(norms)
        if not self.by_norm or not roots.any():
            return np.ones(len(norms))
        mean = math.sqrt((roots**2).mean())
        return np.where(roots > 0, np.maximum(roots, 1e-3 * mean), mean) / mean

    def drift(self, white: Whitening) -> float:
        """Return how far the adopted landmarks' own coordinates are from those at the time of a whitening.

        Computed anew, on another machine or with other threads, landmarks are not the same bits. At that time the
        coordinates of landmark l were √λ_r v_lr / w_l with its weight w_l, and the whitening's columns w v_r/√λ_r.
        """
        matrix, weights = white.matrix, self._weights(white.norms)[:, None]
        plain = matrix / weights
        lengths = (plain**2).sum(axis=0)  # 1/λ_r
        before = np.divide(plain, lengths, out=np.zeros_like(matrix), where=lengths > 0) / weights
        return float(np.linalg.norm(self._gram() @ matrix - before, axis=1).max(initial=0))

    def use(self, whitening: Whitening) -> None:
        """Finish rows with this whitening from now on."""
        self._whitening = whitening
        self._basis = whitening.matrix.T @ self._directions

    @property
    def whitening(self) -> Whitening:
        """The whitening in use; raises RuntimeError if there is none yet."""
        if self._whitening is None:
            raise RuntimeError("The landmarks are not chosen yet: see gradindex.compute.landmarks.prepare.")
        return self._whitening

    def finish(self, sketches: NDArray[np.float32], norms: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return rows (p, ρ) or (p, s), (b, width), from what was added up (b, dim) and norms (b,).

        Zero where the gradient is. ρ, the length of s, is not understated by rounding: ‖p‖ counts as less by its error.
        """
        white = self.whitening
        values = sketches.astype(np.float64)
        unit = np.divide(values, norms[:, None], out=np.zeros_like(values), where=norms[:, None] > 0)
        out = np.zeros((len(sketches), self.width), np.float32)
        coordinates = unit[:, : self.count] @ white.matrix
        known = np.maximum(np.linalg.norm(coordinates, axis=1) - white.error, 0)
        left = np.where(norms > 0, np.sqrt(np.maximum(1 - known**2, 0)), 0)
        out[:, : coordinates.shape[1]] = coordinates
        if self._rest is None:
            out[:, -1] = left
            return out
        rest = unit[:, self.count :] - coordinates @ self._basis
        lengths = np.linalg.norm(rest, axis=1)
        rest[lengths == 0, 0] = lengths[lengths == 0] = 1  # ρ has to be somewhere
        out[:, self.options.dims :] = rest * (left / lengths)[:, None]
        return out

    def lengths_left(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ρ (n,) of rows (n, width)."""
        found: NDArray[np.float32] = np.linalg.norm(rows[:, self.coordinates :], axis=1)
        return found

    def opposite(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the rows of −g: (−p, ρ) or (−p, −s)."""
        return -rows if self._rest is not None else np.hstack([-rows[:, :-1], rows[:, -1:]])

    def add(self, out: NDArray[np.float32], parameter: Parameter, gradients: Floats) -> None:
        """Add what formed gradients (b, size) come to, to `out` (b, dim), in place."""
        gradients = np.asarray(gradients, np.float32)
        self._add_rest(out, lambda part, sketch: sketch.add(part, parameter, gradients))
        values = out[:, : self.count]
        if parameter.name in self._whole:
            values += gradients @ self._whole[parameter.name].T
        if parameter.name in self._touched:
            values += self._touched[parameter.name].formed_dots(gradients, self.count)
        if parameter.name not in self._sides:
            return
        sides = self._sides[parameter.name]
        matrix = gradients.reshape(len(out), *parameter.matrix_shape)
        if matrix.shape[1] > matrix.shape[2]:  # the long side is summed first
            matrix, sides = matrix.transpose(0, 2, 1), sides[::-1]
        step = max(1, _BLOCK_NUMBERS // (matrix.shape[1] * self.count))
        for begin in range(0, len(out), step):
            some = slice(begin, begin + step)
            values[some] += ((matrix[some] @ sides[1].T) * sides[0].T).sum(1)

    def add_factors(self, out: NDArray[np.float32], parameter: Parameter, rows: NDArray[Any], columns: Floats) -> None:
        """Add what Σ_t r_t c_tᵀ comes to; for one position the kernel values are (C C_Lᵀ) ∘ (R R_Lᵀ)."""
        if parameter.name in self._touched and rows.ndim == 2:
            out[:, : self.count] += self._touched[parameter.name].dots(rows, columns, self.count)
            self._add_rest(out, lambda part, sketch: sketch.add_factors(part, parameter, rows, columns))
            return
        sides = self._sides.get(parameter.name)
        if sides is None or rows.ndim == 2 or rows.shape[1] != 1:
            if self.forms.get(parameter.name) != NONE:
                super().add_factors(out, parameter, rows, columns)
            else:
                self._add_rest(out, lambda part, sketch: sketch.add_factors(part, parameter, rows, columns))
            return
        product = np.asarray(rows[:, 0], np.float32) @ sides[0].T
        product *= np.asarray(columns[:, 0], np.float32) @ sides[1].T
        out[:, : self.count] += product
        self._add_rest(out, lambda part, sketch: sketch.add_factors(part, parameter, rows, columns))

    def _add_rest(
        self, out: NDArray[np.float32], add: Callable[[NDArray[np.float32], CountSketchProjector], None]
    ) -> None:
        """Add to the CountSketches, if there are any, in memory of their own: compiled loops want rows without gaps."""
        if self._rest is not None:
            part = np.zeros((len(out), self._rest.dim), np.float32)
            add(part, self._rest)
            out[:, self.count :] += part

    def cost(self, parameter: Parameter) -> float:
        """Return about how many nanoseconds `add` takes for one sample."""
        rest = 0.0 if self._rest is None else self._rest.cost(parameter)
        return rest + (0.0 if self.forms.get(parameter.name) == NONE else parameter.size * self.count / _PER_NS)

    def factor_cost(self, parameter: Parameter, positions: int, touched: bool = False) -> float:
        """Return about how many nanoseconds `add_factors` takes for one sample of T positions."""
        form = self.forms.get(parameter.name)
        rest = 0.0 if self._rest is None else self._rest.factor_cost(parameter, positions, touched)
        if form == NONE:
            return rest
        if touched and self.touches and form in (None, TOUCHED):
            return rest + positions * parameter.matrix_shape[1] * self.count / _PER_NS
        if form in (WHOLE, TOUCHED) or positions != 1 or touched:
            return math.inf
        return rest + sum(parameter.matrix_shape) * self.count / _PER_NS

    def _gram(self) -> NDArray[np.float64]:
        """Return the inner products (L, L) of the landmarks' covered parts, in float64."""
        total = np.zeros((self.count, self.count))
        for rows, columns in self._sides.values():
            total += _squared(rows) * _squared(columns)
        for gradients in self._whole.values():
            total += _squared(gradients)
        for table in self._touched.values():
            total += table.gram(self.count)
        return total


def _squared(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return rows rowsᵀ in float64, by blocks of columns."""
    total = np.zeros((len(rows), len(rows)))
    for begin in range(0, rows.shape[1], 1 << 14):
        part = rows[:, begin : begin + (1 << 14)].astype(np.float64)
        total += part @ part.T
    return total
