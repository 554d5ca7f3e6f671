"""The CNN of lookup.py, for the peers' own environments."""

from torch import nn


def network():
    """Return the CNN of lookup.py."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 28)), nn.Conv2d(1, 64, 2, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 32, 2, padding="same"), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(1568, 256), nn.ReLU(), nn.Linear(256, 10)),
    )
