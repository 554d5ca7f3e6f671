"""Which training samples are responsible for a model that is no classifier, and along its training.

`CheckpointRecorder` collects what ``Job(…, checkpoints=…)`` needs for TracIn. `UnsupervisedJob` is a job whose loss
needs no label; `draws_needed` bounds the error of a loss that is a mean over draws. `KNNInfluence`, `KDEInfluence` and
`GMMInfluence` are closed forms for classical density estimators.
`label_disagreement` looks for mislabelled samples in an index, as ``Index.self_influence`` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradindex.gradients.training.checkpoints import Checkpoint, CheckpointRecorder
    from gradindex.gradients.training.tracin import TracInEngine
    from gradindex.influence.density import DensityInfluence, KDEInfluence, KNNInfluence
    from gradindex.influence.draws import draws_needed
    from gradindex.influence.labels import label_disagreement
    from gradindex.influence.mixture import GMMInfluence
    from gradindex.influence.unsupervised import UnsupervisedJob

_HOMES = {
    "Checkpoint": "gradients.training.checkpoints",
    "CheckpointRecorder": "gradients.training.checkpoints",
    "DensityInfluence": "influence.density",
    "KDEInfluence": "influence.density",
    "KNNInfluence": "influence.density",
    "GMMInfluence": "influence.mixture",
    "TracInEngine": "gradients.training.tracin",
    "draws_needed": "influence.draws",
    "label_disagreement": "influence.labels",
    "UnsupervisedJob": "influence.unsupervised",
}
__all__ = [
    "Checkpoint",
    "CheckpointRecorder",
    "DensityInfluence",
    "GMMInfluence",
    "KDEInfluence",
    "KNNInfluence",
    "TracInEngine",
    "UnsupervisedJob",
    "draws_needed",
    "label_disagreement",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradindex.influence' has no attribute {name!r}")
    return getattr(import_module(f"gradindex.{_HOMES[name]}"), name)
