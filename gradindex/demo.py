"""The demonstration's jobs, by the names that its commands print; the code is in `gradindex.cli.demo`."""

from gradindex.cli.demo import tensorflow_job, torch_job

__all__ = ["tensorflow_job", "torch_job"]
