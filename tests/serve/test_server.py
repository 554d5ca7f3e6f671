"""The service as a command, on loopback: it starts, loses nothing when told to stop, and refuses to be open."""

import asyncio
import json
import re
import signal
import socket
import threading
import time
from http.client import HTTPConnection

import pytest

from gradindex.cli.app import run
from tests.serve.conftest import running

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")


def connect(address):
    host, port = re.fullmatch(r"http://(.+):(\d+)", address).groups()
    return HTTPConnection(host, int(port), timeout=60)


class Client(threading.Thread):
    """Asks one thing after the other until the service is gone; keeps how each ended."""

    def __init__(self, address, number):
        super().__init__()
        self.connection, self.number, self.codes, self.lost = connect(address), number, [], 0

    def run(self):
        try:
            self.ask()
        finally:
            self.connection.close()

    def ask(self):
        body = json.dumps({"ids": [self.number], "k": 5})
        while True:
            try:
                self.connection.request("POST", "/v1/explain", body, {"content-type": "application/json"})
                answer = self.connection.getresponse()
                json.loads(answer.read())
                self.codes.append(answer.status)
            except (OSError, ValueError, EOFError) as error:
                self.lost += "Incomplete" in type(error).__name__ or isinstance(error, ValueError)
                return
            except Exception:  # the connection was closed before an answer began
                return


def test_nothing_accepted_is_lost_on_sigterm(served_path):
    with running(served_path, "--json") as (address, process):
        clients = [Client(address, i) for i in range(8)]
        for client in clients:
            client.start()
        while sum(len(client.codes) for client in clients) < 16:
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join(60)
            assert not client.is_alive()
        said = process.stderr.read()
        assert json.loads(process.stdout.read()) == {"address": address}
        assert process.wait(30) in (0, -signal.SIGTERM)
    codes = [code for client in clients for code in client.codes]
    assert set(codes) == {200}
    assert not any(client.lost for client in clients)
    (accepted,) = re.findall(r"stopped after answering (\d+) accepted lookups", said)
    assert int(accepted) == len(codes)


def test_other_machines_need_a_token(served_path, capsys, monkeypatch):
    monkeypatch.delenv("GRADINDEX_TOKEN", raising=False)
    code = run(["serve", str(served_path), "tests.serve.jobs:pictures_job", "--host", "0.0.0.0", "--port", "0"])
    assert code == 1
    assert "0.0.0.0 is reached by other machines: give a token" in " ".join(capsys.readouterr().err.split())


def test_a_port_that_is_taken_is_named():
    from gradindex.serve.server import listen

    taken = listen("127.0.0.1", 0)
    taken.listen()
    try:
        with pytest.raises(OSError, match=r"Cannot listen on 127.0.0.1:\d+: Address already in use"):
            listen("127.0.0.1", taken.getsockname()[1])
    finally:
        taken.close()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("a.org", False),
    ],
)
def test_what_is_loopback(host, loopback):
    from gradindex.serve.server import is_loopback

    assert is_loopback(host) == loopback


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, also where the tests were started with it ignored, as in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_serves_beside_a_notebooks_event_loop(index, interrupts):
    """A cell runs within the kernel's loop: serve answers until the cell is interrupted, and the loop goes on."""
    from gradindex.serve import serve

    answers = []

    def ready(address):
        def ask():
            connection = connect(address)
            connection.request("GET", "/healthz")
            answers.append(connection.getresponse().status)
            connection.close()
            signal.raise_signal(signal.SIGINT)  # as a kernel does for "interrupt"

        threading.Thread(target=ask).start()

    async def cell():
        with pytest.raises(KeyboardInterrupt):
            serve(index, ready=ready)
        await asyncio.sleep(0)
        return "the loop goes on"

    loop = asyncio.new_event_loop()  # asyncio.run would make a cancellation of the signal
    try:
        assert loop.run_until_complete(cell()) == "the loop goes on"
    finally:
        loop.close()
    assert answers == [200]


def test_a_port_that_is_taken_is_said_within_a_loop_too(index):
    from gradindex.serve import serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        async def cell():
            serve(index, port=taken.getsockname()[1])

        with pytest.raises(OSError, match=r"Cannot listen on 127\.0\.0\.1"):
            asyncio.run(cell())


def test_a_connection_that_comes_while_stopping_is_closed():
    """uvicorn has those closed that it knows when it begins to stop; a later one held it until its client hung up."""
    from gradindex.serve.server import Server

    config = uvicorn.Config(None, lifespan="off", timeout_graceful_shutdown=30)
    config.load()
    server = Server(config, "http://127.0.0.1")
    server.lifespan, server.servers = config.lifespan_class(config), []

    class Late:
        def shutdown(self):
            server.server_state.connections.discard(self)

    async def stop():
        stopping = asyncio.create_task(server.shutdown([]))
        await asyncio.sleep(0.05)
        server.server_state.connections.add(Late())
        await asyncio.wait_for(stopping, 10)

    asyncio.run(stop())
    assert not server.server_state.connections
