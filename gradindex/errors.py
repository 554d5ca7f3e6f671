"""Errors a caller may want to tell apart; everything else is a ValueError, TypeError or ImportError."""


class MismatchError(ValueError):
    """An index was opened with a model, parameter set or dataset other than the one it was built from."""


class DamagedIndexError(ValueError):
    """A file of an index is missing, truncated, or not what its manifest says; the message names it."""


class IndexExistsError(FileExistsError):
    """The output directory already holds an index that this build may not touch."""


class FinishedError(IndexExistsError):
    """The output directory already holds the very index that was asked for, and nothing is left to do."""
