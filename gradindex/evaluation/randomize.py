"""A copy of a model with layers initialised again."""

from gradindex.data.names import Model
from gradindex.gradients import backend_of
from gradindex.words import Backend


def randomized(model: Model, seed: int, top: int | None = None) -> Model:
    """Return a copy of `model` whose layers are initialised again in place; the model itself is not touched.

    Parameters
    ----------
    model
        A ``torch.nn.Module`` whose parameters belong to modules with ``reset_parameters`` (all of torch's own
        layers), or a Keras model.
    seed
        Of the initialisation.
    top
        Only that many layers with parameters, from the output down (the cascading test); None: all.

    Raises
    ------
    ValueError
        If a layer does not know how to initialise itself, or `top` is less than 1.
    """
    if top is not None and top < 1:
        raise ValueError(f"top must be None or at least 1, got {top}.")
    if backend_of(model) is Backend.TORCH:
        from gradindex.gradients.torch.initialise import initialised_again
    else:
        from gradindex.gradients.tensorflow.initialise import initialised_again
    return initialised_again(model, seed, top)
