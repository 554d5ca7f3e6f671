"""Hugging Face `datasets`, in and out; see `gradindex.data.hugging_face` and `gradindex.interop.hugging_face`."""

from gradindex.data.hugging_face import _Dataset as _Dataset  # pickled jobs name it here
from gradindex.data.hugging_face import is_dataset, source
from gradindex.interop.hugging_face import with_embeddings

__all__ = ["is_dataset", "source", "with_embeddings"]
