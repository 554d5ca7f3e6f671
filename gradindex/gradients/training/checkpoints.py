"""Checkpoints: weights and learning rates along training, collected, checked and put into a model for a moment."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradindex.data.names import Model, Optimizer
from gradindex.data.tensors import is_torch
from gradindex.errors import missing
from gradindex.gradients import backend_of
from gradindex.gradients.training.adam import check_preconditioner, read_preconditioner, trainable_shapes
from gradindex.words import Backend

if TYPE_CHECKING:
    import keras
    import transformers


class Checkpoint(NamedTuple):
    """Weights at one moment of training, and the learning rate of the steps that followed or led there."""

    state: Any
    """torch: a ``state_dict``; Keras: the list that ``get_weights`` returns; or the path of a file that holds it
    (``torch.save`` of a ``state_dict``; Keras ``.weights.h5``)."""
    learning_rate: float
    preconditioner: Any = None
    """None, or how much of each coordinate of the gradient a step takes, as Adam's 1/(√v̂ + ε): an array for each
    trainable parameter, in the model's order and of its shape."""


class CheckpointRecorder:
    """Collects checkpoints while a model trains; `checkpoints` is what `Job` takes.

    In a plain loop call `record`; for Keras pass ``callbacks=[recorder.keras_callback()]`` to ``fit``, for Hugging
    Face ``callbacks=[recorder.trainer_callback()]`` to ``Trainer``. Weights are copied to the host's memory.

    Parameters
    ----------
    adam
        Keep Adam's preconditioner 1/(√v̂ + ε) as well. TracIn is then that of Adam's steps,
        Σ_c η_c ⟨g_c(x), g_c(z) / (√v̂_c + ε)⟩, and forms gradients whole: slower, and P numbers a sample.
    """

    def __init__(self, adam: bool = False) -> None:
        self.checkpoints: list[Checkpoint] = []
        self._adam = adam

    def record(self, model: Model, learning_rate: object, optimizer: Optimizer | None = None) -> None:
        """Append the model's present weights.

        Parameters
        ----------
        model
            A ``torch.nn.Module`` or a Keras model.
        learning_rate
            A number, or a torch optimiser, whose parameter groups must share one.
        optimizer
            For ``adam=True``, the optimiser, where `learning_rate` is a number.

        Raises
        ------
        ValueError
            If the learning rate is not positive and finite, the optimiser has several, or there is none though its
            preconditioner is wanted, or it has made no step.
        TypeError
            If the preconditioner of an optimiser is wanted that is no Adam.
        """
        if hasattr(learning_rate, "param_groups"):
            optimizer = learning_rate if optimizer is None else optimizer
            rates = {float(group["lr"]) for group in learning_rate.param_groups}
            if len(rates) != 1:
                raise ValueError(f"The optimiser has several learning rates, {sorted(rates)}: give one number.")
            learning_rate = rates.pop()
        rate, factors = _check_rate(learning_rate), None
        if self._adam:
            if optimizer is None:
                raise ValueError("Adam's preconditioner is wanted: give record(model, learning_rate, optimizer).")
            factors = read_preconditioner(_unwrapped(model), optimizer)
        self.checkpoints.append(Checkpoint(read_state(model), rate, factors))

    def keras_callback(self, every: int = 1) -> "keras.callbacks.Callback":
        """Return a ``keras.callbacks.Callback`` that records after every `every`-th epoch.

        Raises
        ------
        ValueError
            If `every` is not a positive integer.
        """
        from gradindex.gradients.training.keras_callback import RecordEpochs

        return RecordEpochs(self, _check_every(every))

    def trainer_callback(self, every: int = 1, unit: str = "epoch") -> "transformers.TrainerCallback":
        """Return a ``transformers.TrainerCallback`` that records after every `every`-th epoch or step.

        Parameters
        ----------
        every
            How often.
        unit
            ``'epoch'`` or ``'step'``.

        Raises
        ------
        ImportError
            If transformers is not installed.
        ValueError
            For another unit, or if `every` is not a positive integer.
        """
        if unit not in ("epoch", "step"):
            raise ValueError(f"Unknown unit {unit!r}. Expected one of: 'epoch' | 'step'.")
        try:
            from gradindex.gradients.training.transformers_callback import RecordTraining
        except ModuleNotFoundError as error:
            if error.name != "transformers":
                raise
            raise missing("Transformers", "transformers accelerate") from error
        return RecordTraining(self, _check_every(every), unit)


