"""The three tests of Hanawa et al. (2021): which relevance metric gives explanations that make sense.

`identical_class`, `identical_subclass` and `model_randomization` run one test on an `Experiment`; `evaluate`
runs several and shares their models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradindex.evaluation.bank import Bank
    from gradindex.evaluation.comparison import Comparison
    from gradindex.evaluation.experiment import Experiment
    from gradindex.evaluation.result import Result
    from gradindex.evaluation.run import evaluate, identical_class, identical_subclass, model_randomization

_HOMES = {
    "Bank": "bank",
    "Comparison": "comparison",
    "Experiment": "experiment",
    "Result": "result",
    "evaluate": "run",
    "identical_class": "run",
    "identical_subclass": "run",
    "model_randomization": "run",
}
__all__ = [
    "Bank",
    "Comparison",
    "Experiment",
    "Result",
    "evaluate",
    "identical_class",
    "identical_subclass",
    "model_randomization",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradindex.evaluation' has no attribute {name!r}")
    return getattr(import_module(f"gradindex.evaluation.{_HOMES[name]}"), name)
