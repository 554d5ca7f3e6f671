"""Samples of rows that are tokens already, with or without labels."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradindex.data.text import IGNORED, Messages
from gradindex.interop.language.encode import CausalEncoder, Encoder, Row, Text
from gradindex.interop.language.samples import Sample


@dataclass(frozen=True)
class TokenEncoder(Encoder):
    """Samples of rows with ``input_ids`` and ``labels`` (without them, all tokens count); padding is left out.

    A ``completion_mask`` or ``assistant_masks``, as TRL's datasets have, says which tokens count.

    Parameters
    ----------
    asks
        Makes queries.
    """

    asks: CausalEncoder | None = None
    generates: ClassVar[bool] = True

    def sample(self, row: Row, number: int) -> Sample:
        """Return a row of the dataset as a sample."""
        ids = np.asarray(row["input_ids"], np.int32)
        labels = np.asarray(ids if row.get("labels") is None else row["labels"], np.int32)
        if ids.ndim != 1 or labels.shape != ids.shape:
            raise ValueError(
                f"Row {number} has input_ids of shape {ids.shape}, labels of {labels.shape}: expected (t,)."
            )
        for name in ("completion_mask", "assistant_masks"):
            if row.get("labels") is None and row.get(name) is not None:
                labels = np.where(np.asarray(row[name], bool), labels, np.int32(IGNORED))
        mask = row.get("attention_mask")
        filled = np.ones(len(ids), bool) if mask is None or np.ndim(np.asarray(mask)) != 1 else np.asarray(mask) > 0
        ids, labels = ids[filled], labels[filled]
        end = len(ids) if self.max_length is None else self.max_length
        counted = int((labels[1:end] != IGNORED).sum())
        return Sample({"input_ids": ids[:end]}, labels[:end], counted, len(ids) > end)

    def query(self, text: str | None, prompt: Text | None, answer: str | None, messages: Messages | None) -> Sample:
        """Return what was asked about as a sample."""
        return self._asks.query(text, prompt, answer, messages)

    def prompt(self, prompt: Text) -> Sample:
        """Return a prompt as the model is to go on from it."""
        return self._asks.prompt(prompt)

    @property
    def _asks(self) -> CausalEncoder:
        if self.asks is None:
            raise ValueError("There is nothing to make queries with.")
        return self.asks
