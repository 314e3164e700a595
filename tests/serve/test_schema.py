"""`schemathesis` makes requests of the OpenAPI document: none is a 500."""

from collections import Counter
from pathlib import Path

import httpx
import hypothesis
import schemathesis
from schemathesis import Case

from tests.serve.stand_in import FromAnything, StandIn, running

CASES = 15
"""Of each operation."""


def test_no_request_is_a_500(tmp_path: Path) -> None:
    model = StandIn(FromAnything, streams=True)
    with running(
        tmp_path,
        model=model,
        max_queue=10_000,
        max_jobs_per_key=10_000,
        loras={"ink": "/models/ink"},
        reference_urls=True,
    ) as made:
        schema = schemathesis.openapi.from_url(f"{made.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) >= 15
        answers: Counter[tuple[str, int]] = Counter()
        for operation in operations:

            @hypothesis.given(case=operation.as_strategy())
            @hypothesis.settings(
                max_examples=CASES, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            def try_it(case: Case) -> None:
                answer = case.call(base_url=made.url, timeout=30)
                answers[case.operation.label, answer.status_code] += 1
                assert answer.status_code < 500, (case.operation.label, answer.text)

            try_it()
        assert {label for label, _ in answers} == {operation.label for operation in operations}
        assert answers["POST /v1/videos", 200] > 0, "some of them are good"
        assert answers["POST /v1/videos", 400] > 0
        for label in ("POST /v1/videos/edits", "POST /v1/videos/extensions", "GET /v1/videos/{video_id}/stream"):
            assert any(found == label for found, _ in answers), label


def test_the_document_describes_bodies(tmp_path: Path) -> None:
    with running(tmp_path) as made:
        document = httpx.get(f"{made.url}/openapi.json").json()
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    fields = body["application/json"]["schema"]["properties"]
    assert {"prompt", "size", "seconds", "num_frames", "negative_prompt"} <= set(fields)
    assert "input_reference" in body["multipart/form-data"]["schema"]["properties"]
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert {"Lora", "Link"} <= set(document["components"]["schemas"])
    for path in ("edits", "extensions"):
        form = document["paths"][f"/v1/videos/{path}"]["post"]["requestBody"]["content"]["multipart/form-data"][
            "schema"
        ]
        assert form["properties"]["video"]["anyOf"][0] == {"type": "string", "format": "binary"}
