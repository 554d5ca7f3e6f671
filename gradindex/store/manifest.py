"""JSON manifests: what a store and its files are, written exclusively, read with suspicion."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradindex.errors import DamagedIndexError
from gradindex.store import cache, hashed, location
from gradindex.store.codes import RowType
from gradindex.store.location import Location

HEADER, FORMAT = "store.json", "gradindex store"
VERSION = 1
_MAX_JSON_BYTES = 64 << 20
_MOST_SHARDS = 1 << 20


def _texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _parameter(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or type(value.get("position")) is not int:
        return False
    shape = value.get("shape")
    return isinstance(shape, list | tuple) and all(type(one) is int for one in shape)


_FORMS: dict[str, Callable[[Any], bool]] = {
    "sketch": lambda value: isinstance(value, dict) and isinstance(value.get("kind"), str),
    "seed": lambda value: type(value) is int,
    "task": lambda value: isinstance(value, str),
    "backend": lambda value: isinstance(value, str),
    "parameters": lambda value: isinstance(value, list) and all(map(_parameter, value)),
    "state": lambda value: isinstance(value, list) and all(_texts(one) and len(one) == 2 for one in value),
    "versions": lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value.values()),
    "columns": _texts,
    "threads": lambda value: type(value) is int,
    "deterministic": lambda value: type(value) is bool,
    "origin": lambda value: isinstance(value, str),
    "metric": lambda value: value is None or (isinstance(value, dict) and isinstance(value.get("name"), str)),
    "row_type": lambda value: value in tuple(RowType),
}
"""What the fields of a header may hold: whoever reads them relies on it."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a store holds and how it came about; see FORMAT.md for the fields."""

    rows: int
    shard_rows: int
    dim: int
    sketch: dict[str, Any]
    seed: int
    batch_size: int
    task: str
    backend: str
    parameters: list[dict[str, Any]]
    state: list[list[str]]
    """Name and sha256 of every weight and statistic of the model, in its order."""
    versions: dict[str, str]
    columns: list[str] = dataclasses.field(default_factory=list)
    """Names of the user's columns."""
    threads: int = 0
    """Threads of the framework while embedding; another number may round differently."""
    deterministic: bool = True
    """Whether embedding again gives the same bits; else rows agree to 1e-3."""
    first: int = 0
    """Dataset position of the first row; of parts that were added."""
    origin: str = ""
    """Of a part: a fingerprint of the samples that were added, or the state that was compacted."""
    metric: dict[str, Any] | None = None
    """Name and options of the relevance metric whose rows these are; None: gradients."""
    row_type: str = RowType.HALF
    """How the numbers of rows are kept, see `gradindex.store.codes`."""

    def __post_init__(self) -> None:
        for name in ("rows", "shard_rows", "dim", "batch_size"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value < 1 << 48:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        if self.shards > _MOST_SHARDS:
            raise ValueError(f"{self.rows} rows in shards of {self.shard_rows} are more than {_MOST_SHARDS} shards.")
        if type(self.first) is not int or self.first < 0:
            raise ValueError(f"first must be 0 or more, got {self.first!r}.")
        for name, fits in _FORMS.items():
            if not fits(getattr(self, name)):
                raise ValueError(f"{name} is {str(getattr(self, name))[:100]}, which it cannot be.")

    @property
    def part(self) -> str:
        """Name of the part that has this header: what is in it decides, so that others do not share its shards."""
        return seal({"first": self.first, "rows": self.rows, "origin": self.origin})[:16]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's numbers."""
        return RowType(self.row_type).row_bytes(self.dim)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def span(self, number: int) -> tuple[int, int]:
        """Return the first dataset position of a shard and the one after its last."""
        return number * self.shard_rows, min((number + 1) * self.shard_rows, self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the header as JSON-ready values; what only parts or metrics have is left out elsewhere."""
        values = dataclasses.asdict(self)
        values = {name: value for name, value in values.items() if value or name not in ("first", "origin", "metric")}
        if self.row_type == RowType.HALF:
            del values["row_type"]
        return {"format": FORMAT, "version": VERSION, **values}

    @cached_property
    def seal(self) -> str:
        """Hash of the header, by which shards and index name the store they belong to."""
        return seal(self.to_json())

    @classmethod
    def read(cls, path: Location) -> "Header":
        """Read ``store.json``.

        Raises
        ------
        DamagedIndexError
            If it is no header of this version.
        """
        saved = read_json(path)
        if saved.pop("format", None) != FORMAT:
            raise DamagedIndexError(f"{path} is not the header of a gradindex store.")
        version = saved.pop("version", None)
        if version != VERSION:
            raise DamagedIndexError(f"{path} has format version {version}; this gradindex reads version {VERSION}.")
        try:
            return cls(**saved)
        except (TypeError, ValueError) as error:
            raise DamagedIndexError(f"{path} is damaged: {error}") from None


@dataclass(frozen=True)
class FileEntry:
    """Name, size in bytes and sha256 of a file, as its manifest states them."""

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        plain = isinstance(self.name, str) and self.name == os.path.basename(self.name)
        if not plain or self.name.startswith(".") or "\\" in self.name or not self.name:
            raise ValueError(f"{self.name!r} is not a plain file name.")
        if not isinstance(self.bytes, int) or self.bytes < 0:
            raise ValueError(f"{self.bytes!r} is not a size.")

    def check_size(self, directory: Location) -> Location:
        """Return where the file lies.

        Raises
        ------
        DamagedIndexError
            If the file is missing, has another size, or is a link that leads elsewhere.
        """
        path = directory / self.name
        try:
            found = location.size(path)
        except FileNotFoundError as error:
            raise DamagedIndexError(_missing(path, error)) from None
        if found != self.bytes:
            raise DamagedIndexError(f"{path} is damaged: expected {self.bytes} bytes, found {found}.")
        return path

    def check_contents(self, directory: Location) -> Location:
        """Return where the file lies after comparing its size and sha256; raises like `check_size`."""
        path = self.check_size(directory)
        try:
            found = location.digest(path)
        except FileNotFoundError as error:
            raise DamagedIndexError(_missing(path, error)) from None
        if found != self.sha256:
            raise DamagedIndexError(f"{path} is damaged: its contents do not match the sha256 in its manifest.")
        return path

    def local(self, directory: Location, *, checked: bool = True, once: bool = False) -> Path:
        """Return a path of this machine with the file's contents.

        Its size is compared; with `checked`, its sha256, too, and with `once`, not again where `seen` knows the file.
        Raises like `check_size`.
        """
        path = self.check_size(directory)
        try:
            copy = cache.local(path, self.bytes, self.sha256)
            if checked and not (once and hashed.known(copy, self.sha256)):
                before = copy.stat()
                FileEntry(copy.name, self.bytes, self.sha256).check_contents(copy.parent)
                hashed.note(copy, self.sha256, before)
        except FileNotFoundError as error:
            raise DamagedIndexError(_missing(path, error)) from None
        return copy


def read_entries(saved: dict[str, Any], path: Location, kinds: set[str]) -> dict[str, FileEntry]:
    """Return the ``files`` of a manifest read from `path`; raises DamagedIndexError unless they are `kinds`."""
    try:
        entries = {kind: FileEntry(**entry) for kind, entry in saved["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedIndexError(f"{path} is damaged: {error}") from None
    if set(entries) != kinds:
        raise DamagedIndexError(f"{path} is damaged: expected files {sorted(kinds)}, found {sorted(entries)}.")
    return entries


def seal(value: dict[str, object]) -> str:
    """Return the sha256 of a JSON object's compact form with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(path: Location) -> dict[str, Any]:
    """Return the JSON object in `path`, without its seal.

    Raises
    ------
    DamagedIndexError
        If there is none, or its contents do not match its seal.
    """
    try:
        if location.size(path) > _MAX_JSON_BYTES:
            raise DamagedIndexError(f"{path} is damaged: larger than {_MAX_JSON_BYTES} bytes.")
        saved = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise DamagedIndexError(_missing(path, error)) from None
    except (ValueError, RecursionError) as error:
        raise DamagedIndexError(f"{path} is damaged: {error}") from None
    if not isinstance(saved, dict):
        raise DamagedIndexError(f"{path} is damaged: expected a JSON object.")
    if saved.pop("seal", None) != seal(saved):
        raise DamagedIndexError(f"{path} is damaged: its contents do not match its seal.")
    return saved


def _missing(path: Location, error: OSError) -> str:
    return f"{path} is missing." if error.strerror != location.NO_FILE else f"{path} is damaged: {error.strerror}."


def keep(written: Path, directory: Location, suffix: str, digest: str | None = None) -> FileEntry:
    """Move a finished file to the name that its contents (`digest`: their sha256) give, durably; return its entry."""
    digest = digest or location.digest(written)
    name = suffix.replace("<tag>", digest[:16])
    entry = FileEntry(name, written.stat().st_size, digest)
    location.move(written, directory / name)
    return entry


def publish(path: Location, value: dict[str, Any], *, replace: bool = False) -> None:
    """Write JSON and its seal to `path` so that readers see all of it or nothing.

    Raises
    ------
    FileExistsError
        If `path` exists, unless `replace`.
    """
    text = json.dumps({**value, "seal": seal(value)}, indent=1, sort_keys=True) + "\n"
    (location.replace if replace else location.create)(path, text.encode())


def refuse_extra(directory: Location, known: set[str]) -> None:
    """Raise DamagedIndexError if there is a file that is neither `known` nor a killed build's temporary one."""
    for path in location.listing(directory):
        if path.name not in known and not location.is_temporary(path) and location.exists(path):
            raise DamagedIndexError(f"{path} belongs to no manifest of this index; gradindex repair removes it.")
