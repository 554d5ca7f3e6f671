"""Hugging Face `datasets`, in and out; the code is in `gradindex.data.hugging_face`."""

from gradindex.data.hugging_face import _Dataset as _Dataset  # pickled jobs name it here
from gradindex.data.hugging_face import is_dataset, source, with_embeddings

__all__ = ["is_dataset", "source", "with_embeddings"]
