"""The oracle: one training step of one sample in evaluation mode. Slow and obviously right.

Every faster way is compared with it. A framework's oracle is written apart from its engine and reads nothing of it, so
that the two cannot share a mistake. It calls the model and the loss as a training loop does, and lets the framework's
ordinary backward pass run with all that is attached to it: hooks of parameters, modules and tensors, custom gradients,
masks, penalties in the loss.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Tree
from gradindex.gradients.parameter import Floats


@dataclass(frozen=True)
class Step:
    """What a training step of one sample computes.

    `gradient` (P,) of the selected parameters, flattened and concatenated in the model's order, zeros where the loss
    does not depend on one; `loss`, a number; `output`, the model's, a batch of one in the framework's own form;
    `unused`, the names of the selected parameters on which the loss does not depend.
    """

    gradient: Floats
    loss: float
    output: Any
    unused: tuple[str, ...]


class Oracle(ABC):
    """Gradients of single samples by plain training steps that change nothing.

    Weights, statistics, gradients, random state and the modes of submodules are put back after every step.
    """

    @abstractmethod
    def step(self, x: Tree, y: Tree) -> Step:
        """Return the training step of a batch of ONE sample.

        Raises
        ------
        ValueError
            If a hook changes the weights while the gradient is computed (they are put back).
        """

    @abstractmethod
    def token_step(self, x: Tree, y: Tree, token: int) -> Step:
        """Return the training step of a batch of ONE sample whose loss is that of one of its tokens.

        Raises
        ------
        ValueError
            As `step`.
        TypeError
            If the loss is not made of the losses of tokens, see `gradindex.data.text.TokenLoss`.
        """

    @abstractmethod
    def token_losses(self, x: Tree, y: Tree) -> NDArray[np.float64]:
        """Return what each token gives to the loss of a batch of ONE sample, (t,); raises like `token_step`."""
