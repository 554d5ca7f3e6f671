"""The commands. Each is a thin layer over a function of the same name."""

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from gradindex.cli.changes import add, compact, remove, whiten
from gradindex.cli.compare import compare
from gradindex.cli.console import err, out
from gradindex.cli.decisions import decisions
from gradindex.cli.doctor import doctor
from gradindex.cli.evaluate import evaluate
from gradindex.cli.export import export
from gradindex.cli.index_commands import build, calibrate, explain, info, repair, tune, verify
from gradindex.cli.influence import self_influence
from gradindex.cli.init import init
from gradindex.cli.options import FILE, Json
from gradindex.cli.plan import plan
from gradindex.cli.report import report
from gradindex.cli.review import review
from gradindex.cli.select import select
from gradindex.cli.serve import serve
from gradindex.defaults import SEED
from gradindex.words import Backend

app = typer.Typer(
    name="gradindex",
    help="Which training samples are behind a prediction? Nearest neighbours over loss gradients.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(evaluate)
app.command()(add)
app.command()(remove)
app.command()(compact)
app.command()(whiten)
app.command("self-influence")(self_influence)
app.command()(serve)
app.command()(plan)
app.command()(export)
app.command()(report)
app.command()(review)
app.command()(decisions)
app.command()(compare)
app.command()(init)
app.command()(doctor)
app.command()(build)
app.command()(explain)
app.command()(select)
app.command()(verify)
app.command()(tune)
app.command()(calibrate)
app.command()(info)
app.command()(repair)


def run(arguments: list[str]) -> int:
    """Run a command line; return its exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal has no letters for should not end a command
            stream.reconfigure(errors="replace")
    handler = RichHandler(console=err, show_time=False, show_path=False, markup=False)
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(message)s", handlers=[handler])
    logging.captureWarnings(True)
    try:
        return app(arguments, prog_name="gradindex") or 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        err.print("Stopped.", style="red")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            message = " ".join(str(error).split()) or type(error).__name__
            err.print(f"Error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Log what happens; show tracebacks.")] = False,
) -> None:
    """Read by `run` before the command is parsed, so that it may stand anywhere; declared here for --help."""


@app.command()
def demo(
    backend: Annotated[Backend, typer.Option(help="Framework of the model.")] = Backend.TORCH,
    path: Annotated[Path, typer.Option("--out", help="Where to save index, model and picture.", **FILE)] = Path(
        "gradindex-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = SEED,
    as_json: Json = False,
) -> None:
    """Train a small CNN on scikit-learn's digits, index it, explain test digits, audit the answers."""
    from gradindex.cli.demo import run_demo

    found = run_demo(backend, path, seed, Console(quiet=True) if as_json else out, err)
    if as_json:
        typer.echo(json.dumps(found))
