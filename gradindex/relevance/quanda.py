"""A relevance metric as an explainer of quanda, a toolkit of tests for data attribution (PyTorch).

Needs quanda: ``pip install quanda``. quanda calls ``explain(test_data, targets)`` and expects scores of all
training samples.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from quanda.explainers import Explainer

from gradindex import relevance
from gradindex.job import Job
from gradindex.labels import as_array


class GradindexExplainer(Explainer):  # type: ignore[misc]
    """Scores of a relevance metric, in quanda's form.

    Parameters
    ----------
    model
        A ``torch.nn.Module``.
    train_dataset
        A dataset of (x, y).
    loss_fn
        As in `Job`.
    metric
        Name of the metric.
    task
        One of quanda's tasks.
    options
        Of `gradindex.relevance.metric`.
    """

    accepted_tasks = ["image_classification"]  # noqa: RUF012  # quanda's own form

    def __init__(
        self,
        model: torch.nn.Module,
        train_dataset: Any,
        loss_fn: Callable[[Any, Any], Any] = torch.nn.functional.cross_entropy,
        metric: str = "GC",
        task: str = "image_classification",
        **options: Any,
    ) -> None:
        super().__init__(model=model, train_dataset=train_dataset, task=task)
        job = Job(model, loss_fn, [train_dataset[i] for i in range(len(train_dataset))])
        self.metric = relevance.metric(metric, job, **options)

    def explain(self, test_data: torch.Tensor, targets: Any) -> torch.Tensor:
        """Return the scores (m, n) float32 of queries with labels `targets` against all training samples."""
        labels = np.asarray(targets) if isinstance(targets, list) else as_array(targets)
        return torch.as_tensor(self.metric.scores(test_data, labels), dtype=torch.float32)