def read_state(model: Model, on_host: bool = True) -> Any:
    """Return a copy of a model's weights and statistics, on the host or (torch) where they are."""
    if backend_of(model) is Backend.TORCH:
        return {name: _copied(value, on_host) for name, value in _unwrapped(model).state_dict().items()}
    return [np.array(value) for value in model.get_weights()]


def check_checkpoints(model: Model, checkpoints: object, find: Callable[[str | Path], Path] = Path) -> list[Checkpoint]:
    """Return checkpoints with their files read, after comparing each with the model.

    Parameters
    ----------
    model
        The model.
    checkpoints
        ``[(state, learning rate), …]``, see `Checkpoint`.
    find
        Returns the file of a state that is a path, or refuses it.

    Raises
    ------
    TypeError
        If they are no sequence of (state, learning rate), with or without a preconditioner.
    ValueError
        If there are none, a learning rate is not positive and finite, or a state or preconditioner is not the
        model's (the message names the first difference).
    FileNotFoundError
        If a file is missing.
    """
    if not isinstance(checkpoints, Sequence) or any(not _is_checkpoint(c) for c in checkpoints):
        raise TypeError("checkpoints must be a sequence of (state, learning_rate).")
    if not checkpoints:
        raise ValueError("There are no checkpoints: give at least one (state, learning_rate).")
    found = []
    for place, (state, rate, factors) in enumerate(Checkpoint(*given) for given in checkpoints):
        state = _read_file(model, find(state)) if isinstance(state, str | Path) else state
        difference = _difference(model, state)
        if difference:
            raise ValueError(f"Checkpoint {place} is not of this model: {difference}.")
        if factors is not None:
            try:
                factors = check_preconditioner(factors, trainable_shapes(_unwrapped(model)))
            except ValueError as error:
                raise ValueError(f"Checkpoint {place} is not of this model: {error}.") from error
        found.append(Checkpoint(state, _check_rate(rate), factors))
    return found


def _is_checkpoint(given: object) -> bool:
    return isinstance(given, tuple) and len(given) in (2, 3)


@contextmanager
def restored(model: Model) -> Iterator[None]:
    """Put the model's weights back at the end, whatever happens."""
    saved = read_state(model, on_host=False)
    try:
        yield
    finally:
        load_state(model, saved)


def load_state(model: Model, state: object) -> None:
    """Copy weights and statistics into the model's own tensors."""
    if backend_of(model) is not Backend.TORCH:
        model.set_weights(state)
        return
    import torch

    with torch.inference_mode(False):
        _unwrapped(model).load_state_dict(state)


def _unwrapped(model: Model) -> Model:
    """Look through ``torch.compile`` and ``DataParallel``, as the engine does."""
    model = getattr(model, "_orig_mod", model)
    return model.module if type(model).__name__ == "DataParallel" else model


def _copied(value: Any, on_host: bool) -> Any:
    if not is_torch(value):
        return value
    return value.detach().to("cpu" if on_host else value.device, copy=True)


def _check_rate(rate: Any) -> float:
    value = float(rate)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"A learning rate must be positive and finite, got {value}.")
    return value


def _check_every(every: int) -> int:
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a positive integer, got {every!r}.")
    return every


def _read_file(model: Model, path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    if backend_of(model) is Backend.TORCH:
        import torch

        return torch.load(path, map_location="cpu", weights_only=True)
    with restored(model):
        model.load_weights(path)
        return read_state(model)


def _difference(model: Model, state: object) -> str:
    """Return how a state differs from the model's own in names and shapes, in words; empty if it does not."""
    if backend_of(model) is Backend.TORCH:
        if not isinstance(state, Mapping):
            return f"expected a state_dict, got {type(state).__name__}"
        own = _unwrapped(model).state_dict()
        shapes, wanted = ({name: _shape(value) for name, value in some.items()} for some in (state, own))
    else:
        if not isinstance(state, list | tuple):
            return f"expected the list of get_weights(), got {type(state).__name__}"
        names = [f"{place} ({variable.path})" for place, variable in enumerate(model.weights)]
        if len(state) != len(names):
            return f"it has {len(state)} weights, the model {len(names)}"
        shapes = {name: np.shape(value) for name, value in zip(names, state, strict=True)}
        wanted = {name: tuple(v.shape) for name, v in zip(names, model.weights, strict=True)}
    for name in [*wanted, *shapes]:
        if shapes.get(name) != wanted.get(name):
            return f"weight {name!r} has shape {shapes.get(name)}, expected {wanted.get(name)}"
    return ""


def _shape(value: object) -> Any:
    return tuple(value.shape) if hasattr(value, "shape") else "no tensor"
