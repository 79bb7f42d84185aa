"""Requests made up from the OpenAPI description: no 500, and every answer is as it says."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance,
]  # fmt: skip
HOST = {"Host": "127.0.0.1"}
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("most", [100, 1000], ids=["hundreds", "thousands"])  # of each path
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_answer_is_as_the_description_says_and_none_is_500(
    bench: Any, mode: str, most: int
) -> None:
    made = bench("task.serve.max_body_bytes=1000000")
    schema = schemathesis.openapi.from_asgi("/openapi.json", made.app, headers=HOST)
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

        @settings(max_examples=most, deadline=None, suppress_health_check=QUIET, database=None)
        @given(case=strategy)
        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS, headers=HOST)

        with suppress(Unsatisfiable):  # of a path without fields nothing is wrong
            ask()
    assert asked > 4 * most  # paths with nothing to vary are asked once
