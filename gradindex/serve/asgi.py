"""The words of ASGI, and what every request gets: an id, which its answer carries."""

import contextvars
import json
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HEADER = b"x-request-id"

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("gradindex_request_id", default="")
"""The id of the request that is being answered; empty outside of one."""


class Identified:
    """ASGI middleware: gives a request the id that its client or a proxy sent as ``X-Request-Id``, or a new one."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, _HEADER)
        name = given if _ID.fullmatch(given) else secrets.token_hex(16).encode()
        scope.setdefault("state", {})["request_id"] = name.decode()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (_HEADER, name)]
            await send(message)

        reset = request_id.set(name.decode())
        try:
            await self._app(scope, receive, sending)
        finally:
            request_id.reset(reset)


def header(scope: Scope, name: bytes) -> bytes:
    """Return the value of a request's header, of several with commas between; empty if there is none."""
    return b", ".join(value for one, value in scope["headers"] if one == name)


async def refuse(send: Send, status: int, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answer with an error."""
    body = json.dumps({"detail": detail}).encode()
    every = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": body})
