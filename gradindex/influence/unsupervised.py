"""Jobs whose loss needs no label: autoencoders, density networks, VAEs, language models."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from enum import StrEnum
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradindex.compute import exact
from gradindex.compute.blocks import default_batch_size
from gradindex.data.checks import as_ids, check_finite
from gradindex.data.dataset_types import as_source
from gradindex.data.names import Model
from gradindex.data.samples import as_columns
from gradindex.data.source import Batch, Ids, Source, Tree, length, take_rows
from gradindex.defaults import SEED
from gradindex.gradients import make_engine
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats
from gradindex.job import Job, engine_along_training
from gradindex.sketch.hashing import check_seed
from gradindex.words import Backend, choose_word

Matrix = NDArray[np.float64]
_one_at_a_time = threading.Lock()


class Takes(StrEnum):
    """What a loss without labels is given besides the input."""

    OUTPUT = "output"
    MODEL = "model"


@dataclass(frozen=True)
class UnsupervisedJob(Job):
    """A model, a loss that needs no label, and the inputs whose gradients are wanted.

    `build`, `embed`, `exact_gradients`, `Index` and TracIn take it as they take a `Job`. The engine sees the model
    inside a wrapper, so parameter names begin with ``model.`` in torch; `parameters` may leave that out. Queries are
    ``index.explain(*job.queries(x))``.

    Parameters
    ----------
    model
        A ``torch.nn.Module`` or a Keras 3 model on TensorFlow.
    loss_fn
        With ``takes="output"``, ``loss_fn(output, x)`` for torch and ``loss_fn(x, output)`` for Keras, of any
        reduction and called with batches of one. With ``takes="model"``, ``loss_fn(model, x)``, or
        ``loss_fn(model, x, noise)`` if `noise` is given; it should return one loss for each sample (b,). One that
        returns a scalar is called with batches of one, which is slower.
    dataset
        Inputs: an array, or a dict of arrays; or any dataset that `Job` takes, whose labels are ignored.
    takes
        ``'output'`` or ``'model'``.
    noise
        For a stochastic loss: the shape of one sample's standard normal noise, such as ``(latent,)`` for a VAE.
        The loss is averaged over `draws` of it. Every sample, every query and every checkpoint meets the same
        draws (common random numbers), so that a difference is never one of luck.
    draws
        How many; `gradindex.influence.draws_needed` says what bounds the error of a mean over them.
    seed
        Seeds the draws, an integer in [0, 2**64); the same numbers in both frameworks.
    task
        Leave it: there is no label to predict.

    Raises
    ------
    ValueError
        For an unknown `takes`, `draws` < 1, draws without noise, or noise for a loss of the output.
    TypeError
        If the model is of neither framework, or `loss_fn` is not callable.
    """

    _: KW_ONLY
    takes: str = "output"
    noise: tuple[int, ...] | None = None
    draws: int = 1
    seed: int = SEED
    task: str = "regression"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "takes", choose_word(Takes, self.takes, "takes"))
        check_seed(self.seed)
        if isinstance(self.draws, bool) or not isinstance(self.draws, int) or self.draws < 1:
            raise ValueError(f"draws must be a positive integer, got {self.draws!r}.")
        if self.noise is None and self.draws > 1:
            raise ValueError(f"draws is {self.draws}, but no noise is drawn: give the shape of a sample's noise.")
        if self.noise is not None and self.takes is not Takes.MODEL:
            raise ValueError("A loss with noise takes the model: give takes='model' and loss_fn(model, x, noise).")

    @cached_property
    def noise_values(self) -> NDArray[np.float32] | None:
        """The draws, (draws, *noise) float32; None for a loss without noise."""
        if self.noise is None:
            return None
        random = np.random.Generator(np.random.Philox(self.seed))
        return random.standard_normal((self.draws, *self.noise)).astype(np.float32)

    @cached_property
    def engine(self) -> Engine:
        """The per-sample gradients of the loss, averaged over the draws."""
        return self._engine(self.noise_values) if self.metric is None else self.metric.engine(self)

    @cached_property
    def source(self) -> Source:
        """The inputs in their fixed order, with what stands for their labels."""
        columns = isinstance(self.dataset, Mapping)
        return _Unlabelled(as_source((self.dataset,) if columns else self.dataset), Takes(self.takes))

    def queries(self, x: Tree) -> tuple[Tree, Tree]:
        """Return inputs x of m samples and what stands for their labels: what `Index.explain` needs.

        Raises
        ------
        ValueError
            If the parts of x have different numbers of samples.
        """
        x = as_columns(x)
        return x, _stand_in(x, Takes(self.takes))

    def losses(self, x: Tree = None) -> tuple[Matrix, Matrix]:
        """Return the loss of inputs x (None: of the dataset) and its standard error over the draws, (m,) each.

        The standard error is NaN for a single draw, and 0 for a loss without noise.

        Raises
        ------
        ValueError
            If a loss is NaN or infinite (the message names the ids).
        """
        source = self.source if x is None else as_source(self.queries(x))
        if self.takes is Takes.OUTPUT:
            engine, parts = self.engine, []
            for batch in source.blocks(default_batch_size(engine)):
                parts.append(engine.gradients(batch.x, batch.y).losses[:, None])
        else:
            engine = self._engine(self.noise_values, reveal=True)
            parts = [engine.outputs(batch.x) for batch in source.blocks(256)]
        values = np.concatenate(parts).astype(np.float64)
        check_finite(np.arange(len(values)), "loss", values)
        if self.noise is None:
            return values.mean(axis=1), np.zeros(len(values))
        if self.draws == 1:
            return values[:, 0], np.full(len(values), np.nan)
        return values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(self.draws)

    def influence(self, ids: ArrayLike, x: Tree) -> tuple[Matrix, Matrix]:
        """Return exact inner products ⟨g_i, g_z⟩ of samples `ids` (n,) with inputs x (m, …), and standard errors.

        The standard error (n, m) over the draws is the jackknife's: the products without each draw in turn. For a
        few samples: all draws' gradients are held, (n + m) · draws · P numbers.

        Raises
        ------
        IndexError
            If an id is out of range.
        ValueError
            If there are fewer than 2 draws, or gradients are not finite.
        """
        if self.draws < 2:
            raise ValueError("A standard error needs at least 2 draws: give noise and draws.")
        train = self.source.take(as_ids(ids))
        asked = Batch(np.arange(length(x), dtype=np.int64), *self.queries(x))
        of_train, of_query = (list(self._by_draw(batch)) for batch in (train, asked))
        count = self.draws
        train_sum, query_sum = np.sum(of_train, axis=0), np.sum(of_query, axis=0)
        value = exact.dots(train_sum, query_sum) / count**2
        left_out = np.stack(
            [
                exact.dots(train_sum - one, query_sum - other) / (count - 1) ** 2
                for one, other in zip(of_train, of_query, strict=True)
            ]
        )
        spread = np.square(left_out - left_out.mean(axis=0)).sum(axis=0)
        return value, np.sqrt(spread * (count - 1) / count)

    def _by_draw(self, batch: Batch) -> Iterator[Floats]:
        """Yield the gradients (b, P) of a batch under each draw alone."""
        values: Any = self.noise_values
        engine, model = self._of_one_draw
        size = default_batch_size(engine)
        for draw in values:
            parts = []
            for begin in range(0, len(batch), size):
                rows = slice(begin, begin + size)
                with _one_at_a_time:  # threads share the draw
                    self._adapter.set_noise(model, draw[None])
                    found = engine.gradients(take_rows(batch.x, rows), take_rows(batch.y, rows)).gradients
                check_finite(batch.ids[rows], "gradient", found)
                parts.append(found)
            yield np.concatenate(parts)

    @cached_property
    def _of_one_draw(self) -> tuple[Engine, Model]:
        """An engine of one draw, and its model, whose draw may be replaced."""
        values: Any = self.noise_values
        model = self._wrapped(values[:1])
        return self._engine_of(model), model

    @property
    def _adapter(self) -> ModuleType:
        return import_module(f"gradindex.influence.unsupervised_{Backend(self.backend or '')}")

    def _wrapped(self, noise: NDArray[np.float32] | None, reveal: bool = False) -> Model:
        first = self.source.take(np.zeros(1, np.int64))
        return self._adapter.wrap(self.model, self.loss_fn, self.takes == Takes.MODEL, noise, first.x, reveal)

    def _engine(self, noise: NDArray[np.float32] | None, reveal: bool = False) -> Engine:
        return self._engine_of(self._wrapped(noise, reveal))

    def _engine_of(self, model: Model) -> Engine:
        framework, adapter = Backend(self.backend or ""), self._adapter
        loss_fn = adapter.of_model if self.takes is Takes.MODEL else adapter.of_output(self.loss_fn)
        chosen = adapter.names(model, self.parameters)
        engine = make_engine(model, loss_fn, backend=framework, parameters=chosen, device=self.device)
        return engine_along_training(engine, self)


class _Unlabelled(Source):
    """A dataset's inputs, with what stands for their labels."""

    def __init__(self, source: Source, takes: Takes) -> None:
        self._source, self._takes = source, takes

    def __len__(self) -> int:
        return len(self._source)

    def take(self, ids: Ids) -> Batch:
        """Return the samples at the given positions."""
        return self._batch(self._source.take(ids))

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield samples `start` to `stop` in order, `size` at a time."""
        for batch in self._source.blocks(size, start, stop):
            yield self._batch(batch)

    def _batch(self, batch: Batch) -> Batch:
        return replace(batch, y=_stand_in(batch.x, self._takes))


def _stand_in(x: Tree, takes: Takes) -> Tree:
    """Return what the engines pass on as the label: the input for a loss of the output, else zeros.

    In a tuple, so that neither is taken for a class and stored as one.
    """
    return (x,) if takes is Takes.OUTPUT else (np.zeros(length(x), np.float32),)
