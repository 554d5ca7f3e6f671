"""Errors a caller may want to tell apart; everything else is a ValueError, TypeError or ImportError."""


class MismatchError(ValueError):
    """An index was opened with a model, parameter set or dataset other than the one it was built from."""


class OtherSamplesError(MismatchError):
    """What is to be continued holds rows of other samples, or of another loss, than those of the job."""


class DamagedIndexError(ValueError):
    """A file of an index is missing, truncated, or not what its manifest says; the message names it."""


class IndexExistsError(FileExistsError):
    """The output directory already holds an index that this build may not touch."""


class FinishedError(IndexExistsError):
    """The output directory already holds the very index that was asked for, and nothing is left to do."""


def missing(package: str, install: str, needed_by: str | None = None) -> ImportError:
    """Return the error for a package that is not installed, which says what to type.

    Parameters
    ----------
    package
        Its name.
    install
        What pip is to install: an extra such as ``gradindex[plots]``, or packages.
    needed_by
        What needs it, as a sentence begins, such as ``"Drawing"``.
    """
    subject = f"{package} is" if needed_by is None else f"{needed_by} needs {package}, which is"
    quoted = f"'{install}'" if "[" in install else install
    return ImportError(f"{subject} not installed. Type: pip install {quoted}")
