"""The routes."""

import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from gradindex._version import __version__
from gradindex.index.index import Index
from gradindex.serve import models
from gradindex.serve.asgi import Identified
from gradindex.serve.guard import Guard
from gradindex.serve.lookup import Lookup, Search, Vectors
from gradindex.serve.metrics import Measured
from gradindex.serve.models import reply
from gradindex.serve.review_routes import review_routes
from gradindex.serve.service import Service, as_where
from gradindex.serve.settings import Settings
from gradindex.serve.tracing import telemetry
from gradindex.store.layout import AUDIT
from gradindex.store.location import exists
from gradindex.store.manifest import read_json

log = logging.getLogger(__name__)
STATIC = Path(__file__).parent / "static"
PAGES = {"/": "index.html", "/review": "review.html", "/map": "map.html"}
_FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": models.Error, "description": text}
    for status, text in {
        400: "Not JSON, or a Host that is not served",
        401: "No token, or another one",
        403: "Asked by a page from elsewhere, or a decision where none are taken",
        404: "There is no such thing",
        408: "The body took too long",
        413: "The body is too large",
        422: "The request makes no sense; says why",
        429: "Too much is waiting, or the client asks too often",
        503: "The service is stopping",
        504: "The answer took too long",
        507: "The disk does not take it",
    }.items()
}


def make(index: Index, settings: Settings) -> FastAPI:
    """Return the application; its workers live from startup to shutdown."""
    service = Service(index, settings)
    app = FastAPI(
        title="gradindex",
        version=__version__,
        summary="Which training samples are behind a prediction?",
        docs_url=None,
        redoc_url=None,
        lifespan=service.lifespan,
        telemetry=telemetry(),
    )
    app.state.service = service
    app.include_router(routes(service))
    app.include_router(review_routes(service), responses=_ERRORS)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts), www_redirect=False)
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_middleware(Identified)
    return app


def _page(name: str) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(STATIC / name, headers={"cache-control": "no-cache"})

    return page


