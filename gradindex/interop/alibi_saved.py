"""Saving and opening an explainer: JSON and NumPy files only, nothing that could run code."""

import contextlib
import importlib
import json
import re
import secrets
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradindex.data.labels import as_array
from gradindex.data.names import LossFunction, Model, Tree
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.gradients.engine import Engine
from gradindex.index import opening
from gradindex.sketch import from_json
from gradindex.store import location
from gradindex.store.location import Location
from gradindex.store.manifest import publish, read_json
from gradindex.store.store import model_differences

if TYPE_CHECKING:
    from gradindex.interop.alibi import GradientSimilarity

MANIFEST = "explainer.json"
"""There where a directory holds an explainer."""
FORMAT = "gradindex explainer"
VERSION = 2  # version 1, whose files had fixed names, is read, too
_INDEX, _GRADIENTS = "index", "gradients.npy"
_OPTIONS = ("precompute_grads", "verbose", "seed", "batch_size", "parameters", "eps")
# The only names that a saved loss may refer to.
_OWN_LOSSES = re.compile(r"(torch\.nn\.modules\.loss|torch\.nn\.functional|keras\.src\.losses\.losses):[A-Za-z_]+$")


def save(explainer: "GradientSimilarity", path: Path) -> None:
    """Save `explainer` into the directory `path`; see `GradientSimilarity.save`.

    Every save has files of its own, and is there when the manifest names them. Then those of the last one are deleted.
    """
    if explainer._source is None:
        raise ValueError("There is nothing to save yet: call fit first.")
    if location.listing(path) and not location.exists(path / MANIFEST):
        raise FileExistsError(f"{path} is not empty and holds no explainer; give another directory.")
    location.make_directory(path)
    before, tag = _files_of_last_save(path), f".{secrets.token_hex(4)}"
    try:
        saved = _write(explainer, path, tag)
        publish(path / MANIFEST, saved, replace=True)
    except BaseException:
        _delete(path, {one.name for one in location.listing(path) if tag in one.name})
        raise
    _delete(path, before - _files(saved))


def _write(explainer: "GradientSimilarity", path: Path, tag: str) -> dict[str, Any]:
    """Write all files of a save, with `tag` in their names; return its manifest."""
    assert explainer._source is not None
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
        "X_train": _save_tree(path, "X_train", explainer._source.x, tag),
        "Y_train": _save_tree(path, "Y_train", explainer._source.y, tag),
        "X_is_list": isinstance(explainer.X_train, list),
        "parameters": [asdict(parameter) for parameter in explainer._engine.parameters],
        "state": list(explainer._engine.state_hashes().items()),
        "has_gradients": explainer.grad_X_train is not None,
        "has_index": explainer.index is not None,
    }
    if explainer.grad_X_train is not None:
        saved["gradients"] = _save_array(path / f"gradients{tag}.npy", explainer.grad_X_train)
    if explainer.index is not None:
        saved["index_directory"] = _save_index(explainer.index.store.path, path, tag)
    return saved


def _save_index(source: Location, path: Path, tag: str) -> str:
    """Copy an index into a save, unless it is there; return the name of its directory."""
    if isinstance(source, Path) and source.parent.resolve() == path.resolve():
        return source.name
    name = f"{_INDEX}{tag}"
    location.copy_tree(source, path / name)
    return name


def _files(saved: dict[str, Any]) -> set[str]:
    """Return the names of the files and directories that a manifest names."""
    found = {saved.get("gradients", _GRADIENTS)} if saved["has_gradients"] else set()
    found |= {saved.get("index_directory", _INDEX)} if saved["has_index"] else set()
    trees = [saved["X_train"], saved["Y_train"]]
    while trees:
        ((kind, value),) = trees.pop().items()
        if kind in ("dict", "tuple"):
            trees += value.values() if kind == "dict" else value
        else:
            found.add(value)
    return found


def _files_of_last_save(path: Path) -> set[str]:
    with contextlib.suppress(DamagedIndexError, KeyError, AttributeError, TypeError, ValueError):
        return {name for name in _files(read_json(path / MANIFEST)) if Path(name).name == name}
    return set()  # of a damaged save nothing is deleted


