"""gradindex: approximate nearest neighbours over gradient embeddings."""

__version__ = "0.1.0"
