"""The routes of the review, the decisions and the map."""

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from gradindex.review import Kind
from gradindex.review.decision_log import Origin
from gradindex.serve import review_models as models
from gradindex.serve.models import reply
from gradindex.serve.service import Service

log = logging.getLogger(__name__)
T = TypeVar("T")
_PAGE = 20
_POLLED = 1000  # lines of the file of decisions in one answer


def review_routes(service: Service) -> APIRouter:
    """Return the routes below /v1/review and /v1/map."""
    router = APIRouter(tags=["review"])
    reviewing, settings = service.reviewing, service.settings

    async def beside(work: Callable[[], T]) -> T:
        """Run what waits for the disk."""
        return await asyncio.to_thread(work)

    @router.get("/v1/review", response_model=models.ReviewStatus)
    async def status() -> Response:
        """Return what there is to look at, how much of it is decided, and whether it is being looked for."""
        return reply(await beside(reviewing.status))

    @router.post("/v1/review", response_model=models.ReviewStatus, status_code=202)
    async def start() -> Response:
        """Begin to look for what to look at, once for each state of the index; `making` says how far it is."""
        await beside(reviewing.start_review)
        return reply(await beside(reviewing.status), 202)

    @router.get("/v1/review/rows", response_model=models.ReviewRows)
    async def rows(
        kind: Kind,
        offset: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        limit: Annotated[int, Query(ge=1, le=settings.max_queries)] = min(_PAGE, settings.max_queries),
    ) -> Response:
        """Return some lines of a list, each with its sample, its evidence and what is decided on it."""
        kept = await beside(reviewing.find_review)
        if kept is None:
            raise HTTPException(404, "There is no review of this index yet: POST /v1/review makes one.")
        found: BaseModel = await service.call(lambda _: reviewing.rows(kept, kind, offset, limit))
        return reply(found)

    @router.get("/v1/review/decisions", response_model=models.DecisionsPage)
    async def decisions(
        since: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        limit: Annotated[int, Query(ge=1, le=_POLLED)] = _POLLED,
    ) -> Response:
        """Return lines of the file of decisions, from a number on: what all reviewers decided since."""
        after, entries = await beside(lambda: reviewing.decisions.since(since, limit))
        return reply(models.DecisionsPage(next=after, entries=[reviewing.shown(one) for one in entries]))

    @router.get("/v1/review/decisions/{id}", response_model=models.Decided)
    async def decided(id: models.PathId) -> Response:
        """Return what stands on a sample, and which other reviewers decided otherwise."""
        return reply(await beside(lambda: reviewing.decided(id)))

    @router.post("/v1/review/decisions", response_model=models.Decided)
    async def decide(asked: models.DecideRequest, request: Request) -> Response:
        """Decide on a sample. It is on the server's disk when this answers; the last decision on a sample counts."""
        refuse_if_read_only()
        try:
            reviewing.check(asked.id, asked.decision, asked.label)
        except IndexError as error:
            raise HTTPException(404, str(error)) from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        entry = await written(
            lambda: reviewing.decisions.decide(asked.reviewer, asked.id, asked.decision, asked.label, origin(request))
        )
        return reply(await beside(lambda: reviewing.decided(entry.id, entry)))

    @router.post("/v1/review/undo", response_model=models.Decided)
    async def undo(asked: models.UndoRequest, request: Request) -> Response:
        """Take back the last decision of a reviewer that was not taken back yet."""
        refuse_if_read_only()
        try:
            entry = await written(lambda: reviewing.decisions.undo(asked.reviewer, origin(request)))
        except LookupError as error:
            raise HTTPException(404, str(error.args[0])) from None
        return reply(await beside(lambda: reviewing.decided(entry.id, entry)))

    @router.get("/v1/review/export", response_class=Response)
    async def export(form: Literal["csv", "jsonl"] = "csv") -> Response:
        """Return the decisions that stand as a file for `gradindex remove OUT --decisions FILE`."""
        text = await beside(lambda: reviewing.export(form))
        kind = "text/csv" if form == "csv" else "application/x-ndjson"
        named = {"content-disposition": f'attachment; filename="decisions.{form}"'}
        return Response(text, media_type=f"{kind}; charset=utf-8", headers=named)

    @router.get("/v1/map", response_model=models.MapStatus)
    async def map_status() -> Response:
        """Return whether there is a map, or how far it is."""
        return reply(await beside(reviewing.map_status))

    @router.post("/v1/map", response_model=models.MapStatus, status_code=202)
    async def start_map() -> Response:
        """Begin to draw the map, once for each state of the index."""
        await beside(reviewing.start_map)
        return reply(await beside(reviewing.map_status), 202)

    @router.get("/v1/map/points", response_model=models.MapPoints)
    async def points() -> Response:
        """Return the points of the map."""
        found = await beside(reviewing.find_map)
        if found is None:
            raise HTTPException(404, "There is no map of this index yet: POST /v1/map makes one.")
        return reply(await beside(lambda: reviewing.points(found)))

    def refuse_if_read_only() -> None:
        if reviewing.why_read_only:
            raise HTTPException(403, f"No decisions are taken here. {reviewing.why_read_only}")

    async def written(work: Callable[[], T]) -> T:
        """Run what writes a decision; says so where the disk does not take it."""
        try:
            return await beside(work)
        except OSError as error:
            log.error("a decision was not written: %s", error)
            raise HTTPException(507, f"The decision could not be kept: {error.strerror or error}.") from None

    return router


def origin(request: Request) -> Origin:
    """Return how a decision came."""
    return Origin(request.state.client, request.state.request_id)
