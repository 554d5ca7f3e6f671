"""What is known of a model and a loss before the first batch, and which ways of computing it rules out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Signal:
    """Something found in a model or a loss.

    `name`; `what` it means, in plain words; `blocks`, the ways that must not be used: of "factored", "vmap",
    "forward mode", "double backward", "factors".
    """

    name: str
    what: str
    blocks: frozenset[str]
