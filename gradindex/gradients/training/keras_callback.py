"""Keras: record checkpoints from ``fit``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING:
    from gradindex.gradients.training.checkpoints import CheckpointRecorder


class RecordEpochs(keras.callbacks.Callback):
    """Records the model and its optimiser's learning rate after every `every`-th epoch."""

    def __init__(self, recorder: "CheckpointRecorder", every: int) -> None:
        super().__init__()
        self._recorder, self._every = recorder, every

    def on_epoch_end(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Record if it is the time."""
        if (epoch + 1) % self._every == 0:
            optimizer = self.model.optimizer
            self._recorder.record(self.model, keras.ops.convert_to_numpy(optimizer.learning_rate), optimizer)
