"""From encoded samples to a job: what the doors have in common."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gradindex.data.names import LossFunction, Tree
from gradindex.data.source import Ids, Source
from gradindex.interop.language import models, own_loss, rows
from gradindex.interop.language.encode import Encoder, Row
from gradindex.interop.language.loss import ClassLoss
from gradindex.interop.language.reader import Texts
from gradindex.interop.language.samples import Sample, TextSamples, kept
from gradindex.job import Job

if TYPE_CHECKING:
    from torch import nn

Columns = Sequence[str] | Tree | None
"""Names of the dataset's columns, or the columns themselves as `gradindex.Job` takes them."""


def make(
    model: "nn.Module",
    loss: LossFunction,
    encoder: Encoder,
    read: Callable[[], Iterator[Row]],
    columns: Columns,
    cache: str | Path | None,
    parameters: str | Sequence[str] | None,
    device: object,
    more: dict[str, object] | None = None,
) -> Job:
    """Return the job of what an encoder makes of a dataset's rows.

    Parameters
    ----------
    model, loss
        The model and its loss, which is compared with the model's own.
    encoder
        Makes samples.
    read
        Yields the rows.
    columns, cache, parameters, device
        As `causal_lm` takes them.
    more
        What samples depend on besides the encoder and the dataset.
    """
    names = list(columns) if isinstance(columns, list | tuple) else []
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            "columns must be names of the dataset's columns, or columns by name, as gradindex.Job takes them."
        )

    def samples() -> Iterator[Sample]:
        for number, row in enumerate(read()):
            own = {name: row[rows.column(row, name, what="columns=")] for name in names}
            try:
                sample = encoder.sample(row, number)
            except KeyError as error:
                if error.args and error.args[0] in row:
                    raise
                raise ValueError(f"Row {number} has no {error}; it has {', '.join(map(repr, row))}.") from error
            yield replace(sample, columns=own)

    source = kept(samples(), cache, encoder.settings() | (more or {}) | {"own": names})
    report(source, encoder.max_length)
    reads_own = False
    if own_loss.takes_labels(model):
        loss, reads_own = own_loss.settle(
            model, own_loss.candidates(model, loss), source, own_loss.of_model(model), "The model's"
        )
    return finish(model, loss, source, encoder, columns, reads_own, parameters, device)


def finish(
    model: "nn.Module",
    loss: LossFunction,
    source: Source,
    encoder: Encoder | None,
    columns: Columns,
    reads_own: bool,
    parameters: str | Sequence[str] | None,
    device: object,
) -> Job:
    """Return the job of these parts.

    Parameters
    ----------
    model, loss
        The model and its loss.
    source
        The encoded samples.
    encoder
        What made them, or makes queries like them; None: there is no tokenizer.
    columns
        As `causal_lm` takes them; names are those of the source's own columns.
    reads_own
        Whether the loss is what the model makes of labels among its inputs.
    parameters, device
        As `gradindex.Job` takes them.
    """
    truncated = source.truncated if isinstance(source, TextSamples) else None
    texts = None if encoder is None else Texts(model, encoder, source, truncated, reads_own)
    classes = isinstance(loss, ClassLoss) and loss.problem != "regression"
    names = models.config_of(model).id2label if classes else None
    if isinstance(columns, list | tuple):
        columns = source.columns if isinstance(source, TextSamples) else None
    return Job(
        model,
        loss,
        own_loss.WithLabels(source) if reads_own else source,
        task="classification" if classes else "regression",
        class_names=None if names is None else [names[number] for number in sorted(names)],
        columns=columns,
        render=None if texts is None else texts.text,
        texts=texts,
        parameters=parameters,
        device=device,
    )


def report(source: TextSamples, longest: int | None) -> None:
    """Warn of samples that were cut, and of those that have no token with a loss."""
    for ids, what, why in (
        (source.truncated, f"were cut at {longest} tokens (max_length)", "What stood behind has no gradient"),
        (source.without_loss, "have no token with a loss", "Their gradients are zero"),
    ):
        if len(ids):
            warnings.warn(
                f"{len(ids)} of {len(source)} texts {what}: ids {few(ids)}. {why}.", UserWarning, stacklevel=5
            )


def few(ids: Ids) -> str:
    """Return ids as messages have them: ten at most."""
    return f"{', '.join(map(str, ids[:10]))}{' …' if len(ids) > 10 else ''}"
