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
_LOADED = {
    Framework.TORCH: _WHOLE_MODEL,
    Framework.KERAS: "    model = keras.saving.load_model(HERE / MODEL, compile=False)",
    Framework.TRANSFORMERS: "",
}
_LOSSES = {
    Framework.TORCH: "    loss = torch.nn.CrossEntropyLoss() if classes else torch.nn.MSELoss()",
    Framework.KERAS: """\
    # A model that ends with softmax returns probabilities, else they are logits.
    logits = getattr(model.layers[-1], "activation", None) is not keras.activations.softmax
    loss = (
        keras.losses.SparseCategoricalCrossentropy(from_logits=logits) if classes else keras.losses.MeanSquaredError()
    )""",
    Framework.TRANSFORMERS: "",
}
_SAVED = {Framework.TORCH: "torch.save(…)", Framework.KERAS: "model.save(…)", Framework.TRANSFORMERS: ""}
_LABELS = "y", "labels", "label", "targets", "y_train", "target", "class"
_TABLES = ".csv", ".parquet"
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
        typer.Option(
            help="Its training data: .npz with inputs x and labels y; .csv, .parquet; texts: .txt, .jsonl.", **FILE
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The label's column of a table.  [default: by its name]")] = None,
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
    known = (".npz", *_TABLES) if chosen is not Framework.TRANSFORMERS else (".txt", ".jsonl")
    if data is not None and data.suffix not in known:
        raise typer.BadParameter(f"--data takes {', '.join(known)} for {chosen}, got {_short(data)}.")
    weights = _weights(model) if chosen is Framework.TORCH and model is not None else None
    save(path, _filled(chosen, path, model, data, weights, label).encode())
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
    from gradindex.gradients.torch.saved import weights_in

    keys = weights_in(model)
    return None if keys is None else "".join(f"[{json.dumps(key)}]" for key in keys)


def _filled(
    framework: Framework, path: Path, model: Path | None, data: Path | None, weights: str | None, label: str | None
) -> str:
    """Return the text of a job's module."""
    example_model, example_data = _EXAMPLES[framework]
    x, y = ("x", "y") if data is None or data.suffix != ".npz" else _arrays(data)
    loader, door = _door(model)
    table = data is not None and data.suffix in _TABLES and framework is not Framework.TRANSFORMERS
    named = f"job_{'table' if table else framework}.txt"
    template = resources.files("gradindex.cli").joinpath(named).read_text(encoding="utf-8")
    kind = data.suffix[1:] if table and data is not None else ""
    return Template(template).substitute(
        file=path.name,
        model=_quoted(path, model, example_model),
        data=_quoted(path, data, example_data),
        x=json.dumps(x),
        y=json.dumps(y),
        loader=loader,
        door=door,
        load=_LOADED[framework] if weights is None else Template(_WEIGHTS).substitute(key=weights),
        loss=_LOSSES[framework],
        framework=framework.value,
        saved=_SAVED[framework],
        kind=kind,
        reads="table" if kind == "parquet" else kind,
        label=json.dumps(_label(data, label) if table and data is not None else label, ensure_ascii=False),
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


def _label(data: Path, label: str | None) -> str:
    """Return the column of a table's labels.

    Raises
    ------
    typer.BadParameter
        If there is no such column, or none has a usual name.
    """
    names = _columns(data)
    usual = [name for name in names if name.lower() in _LABELS]
    if label in names or (label is None and len(usual) == 1):
        return label or usual[0]
    wrong = "Which column is the label?" if label is None else f"There is no column {label!r}."
    raise typer.BadParameter(f"{wrong} {_short(data)} has {', '.join(names)}. Next: gradindex init --label COLUMN …")


def _columns(data: Path) -> list[str]:
    """Return the names of a table's columns; raises BadParameter for a file that is none."""
    import pyarrow as pa

    try:
        if data.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(data).names)
        import pyarrow.csv

        with pyarrow.csv.open_csv(data) as reader:
            return list(reader.schema.names)
    except (pa.ArrowException, OSError) as error:
        raise typer.BadParameter(f"Cannot read {_short(data)} as a table: {error}") from None


def _door(model: Path | None) -> tuple[str, str]:
    """Return how a model of transformers is loaded and made a job, by its configuration; else as one of text."""
    if model is None or not (model / "config.json").is_file():
        return _CAUSAL
    names = json.loads((model / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    return next((door for end, door in _DOORS.items() if names[0].endswith(end)), _CAUSAL)
