"""Whatever the service's own OpenAPI description allows, and much that it does not: never an error of the server's."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis", reason="the service is fuzzed with schemathesis: pip install it")


def test_no_request_breaks_the_service(index):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    app = create_app(index, Settings(hosts=("*",), max_queries=4, max_k=20))
    codes = set()
    with TestClient(app):
        schema = schemathesis.openapi.from_asgi("/openapi.json", app)
        operations = [one.ok() for one in schema.get_all_operations()]
        assert len(operations) == 21
        for operation in operations:

            @given(case=operation.as_strategy())
            @settings(
                max_examples=15,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def check(case):
                answer = case.call()
                codes.add(answer.status_code)
                assert answer.status_code < 500, (case.method, case.path, case.body, answer.text)

            check()
    assert {200, 422} <= codes
