"""Hugging Face's models, trainers and datasets.

Jobs of language models (`causal_lm`, `from_trainer` and others), and `datasets`, in and out. See
`gradindex.interop.language`, `gradindex.data.hugging_face` and `gradindex.interop.hugging_face`.
"""

from gradindex.data.hugging_face import _Dataset as _Dataset  # pickled jobs name it here
from gradindex.data.hugging_face import is_dataset, source
from gradindex.interop.hugging_face import with_embeddings
from gradindex.interop.language.doors import causal_lm
from gradindex.interop.language.heads import masked_lm, seq2seq, sequence_classification, token_classification
from gradindex.interop.language.trainer import from_trainer

__all__ = [
    "causal_lm",
    "from_trainer",
    "is_dataset",
    "masked_lm",
    "seq2seq",
    "sequence_classification",
    "source",
    "token_classification",
    "with_embeddings",
]
