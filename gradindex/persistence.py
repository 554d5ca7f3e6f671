"""Saving and opening an explainer: JSON and NumPy files only, nothing that could run code."""

import importlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

import gradindex
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.explainer import MANIFEST
from gradindex.gradients.base import Engine
from gradindex.labels import as_array
from gradindex.sketch import from_json
from gradindex.store.manifest import publish, read_json
from gradindex.store.store import model_differences

if TYPE_CHECKING:
    from gradindex.explainer import GradientSimilarity

FORMAT = "gradindex explainer"
VERSION = 1
_INDEX = "index"
_OPTIONS = ("precompute_grads", "verbose", "seed", "batch_size", "parameters", "eps")
# The only names that a saved loss may refer to.
_OWN_LOSSES = re.compile(r"(torch\.nn\.modules\.loss|torch\.nn\.functional|keras\.src\.losses\.losses):[A-Za-z_]+$")


def save(explainer: "GradientSimilarity", path: Path) -> None:
    """Save `explainer` into the directory `path`; see `GradientSimilarity.save`."""
    if explainer._source is None:
        raise ValueError("There is nothing to save yet: call fit first.")
    if path.exists() and any(path.iterdir()) and not (path / MANIFEST).exists():
        raise FileExistsError(f"{path} is not empty and holds no explainer; give another directory.")
    path.mkdir(parents=True, exist_ok=True)
    (path / MANIFEST).unlink(missing_ok=True)
    saved: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "sim_fn": explainer.sim_fn.value,
        "task": explainer.task.value,
        "backend": explainer.backend.value,
        "index": explainer.index_factory,
        "sketch": explainer.sketch and explainer.sketch.to_json(),
        "loss": _reference(explainer.loss_fn),
        "options": {name: getattr(explainer, name) for name in _OPTIONS},
        "X_train": _save_tree(path, "X_train", explainer._source.x),
        "Y_train": _save_tree(path, "Y_train", explainer._source.y),
        "X_is_list": isinstance(explainer.X_train, list),
        "parameters": [asdict(parameter) for parameter in explainer._engine.parameters],
        "state": list(explainer._engine.state_hashes().items()),
        "has_gradients": explainer.grad_X_train is not None,
        "has_index": explainer.index is not None,
    }
    if explainer.grad_X_train is not None:
        np.save(path / "gradients.npy", explainer.grad_X_train, allow_pickle=False)
    if explainer.index is not None and explainer.index.store.path != path / _INDEX:
        shutil.rmtree(path / _INDEX, ignore_errors=True)
        shutil.copytree(explainer.index.store.path, path / _INDEX)
    publish(path / MANIFEST, saved, replace=True)


def load(kind: type["GradientSimilarity"], path: Path, predictor: Any, loss_fn: Any) -> Any:
    """Open the explainer in the directory `path`; see `GradientSimilarity.load`."""
    if not (path / MANIFEST).exists():
        raise FileNotFoundError(f"{path} holds no explainer ({MANIFEST} is missing).")
    saved = read_json(path / MANIFEST)
    if saved.get("format") != FORMAT or saved.get("version") != VERSION:
        raise DamagedIndexError(f"{path / MANIFEST} is not an explainer of format version {VERSION}.")
    if loss_fn is None:
        loss_fn = _loss(saved["loss"])
    explainer = kind(
        predictor,
        loss_fn,
        saved["sim_fn"],
        saved["task"],
        backend=saved["backend"],
        index=saved["index"],
        sketch=saved["sketch"] and from_json(saved["sketch"]),
        **saved["options"],
    )
    x, y = (_load_tree(path, name, saved[name]) for name in ("X_train", "Y_train"))
    explainer._adopt(list(x) if saved["X_is_list"] and isinstance(x, np.ndarray) else x, y)
    if saved["has_gradients"] or saved["has_index"]:
        _check_model(explainer._engine, saved, path)
    if saved["has_gradients"]:
        explainer._adopt_gradients(_load_array(path / "gradients.npy"))
    if saved["has_index"]:
        explainer.index = gradindex.load(path / _INDEX, explainer._job())
    return explainer


