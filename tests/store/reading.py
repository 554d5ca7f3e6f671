"""A process that opens and searches an index again and again; in a module of its own, which imports no framework."""

import numpy as np

import gradindex


def read_in_a_loop(path, stop, states, failures, reads):
    """Report whatever is not one of the `states`, sets of ids that may be found together."""
    while not stop.is_set():
        try:
            index = gradindex.load(path)
            found = index.search(index.store.gather(np.arange(3)), len(index))[1]
            present = frozenset(found[0][found[0] >= 0].tolist())
            if present not in states or any(frozenset(line[line >= 0].tolist()) != present for line in found):
                failures.put(f"not a state: {len(present)} samples")
            reads.put(1)
        except Exception as error:
            failures.put(f"{type(error).__name__}: {error}")
            return
