"""What a file of torch's holds: a whole model, or weights that a model of their class is to load."""

from pathlib import Path

import torch

_NAMES = "model_state_dict", "state_dict", "model"  # of the weights in a checkpoint


def weights_in(file: Path) -> list[str] | None:
    """Return the keys that lead to the weights in a file that holds no whole model; None for any other file.

    The file's own code is not run, and its numbers are not read.

    Parameters
    ----------
    file
        What ``torch.save`` wrote.

    Returns
    -------
    list of str or None
        Empty where the file is the weights themselves.
    """
    try:
        found = torch.load(file, weights_only=True, map_location="meta")
    except Exception:  # a whole model, or no file of torch's: loading it for the job says more
        return None
    if not isinstance(found, dict):
        return None
    return next(([name] for name in _NAMES if isinstance(found.get(name), dict)), [])
