"""What lies where in a store's directory."""

from gradindex.store import changes, side_files
from gradindex.store.location import Location, is_temporary, listing
from gradindex.store.manifest import HEADER

SHARDS, PARTS, AUDIT = "shards", "parts", "audit.json"
WATCH = "watch"
"""Directory of what `gradindex.compute.watch` writes: how many rows of each shard were compared."""
WHITENED = "whitened"
"""Directory of a store of its own: rows that `gradindex.lifecycle.whiten` made of these."""
WHITENED_ROWS = f"{WHITENED}/rows"
KNOWN = {HEADER, SHARDS, PARTS, AUDIT, WATCH, WHITENED, "index", side_files.DIRECTORY, changes.DIRECTORY}


def strangers(store: Location) -> list[Location]:
    """Return what lies at the top of a store's directory beside its own files, such as a report or a user's notes."""
    return [path for path in listing(store) if path.name not in KNOWN and not is_temporary(path)]
