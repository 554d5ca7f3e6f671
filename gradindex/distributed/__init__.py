"""One job on many machines: Ray's actors embed shards and search parts; the store's publish step gives exactly once."""

from gradindex.distributed.options import Ray

__all__ = ["Ray"]
