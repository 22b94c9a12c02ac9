"""`/openapi.json` is a document tools accept, and the daemon does what it says: schemathesis tries."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import tomli_w
from schemathesis.specs.openapi.definitions import OPENAPI_31

from pushd.api import openapi
from tests.daemon import PREFIX, Probe
from tests.tokens import API_KEY, JWT

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
EXAMPLES = 25  # of each operation, besides those that schemathesis derives from the document
REJECTED = [
    400,
    401,
    403,
    404,
    405,
    406,
    409,
    413,
    414,
    415,
    422,
    428,
    429,
    431,
]  # its own list, and sizes: 413, 414, 431

# Integers written with a fraction: JSON Schema cannot tell 28.0 from 28, the daemon takes the second form only. Nor can
# it say that a time is to come: a time that is well-formed is left out.
HOOKS = """
from datetime import datetime

import schemathesis


def whole(value):
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list):
        return [whole(item) for item in value]
    return {name: whole(item) for name, item in value.items()} if isinstance(value, dict) else value


def is_time(value):
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).tzinfo is not None
        except ValueError:
            return False
    return type(value) is int and 0 <= value < 2**63


@schemathesis.hook
def before_call(context, case, **kwargs):
    case.body = whole(case.body)
    if isinstance(case.body, dict) and is_time(case.body.get("send_at")):
        del case.body["send_at"]
