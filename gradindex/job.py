"""What to embed: a model, its loss and a dataset."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gradindex.data.chain import Chain
from gradindex.data.dataset_types import as_source
from gradindex.data.names import Model
from gradindex.data.source import Source
from gradindex.data.text import TextReader
from gradindex.gradients import backend_of, make_engine
from gradindex.gradients.engine import Engine
from gradindex.store import location
from gradindex.words import Backend, Task, choose_word


@runtime_checkable
class RowMaker(Protocol):
    """Makes the rows of a job's samples: gradients, or what a metric has in their place."""

    def engine(self, job: "Job") -> Engine:
        """Return the engine whose gradients are these rows."""

    def to_json(self) -> dict[str, Any] | None:
        """Return JSON-ready values that tell these rows from others; None for gradients."""


class GradientRows:
    """The rows of a job without a metric: gradients, those along training if it has checkpoints."""

    def engine(self, job: "Job") -> Engine:
        """Return the engine of the job's framework, at all of its checkpoints."""
        backend = choose_word(Backend, job.backend, "backend")
        engine = make_engine(job.model, job.loss_fn, backend=backend, parameters=job.parameters, device=job.device)
        return engine_along_training(engine, job)

    def to_json(self) -> None:
        """Return None."""


def engine_along_training(engine: Engine, job: "Job") -> Engine:
    """Return the engine at all of a job's checkpoints; itself if it has none."""
    if job.checkpoints is None:
        return engine
    from gradindex.gradients.training.tracin import TracInEngine

    return TracInEngine(engine, job.model, job.checkpoints, partial(location.on_disk, what="a checkpoint"))


