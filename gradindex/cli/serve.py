"""The command `gradindex serve`."""

import json
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from gradindex.cli.options import FILE, Json, Out
from gradindex.serve.settings import HOST, Settings

_NEW_TOKEN = "python -c 'import secrets; print(secrets.token_urlsafe())'"


def serve(
    path: Out,
    job: Annotated[
        str,
        typer.Argument(metavar="MODULE:FUNCTION", help="Function that returns the gradindex.Job it was built from."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's need a token.")] = HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the bearer token that clients must send.  [default: $GRADINDEX_TOKEN]", **FILE),
    ] = None,
    tokens_file: Annotated[
        Path | None,
        typer.Option(help="JSON file with tokens by the names of their clients.", show_default=False, **FILE),
    ] = None,
    rate_limit: Annotated[
        float, typer.Option(min=0, help="Requests a second of one client; 0: no limit.")
    ] = Settings.rate_limit,
    rate_burst: Annotated[int, typer.Option(min=1, help="Requests at once, after a pause.")] = Settings.rate_burst,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="Address or network of a proxy that says whom it asks for.")
    ] = None,
    client_header: Annotated[str, typer.Option(help="Header where it says so.")] = Settings.client_header,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = Settings.max_body,
    max_queries: Annotated[int, typer.Option(min=1, help="Queries of a request.")] = Settings.max_queries,
    max_k: Annotated[int, typer.Option(min=1, help="Neighbours of each side.")] = Settings.max_k,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Queries that share a forward pass; 1: one request after the other.")
    ] = Settings.max_batch,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Queries that may wait; more are refused.")
    ] = Settings.max_waiting,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for an answer.")] = Settings.timeout,
    reload_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds between two looks for a replaced index; 0: only at SIGHUP.")
    ] = Settings.reload_seconds,
    read_only: Annotated[bool, typer.Option("--read-only", help="Take no decisions on samples.")] = Settings.read_only,
    review_dir: Annotated[
        Path | None,
        typer.Option(help="Directory for decisions, review and map.  [default: OUT.review]", show_default=False),
    ] = Settings.review_dir,
    review_top: Annotated[int, typer.Option(min=1, help="Lines of each kind of the review.")] = Settings.review_top,
    map_points: Annotated[int, typer.Option(min=3, help="Samples on the map.")] = Settings.map_points,
    map_way: Annotated[str, typer.Option(help="How the map is laid out: tsne or pca.")] = Settings.map_way,
    print_settings: Annotated[
        bool, typer.Option("--print-settings", help="Print all settings as JSON, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer lookups over HTTP, and serve pages to explore and review; stops at SIGTERM or Ctrl+C."""
    from gradindex.cli import inputs
    from gradindex.loading import load
    from gradindex.serve import serve as run

    token = os.environ.get("GRADINDEX_TOKEN") if token_file is None else _token(token_file)
    settings = Settings(
        token=token or None,
        named_tokens={} if tokens_file is None else _named_tokens(tokens_file),
        rate_limit=rate_limit,
        rate_burst=rate_burst,
        trusted_proxies=tuple(trusted_proxy or ()),
        client_header=client_header.lower(),
        max_body=max_body,
        max_queries=max_queries,
        max_k=max_k,
        max_batch=max_batch,
        max_waiting=max(max_waiting, max_queries),
        timeout=timeout,
        reload_seconds=reload_seconds,
        read_only=read_only,
        review_dir=None if review_dir is None else review_dir.absolute(),
        review_top=review_top,
        map_points=map_points,
        map_way=map_way,
    )
    if print_settings:
        typer.echo(json.dumps({"host": host, "port": port, **settings.to_json()}, indent=2))
        return
    logging.getLogger("gradindex.serve").setLevel(logging.INFO)

    def ready(address: str) -> None:
        if as_json:
            typer.echo(json.dumps({"address": address}))

    run(load(path, inputs.job_of(job)), settings, host=host, port=port, ready=ready)


def _text(path: Path) -> str:
    """Read a file of tokens; raises BadParameter for one that cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise typer.BadParameter(f"Cannot read {path}: {why}. Next: {_NEW_TOKEN} > {path}") from None


def _token(path: Path) -> str:
    """Read the token of all clients; raises BadParameter where there is none, since anyone would be let in then."""
    token = _text(path).strip()
    if not token:
        raise typer.BadParameter(f"{path} is empty: it must hold a token. Next: {_NEW_TOKEN} > {path}")
    return token


def _named_tokens(path: Path) -> dict[str, str]:
    """Read the tokens of clients; raises BadParameter for anything else, without repeating what it is."""
    text = _text(path)
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not found or not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise typer.BadParameter(
            f'{path} must hold a JSON object of names and tokens: {{"ada": "TOKEN"}}. A token: {_NEW_TOKEN}'
        )
    return found
