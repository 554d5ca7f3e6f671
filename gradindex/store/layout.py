"""What lies where in a store's directory."""

import re

from gradindex.store import changes, side_files
from gradindex.store.location import Location, is_temporary, listing
from gradindex.store.manifest import HEADER

SHARDS, PARTS, AUDIT = "shards", "parts", "audit.json"
WATCH = "watch"
"""Directory of what `gradindex.compute.watch` writes: how many rows of each shard were compared."""
WHITENED = "whitened"
"""Directory of a store of its own: rows that `gradindex.lifecycle.whiten` made of these."""
WHITENED_ROWS = f"{WHITENED}/rows"
_OF_A_SHARD = re.compile(r"\d{6,}\.")
KNOWN = {HEADER, SHARDS, PARTS, AUDIT, WATCH, WHITENED, "index", side_files.DIRECTORY, changes.DIRECTORY}


def strangers(store: Location) -> list[Location]:
    """Return what lies in a store's directory and may be a user's, such as a report or an export.

    That is what lies at its top with a name of its own, and among its shards without a shard's number.
    """
    at_top = [path for path in listing(store) if path.name not in KNOWN]
    shards = store / SHARDS, *(part / SHARDS for part in listing(store / PARTS))
    among = [path for place in shards for path in listing(place) if not _OF_A_SHARD.match(path.name)]
    return [path for path in (*at_top, *among) if not is_temporary(path)]
