"""What the parts of the package that deal with texts ask of a language job: see `gradindex.interop.language`."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from gradindex.data.names import Tensor, Tree

IGNORED = -100
"""The label of a token that has no loss, as in torch and Hugging Face."""

Messages = Sequence[Mapping[str, str]]
"""A conversation: ``[{"role": "user", "content": "…"}, …]``."""


@runtime_checkable
class TextReader(Protocol):
    """Turns texts into a job's samples, and the tokens of samples back into text.

    ``Job.texts`` holds one where the job was made from a tokenizer. Positions in a sample are those of its tokens,
    padding left out: entry j of `pieces` is the token whose loss stands at place j of `TokenLoss.per_token`. Of a model
    that reads one text and writes another (T5) they are the tokens that are written.
    """

    def encode(
        self,
        text: str | None = None,
        *,
        prompt: "str | Messages | None" = None,
        answer: str | None = None,
        messages: Messages | None = None,
    ) -> tuple[Tree, Tree]:
        """Return one query as the job's samples are made: inputs x and labels y, each with a leading axis of 1.

        Parameters
        ----------
        text
            A text as a whole, all of whose tokens count.
        prompt, answer
            What is asked, and what is said: the answer's tokens count, the prompt's do not.
        messages
            A conversation, laid out by the chat template: the last message of the assistant counts.

        Returns
        -------
        tuple[Tree, Tree]
            x, a dict of arrays (1, t) as the model takes them, and y, labels (1, t), -100 where there is no loss.

        Raises
        ------
        ValueError
            If neither or several of text, prompt with answer, and messages are given, or no token has a loss.
        """

    def text(self, i: int) -> str:
        """Return training sample i as people read it."""

    def pieces(self, i: int) -> list[str]:
        """Return the tokens of training sample i in their order, each as text; t entries, padding left out."""

    def pieces_of(self, x: Tree) -> list[str]:
        """Return the same of an encoded query."""

    def answer(self, prompt: "str | Messages", max_new_tokens: int = 64) -> str:
        """Return the model's own answer to a prompt: the most likely token each time."""


@runtime_checkable
class TokenLoss(Protocol):
    """A loss that is made of the losses of tokens."""

    def __call__(self, output: Tree, y: Tree) -> Tensor:
        """Return the loss of a batch as the model trains: a mean, or a sum, over the tokens that have a label."""

    def per_token(self, output: Tree, y: Tree) -> Tensor:
        """Return what each token gives to its sample's loss, (b, t): their sum over t IS the loss of the sample alone.

        Place j belongs to token j, the one that is predicted (for a causal model place 0 is 0). It is 0 where a
        token has no label, and holds the sample's own weight (1 / labelled tokens of a mean) already.
        """
