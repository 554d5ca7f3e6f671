"""How many requests a client may send, and who a client is."""

import json
import logging

import pytest

from gradindex.cli.app import run
from tests.serve.conftest import running
from tests.serve.test_server import connect

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_burst_and_then_so_many_a_second(caplog):
    from gradindex.serve.limits import RateLimit

    clock = Clock()
    limit = RateLimit(2.0, 3, clock)
    with caplog.at_level(logging.WARNING, "gradindex.serve"):
        assert [limit.wait("a") for _ in range(5)] == [0, 0, 0, 0.5, 0.5]  # what is refused costs nothing
        assert limit.wait("b") == 0  # another one's bucket
        clock.now = 0.25
        assert limit.wait("a") == pytest.approx(0.25)
        clock.now = 0.5
        assert [limit.wait("a"), limit.wait("a")] == [0, 0.5]
        clock.now = 1e6
        assert [limit.wait("a") == 0 for _ in range(4)] == [True, True, True, False]  # no more than the burst
    assert [record.getMessage() for record in caplog.records] == [
        "refused 1 requests of a: more than 2 a second",
        "refused 4 requests of a: more than 2 a second",
    ]
    assert all(RateLimit(0.0, 1, clock).wait("a") == 0 for _ in range(100))


def test_clients_without_number_take_no_memory_without_limit(monkeypatch):
    from gradindex.serve import limits

    monkeypatch.setattr(limits, "_CLIENTS", 10)
    limit = limits.RateLimit(1.0, 1, Clock())
    for i in range(100):
        limit.wait(f"{i}")
    assert len(limit._buckets) == 10
    assert limit.wait("99") > 0 and limit.wait("0") == 0


def scope(peer="10.0.0.1", **headers):
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"client": (peer, 1), "headers": named}


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (scope("192.0.2.7"), "address 192.0.2.7"),
        (scope("192.0.2.7", x_forwarded_for="198.51.100.1"), "address 192.0.2.7"),  # a stranger is not believed
        (scope(x_forwarded_for="198.51.100.1"), "address 198.51.100.1"),
        (scope(x_forwarded_for="1.1.1.1, 198.51.100.1"), "address 198.51.100.1"),  # what its client said is not
        (scope(x_forwarded_for="198.51.100.1, 10.0.0.2, 10.9.9.9"), "address 198.51.100.1"),  # a chain of proxies
        (scope(x_forwarded_for="198.51.100.1:4711"), "address 198.51.100.1"),
        (scope(x_forwarded_for="[2001:db8:1:2:3::4]:4711"), "address 2001:db8:1:2::/64"),
        (scope(x_forwarded_for="nonsense"), "address 10.0.0.1"),
        (scope(), "address 10.0.0.1"),
        (scope("::ffff:192.0.2.7"), "address 192.0.2.7"),
        (scope("2001:db8:1:2:ffff::1"), "address 2001:db8:1:2::/64"),
        (scope("testclient"), "address testclient"),
        (scope("192.0.2.7", authorization="Bearer ada's token"), "token ada"),
        (scope("192.0.2.7", authorization="Bearer the shared one"), "address 192.0.2.7"),
        (scope("192.0.2.7", authorization="Bearer ada's"), "address 192.0.2.7"),
    ],
)
def test_who_a_client_is(asked, key):
    from gradindex.serve import Settings
    from gradindex.serve.clients import Clients

    tokens = {"ada": "ada's token"}
    settings = Settings(token="the shared one", named_tokens=tokens, trusted_proxies=("10.0.0.0/8",))
    assert Clients(settings).of(asked).key == key


def test_the_proxys_header_is_the_one_that_is_named():
    from gradindex.serve import Settings
    from gradindex.serve.clients import Clients

    settings = Settings(trusted_proxies=("10.0.0.1",), client_header="x-real-ip")
    asked = scope(x_real_ip="198.51.100.1", x_forwarded_for="198.51.100.2")
    assert Clients(settings).of(asked).key == "address 198.51.100.1"


