"""The three tests of Hanawa et al. (2021): which relevance metric gives explanations that make sense.

`identical_class`, `identical_subclass` and `model_randomization` run one test on an `Experiment`; `evaluate`
runs several and shares their models. `selected_by`, `last_layer_factors` and `neighbour_labels` tell why a metric is
right or wrong.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradindex.evaluation.bank import Bank
    from gradindex.evaluation.comparison import Comparison
    from gradindex.evaluation.experiment import Experiment
    from gradindex.evaluation.neighbours import NeighbourLabels, Shares, neighbour_labels
    from gradindex.evaluation.result import Result
    from gradindex.evaluation.run import evaluate, identical_class, identical_subclass, model_randomization
    from gradindex.evaluation.selected import Factors, Selected, last_layer_factors, selected_by

_HOMES = {
    "Bank": "bank",
    "Comparison": "comparison",
    "Experiment": "experiment",
    "NeighbourLabels": "neighbours",
    "Result": "result",
    "Shares": "neighbours",
    "Factors": "selected",
    "Selected": "selected",
    "last_layer_factors": "selected",
    "selected_by": "selected",
    "evaluate": "run",
    "identical_class": "run",
    "identical_subclass": "run",
    "model_randomization": "run",
    "neighbour_labels": "neighbours",
}
__all__ = [
    "Bank",
    "Comparison",
    "Experiment",
    "Factors",
    "NeighbourLabels",
    "Result",
    "Selected",
    "Shares",
    "evaluate",
    "identical_class",
    "identical_subclass",
    "last_layer_factors",
    "model_randomization",
    "neighbour_labels",
    "selected_by",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradindex.evaluation' has no attribute {name!r}")
    return getattr(import_module(f"gradindex.evaluation.{_HOMES[name]}"), name)
