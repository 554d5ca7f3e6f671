"""Models that an example leaves in its folder when it has trained them, and takes from there with ``--load``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gradindex.influence import Checkpoint, CheckpointRecorder


def there(path: Path) -> Path:
    """Return the path of what a run before left.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}: run this once without --load, with the same options.")
    return path


def trained(file: Path, load: bool, model: Any, train: Callable[[], object]) -> None:
    """Train a model and leave its weights in a file, or put those of a run before into it.

    Parameters
    ----------
    file
        ``.pt`` for the state dict of a PyTorch model, ``.keras`` for a Keras model, ``.weights.h5`` for one whose class
        Keras does not know.
    load
        Whether to take what is there.
    model
        The model, fresh.
    train
        Trains it.
    """
    if load:
        _read(there(file), model)
        return
    train()
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".pt":
        import torch

        torch.save(model.state_dict(), file)
    elif file.suffix == ".keras":
        model.save(file)
    else:
        model.save_weights(file)


def _read(file: Path, model: Any) -> None:
    if file.suffix == ".pt":
        import torch

        model.load_state_dict(torch.load(file, weights_only=True))
        model.eval()
    elif file.suffix == ".keras":
        import keras

        model.set_weights(keras.models.load_model(file, compile=False).get_weights())
    else:
        model.load_weights(file)


def recorded(file: Path, load: bool, model: Any, recorder: CheckpointRecorder) -> None:
    """Leave the checkpoints of a training in a file ``.npz``, or put those of a run before into the recorder.

    The file holds the learning rates and, of checkpoint c, its weights ``state/c/…`` and Adam's preconditioners
    ``adam/c/…``, if those were recorded, in the model's order.
    """
    if not load:
        arrays = {"rates": np.array([one.learning_rate for one in recorder.checkpoints])}
        for number, one in enumerate(recorder.checkpoints):
            weights = one.state.values() if isinstance(one.state, dict) else one.state
            for kind, values in (("state", weights), ("adam", one.preconditioner or ())):
                arrays |= {f"{kind}/{number}/{place}": np.asarray(value) for place, value in enumerate(values)}
        np.savez(file, **arrays)
        return
    with np.load(there(file), allow_pickle=False) as arrays:
        for number, rate in enumerate(arrays["rates"]):
            state, factors = (
                [arrays[name] for name in arrays.files if name.startswith(f"{kind}/{number}/")]
                for kind in ("state", "adam")
            )
            recorder.checkpoints.append(Checkpoint(_named(model, state), float(rate), factors or None))


def _named(model: Any, state: list[np.ndarray]) -> Any:
    """Return weights as the model's framework has them: a state dict of PyTorch, or the list of Keras."""
    if not hasattr(model, "state_dict"):
        return state
    import torch

    return dict(zip(model.state_dict(), map(torch.from_numpy, state), strict=True))
