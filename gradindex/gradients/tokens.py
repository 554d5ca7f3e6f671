"""What an engine says of the losses of single tokens, where the loss is made of them."""

import numpy as np
from numpy.typing import NDArray

from gradindex.data.source import Tree
from gradindex.gradients.oracle import Oracle
from gradindex.gradients.parameter import Floats
from gradindex.gradients.results import PerSample


class ByToken:
    """A part of `gradindex.gradients.engine.Engine`: texts, the loss of which is a `gradindex.data.text.TokenLoss`.

    The gradient of a token is that of what it gives to its sample's loss; those of all tokens add up to the sample's.
    """

    oracle: Oracle
    """The training steps of a framework's model, which faster paths are compared with."""
    dtype: "np.dtype[np.generic]"

    def token_products(self, x: Tree, y: Tree, directions: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the derivative of each token's loss along directions of the weights, by forward mode.

        Parameters
        ----------
        x, y
            A batch of b texts of one length.
        directions
            One direction (P,), flattened as gradients are, or several (n, P).

        Returns
        -------
        tuple
            Products (b, t), or (n, b, t), whose sums over the tokens are those of `directional`, and what each token
            gives to its sample's loss, (b, t).

        Raises
        ------
        TypeError
            If the loss is not made of the losses of tokens.
        NotImplementedError
            If the engine is none of a framework's own.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no losses of tokens: expected gradients of a torch or Keras model."
        )

    def token_gradient(self, x: Tree, y: Tree, token: int) -> PerSample:
        """Return the gradient (1, P) of one token's loss in a batch of ONE sample, by one plain backward pass."""
        found = self.oracle.token_step(x, y, token)
        row, loss = found.gradient[None].astype(self.dtype, copy=False), np.array([found.loss], self.dtype)
        return PerSample(row, loss, None)

    def token_losses(self, x: Tree, y: Tree) -> NDArray[np.float64]:
        """Return what each token gives to the loss of a batch of ONE sample, (t,)."""
        return self.oracle.token_losses(x, y)
