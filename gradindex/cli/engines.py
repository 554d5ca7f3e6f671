"""Options of commands that may run on a cluster."""

from enum import StrEnum
from typing import Annotated

import typer

from gradindex.distributed.options import Ray


class Engine(StrEnum):
    """What to run on, besides this process."""

    RAY = "ray"


EngineOption = Annotated[Engine | None, typer.Option(help="Run on a cluster.  [default: in this process]")]
Address = Annotated[str | None, typer.Option(help="With --engine: 'auto' or HOST:PORT.  [default: this machine]")]
Workers = Annotated[int | None, typer.Option(min=1, help="With --engine: how many.  [default: as many as fit]")]
Resources = Annotated[list[str] | None, typer.Option(help="With --engine: what a worker takes, such as GPU=1.")]
WorkingDir = Annotated[str | None, typer.Option(help="With --engine: directory of code to send to workers.")]


def engine_of(
    engine: Engine | None,
    address: str | None,
    workers: int | None,
    resources: list[str] | None,
    working_dir: str | None,
) -> Ray | None:
    """Return the engine that options ask for; None for none.

    Raises
    ------
    BadParameter
        If an option needs an engine and there is none, or resources are no ``NAME=AMOUNT``.
    """
    if engine is None:
        if any(value is not None for value in (address, workers, working_dir)) or resources:
            raise typer.BadParameter("--address, --workers, --resources and --working-dir need --engine ray.")
        return None
    amounts = {}
    for text in resources or []:
        name, equals, amount = text.partition("=")
        try:
            amounts[name] = float(amount)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise typer.BadParameter(f"--resources takes NAME=AMOUNT such as GPU=1, got {text!r}.")
    sent = None if working_dir is None else {"working_dir": working_dir}
    return Ray(address=address, workers=workers, resources=amounts, runtime_env=sent)
