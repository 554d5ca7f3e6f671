"""gradindex's metrics as an explainer for quanda, a toolkit of attribution tests.

See https://github.com/dilyabareeva/quanda. Its tests take explanations (m, n): a score for every query and training
sample. This module imports quanda; `gradindex.evaluation` does not import this module.
"""

from typing import Any

import torch
from quanda.explainers import Explainer

from gradindex import relevance
from gradindex.data.names import LossFunction, Tree
from gradindex.defaults import NEIGHBOURS
from gradindex.index.index import Index
from gradindex.job import Job


class GradindexExplainer(Explainer):
    """A relevance metric, exact or through an index, in quanda's form.

    Parameters
    ----------
    model
        A trained ``torch.nn.Module``.
    train_dataset
        A torch ``Dataset`` of pairs (x, y).
    loss_fn
        As in `Job`; cross-entropy by default.
    metric
        Name of a relevance metric. Not used with `index`, which has its own.
    index
        An index of the same dataset: only the `k` samples it finds for a query have their scores, the others the
        lowest float32.
    k
        With `index`: how many samples are found.
    **options
        Of `gradindex.relevance.metric`.

    Raises
    ------
    ValueError
        If the index is of another number of samples, or there is no such metric.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        train_dataset: Any,
        loss_fn: LossFunction = torch.nn.functional.cross_entropy,
        *,
        metric: str = "GC",
        index: Index | None = None,
        k: int = NEIGHBOURS,
        **options: Any,
    ) -> None:
        super().__init__(model=model, train_dataset=train_dataset)
        self._index, self._k = index, k
        if index is not None and len(index) != len(train_dataset):
            raise ValueError(f"The index has {len(index)} samples, the dataset {len(train_dataset)}.")
        self._samples = len(train_dataset)
        self._metric = None if index else relevance.metric(metric, Job(model, loss_fn, train_dataset), **options)

    def explain(self, test_tensor: torch.Tensor, targets: Tree) -> torch.Tensor:
        """Return the scores (m, n) float32 of queries `test_tensor` (m, …) with labels `targets` (m,)."""
        labels = torch.as_tensor(targets)
        if self._metric is not None:
            return torch.as_tensor(self._metric.scores(test_tensor, labels), dtype=torch.float32)
        assert self._index is not None
        found = self._index.explain(test_tensor, labels, k=self._k)
        scores = torch.full((len(test_tensor), self._samples), torch.finfo(torch.float32).min)
        for row, ids, values in zip(scores, found.ordered_indices, found.scores, strict=True):
            present = ids >= 0
            row[torch.as_tensor(ids[present])] = torch.as_tensor(values[present], dtype=torch.float32)
        return scores
