"""What Prometheus reads."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gradindex.serve.asgi import App, Message, Receive, Scope, Send

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counts of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "gradindex_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "gradindex_request_seconds", "From arrival to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.limited = Counter(
            "gradindex_rate_limited",
            "Requests refused because their client sent too many.",
            ["client"],
            registry=registry,
        )
        self.stages = Counter("gradindex_stage_seconds", "Spent in each stage.", ["stage"], registry=registry)
        self.batch = Histogram(
            "gradindex_batch_queries",
            "Queries that shared a forward pass.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.waiting = Gauge("gradindex_waiting_queries", "Queries that wait.", registry=registry)
        self.reloads = Counter(
            "gradindex_index_reloads",
            "Times that a replaced index was opened, or could not be.",
            ["result"],
            registry=registry,
        )
        self.stale = Gauge(
            "gradindex_index_stale", "Whether the index on the disk is another one than answers.", registry=registry
        )
        self.loaded = Gauge(
            "gradindex_index_loaded_timestamp_seconds", "When the index that answers was opened.", registry=registry
        )
        self.rows = Gauge("gradindex_rows", "Rows of the index.", registry=registry)

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)


class Measured:
    """ASGI middleware: counts answers and times them by route."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)
