"""Hugging Face: record checkpoints from a ``Trainer``."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    import transformers

    from gradindex.gradients.training.checkpoints import CheckpointRecorder


class RecordTraining(TrainerCallback):
    """Records the model and the learning rate of the last step after every `every`-th epoch or step."""

    def __init__(self, recorder: "CheckpointRecorder", every: int, unit: str) -> None:
        self._recorder, self._every, self._unit = recorder, every, unit
        self._rate = 0.0

    def on_step_begin(
        self,
        args: "transformers.TrainingArguments",
        state: "transformers.TrainerState",
        control: "transformers.TrainerControl",
        **parts: Any,
    ) -> None:
        """Remember the learning rate: when the step has ended, the schedule has already moved on, perhaps to 0."""
        self._rate = max(float(group["lr"]) for group in parts["optimizer"].param_groups)

    def on_step_end(
        self,
        args: "transformers.TrainingArguments",
        state: "transformers.TrainerState",
        control: "transformers.TrainerControl",
        **parts: Any,
    ) -> None:
        """Record if it is the time."""
        if self._unit == "step" and state.global_step % self._every == 0:
            self._recorder.record(parts["model"], self._rate, parts["optimizer"])

    def on_epoch_end(
        self,
        args: "transformers.TrainingArguments",
        state: "transformers.TrainerState",
        control: "transformers.TrainerControl",
        **parts: object,
    ) -> None:
        """Record if it is the time."""
        if self._unit == "epoch" and round(state.epoch) % self._every == 0:
            self._recorder.record(parts["model"], self._rate, parts["optimizer"])
