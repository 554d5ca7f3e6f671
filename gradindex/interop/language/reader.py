"""The texts of a job: see `gradindex.data.text.TextReader`."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradindex.data.names import Tensor, Tree
from gradindex.data.source import Ids, Source
from gradindex.data.tensors import as_numpy
from gradindex.data.text import Messages
from gradindex.interop.language.encode import Encoder, Text

if TYPE_CHECKING:
    from torch import nn

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Texts:
    """Turns texts into a job's samples, and samples back into text.

    Parameters
    ----------
    model
        The model, which answers.
    encoder
        Makes samples of texts.
    source
        The training samples.
    truncated
        The ids of training samples that were cut, in order.
    with_labels
        Whether the model is to find the labels among its inputs.
    """

    def __init__(
        self,
        model: "nn.Module",
        encoder: Encoder,
        source: Source,
        truncated: Ids | None = None,
        with_labels: bool = False,
    ) -> None:
        self._model, self._encoder, self._source, self._with_labels = model, encoder, source, with_labels
        self.truncated: Ids = np.empty(0, np.int64) if truncated is None else truncated

    def encode(
        self,
        text: str | None = None,
        *,
        prompt: Text | None = None,
        answer: str | None = None,
        messages: Messages | None = None,
    ) -> tuple[Tree, Tree]:
        """Return one query as the job's samples are made: x and y, each with a leading axis of 1.

        Parameters
        ----------
        text
            A text as a whole; for a classifier, one whose class is `answer`.
        prompt, answer
            What is asked, and what is said; without an answer, the model's own.
        messages
            A conversation.

        Raises
        ------
        ValueError
            If none or several of text, prompt and messages are given, or no token has a loss.
        """
        asked = {"text": text, "prompt": prompt, "messages": messages}
        given = [name for name, value in asked.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"A query is one of text, prompt (with its answer), or messages; got {' and '.join(given) or 'none'}."
            )
        question = text if self._encoder.answers_texts and prompt is None else prompt
        if answer is not None and question is None:
            raise ValueError(f"An answer goes with a prompt, and this query is {given[0]}: give prompt= and answer=.")
        if answer is None and question is not None:
            answer = self.answer(question)
        found = self._encoder.query(text, prompt, answer, messages)
        if not found.counted:
            raise ValueError("No token of the query has a loss: it is too short, or its answer was cut off.")
        x = {**found.x, "labels": found.y} if self._with_labels else found.x
        return {name: value[None] for name, value in x.items()}, found.y[None]

    def text(self, i: int) -> str:
        """Return training sample i as people read it, without special tokens; what is read above what is written."""
        batch = self._source.take(np.array([i], np.int64))
        return self._encoder.plain(batch.x, batch.y)

    def pieces(self, i: int) -> list[str]:
        """Return the tokens of training sample i in their order, each as text; t entries."""
        batch = self._source.take(np.array([i], np.int64))
        return self.pieces_of(batch.x, batch.y)

    def pieces_of(self, x: Tree, y: Tree = None) -> list[str]:
        """Return the same of an encoded query, its inputs and (needed for T5 and its like alone) its labels."""
        ids = self._encoder.shown(x, y)
        mask = as_numpy(x["attention_mask"][0]) if "attention_mask" in x else np.ones(len(ids), int)
        if mask.shape != ids.shape or mask.all():
            return self._pieces(ids)
        found = iter(self._pieces(ids[mask != 0]))
        return [next(found) if one else "" for one in mask]

    def answer(self, prompt: Text, max_new_tokens: int = 64) -> str:
        """Return the model's own answer: the most likely token each time, or class, tags, tokens for the masks."""
        import torch

        sample = self._encoder.prompt(prompt)
        device = next(self._model.parameters()).device
        inputs = {name: torch.from_numpy(value.astype(np.int64))[None].to(device) for name, value in sample.x.items()}
        modes = [(module, module.training) for module in self._model.modules()]
        try:
            self._model.eval()
            with torch.no_grad():
                if self._encoder.generates:
                    return self._generated(inputs["input_ids"], max_new_tokens)
                return self._encoder.answer(self._model(**inputs).logits[0].float().cpu().numpy(), sample)
        finally:
            for module, mode in modes:
                module.training = mode

    def _generated(self, ids: Tensor, most: int) -> str:
        import torch

        generate = getattr(self._model, "generate", None)
        if generate is None:
            raise TypeError(f"{type(self._model).__name__} has no generate(): give the answer.")
        tokenizer = self._encoder.tokenizer
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        found = (
            generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=most,
                do_sample=False,
                num_beams=1,
                pad_token_id=padding,
            )[0]
            .cpu()
            .numpy()
        )
        own = found[: ids.shape[1]]  # what a causal model gives back begins with the prompt
        begins = len(own) == ids.shape[1] and bool((own == ids[0].cpu().numpy()).all())
        return self._encoder.decoded(found[ids.shape[1] :] if begins else found)

    def _pieces(self, ids: NDArray[np.generic]) -> list[str]:
        """Return each token as the text that it adds to those before it; a character of several tokens, at the last."""
        tokenizer, numbers = self._encoder.tokenizer, np.asarray(ids).tolist()
        found: list[str] = []
        begin = 0  # of what is decoded together, as some tokens depend on those before
        read = 0  # of what is not told yet
        for end in range(1, len(numbers) + 1):
            before = tokenizer.decode(numbers[begin:read], clean_up_tokenization_spaces=False)
            whole = tokenizer.decode(numbers[begin:end], clean_up_tokenization_spaces=False)
            if whole.endswith(_BROKEN) and end < len(numbers):
                found.append("")
                continue
            found.append(whole[len(before) :])
            begin, read = read, end
        return found
