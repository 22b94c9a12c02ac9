"""Garbage in every field of every body: a 4xx that names the field, never a 5xx, and the daemon goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.daemon import PREFIX, Probe

JSON = {"content-type": "application/json"}
HUGE = "1" + "0" * 400
WRONG: dict[str, str] = {
    "null": "null",
    "a boolean": "true",
    "a number": "7",
    "a negative number": "-7",
    "a fraction": "1.5",
    "a huge number": HUGE,
    "a huge negative number": "-" + HUGE,
    "a number of 5000 digits": "9" * 5000,
    "a huge exponent": "1e400",
    "a text": '"text"',
    "an empty text": '""',
    "a long text": '"' + "x" * 5000 + '"',
    "a NUL": '"\\u0000"',
    "a line break": '"text\\n"',
    "a number in a text": '"7"',
    "a list": "[1]",
    "a list of lists": "[[1]]",
    "a list of nulls": "[null]",
    "a list of texts": '["a"]',
    "a list of huge numbers": f"[{HUGE}]",
    "an empty list": "[]",
    "an object": '{"a":1}',
    "an empty object": "{}",
}
UNREADABLE: dict[str, str] = {
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "a lone surrogate": '"\\ud800"',
    "surrogates the wrong way round": '"\\udc00\\ud800"',
    "deep nesting": "[" * 20_000 + "]" * 20_000,
    "nothing": "",
    "half a text": '"text',
}
TEXTS = {name for name in WRONG if WRONG[name].startswith('"')}
NUMBERS = {"a number", "a negative number", "a fraction", "a number of 5000 digits"} | {
    name for name in WRONG if "huge" in name and "list" not in name
}

PUBLISH = f"{PREFIX}/system/notice"
MARK = f"{PREFIX}/notification/mark-read"
MARKS = f"{PREFIX}/notification/batch-mark-read"
# Path, the other fields, the field, and what of WRONG it takes.
FIELDS: list[tuple[str, dict[str, Any], str, set[str]]] = [
    (PUBLISH, {}, "content", {"a text", "a number in a text", "a line break", "a NUL"}),
    (PUBLISH, {"content": "x"}, "type", {"a text", "a number in a text"}),
    (PUBLISH, {"content": "x"}, "target", set()),
    (PUBLISH, {"content": "x", "target": "custom"}, "user_ids", {"a list"}),
    (PUBLISH, {"content": "x", "target": "role"}, "roles", {"a list"}),
    (PUBLISH, {"content": "x"}, "exclude_ids", {"a list", "an empty list"}),
    (PUBLISH, {"content": "x"}, "data", WRONG.keys() - {n for n in NUMBERS if "huge" in n or "5000" in n}
                                                     - {"a list of huge numbers"}),
    (PUBLISH, {"content": "x"}, "priority", set()),
    (PUBLISH, {"content": "x"}, "need_confirm", {"a boolean"}),
    (PUBLISH, {"content": "x"}, "expires_in_s", {"null", "a number", "a fraction"}),
    (PUBLISH, {"content": "x"}, "message_id", {"null", "a text", "a number in a text"}),
    (PUBLISH, {"content": "x"}, "title", TEXTS - {"a long text"} | {"null"}),
    (PUBLISH, {"content": "x"}, "url", {"null", "an empty text"}),
    (PUBLISH, {"content": "x"}, "tags", {"null", "an empty list", "a list of texts"}),
    (MARK, {"user_id": 7}, "message_id", TEXTS - {"an empty text"}),
    (MARK, {"message_id": "x"}, "user_id", {"a number", "a number in a text"}),
    (f"{PREFIX}/notification/mark-confirmed", {"user_id": 7}, "message_id", TEXTS - {"an empty text"}),
    (f"{PREFIX}/notification/mark-confirmed", {"message_id": "x"}, "user_id", {"a number", "a number in a text"}),
    (MARKS, {"user_id": 7}, "message_ids", {"a list of texts"}),
    (MARKS, {"message_ids": ["x"]}, "user_id", {"a number", "a number in a text"}),
    (f"{PREFIX}/system/notices", {}, "notices", {"a list", "a list of lists", "a list of nulls", "a list of texts",
                                                 "a list of huge numbers"}),
]  # fmt: skip


def _body(others: dict[str, Any], field: str, value: str) -> bytes:
    return (json.dumps(others)[:-1] + (", " if others else "") + f'"{field}": {value}}}').encode()


@pytest.mark.parametrize(("path", "others", "field", "good"), FIELDS, ids=[f"{row[0]}-{row[2]}" for row in FIELDS])
async def test_wrong_values(probe: Probe, path: str, others: dict[str, Any], field: str, good: set[str]) -> None:
    for name, value in WRONG.items():
        response = await probe.http.post(path, content=_body(others, field, value), headers=JSON)
        answer = response.json()
        if name in good:
            assert response.status_code in (200, 404), (name, response.text)
            continue
        assert response.status_code in (400, 413), (name, response.text)
        assert answer["message"].startswith(field), (name, response.text)
        assert answer["data"]["field"].startswith(field), (name, response.text)
    for name, value in UNREADABLE.items():
        response = await probe.http.post(path, content=_body(others, field, value), headers=JSON)
        assert response.status_code == 400, (name, response.text)
        # Where the type is wrong from its first sign on, that is said.
        assert response.json()["error"] == "INVALID_JSON" or name == "deep nesting", (name, response.text)
    assert (await probe.get("/websocket/health"))["status"] == "healthy"
    assert (await probe.publish(target="all"))["status"] == "delivered"


async def test_wrong_values_in_a_batch(probe: Probe) -> None:
    """Each field's garbage is the fault of its own item."""
    rows = [row for row in FIELDS if row[0] == PUBLISH]
    for name, value in WRONG.items():
        items = [_body(others, field, value) for _, others, field, _ in rows]
        body = b'{"notices":[{"content":"first"},' + b",".join(items) + b',{"content":"last"}]}'
        response = await probe.http.post(f"{PREFIX}/system/notices", content=body, headers=JSON)
        assert response.status_code == 200, response.text
        first, *results, last = response.json()["data"]["items"]
        assert first["success"]
        assert last["success"]
        for (_, _, field, good), result in zip(rows, results, strict=True):
            assert result["success"] == (name in good), (name, field, result)
            assert result["success"] or result["message"].startswith(field), (name, field, result)


