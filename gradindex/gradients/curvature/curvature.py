"""The curvature of a model's loss over a dataset, by K-FAC or EKFAC, from the engine's own per-sample factors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradindex.data.labels import as_array
from gradindex.data.source import Batch, Source, rectangles
from gradindex.defaults import SEED
from gradindex.gradients.curvature import drawn
from gradindex.gradients.curvature.block import Block, Doubles, power
from gradindex.gradients.curvature.factors import LONGEST, EigenvalueSums, FactorSums, blocks_of
from gradindex.gradients.curvature.sums import Total, passed
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats, Parameter
from gradindex.runtime.log import log

AUTOMATIC_DAMPING = 0.1
"""Damping where none is given: this share of the mean eigenvalue, of those that are not rounding."""
MEMORY = 2 << 30
_BATCH = 128
KINDS = ("kfac", "ekfac")
LABELS = ("data", "model")


@dataclass(frozen=True)
class Curvature:
    """A matrix of one block a parameter, with its powers; made by `fit`.

    Blocks of different parameters, a layer's weight and its bias among them, are taken to be independent. Damping is
    added to every eigenvalue, also of K-FAC, unless it is `factored`: closer to the exact matrix.
    """

    blocks: tuple[Block, ...]
    kind: str
    labels: str
    samples: int
    """Labels drawn for a sample; 0 for the data's."""
    factored: bool = False
    """Whether each factor is damped by itself (see `Block.halves`)."""

    @classmethod
    def fit(
        cls,
        engine: Engine,
        source: Source,
        kind: str = "ekfac",
        labels: str = "data",
        samples: int = 1,
        seed: int = SEED,
        memory: int = MEMORY,
    ) -> "Curvature":
        """Return the curvature of an engine's loss over a dataset.

        Parameters
        ----------
        engine
            Of a model of either framework; its selected parameters have blocks.
        source
            The samples. They are read once for K-FAC and twice for EKFAC, or so often for each group of parameters.
        kind
            ``"kfac"``: the product of two factors. ``"ekfac"``: eigenvalues measured in the factors' eigenvectors.
        labels
            ``"data"``: the matrix is E[g gᵀ] of the samples' own gradients. ``"model"``: labels are drawn from what the
            model predicts, so that it is the Fisher information.
        samples
            How many labels are drawn for each sample.
        seed
            Of the drawn labels.
        memory
            Bytes that factors, eigenvectors and eigenvalues may take while they are made; parameters that do not fit
            together are dealt with in several passes over the samples. A parameter always gets what it needs alone.

        Raises
        ------
        ValueError
            If an argument has no meaning, the engine is of several checkpoints or a metric, or labels cannot be drawn
            for this loss.
        """
        if engine.late_scales:
            raise ValueError("A curvature is that of one model: give the engine of one checkpoint.")
        for name, value, options in (("kind", kind, KINDS), ("labels", labels, LABELS)):
            if value not in options:
                raise ValueError(f"Unknown {name} {value!r}. Expected one of: {' | '.join(map(repr, options))}.")
        for name, number in (("samples", samples), ("memory", memory)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}.")
        if len(engine.parameters) == 1 and engine.paths.get(engine.parameters[0].name) == "feature map":
            raise ValueError("Rows of a metric have no curvature: use the job without a metric.")
        data = _Passes(engine, source, samples if labels == "model" else 0, seed)
        groups = _groups(engine.parameters, memory)
        if len(groups) > 1:
            log.info("the parameters' factors are added up in %d passes over the samples", len(groups))
        blocks: list[Block] = []
        for group in groups:
            totals = passed(lambda group=group: FactorSums(group), engine, data)  # type: ignore[misc]
            found = list(blocks_of(totals, group).values())
            if kind == "ekfac":
                squares = passed(lambda found=found: EigenvalueSums(found), engine, data)  # type: ignore[misc]
                found = [_measured(block, squares.get(block.parameter.name)) for block in found]
            blocks += found
        return cls(tuple(blocks), kind, labels, data.samples)

    @property
    def size(self) -> int:
        """P, the numbers of a gradient."""
        return sum(block.parameter.size for block in self.blocks)

    @property
    def trace(self) -> float:
        """The sum of the eigenvalues."""
        return float(sum(block.values.sum() for block in self.blocks))

    @property
    def damping(self) -> float:
        """The damping that is used where none is given: a tenth of the mean eigenvalue of all blocks."""
        rank = sum(block.rank for block in self.blocks)
        return AUTOMATIC_DAMPING * sum(block.mean * block.rank for block in self.blocks) / max(rank, 1)

    def with_factored_damping(self) -> "Curvature":
        """Return the same K-FAC, whose damping is factored, so that a power is a product of two small matrices, too.

        Raises
        ------
        ValueError
            If it is EKFAC, whose eigenvalues are no products.
        """
        if self.kind != "kfac":
            raise ValueError("Eigenvalues of EKFAC are no products, so their damping is not factored. Use kind='kfac'.")
        return replace(self, factored=True)

    def scales(self, block: Block, damping: float | None = None, exponent: float = -1.0) -> Doubles:
        """Return by what a power multiplies the coordinates (R, C) of a block."""
        damping = self.damping if damping is None else damping
        if self.factored:
            rows, columns = block.halves(damping)
            found: Doubles = np.outer(power(rows, exponent), power(columns, exponent))
            return found
        return power(block.values + damping, exponent)

    def power(self, gradients: Floats, damping: float | None = None, exponent: float = -1.0) -> Doubles:
        """Return (F + d) ** exponent times rows of gradients (b, P), float64.

        Parameters
        ----------
        gradients
            Rows (b, P), in the engine's order.
        damping
            d, absolute, at least 0; None: `damping`.
        exponent
            −1: the inverse; −½: its root. Where an eigenvalue and d are 0, the result is 0.

        Raises
        ------
        ValueError
            If rows are not P long, or the damping is negative.
        """
        if damping is not None and not damping >= 0:
            raise ValueError(f"damping must be None or a number of at least 0, got {damping!r}.")
        if gradients.ndim != 2 or gradients.shape[1] != self.size:
            raise ValueError(f"Expected gradients of shape (b, {self.size}), got {gradients.shape}.")
        damping = self.damping if damping is None else damping
        out, begin = np.empty(gradients.shape, np.float64), 0
        for block in self.blocks:
            place = slice(begin, begin := begin + block.parameter.size)
            coordinates = block.into(gradients[:, place].astype(np.float64))
            out[:, place] = block.back(coordinates * self.scales(block, damping, exponent))
        return out

    def apply(self, gradients: Floats, damping: float | None = None) -> Doubles:
        """Return (F + d)⁻¹ times rows of gradients (b, P)."""
        return self.power(gradients, damping, -1.0)

    def root(self, gradients: Floats, damping: float | None = None) -> Doubles:
        """Return (F + d)^(−1/2) times rows of gradients (b, P)."""
        return self.power(gradients, damping, -0.5)


