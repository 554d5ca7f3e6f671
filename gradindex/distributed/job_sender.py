"""How a worker comes by the job: by the name of the function that makes it, or as an object that Ray sends."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradindex.job import Job, load_job


@dataclass(frozen=True)
class Recipe:
    """Makes the job on a worker.

    `reference` is MODULE:FUNCTION, with the `device` and `metric` of the original; without one, `sent` holds a
    reference to the job in Ray's object store.
    """

    reference: str | None
    device: Any = None
    metric: Any = None
    sent: tuple[Any, ...] = ()

    def make(self) -> Job:
        """Return the job."""
        if self.reference is None:
            import ray

            job: Job = ray.get(self.sent[0])
            return job
        return dataclasses.replace(load_job(self.reference), device=self.device, metric=self.metric)


def recipe(job: Job, *, shipped: bool) -> Recipe:
    """Return how workers are to make a job; sends it to Ray's object store if it has no name.

    Parameters
    ----------
    job
        The job; `load_job` remembers where it came from.
    shipped
        Whether workers get the working directory's files, so that relative paths hold there.

    Raises
    ------
    TypeError
        If the job has no name and cannot be sent.
    """
    if job.reference is not None:
        module, _, function = job.reference.rpartition(":")
        if module.endswith(".py") and not shipped:
            module = str(Path(module).resolve())
        return Recipe(f"{module}:{function}", job.device, job.metric)
    import ray

    try:
        return Recipe(None, sent=(ray.put(dataclasses.replace(job)),))  # without what it has computed for itself
    except (TypeError, AttributeError, ValueError, NotImplementedError) as error:
        raise TypeError(
            f"This job cannot be sent to other processes: {error}. Let workers make it themselves: write a function "
            "that returns it, and build gradindex.job.load_job('MODULE:FUNCTION')."
        ) from error
