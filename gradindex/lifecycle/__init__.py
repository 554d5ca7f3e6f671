"""From nothing to a store with an index, and from one state of it to the next."""
