"""A lookup service over HTTP, and a page to explore an index; see `gradindex serve`."""

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gradindex.errors import missing
from gradindex.serve.settings import HOST, Settings

if TYPE_CHECKING:
    from gradindex.index.index import Index

__all__ = ["Settings", "create_app", "serve"]


def create_app(index: "Index", settings: Settings | None = None) -> Any:
    """Return the service as an ASGI application (a ``fastapi.FastAPI``).

    Parameters
    ----------
    index
        An index that was opened with its job.
    settings
        Limits and access; by default everything that comes from this machine is answered.

    Raises
    ------
    ImportError
        If FastAPI is not installed; says what to type.
    """
    _require()
    from gradindex.serve.app import make

    return make(index, settings or Settings())


def serve(
    index: "Index",
    settings: Settings | None = None,
    *,
    host: str = HOST,
    port: int = 0,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve an index until SIGINT or SIGTERM; requests that were accepted are answered first.

    An index that takes its place on the disk is opened meanwhile, see `Settings.reload_seconds`, and at SIGHUP: with
    the same job, or, if that does not fit, with what the function returns now that the job came from (`load_job`).

    In a notebook, it serves until the cell is interrupted.

    Parameters
    ----------
    index
        An index that was opened with its job.
    settings
        Limits and access.
    host
        The address to listen on; one that other machines reach needs `Settings.token`.
    port
        0 takes a free one, which the log names.
    ready
        Called with the address, such as ``http://127.0.0.1:8000``, once requests are answered.

    Raises
    ------
    ImportError
        If FastAPI or uvicorn is not installed; says what to type.
    ValueError
        If `host` is not loopback and there is no token.
    OSError
        If the port is taken.
    """
    _require()
    from gradindex.serve.app import make
    from gradindex.serve.server import check_access, run

    app = make(index, check_access(settings or Settings(), host))
    del index  # the service alone holds it, and lets go of it when another one took its place
    run(app, host, port, ready)


def _require() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        if error.name not in ("fastapi", "prometheus_client", "uvicorn"):  # one of them is there, and fails
            where = traceback.extract_tb(error.__traceback__)[-1].filename
            raise ImportError(
                f"The service cannot be loaded: {error}, in {where}. If that file is yours, rename it: it may hide a "
                "package of its name. Else type: pip install --force-reinstall 'gradindex[serve]'"
            ) from error
        raise missing(error.name, "gradindex[serve]", "The service") from error
