"""Reading what commands are given: jobs, ids, files of rows, options of metrics."""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from gradindex.data.names import Tree

if TYPE_CHECKING:
    from gradindex.job import Job


WhereOption = Annotated[
    list[str] | None, typer.Option(help='Find only samples with COLUMN=VALUE[,VALUE]; one with a comma as "a,b".')
]


def job_of(reference: str, device: str | None = None) -> "Job":
    """Return the job that a reference names; raises BadParameter if there is none."""
    from gradindex.job import JobReferenceError, load_job

    try:
        job = load_job(reference)
    except JobReferenceError as error:
        raise typer.BadParameter(str(error)) from None
    return job if device is None else dataclasses.replace(job, device=device)


def metric_options(pairs: list[str]) -> dict[str, Any]:
    """Return ``KEY=VALUE`` as a dict, with numbers as numbers and layers as a list of names."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"--metric-option takes KEY=VALUE, got {pair!r}.")
        if name == "layers":
            found[name] = text.split(",")
            continue
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def ids_of(text: str) -> list[int]:
    """Return ``3,14`` as a list of integers."""
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise typer.BadParameter(f"--ids takes integers such as 3,14, got {text!r}.")
    return found


def read_rows(path: Path) -> tuple[Tree, Tree]:
    """Read x and y; a file without an array x gives a dict of all its arrays but y."""
    if path.suffix != ".npz":
        raise typer.BadParameter(
            f"Cannot read {path}: expected FILE.npz. Next: numpy.savez({path.stem + '.npz'!r}, x=inputs, "
            "y=labels), with inputs in the form that the model takes."
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise typer.BadParameter(f"Cannot read {path}: {error}") from None
    y = found.pop("y", None)
    if not found:
        raise typer.BadParameter(f"{path} holds no array x.")
    return found.get("x", found), y


def read_queries(path: Path, job: "Job") -> tuple[Tree, Tree]:
    """Read queries x and y: arrays (.npz), or, for a job that has `texts`, a text a line (.txt) or objects (.jsonl).

    An object is what `gradindex.data.text.TextReader.encode` takes: ``{"text": …}``, ``{"prompt": …, "answer": …}`` or
    ``{"messages": […]}``.
    """
    from gradindex.data.source import concatenate, merge

    if path.suffix not in (".txt", ".jsonl"):
        return read_rows(path)
    if job.texts is None:
        raise typer.BadParameter(f"{path} holds texts, and the job has none: give FILE.npz with inputs x and labels y.")
    lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    if not lines:
        raise typer.BadParameter(f"{path} holds no text.")
    try:
        asked = [json.loads(line) if path.suffix == ".jsonl" else {"text": line} for line in lines]
        found = [job.texts.encode(**one) for one in asked]
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(f"Cannot read {path}: {error}") from None
    return merge(concatenate, [x for x, _ in found]), merge(concatenate, [y for _, y in found])