"""

# What cannot hold, for these operations only.
EXCEPTIONS: list[dict[str, Any]] = [
    {  # one bad item harms no other (CONTRACT section 3): the answer is 200, and says which item was refused
        "include-operation-id": "post_system_notices",
        "checks": {"negative_data_rejection": {"enabled": False}},
    },
    {  # a notice that has expired in the meantime is refused, whatever the request looks like
        "include-operation-id": "post_notification_records_message_id_resend",
        "checks": {"positive_data_acceptance": {"enabled": False}},
    },
    {  # a cursor is what a former answer has given
        "include-operation-id": "get_notification_inbox",
        "checks": {"positive_data_acceptance": {"enabled": False}},
    },
]
# With an API key these need `user_id`, which a user's token makes optional: the document is for both.
EXCEPTIONS_OF_API_KEYS: list[dict[str, Any]] = [
    {
        "include-operation-id": [
            "get_notification_user_summary",
            "get_notification_offline_messages",
            "delete_notification_offline_messages",
            "post_notification_mark_read",
            "post_notification_mark_confirmed",
            "post_notification_batch_mark_read",
            "get_notification_unread_count",
            "post_notification_read_all",
            "post_notification_archive",
            "post_notification_unarchive",
        ],
        "checks": {"positive_data_acceptance": {"enabled": False}},
    },
]


async def document_of(probe: Probe) -> Any:
    response = await probe.http.get("/openapi.json")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    return response.json()


def operations_of(document: Any) -> dict[tuple[str, str], Any]:
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def validator_of(document: Any, schema: Any) -> jsonschema_rs.Validator:
    return jsonschema_rs.Draft202012Validator(schema | {"components": document["components"]})


class TestDocument:
    @pytest.mark.parametrize("sections", [{}, {"auth": JWT}, {"server": {"status_in_body": True}}])
    async def test_it_is_openapi(self, start: Any, sections: Any) -> None:
        document = await document_of(await start(**sections))
        assert document["openapi"] == "3.1.0"
        assert [error.message for error in jsonschema_rs.Draft202012Validator(OPENAPI_31).iter_errors(document)] == []
        for schema in document["components"]["schemas"].values():
            jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
            validator_of(document, schema)  # its references resolve, its patterns compile

    @pytest.mark.parametrize("prefix", [PREFIX, "/push/v1"])
    async def test_it_has_the_endpoints_and_nothing_else(self, start: Any, prefix: str) -> None:
        probe = await start(server={"api_prefix": prefix})
        operations = operations_of(await document_of(probe))
        endpoints = probe.node.router.endpoints
        assert set(operations) == {(endpoint.method, prefix + endpoint.path) for endpoint in endpoints}
        names = [operation["operationId"] for operation in operations.values()]
        assert len(names) == len(set(names))

    async def test_parameters_are_those_of_the_forms(self, probe: Probe) -> None:
        operations = operations_of(await document_of(probe))
        for endpoint in probe.node.router.endpoints:
            operation = operations[endpoint.method, PREFIX + endpoint.path]
            names = {part["name"] for part in operation["parameters"] if part["in"] == "query"}
            assert names == set(endpoint.query.__struct_fields__)  # type: ignore[attr-defined]
            in_path = {f"{{{part['name']}}}" for part in operation["parameters"] if part["in"] == "path"}
            assert in_path == {segment for segment in endpoint.path.split("/") if segment.startswith("{")}
            assert ("requestBody" in operation) == (endpoint.body is not None)

    async def test_limits_are_those_of_the_configuration(self, start: Any) -> None:
        document = await document_of(await start(limits={"max_content_chars": 77, "max_user_ids": 33}))
        fields = document["components"]["schemas"]["Submission"]["properties"]
        assert fields["content"]["maxLength"] == 77
        assert fields["user_ids"]["maxItems"] == fields["exclude_ids"]["maxItems"] == 33

    @pytest.mark.parametrize("sections", [{}, {"auth": JWT}], ids=["none", "jwt"])
    async def test_security_is_described_where_there_is_any(self, start: Any, sections: Any) -> None:
        document = await document_of(await start(**sections))
        assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}
        for operation in operations_of(document).values():
            assert operation.get("security") == ([{"bearer": []}, {"apiKey": []}] if sections else None)
        body = document["components"]["schemas"]["MarkBody"]
        assert ("user_id" in body["required"]) == (not sections)  # a token names its user

    async def test_refusals_with_the_status_in_the_body(self, start: Any) -> None:
        probe = await start(server={"status_in_body": True})
        document = await document_of(probe)
        operation = operations_of(document)["POST", f"{PREFIX}/system/notice"]
        validator = validator_of(document, operation["responses"]["200"]["content"]["application/json"]["schema"])
        for body in ({"content": "x"}, {"content": ""}):
            answer = (await probe.post("/system/notice", body)).json()
            validator.validate(answer)

    async def test_head_and_other_methods(self, probe: Probe) -> None:
        assert (await probe.http.head("/openapi.json")).status_code == 200
        response = await probe.http.post("/openapi.json")
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")

    async def test_two_of_a_kind(self, probe: Probe) -> None:
        endpoints, config = probe.node.router.endpoints, probe.node.current.config
        assert openapi.document(endpoints, config) == openapi.document(endpoints, config)


class TestQueries:
    """What schemathesis found."""

    @pytest.mark.parametrize("field", ["user_id", "is_read", "delivery_status", "push_channel", "page"])
    async def test_null_is_no_value(self, probe: Probe, field: str) -> None:
        response = await probe.http.get(f"{PREFIX}/notification/admin-receive-records?{field}=null")
        assert (response.status_code, response.json()["data"]["field"]) == (400, field)

    async def test_null_is_a_word(self, probe: Probe) -> None:
        await probe.publish("a null device")
        await probe.publish("another")
        data = await probe.get("/notification/records", params={"keyword": "null"})
        assert [item["content"] for item in data["items"]] == ["a null device"]

    async def test_empty_is_left_out(self, probe: Probe) -> None:
        await probe.publish("x")
        fields = ("start_date", "end_date", "target", "status", "success", "sender_id", "keyword", "page", "sort_by")
        data = await probe.get("/notification/records", params=dict.fromkeys(fields, ""))
        assert data["total"] == 1


class TestConformance:
    """All checks that schemathesis makes by default, in all its phases, against the running daemon."""

    async def test_without_credentials(self, start: Any, tmp_path: Path) -> None:
        await self._run(await start(), tmp_path, {"operations": EXCEPTIONS})

    async def test_with_an_api_key(self, start: Any, tmp_path: Path) -> None:
        settings = {
            "auth": {"openapi": {"apiKey": {"api_key": API_KEY}}},
            "operations": EXCEPTIONS + EXCEPTIONS_OF_API_KEYS,
        }
        await self._run(await start(auth=JWT), tmp_path, settings)

    async def _run(self, probe: Probe, directory: Path, settings: dict[str, Any]) -> None:
        checks = {"negative_data_rejection": {"expected-statuses": REJECTED}}
        config = {"hooks": "hooks.py", "checks": checks, **settings}
        (directory / "hooks.py").write_text(HOOKS)
        (directory / "schemathesis.toml").write_text(tomli_w.dumps(config))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run",
            f"http://127.0.0.1:{probe.port}/openapi.json", "--max-examples", str(EXAMPLES), "--workers", "1",
            "--generation-deterministic", "--continue-on-failure", "--no-color",
            cwd=directory, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        text = output.decode()
        assert process.returncode == 0, text
        total = len(probe.node.router.endpoints)
        assert f"Selected: {total}/{total}" in text, text
        assert probe.node.metrics.errors.collect()[0].samples == [], "the daemon logged errors"