def test_more_is_refused_and_health_is_not_counted(index):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    tokens = {"ada": "ada's token", "ben": "ben's token"}
    settings = Settings(hosts=("testserver",), named_tokens=tokens, rate_limit=0.01, rate_burst=2)
    with TestClient(create_app(index, settings)) as client:

        def codes(token, count=4, path="/v1/items/1"):
            headers = {"authorization": f"Bearer {token}"}
            return [client.get(path, headers=headers).status_code for _ in range(count)]

        assert codes("wrong token") == [401, 401, 429, 429]  # guesses of a token are counted, too
        assert codes("ada's token") == [200, 200, 429, 429]
        assert codes("ben's token", 1) == [200]
        for path in ("/healthz", "/readyz", "/", "/static/app.js"):
            assert codes("ada's token", path=path) == [200] * 4
        refused = client.get("/v1/items/1", headers={"authorization": "Bearer ada's token"})
        assert 90 < int(refused.headers["retry-after"]) <= 100
        assert "At most 0.01 requests a second: ask again in" in refused.json()["detail"]
        text = client.get("/metrics", headers={"authorization": "Bearer ben's token"}).text
        assert 'gradindex_rate_limited_total{client="token"} 3.0' in text
        assert 'gradindex_rate_limited_total{client="address"} 2.0' in text


def test_every_answer_has_an_id(client):
    found = [client.get("/healthz").headers["x-request-id"] for _ in range(2)]
    assert found[0] != found[1] and len(found[0]) == 32
    for given, taken in (("my-id.7", True), ("a b", False), ("a" * 65, False)):
        answer = client.get("/v1/nothing", headers={"x-request-id": given})
        assert (answer.headers["x-request-id"] == given) == taken
        assert len(answer.headers["x-request-id"]) in (len(given), 32)
        assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]


def test_a_failure_has_an_id_too_and_the_log_names_it(index, monkeypatch, caplog):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    app = create_app(index, Settings(hosts=("testserver",)))
    with TestClient(app, raise_server_exceptions=False) as client:
        monkeypatch.setattr(app.state.service.lookup, "items", lambda ids: 1 / 0)
        answer = client.get("/v1/items/1", headers={"x-request-id": "lost-7"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "lost-7")
    assert "request lost-7 failed: ZeroDivisionError" in caplog.text


def test_the_command_takes_them_and_believes_no_header_by_itself(served_path, tmp_path):
    """uvicorn by itself believes whatever a client on this machine says of its address."""
    (tmp_path / "tokens.json").write_text(json.dumps({"ada": "ada's token"}))
    options = ("--tokens-file", tmp_path / "tokens.json", "--rate-limit", 0.01, "--rate-burst", 2)
    with running(served_path, *options) as (address, _):
        connection = connect(address)
        codes = []
        for i in range(4):
            headers = {"authorization": "Bearer wrong", "x-forwarded-for": f"198.51.100.{i}"}
            connection.request("GET", "/v1/index", headers=headers)
            answer = connection.getresponse()
            answer.read()
            codes.append(answer.status)
        connection.close()
    assert codes == [401, 401, 429, 429]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate_limit": -1}, "rate_limit must be positive, got -1"),
        ({"rate_limit": float("nan")}, "rate_limit must be positive, got nan"),
        ({"rate_burst": 0}, "rate_burst must be positive, got 0"),
        ({"trusted_proxies": ("proxy.example",)}, "trusted_proxies takes addresses and networks such as 10.0.0.0/8"),
        ({"client_header": "X Real"}, "client_header must be the name of a header in lower case"),
        ({"named_tokens": {"ada": "short"}}, "token must be at least 8 ASCII characters"),
        ({"named_tokens": {"a\nb": "long enough"}}, "named_tokens takes names of letters"),
        ({"named_tokens": {"a": "long enough", "b": "long enough"}}, "named_tokens must differ"),
    ],
)
def test_settings_are_checked(options, said):
    from gradindex.serve import Settings

    with pytest.raises(ValueError, match=said):
        Settings(**options)


def test_settings_are_printed_without_tokens(served_path, tmp_path, capsys):
    (tmp_path / "tokens.json").write_text(json.dumps({"ada": "ada's token"}))
    given = ["serve", str(served_path), "tests.serve.jobs:pictures_job", "--print-settings", "--rate-limit", "5"]
    assert run([*given, "--tokens-file", str(tmp_path / "tokens.json"), "--trusted-proxy", "10.0.0.0/8"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert (found["named_tokens"], found["rate_limit"], found["rate_burst"]) == (["ada"], 5.0, 20)
    assert (found["trusted_proxies"], found["client_header"]) == (["10.0.0.0/8"], "x-forwarded-for")
    assert "ada's" not in printed
    (tmp_path / "tokens.json").write_text('["ada\'s token"]')
    assert run([*given, "--tokens-file", str(tmp_path / "tokens.json")]) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "must hold a JSON object of names and tokens" in said and "ada's" not in said
