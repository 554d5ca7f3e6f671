"""Listening, and stopping without losing what was accepted."""

import asyncio
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import uvicorn
from fastapi import FastAPI

from gradindex.serve.settings import Settings

log = logging.getLogger(__name__)
_TICK = 0.5  # seconds
_GRACE = 60  # seconds for what was accepted, once asked to stop


def run(app: FastAPI, host: str, port: int, ready: Callable[[str], None] | None = None) -> None:
    """Serve an application until a signal comes; see `gradindex.serve.serve`."""
    listening = listen(host, port)
    address = listening.getsockname()
    name = f"[{address[0]}]" if ":" in address[0] else address[0]
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # whom to believe, and how far, is a setting of ours: see `clients.Clients`
        lifespan="on",
        timeout_graceful_shutdown=_GRACE,
        server_header=False,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = Server(config, f"http://{name}:{address[1]}", ready, app.state.service.reloading.ask)
    try:
        _run(server, listening)
    finally:
        listening.close()
    if not server.started:
        raise RuntimeError("The service did not start; the log says why.")


def _run(server: "Server", listening: socket.socket) -> None:
    """Run until the end; in a thread of its own where this one's event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        server.run(sockets=[listening])
        return
    with ThreadPoolExecutor(1, "gradindex-serve") as beside:
        done = beside.submit(server.run, sockets=[listening])
        try:
            while not wait([done], timeout=_TICK).done:
                pass  # a signal that another thread was given is seen between two waits only
        finally:
            server.should_exit = True  # uvicorn sees signals in the main thread alone
        done.result()


class Server(uvicorn.Server):
    """Says where it listens once it does, and calls `reload` at SIGHUP."""

    def __init__(
        self,
        config: uvicorn.Config,
        address: str,
        ready: Callable[[str], None] | None = None,
        reload: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(config)
        self.address, self._ready, self._reload = address, ready, reload

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, log the address, and hand it on."""
        await super().startup(sockets)
        if self.started:
            if self._reload is not None and threading.current_thread() is threading.main_thread():
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
            log.warning("Serving on %s (Ctrl+C stops); samples to decide on: %s/review", self.address, self.address)
            if self._ready is not None:
                self._ready(self.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; connections that were being accepted at this moment are closed, too, once they are answered.

        uvicorn closes those that it knows when it begins, and waits for a later one until its client hangs up.
        """
        closing = asyncio.create_task(self._close_late_ones())
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()

    async def _close_late_ones(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            for connection in list(self.server_state.connections):
                connection.shutdown()


def check_access(settings: Settings, host: str) -> Settings:
    """Return settings whose hosts fit `host`; raises ValueError if other machines could ask without a token."""
    if is_loopback(host):
        return settings
    if not settings.need_token:
        raise ValueError(f"{host} is reached by other machines: give a token (--token-file), or listen on 127.0.0.1.")
    return replace(settings, hosts=("*",)) if settings.hosts == Settings().hosts else settings


def is_loopback(host: str) -> bool:
    """Whether an address is that of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        raise OSError(error.errno, f"Cannot listen on {host}:{port}: {error.strerror}") from None
    return found