@dataclass(frozen=True)
class Job:
    """A trained model, its loss, and the dataset whose gradients are wanted.

    Parameters
    ----------
    model
        A ``torch.nn.Module`` or a Keras 3 model on TensorFlow.
    loss_fn
        ``loss_fn(output, y)`` for torch, ``loss_fn(y, output)`` for Keras; any reduction. It is called with
        batches of one sample. Wrapped in `gradindex.InDouble`, it leaves gradients of samples that the model is sure of
        right instead of rounding.
    dataset
        ``(X, Y)`` arrays, a torch ``Dataset`` or ``DataLoader``, a ``tf.data.Dataset``, a Hugging Face
        ``datasets.Dataset`` (see `gradindex.hugging_face.source`), or a sequence of ``(x, y)``. Inputs may be dicts or
        tuples of arrays. Ids are positions in it.
    parameters
        Which trainable parameters: None (all), a regular expression, a list of names, or ``"last_layer"``.
    task
        ``'classification'`` (``y=None`` in a query means the predicted label) or ``'regression'``.
    backend
        ``'torch'`` or ``'tensorflow'``; found from the model when None.
    device
        Where to compute; None: where the model is.
    class_names
        Names of the classes, for tables and pictures.
    columns
        What else is known of the samples, to come back with results: a mapping of names to sequences, a DataFrame
        or an Arrow table, an entry a sample.
    checkpoints
        For TracIn: ``[(state, learning rate), …]`` along training (see `gradindex.influence.CheckpointRecorder`).
        Gradients are then those at all of them, times √(learning rate), one after the other, so that ``grad_dot``
        is Σ_c η_c ⟨g_c, g_c⟩; losses and predictions are those of the last. A third entry, Adam's preconditioner,
        weights the coordinates. None: the model as it is.
    render
        ``render(i)`` returns sample i as people see it, for pictures, reports and the served page: an image (array or
        PIL), a string, or a dict of names to values. None: inputs are shown as they are.
    prepare
        ``prepare(pixels)`` returns the input of a picture from elsewhere, in the form of one sample: what the dataset's
        own preprocessing does, without what is random. ``pixels`` is (h, w, 3) uint8, or (h, w) of a grey picture, of
        any size. The served page then takes pictures as queries. None: it takes them where the inputs are shown as
        they are, and scales them to these.
    metric
        What `gradindex.relevance.spec` returns, to have the rows of a metric in the place of gradients; usually set
        by ``gradindex.build(job, out, metric=…)``. None: gradients.
    texts
        How texts become samples of this job, and tokens text again; filled in by `gradindex.hugging_face.causal_lm`
        and its like. None: the samples are no texts.
    reference
        The MODULE:FUNCTION that makes this job, which `load_job` fills in: workers on other machines call it instead
        of receiving the model and the data.

    Raises
    ------
    ValueError
        For an unknown task, backend or metric, or checkpoints with a metric.
    TypeError
        If the model is of neither framework, `loss_fn`, `render` or `prepare` is not callable, or `metric` is no
        metric.
    """

    model: Any
    loss_fn: Callable[[Any, Any], Any]
    dataset: Any
    _: KW_ONLY
    parameters: str | Sequence[str] | None = None
    task: str = "classification"
    backend: str | None = None
    device: Any = None
    class_names: Sequence[str] | None = None
    columns: Any = None
    checkpoints: Sequence[tuple[Any, ...]] | None = field(default=None, repr=False)
    render: Callable[[int], Any] | None = field(default=None, repr=False)
    prepare: Callable[[Any], Any] | None = field(default=None, repr=False)
    metric: RowMaker | None = None
    texts: TextReader | None = field(default=None, repr=False, compare=False)
    reference: str | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.loss_fn):
            raise TypeError(f"loss_fn must be callable, got {type(self.loss_fn).__name__}.")
        if self.render is not None and not callable(self.render):
            raise TypeError(f"render must be callable, render(i), got {type(self.render).__name__}.")
        if self.prepare is not None and not callable(self.prepare):
            raise TypeError(f"prepare must be callable, prepare(pixels), got {type(self.prepare).__name__}.")
        if self.metric is not None and self.checkpoints is not None:
            raise ValueError("A metric is one of a single model: give a job either checkpoints or a metric.")
        if self.metric is not None and not isinstance(self.metric, RowMaker):
            raise TypeError(f"metric must be what gradindex.relevance.spec returns, got {type(self.metric).__name__}.")
        object.__setattr__(self, "task", choose_word(Task, self.task, "task"))
        backend = backend_of(self.model) if self.backend is None else self.backend
        object.__setattr__(self, "backend", choose_word(Backend, backend, "backend"))

    @classmethod
    def from_table(
        cls,
        model: Model,
        loss_fn: Callable[[Any, Any], Any],
        table: object,
        *,
        x: str | Sequence[str],
        y: str | None = None,
        columns: Sequence[str] | None = None,
        **options: Any,
    ) -> "Job":
        """Return a job over the rows of a data frame.

        Parameters
        ----------
        model, loss_fn
            As ever.
        table
            Of pandas, polars or Arrow, anything that has Arrow's C stream interface, or a ``datasets.Dataset``, which
            is read as `gradindex.hugging_face.source` does. All others are held in memory as NumPy arrays: floats in
            single precision, truth values as integers.
        x
            The column of the inputs: numbers, lists of numbers, or texts. Or several of numbers, which become one array
            (n, columns) in this order; up to 64 are shown with their names, where there is no `render`.
        y
            The column of the labels: numbers, or texts or categories, which become classes from 0 (texts in their
            order, categories in theirs), with `class_names`. None: samples have no labels.
        columns
            The columns that come back with results. None: all others.
        **options
            Of the job: `parameters`, `task`, `render`, …

        Raises
        ------
        TypeError
            If `table` is none, or a column holds what cannot be an input or label.
        ValueError
            If there is no such column, or one of them has gaps; names the rows.
        """
        from gradindex.data.frames import samples

        found = samples(table, x, y, columns)
        options.setdefault("class_names", found.class_names)
        options.setdefault("render", found.named)
        return cls(model, loss_fn, found.dataset, columns=found.columns, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what was given, and nothing that was computed from it."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def with_metric(self, metric: RowMaker | None) -> "Job":
        """Return the job with the rows of this metric, or with gradients for None; itself if that is so already."""
        same = type(self.metric) is type(metric) and self.metric == metric
        return self if same else replace(self, metric=metric)

    @cached_property
    def engine(self) -> Engine:
        """What makes the rows: the per-sample gradients of the model, or the metric in their place."""
        return (GradientRows() if self.metric is None else self.metric).engine(self)

    @cached_property
    def source(self) -> Source:
        """The dataset in its fixed order."""
        return as_source(self.dataset)

    def extended(self, dataset: object, columns: object = None) -> "Job":
        """Return the job over this dataset and, behind it, another one.

        Parameters
        ----------
        dataset
            More samples, in any of the forms that `dataset` may have.
        columns
            The user's columns of these samples; of the same names as this job's.

        Raises
        ------
        ValueError
            If the names differ, or the dataset is empty.
        """
        from gradindex.data.columns import extended

        more = as_source(dataset)
        chain = Chain([self.source, more])
        return replace(
            self, reference=None, dataset=chain, columns=extended(self.columns, len(self.source), columns, len(more))
        )


class JobReferenceError(ValueError):
    """MODULE:FUNCTION does not lead to a function that returns a job."""


def load_job(reference: str) -> Job:
    """Return the job that ``MODULE:FUNCTION`` makes.

    MODULE is a module name (looked for in the working directory too) or the path of a ``.py`` file, which may import
    the modules beside it; FUNCTION takes no arguments and returns a `Job`.

    Raises
    ------
    JobReferenceError
        A ValueError: if the reference is malformed, names nothing, or does not give a `Job`.
    """
    module_name, colon, function = reference.rpartition(":")
    if not colon or not module_name or not function:
        raise JobReferenceError(f"Expected MODULE:FUNCTION, got {reference!r}.")
    module = _import(module_name)
    make = getattr(module, function, None)
    if make is None:
        raise JobReferenceError(f"Module {module_name!r} has no function {function!r}.")
    job = make() if callable(make) else make
    if not isinstance(job, Job):
        raise JobReferenceError(f"{reference} gave {type(job).__name__}; expected a gradindex.Job.")
    object.__setattr__(job, "reference", reference)
    return job


def _find_modules_in(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _import(name: str) -> Any:
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise JobReferenceError(f"There is no file {name!r}.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise JobReferenceError(f"{name!r} is not a Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        _find_modules_in(str(path.resolve().parent))
        spec.loader.exec_module(module)
        return module
    _find_modules_in(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise JobReferenceError(f"There is no module {name!r} here or on the Python path.") from None
        raise
