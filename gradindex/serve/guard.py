"""What stands before the routes: sizes, times, the token, and headers that keep the page to itself."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gradindex.serve.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_OPEN = ("/v1/", "/metrics")  # beginnings of the paths that need the token


class Guard:
    """ASGI middleware: reads a body up to the limit before anything parses it, and asks for the token."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._token = None if settings.token is None else settings.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        if self._token is not None and scope["path"].startswith(_OPEN) and not self._known(scope):
            await refuse(sending, 401, "A bearer token is needed: Authorization: Bearer TOKEN.", b"Bearer")
            return
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and _is_from_elsewhere(scope):
            await refuse(sending, 403, "Pages from elsewhere may not ask for this.")
            return
        try:
            async with asyncio.timeout(self._settings.timeout):
                body = await self._body(scope, receive)
        except TimeoutError:
            await refuse(sending, 408, "The body took too long.")
            return
        if body is None:
            await refuse(sending, 413, f"The body is larger than {self._settings.max_body} bytes.")
            return
        await self._app(scope, _replay(body, receive), sending)

    def _known(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, token = given.partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token or b"")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body; None if it is too large."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._settings.max_body:
            return None
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._settings.max_body:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


def _is_from_elsewhere(scope: Scope) -> bool:
    """Whether a browser says that a page of another origin asks: programs say nothing of that."""
    headers = dict(scope["headers"])
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        return site not in (b"same-origin", b"none")
    return origin is not None and origin.rpartition(b"//")[2].lower() != headers.get(b"host", b"").lower()


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def refuse(send: Send, status: int, detail: str, challenge: bytes | None = None) -> None:
    """Answer with an error."""
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if challenge is not None:
        headers.append((b"www-authenticate", challenge))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
