"""What is left to do after a change was made, and what a process that was killed then did not do."""

from gradindex.ann import files as index_files
from gradindex.store import Store, changes
from gradindex.store.layout import PARTS, SHARDS
from gradindex.store.location import exists, remove_tree


def settle(store: Store) -> list[str]:
    """Delete the parts and indexes that only earlier states had, and count all changes; return the parts' names.

    What belongs to a state that is still to come, because another process works on it, is in no earlier one.
    """
    states = list(changes.history(store.path, store.header))
    last, deleted = states[-1], []
    for state in {state.rows_seal: state for state in states}.values():
        if state.rows_seal != last.rows_seal:
            index_files.delete(Store(store.path, store.header, state))
    for part in dict.fromkeys(part for state in states for part in state.parts):
        place = store.path / PARTS / part.name if part.name else store.path / SHARDS
        if part not in last.parts and exists(place):
            remove_tree(place)
            deleted.append(f"{PARTS}/{part.name}" if part.name else SHARDS)
    changes.count(store.path, store.header, last)
    return deleted