def _delete(path: Path, names: set[str]) -> None:
    for name in names:
        if location.is_directory(path / name):
            location.remove_tree(path / name)
        else:
            location.unlink(path / name)


def load(kind: type["GradientSimilarity"], path: Path, predictor: Model, loss_fn: LossFunction | None) -> Any:
    """Open the explainer in the directory `path`; see `GradientSimilarity.load`."""
    if not location.exists(path / MANIFEST):
        raise FileNotFoundError(f"{path} holds no explainer ({MANIFEST} is missing).")
    saved = read_json(path / MANIFEST)
    if saved.get("format") != FORMAT or saved.get("version") not in (1, VERSION):
        raise DamagedIndexError(f"{path / MANIFEST} is not an explainer of format version 1 or {VERSION}.")
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
        explainer._adopt_gradients(_load_array(path / _plain(path, saved.get("gradients", _GRADIENTS))))
    if saved["has_index"]:
        explainer.index = opening.open(path / _plain(path, saved.get("index_directory", _INDEX)), explainer._job())
    return explainer


def _model(engine: Engine) -> dict[str, Any]:
    """Return what identifies the gradients of a model: its parameters, and the hashes of its weights in order."""
    return {
        "parameters": [asdict(parameter) for parameter in engine.parameters],
        "state": list(engine.state_hashes().items()),
    }


def _check_model(engine: Engine, saved: dict[str, object], path: Path) -> None:
    before: Any = SimpleNamespace(parameters=saved["parameters"], state=saved["state"])
    now: Any = SimpleNamespace(**_model(engine))
    if differences := model_differences(before, now):
        raise MismatchError(
            f"{path} holds gradients of another model: {'; '.join(differences)}. "
            "Give the model it was fitted with, or fit again."
        )


def _save_tree(path: Path, name: str, tree: Tree, tag: str = "") -> Any:
    """Write the leaves of a tree; return its structure with file names in their place."""
    if isinstance(tree, dict):
        return {"dict": {key: _save_tree(path, f"{name}.{i}", tree[key], tag) for i, key in enumerate(tree)}}
    if isinstance(tree, tuple):
        return {"tuple": [_save_tree(path, f"{name}.{i}", part, tag) for i, part in enumerate(tree)]}
    if isinstance(tree, list):
        try:
            text = json.dumps(tree)
        except TypeError as error:
            raise TypeError(f"Cannot save {name}: {error}. Only JSON-ready objects and arrays can be saved.") from None
        location.replace(path / f"{name}{tag}.json", text.encode())
        return {"json": f"{name}{tag}.json"}
    return {"npy": _save_array(path / f"{name}{tag}.npy", as_array(tree))}


def _save_array(path: Path, array: Any) -> str:
    with location.temporary(path.parent) as part:
        with part.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        location.move(part, path)
    return path.name


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
        except (FileNotFoundError, ValueError) as error:
            raise DamagedIndexError(f"{path / value} is damaged: {error}") from None
    return _load_array(path / value)


def _plain(path: Path, name: object) -> str:
    """Return a file's name from a manifest; raises DamagedIndexError if it leads elsewhere."""
    if not isinstance(name, str) or Path(name).name != name:
        raise DamagedIndexError(f"{path / MANIFEST} is damaged: {name!r} is not a plain file name.")
    return name


def _load_array(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError) as error:
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


def _is_plain(options: dict[str, object]) -> bool:
    return all(value is None or isinstance(value, bool | int | float | str) for value in options.values())


def _loss(saved: Any) -> Any:
    if saved is None:
        raise ValueError("The loss was not one of the framework's own and could not be saved: pass loss_fn=.")
    if not _OWN_LOSSES.match(str(saved.get("name"))):
        raise DamagedIndexError(f"{saved.get('name')!r} is not a loss that may be loaded.")
    module, _, name = saved["name"].partition(":")
    loss = getattr(importlib.import_module(module), name)
    return loss(**saved["options"]) if "options" in saved else loss
