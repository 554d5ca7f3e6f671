"""Words that users type for a choice, each kind an enumeration, and the one function that reads them."""

from enum import StrEnum
from typing import Any, TypeVar

EnumT = TypeVar("EnumT", bound=StrEnum)


class Task(StrEnum):
    """What the model does; decides what ``y=None`` means."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class Backend(StrEnum):
    """Framework of a model."""

    TORCH = "torch"
    TENSORFLOW = "tensorflow"


class BackendName(StrEnum):
    """What `GradientSimilarity` calls the frameworks, as Alibi does."""

    TENSORFLOW = "tensorflow"
    PYTORCH = "pytorch"


class Reduce(StrEnum):
    """What becomes of the kernel's values over a set of queries."""

    EACH = "each"
    MEAN = "mean"
    SUM = "sum"
    MAX = "max"


class Rank(StrEnum):
    """How samples are ranked for several queries that choose some of them."""

    MEAN = "mean"
    MAX = "max"
    ROUND_ROBIN = "round-robin"


def choose_word(enum: type[EnumT], value: Any, what: str) -> EnumT:
    """Return the member of `enum` named `value`.

    Raises
    ------
    ValueError
        If there is none; the message lists the options as ``'a' | 'b'``.
    """
    try:
        return enum(value)
    except ValueError:
        options = " | ".join(f"'{member.value}'" for member in enum)
        raise ValueError(f"Unknown {what} {value!r}. Expected one of: {options}.") from None
