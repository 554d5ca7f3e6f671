"""The command `gradindex init`."""

import json
from enum import StrEnum
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated

import numpy as np
import typer

from gradindex.cli import doctor, inputs
from gradindex.cli.console import out
from gradindex.cli.options import FILE, Json
from gradindex.store.location import save


class Framework(StrEnum):
    """What a model was made with."""

    TORCH = "torch"
    KERAS = "keras"
    TRANSFORMERS = "transformers"


_SUFFIXES = {".pt": Framework.TORCH, ".pth": Framework.TORCH, ".keras": Framework.KERAS, ".h5": Framework.KERAS}
_PACKAGES = {Framework.TORCH: "torch", Framework.KERAS: "tensorflow"}
_EXAMPLES = {
    Framework.TORCH: ("model.pt", "train.npz"),
    Framework.KERAS: ("model.keras", "train.npz"),
    Framework.TRANSFORMERS: ("my-model", "train.txt"),
}
_DOORS = {  # by the end of the architecture's name: the class that loads it, the function that makes a job
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "sequence_classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token_classification"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "masked_lm"),
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", "seq2seq"),
}
_CAUSAL = "AutoModelForCausalLM", "causal_lm"
_WHOLE_MODEL = """\
    # Loading a whole model runs its code, so take files you trust.
    model = torch.load(HERE / MODEL, weights_only=False, map_location="cpu").eval()"""
_WEIGHTS = """\
    model = MyModel()  # EDIT: import the class whose weights these are, and make it as for training
    model.load_state_dict(torch.load(HERE / MODEL, weights_only=True, map_location="cpu")$key)
    model.eval()"""
_WEIGHTS_OF = "model_state_dict", "state_dict", "model"  # as checkpoints name them
_LABELS = "y", "labels", "label", "targets", "y_train"
_SAMPLES = 8  # whose gradients are compared with training steps


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.", **FILE)] = Path("job.py"),
    framework: Annotated[
        Framework | None, typer.Option(help="Of the model.  [default: by the model's file, or by what is installed]")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The saved model: .pt, .keras, or a folder of transformers.", **FILE)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Its training data: .npz with inputs x and labels y; texts: .txt, .jsonl.", **FILE),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a job.py for a model and its data, which `gradindex build` takes; test it if both are given."""
    path = _short(path)
    for given, what in ((model, "model"), (data, "data")):
        if given is not None and not given.exists():
            there = _short(given)
            raise typer.BadParameter(f"There is no {there}. Give --{what} PATH, or leave it out and edit {path}.")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} is there already. Next: gradindex doctor {path}:job, or gradindex init OTHER.py, or --overwrite."
        )
    chosen = framework or _found(model)
    weights = _weights(model) if chosen is Framework.TORCH and model is not None else None
    save(path, _filled(chosen, path, model, data, weights).encode())
    reference, found = f"{path}:job", None
    if model is not None and data is not None and weights is None:
        try:
            found = doctor.examine(inputs.job_of(reference), _SAMPLES)
        except Exception as error:
            raise ValueError(
                f"{path} is written, but its job could not be tested: {error} Next: edit {path}, then "
                f"gradindex doctor {reference}"
            ) from error
    following = "build" if found is not None and found["gradients_agree"] else "doctor"
    command = f"gradindex {following} {reference}" + (" runs/index" if following == "build" else "")
    if as_json:
        typer.echo(json.dumps({"file": str(path), "framework": chosen.value, "next": command, "job": found}))
        return
    out.print(f"Wrote {path}, for {chosen}.", highlight=False)
    if weights is not None:
        out.print(f"{model.name if model else ''} holds weights without their model.", highlight=False)
    if found is None:
        out.print(f"Edit its lines that say EDIT. Next: {command}", highlight=False, soft_wrap=True)
        return
    agree = "as training steps give them" if found["gradients_agree"] else "NOT as training steps give them"
    out.print(
        f"{found['model']}, {found['samples']:,} samples, gradients of {found['gradient']:,} numbers, {agree}; about "
        f"{found['whole_dataset_seconds']:,.0f} s for all. Next: {command}",
        highlight=False,
        soft_wrap=True,
    )


def _short(path: Path) -> Path:
    """Return a path as it is typed in the working directory, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _found(model: Path | None) -> Framework:
    """Return the framework of a model's file, or the only one that is installed."""
    if model is not None and (model / "config.json").is_file():
        return Framework.TRANSFORMERS
    if model is not None and model.suffix in _SUFFIXES:
        return _SUFFIXES[model.suffix]
    installed = [one for one, package in _PACKAGES.items() if find_spec(package) is not None]
    if len(installed) == 1:
        return installed[0]
    there = " and ".join(installed) or "none"
    raise typer.BadParameter(
        f"Which framework is the model's? Installed: {there}. Next: gradindex init --framework torch (or keras, or "
        "transformers)."
    )


def _weights(model: Path) -> str | None:
    """Return how a file of weights without a model is read on, such as '["state_dict"]'; None for a whole model."""
    import torch

    try:
        found = torch.load(model, weights_only=True, map_location="meta")
    except Exception:  # a whole model, or no file of torch's, of which the test of the job tells more
        return None
    if not isinstance(found, dict):
        return None
    return next((f"[{json.dumps(key)}]" for key in _WEIGHTS_OF if isinstance(found.get(key), dict)), "")


def _filled(framework: Framework, path: Path, model: Path | None, data: Path | None, weights: str | None) -> str:
    """Return the text of a job's module."""
    example_model, example_data = _EXAMPLES[framework]
    x, y = ("x", "y") if data is None or data.suffix != ".npz" else _arrays(data)
    loader, door = _door(model)
    template = resources.files("gradindex.cli").joinpath(f"job_{framework}.txt").read_text(encoding="utf-8")
    return Template(template).substitute(
        file=path.name,
        model=_quoted(path, model, example_model),
        data=_quoted(path, data, example_data),
        x=json.dumps(x),
        y=json.dumps(y),
        loader=loader,
        door=door,
        load=_WHOLE_MODEL if weights is None else Template(_WEIGHTS).substitute(key=weights),
    )


def _quoted(path: Path, given: Path | None, example: str) -> str:
    """Return a path as Python writes it, from the folder of the job's file on where it lies below."""
    if given is None:
        return json.dumps(example)
    whole, folder = given.resolve(), path.resolve().parent
    return json.dumps(str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole), ensure_ascii=False)


def _arrays(data: Path) -> tuple[str, str]:
    """Return the names of a file's inputs and labels.

    Raises
    ------
    ValueError
        If they cannot be told apart.
    """
    with np.load(data, allow_pickle=False) as arrays:
        names = list(arrays.files)
    labels = [name for name in _LABELS if name in names][:1]
    inputs_ = [name for name in names if name not in labels]
    inputs_ = ["x"] if "x" in inputs_ else inputs_
    if len(labels) != 1 or len(inputs_) != 1:
        raise ValueError(
            f"{_short(data)} holds the arrays {', '.join(names)}; expected inputs x and labels y. Next: save it by "
            "numpy.savez(FILE, x=inputs, y=labels), or run gradindex init without --data and edit the file."
        )
    return inputs_[0], labels[0]


def _door(model: Path | None) -> tuple[str, str]:
    """Return how a model of transformers is loaded and made a job, by its configuration; else as one of text."""
    if model is None or not (model / "config.json").is_file():
        return _CAUSAL
    names = json.loads((model / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    return next((door for end, door in _DOORS.items() if names[0].endswith(end)), _CAUSAL)