QUERIES = ["0", "-1", "1.5", "seven", "", "%00", "%ff", "9223372036854775808", "1" * 400, "%F0%9F%94%94", "٧", "1_0"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_wrong_users_in_queries(probe: Probe, method: str) -> None:
    for value in QUERIES:
        response = await probe.http.request(method, f"{PREFIX}/notification/offline-messages?user_id={value}")
        assert response.status_code == 400, value
        assert response.json()["data"] == {"field": "user_id"}


async def test_a_user_must_be_named_where_there_are_no_credentials(probe: Probe) -> None:
    for response in (
        await probe.http.get(f"{PREFIX}/notification/offline-messages"),
        await probe.http.delete(f"{PREFIX}/notification/offline-messages"),
        await probe.post("/notification/mark-read", {"message_id": "x"}),
        await probe.post("/notification/batch-mark-read", {"message_ids": ["x"]}),
    ):
        assert (response.status_code, response.json()["data"]) == (400, {"field": "user_id"})


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.sampled_from([10**400, -(2**63), 2**64])
)
ANY_JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4), max_leaves=10
)
PUBLISH_FIELDS = [row[2] for row in FIELDS if row[0] == PUBLISH]
NOTICES = st.fixed_dictionaries(
    {"content": st.just("x") | ANY_JSON},
    optional={
        **{name: ANY_JSON for name in PUBLISH_FIELDS if name not in ("content", "target", "user_ids")},
        "target": st.sampled_from(["all", "online", "custom", "role", "admin"]) | ANY_JSON,
        "user_ids": st.lists(st.integers(1, 20), max_size=3) | ANY_JSON,
    },
)
MARKED = {"user_id": st.just(7) | ANY_JSON}
REQUESTS = st.one_of(
    st.tuples(st.just(PUBLISH), NOTICES | ANY_JSON),
    st.tuples(st.just(f"{PREFIX}/system/notices"), st.fixed_dictionaries({"notices": st.lists(NOTICES | ANY_JSON)})),
    st.tuples(st.just(MARK), st.fixed_dictionaries({"message_id": ANY_TEXT | ANY_JSON}, optional=MARKED)),
    st.tuples(st.just(MARKS), st.fixed_dictionaries({"message_ids": st.lists(ANY_TEXT) | ANY_JSON}, optional=MARKED)),
    st.tuples(
        st.just(f"{PREFIX}/notification/mark-confirmed"),
        st.fixed_dictionaries({"message_id": ANY_TEXT | ANY_JSON}, optional=MARKED),
    ),
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(request=REQUESTS)
async def test_arbitrary_values(probe: Probe, request: tuple[str, Any]) -> None:
    path, value = request
    response = await probe.http.post(path, content=json.dumps(value).encode(), headers=JSON)
    assert response.status_code < 500, response.text
    answer = response.json()
    assert answer["code"] == response.status_code
    if response.status_code == 200 and path.endswith("notices"):
        assert all(item["success"] or item["code"] < 500 for item in answer["data"]["items"])
    mailbox = await probe.http.get(f"{PREFIX}/notification/offline-messages?user_id=7")
    assert mailbox.status_code == 200, mailbox.text
    assert (await probe.get("/websocket/health"))["status"] == "healthy"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), path=st.sampled_from([row[0] for row in FIELDS]))
async def test_arbitrary_bytes(probe: Probe, body: bytes, path: str) -> None:
    response = await probe.http.post(path, content=body, headers=JSON)
    assert 400 <= response.status_code < 500
