"""Embeddings on disk: immutable shards and manifests; see FORMAT.md beside this file."""

from gradindex.store.manifest import Header
from gradindex.store.shard import Rows
from gradindex.store.store import Store

__all__ = ["Header", "Rows", "Store"]
