"""Per-sample gradients: one engine per framework behind one interface."""

from collections.abc import Sequence

from gradindex.data.names import Device, LossFunction, Model
from gradindex.errors import missing
from gradindex.gradients.engine import Engine
from gradindex.words import Backend as Backend  # pickled objects name them here
from gradindex.words import BackendName as BackendName


def backend_of(model: Model) -> Backend:
    """Return the framework that `model` is written in.

    Raises
    ------
    TypeError
        If it is neither a ``torch.nn.Module`` nor a Keras model.
    """
    for base in type(model).__mro__:
        root = base.__module__.partition(".")[0]
        if root == "torch":
            return Backend.TORCH
        if root in ("keras", "tensorflow", "tf_keras"):
            return Backend.TENSORFLOW
    raise TypeError(f"Expected a torch.nn.Module or a keras.Model, got {type(model).__name__}.")


def require(backend: Backend) -> None:
    """Import the framework.

    Raises
    ------
    ImportError
        If it is not installed; the message says what to type.
    """
    try:
        __import__(backend.value)
    except ImportError as error:
        title = {"torch": "PyTorch", "tensorflow": "TensorFlow"}[backend]
        raise missing(title, f"gradindex[{backend}]") from error


def make_engine(
    model: Model,
    loss_fn: LossFunction,
    *,
    backend: Backend,
    parameters: str | Sequence[str] | None = None,
    device: Device | None = None,
) -> Engine:
    """Return the gradient engine of a framework for `model`; see the engines for what is raised."""
    require(backend)
    if backend is Backend.TORCH:
        from gradindex.gradients.torch.engine import TorchEngine

        return TorchEngine(model, loss_fn, parameters, device)
    from gradindex.gradients.tensorflow.engine import TensorFlowEngine

    return TensorFlowEngine(model, loss_fn, parameters, device)
