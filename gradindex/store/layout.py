"""What lies where in a store's directory."""

from gradindex.store import changes, side_files
from gradindex.store.manifest import HEADER

SHARDS, PARTS, AUDIT = "shards", "parts", "audit.json"
WATCH = "watch"
"""Directory of what `gradindex.compute.watch` writes: how many rows of each shard were compared."""
WHITENED = "whitened"
"""Directory of a store of its own: rows that `gradindex.lifecycle.whiten` made of these."""
WHITENED_ROWS = f"{WHITENED}/rows"
KNOWN = {HEADER, SHARDS, PARTS, AUDIT, WATCH, WHITENED, "index", side_files.DIRECTORY, changes.DIRECTORY}