class _Passes:
    """The samples' batches, as often as they are asked for, with the same drawn labels each time."""

    def __init__(self, engine: Engine, source: Source, samples: int, seed: int) -> None:
        self._engine, self._source, self.samples, self._seed = engine, source, samples, seed
        self._distribution: drawn.Distribution | None = None

    def __call__(self) -> Iterator[Batch]:
        for batch in self._source.blocks(_BATCH):
            if not self.samples:
                yield batch
                continue
            for rows, x, y in rectangles(batch.x, batch.y):
                yield from self._drawn(Batch(batch.ids[rows], x, y))

    def _drawn(self, batch: Batch) -> Iterator[Batch]:
        """Yield samples of one shape with labels drawn for them, as often as was asked for."""
        outputs = self._outputs(batch)
        if self._distribution is None:
            self._distribution = drawn.find(self._engine, outputs, batch.y)
        for turn in range(self.samples):
            seed = (self._seed, int(batch.ids[0]), turn)
            yield replace(batch, y=self._distribution.draw(outputs, as_array(batch.y), seed))

    def _outputs(self, batch: Batch) -> Any:
        if batch.y is None or isinstance(batch.y, dict | tuple | list):
            raise drawn.NoDistribution('Labels are not one array, so none can be drawn. Use labels="data".')
        try:
            return self._engine.outputs(batch.x)
        except TypeError as error:
            raise drawn.NoDistribution(f'No labels can be drawn ({error}). Use labels="data".') from error


def _measured(block: Block, total: Total | None) -> Block:
    return block if total is None else replace(block, measured=total.arrays[0] / total.samples)


def _groups(parameters: Sequence[Parameter], memory: int) -> list[list[Parameter]]:
    """Return the parameters in groups whose factors fit into memory together, in order."""
    groups: list[list[Parameter]] = []
    left = 0
    for parameter in parameters:
        need = _bytes(parameter)
        if not groups or need > left:
            groups.append([])
            left = memory
        groups[-1].append(parameter)
        left -= need
    return groups


def _bytes(parameter: Parameter) -> int:
    """Return about how many bytes a parameter's factors take: sums, those of a batch, eigenvectors, eigenvalues."""
    sides = sum(n * (n if n <= LONGEST else 1) for n in parameter.matrix_shape)
    return 8 * (3 * sides + 2 * parameter.size)