def routes(service: Service) -> APIRouter:
    """Return everything that is served but the page's files."""
    router = APIRouter(responses=_ERRORS)
    settings = service.settings

    @router.post("/v1/explain", response_model=models.ExplainResponse, tags=["lookup"])
    async def explain(asked: models.ExplainRequest) -> Response:
        """Find the training samples with the highest and the lowest kernel values for each query.

        Concurrent requests with the same options share one forward pass, except with `certify`.
        """
        began = time.perf_counter()
        found = await service.answer("model", lambda lookup: service.explain_task(asked, lookup))
        waited, stages, batch = (found.pop(name) for name in ("waited", "stages", "batch"))
        timing = models.Timing(waited=waited, total=time.perf_counter() - began, stages=stages, batch=batch)
        return reply(models.ExplainResponse(k=asked.k, timing=timing, **found))

    @router.post("/v1/search", response_model=models.SearchResponse, tags=["lookup"])
    async def search(asked: models.SearchRequest) -> Response:
        """Search with embeddings made elsewhere, by cosine; no model is needed."""
        began = time.perf_counter()
        service.check_sizes(len(asked.vectors), asked.k)
        where = as_where(asked.where)

        def task(lookup: Lookup) -> tuple[Search, Vectors, int]:
            vectors = _vectors(asked.vectors, lookup.store.header.dim)
            return Search(lookup.number, asked.k, where), Vectors(lookup, vectors), len(vectors)

        found = await service.answer("search", task)
        waited, stages, batch = (found.pop(name) for name in ("waited", "stages", "batch"))
        timing = models.Timing(waited=waited, total=time.perf_counter() - began, stages=stages, batch=batch)
        return reply(models.SearchResponse(k=asked.k, timing=timing, **found))

    @router.post(
        "/v1/inputs", response_model=models.OwnInput, tags=["lookup"], openapi_extra={"requestBody": {"content": _FILE}}
    )
    async def own_input(request: Request) -> Response:
        """Return a file (PNG, JPEG or .npy, by its contents) as a query in the form of a training sample."""
        data = await request.body()
        found: models.OwnInput = await service.call(lambda lookup: lookup.read(data))
        return reply(found)

    @router.get("/v1/items/{id}", response_model=models.Item, tags=["samples"])
    async def item(id: Annotated[int, InPath(ge=0, lt=2**63)]) -> Response:
        """Return a training sample: label, columns, and what it looks like."""
        return reply((await service.call(lambda lookup: lookup.items([id])))[0])

    @router.get("/v1/items", response_model=models.Items, tags=["samples"])
    async def items(
        offset: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        limit: Annotated[int, Query(ge=1, le=settings.max_queries)] = min(24, settings.max_queries),
        label: Annotated[float | None, Query(allow_inf_nan=False, description="Only those of this class.")] = None,
        ids: Annotated[
            str | None, Query(pattern=r"^\d{1,18}(,\d{1,18})*$", description="These alone, with commas between.")
        ] = None,
    ) -> Response:
        """Return some training samples that are not removed, in the store's order, or those that are named."""
        named = [] if ids is None else [int(one) for one in ids.split(",")]
        service.check_sizes(len(named), 1)

        def some(lookup: Lookup) -> tuple[int, list[models.Item]]:
            if named:
                return len(named), lookup.items(named)
            total, listed = lookup.listing(offset, limit, label)
            return total, lookup.items(listed.tolist()) if len(listed) else []

        total, found = await service.call(some)
        return reply(models.Items(total=total, offset=offset, items=found))

    @router.get("/v1/index", response_model=models.IndexInfo, tags=["index"])
    async def info() -> Response:
        """Return what is served: sizes, columns, classes, the form of an input."""
        found: models.IndexInfo = await service.call(lambda lookup: lookup.info)
        limits = {
            "max_k": min(settings.max_k, found.samples),
            "max_queries": settings.max_queries,
            "max_body": settings.max_body,
        }
        return reply(found.model_copy(update=limits))

    @router.get("/v1/audit", response_model=models.Audit, tags=["index"])
    async def audit() -> Response:
        """Return the last audit of the index, measured by `gradindex verify`."""
        path = service.path / AUDIT
        if not exists(path):
            raise HTTPException(404, "This index has no audit yet: gradindex verify makes one.")
        return reply(models.Audit.model_validate(read_json(path)))

    @router.get("/healthz", response_model=models.Health, tags=["operation"])
    async def health() -> models.Health:
        """Say that the service is up; needs no token."""
        return models.Health(status="ok", rows=len(service.lookup.store))

    @router.get("/readyz", response_model=models.Ready, tags=["operation"])
    async def ready() -> models.Ready:
        """Say whether lookups are taken now, or answer 503 while too many wait or the service stops; needs no token."""
        if not service.is_ready:
            raise HTTPException(503, "No more lookups are taken at the moment.")
        return models.Ready(status="ok", rows=len(service.lookup.store), stale=service.reloading.stale)

    @router.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Return counts and times in Prometheus's format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, name in PAGES.items():
        router.add_api_route(path, _page(name), include_in_schema=False)

    return router


def _vectors(given: list[list[float]], width: int) -> NDArray[np.float32]:
    """Return embeddings as an array (m, width); raises HTTPException for what is none."""
    if any(len(vector) != width for vector in given):
        raise HTTPException(422, f"vectors: expected {width} numbers each.")
    with np.errstate(over="ignore"):
        vectors = np.asarray(given, np.float32)
    if not np.isfinite(vectors).all():
        raise HTTPException(422, "vectors: NaN, infinity, or a number too large for float32.")
    return vectors


async def _invalid(request: Request, error: Exception) -> Response:
    """Say what is wrong with a request, without repeating what it held: that may be NaN, or large."""
    assert isinstance(error, RequestValidationError)
    said = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5]]
    return problem(422, "; ".join(said))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return problem(error.status_code, str(error.detail), error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    name = str(request.scope.get("state", {}).get("request_id", ""))
    log.error("request %s failed: %s", name, type(error).__name__)
    return problem(500, "The service failed; its log says why.", {"x-request-id": name})


def problem(status: int, detail: str, headers: Any = None) -> Response:
    """Return an error as JSON."""
    text = detail[:2000].encode("utf-8", "replace").decode()
    return JSONResponse({"detail": text}, status, headers)