def _model(engine: Engine) -> dict[str, Any]:
    """Return what identifies the gradients of a model: its parameters, and the hashes of its weights in order."""
    return {
        "parameters": [asdict(parameter) for parameter in engine.parameters],
        "state": list(engine.state_hashes().items()),
    }


def _check_model(engine: Engine, saved: dict[str, Any], path: Path) -> None:
    before: Any = SimpleNamespace(parameters=saved["parameters"], state=saved["state"])
    now: Any = SimpleNamespace(**_model(engine))
    if differences := model_differences(before, now):
        raise MismatchError(
            f"{path} holds gradients of another model: {'; '.join(differences)}. "
            "Give the model it was fitted with, or fit again."
        )


def _save_tree(path: Path, name: str, tree: Any) -> Any:
    """Write the leaves of a tree; return its structure with file names in their place."""
    if isinstance(tree, dict):
        return {"dict": {key: _save_tree(path, f"{name}.{i}", tree[key]) for i, key in enumerate(tree)}}
    if isinstance(tree, tuple):
        return {"tuple": [_save_tree(path, f"{name}.{i}", part) for i, part in enumerate(tree)]}
    if isinstance(tree, list):
        try:
            (path / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")
        except TypeError as error:
            raise TypeError(f"Cannot save {name}: {error}. Only JSON-ready objects and arrays can be saved.") from None
        return {"json": f"{name}.json"}
    np.save(path / f"{name}.npy", as_array(tree), allow_pickle=False)
    return {"npy": f"{name}.npy"}


def _load_tree(path: Path, name: str, saved: Any) -> Any:
    try:
        ((kind, value),) = saved.items()
        if kind == "dict":
            return {key: _load_tree(path, name, part) for key, part in value.items()}
        if kind == "tuple":
            return tuple(_load_tree(path, name, part) for part in value)
        if Path(value).name != value or not value.startswith(f"{name}."):
            raise ValueError(f"{value!r} is not a file of {name}")
    except (AttributeError, TypeError, ValueError) as error:
        raise DamagedIndexError(f"{path / MANIFEST} is damaged: {error}") from None
    if kind == "json":
        try:
            return json.loads((path / value).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DamagedIndexError(f"{path / value} is damaged: {error}") from None
    return _load_array(path / value)


def _load_array(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DamagedIndexError(f"{path} is damaged: {error}") from None


def _reference(loss_fn: Any) -> dict[str, Any] | None:
    """Return name and options of one of the frameworks' own losses; None for any other."""
    named = loss_fn if hasattr(loss_fn, "__qualname__") else type(loss_fn)
    reference = f"{named.__module__}:{named.__qualname__}"
    if not _OWN_LOSSES.match(reference):
        return None
    if named is loss_fn:
        return {"name": reference}
    if hasattr(loss_fn, "get_config"):
        options = loss_fn.get_config()
        return {"name": reference, "options": options} if _is_plain(options) else None
    if any(loss_fn.state_dict()):  # tensors such as class weights
        return None
    options = {key: value for key, value in vars(loss_fn).items() if not key.startswith("_") and key != "training"}
    return {"name": reference, "options": options} if _is_plain(options) else None


def _is_plain(options: dict[str, Any]) -> bool:
    return all(value is None or isinstance(value, bool | int | float | str) for value in options.values())


def _loss(saved: Any) -> Any:
    if saved is None:
        raise ValueError("The loss was not one of the framework's own and could not be saved: pass loss_fn=.")
    if not _OWN_LOSSES.match(str(saved.get("name"))):
        raise DamagedIndexError(f"{saved.get('name')!r} is not a loss that may be loaded.")
    module, _, name = saved["name"].partition(":")
    loss = getattr(importlib.import_module(module), name)
    return loss(**saved["options"]) if "options" in saved else loss
