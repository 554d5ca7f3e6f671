"""What stands before the routes: sizes, times, the token, and headers that keep the page to itself."""

import asyncio
import math

from gradindex.serve.asgi import App, Message, Receive, Scope, Send, header, refuse
from gradindex.serve.clients import Clients
from gradindex.serve.limits import RateLimit
from gradindex.serve.metrics import Metrics
from gradindex.serve.settings import Settings
from gradindex.serve.tracing import describe

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
_OPEN = ("/v1/", "/metrics")  # beginnings of the paths that need the token, and whose requests are limited


class Guard:
    """ASGI middleware: reads a body up to the limit before anything parses it, limits clients, and asks for the token.

    Parameters
    ----------
    app
        What comes behind.
    settings
        Those of the service.
    metrics
        Counts the requests of clients that send too many.
    """

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._clients = Clients(settings)
        self._limit = RateLimit(settings.rate_limit, settings.rate_burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        client = self._clients.of(scope)
        scope.setdefault("state", {})["client"] = client.name or None
        describe(client=client.name or None, request_id=scope["state"].get("request_id"))
        if scope["path"].startswith(_OPEN):
            if wait := self._limit.wait(client.key):
                self._metrics.limited.labels(client.key.partition(" ")[0]).inc()
                seconds = str(math.ceil(wait))
                said = f"At most {self._settings.rate_limit:g} requests a second: ask again in {seconds} s."
                await refuse(sending, 429, said, [(b"retry-after", seconds.encode())])
                return
            if self._settings.need_token and client.name is None:
                said = "A bearer token is needed: Authorization: Bearer TOKEN."
                await refuse(sending, 401, said, [(b"www-authenticate", b"Bearer")])
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

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body; None if it is too large."""
        declared = header(scope, b"content-length") or b"0"
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
