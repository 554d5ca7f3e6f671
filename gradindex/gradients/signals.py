"""Signals: what can be seen of a model and a loss, before anything is embedded, that some way of computing misses."""

from dataclasses import dataclass

FACTORED, VMAP = "factored", "vmap"
FORWARD, BACKWARD, FACTORS = "forward mode", "double backward", "factors"
BATCHED = frozenset({FACTORED, VMAP, FORWARD, BACKWARD, FACTORS})
"""Every way but the oracle's: one sample, one backward pass."""


@dataclass(frozen=True)
class Signal:
    """Something in a model or a loss that a way of computing gradients, or products with them, does not see.

    `name`, such as ``"parameter hook"``; `what`, a clause that says what was found and where; `blocks`, the ways that
    are not to be used: paths of rows (``"factored"``, ``"vmap"``) and ways of exact products (``"forward mode"``,
    ``"double backward"``, ``"factors"``); `varies`, whether it may make gradients in a batch depend on the batch, which
    is a reason to compare more rows with the oracle.
    """

    name: str
    what: str
    blocks: frozenset[str] = frozenset()
    varies: bool = False

    @property
    def remark(self) -> bool:
        """Whether users should hear of it: it makes embedding slow, or is no question of ways at all."""
        return FACTORED in self.blocks or not (self.blocks or self.varies)

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"
