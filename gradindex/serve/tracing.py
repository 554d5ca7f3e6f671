"""Spans of OpenTelemetry, through its API alone; nothing where it is not installed, or no provider was configured.

A request's span is FastAPI's own, by the conventions for HTTP servers (of an older FastAPI, that of the command
opentelemetry-instrument). Below it stand a span for the time that its queries waited and one for each stage. Stages are
those of the whole batch that the queries were answered in: requests that shared it have like spans.
"""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gradindex.runtime.stages import Interval
from gradindex.serve.batching import Task

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

IS_INSTALLED = importlib.util.find_spec("opentelemetry") is not None
_NAMES = {"gradients": "embed", "exact": "check"}
_QUIET = ("/healthz", "/readyz", "/metrics")

if IS_INSTALLED:
    from opentelemetry import context, trace

    _tracer = trace.get_tracer("gradindex")


def telemetry() -> "TelemetryConfig":
    """Return what FastAPI is told of spans: none for health and metrics, and none for its own parts of a request."""
    return {"exclude": lambda scope: scope.get("path") in _QUIET, "operation_spans": False}


def describe(**attributes: str | None) -> None:
    """Add to the span of the request."""
    if IS_INSTALLED:
        known = {f"gradindex.{name}": value for name, value in attributes.items() if value is not None}
        trace.get_current_span().set_attributes(known)


def begun() -> object:
    """Return where spans of a request's work belong; None if nobody wants them."""
    return context.get_current() if IS_INSTALLED and trace.get_current_span().is_recording() else None


def answered(tasks: Sequence[Task], intervals: Sequence[Interval], attributes: Mapping[str, str | int]) -> None:
    """Make the spans of a batch that was answered now, for each of its requests that wants some."""
    wanted = [task for task in tasks if task.context is not None]
    if not wanted:
        return
    wall = time.time_ns() - time.perf_counter_ns()  # of the clock that stages are timed by
    spans: dict[str, tuple[float, float, float]] = {}
    for name, began, ended in intervals:
        first, _, busy = spans.get(name, (began, ended, 0.0))
        spans[name] = first, ended, busy + ended - began
    of_batch = {f"gradindex.{name}": value for name, value in attributes.items()}

    def make(task: Task, name: str, began: float, ended: float, more: Mapping[str, str | int | float]) -> None:
        span = _tracer.start_span(
            f"gradindex.{name}", task.context, start_time=wall + int(began * 1e9), attributes=dict(more)
        )
        span.end(wall + int(ended * 1e9))

    for task in wanted:
        make(task, "wait", task.since, task.since + task.waited, {"gradindex.queries": task.size})
        for name, (began, ended, busy) in spans.items():
            make(task, _NAMES.get(name, name), began, ended, of_batch | {"gradindex.busy_seconds": busy})
