"""Both kinds of users' ids from outside: every place where an id is given or shown, and that the table has them all.

An endpoint with an id that no row is about fails `test_the_table_has_every_place`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple, get_type_hints

import msgspec
import pytest

from pushd.api import table
from pushd.api.endpoint import Endpoint
from pushd.user_ids import GIVEN, SHOWN
from tests.daemon import PREFIX, Probe, until
from tests.tokens import API_KEY, JWT, token

KEY = {"X-API-Key": API_KEY}


class Kind(NamedTuple):
    """Users of one kind of ids, and what stands for an id and what does not."""

    name: str
    ann: Any  # beyond what JavaScript's numbers can say
    bob: Any
    spellings: dict[str, Any]  # of Ann's id
    wrong: dict[str, Any]
    guest: Callable[[Any], bool]


BIG = 9007199254740993
KINDS = {
    "integer": Kind(
        "integer", BIG, 7,
        {"a number": BIG, "its digits": str(BIG)},
        {
            "a leading zero": f"0{BIG}", "a plus": f"+{BIG}", "a minus": f"-{BIG}", "a space": f" {BIG}",
            "letters": "ann", "hexadecimal": "0x7",
            "a fraction": "7.0", "an exponent": "7e0", "other digits": "٣", "0": "0",
            "2^63": str(2**63), "65 digits": "1" * 65, "a guest": "guest:1",
        },
        lambda value: type(value) is int and value < 0,
    ),
    "string": Kind(
        "string", str(BIG), "u:Bob@x.de",
        {"a text": str(BIG), "a number": BIG},
        {
            "a space": "b ob", "a slash": "b/ob", "a guest": "guest:1", "another alphabet": "bób",
            "65 letters": "b" * 65, "a line break": "bob\n", "braces": "{bob}", "a star": "*",
        },
        lambda value: type(value) is str and value.startswith("guest:"),
    ),
}  # fmt: skip
# What is an id in no kind, where JSON can say more than a query.
NO_IDS: dict[str, Any] = {
    "0": 0, "a negative number": -7, "2^63": 2**63, "a fraction": 7.5, "true": True, "a list": [7],
    "an object": {"id": 7}, "an empty text": "",
}  # fmt: skip


class House:
    """A daemon with Ann and Bob, for whom one notice waits, published by Ann."""

    def __init__(self, probe: Probe, kind: Kind) -> None:
        self.probe = probe
        self.kind = kind
        self.admin = {"Authorization": f"Bearer {token(kind.ann, 1, username='Ann')}"}

    async def call(self, method: str, path: str, **options: Any) -> Any:
        return await self.probe.http.request(method, PREFIX + path, headers=options.pop("headers", KEY), **options)

    async def data(self, method: str, path: str, **options: Any) -> Any:
        response = await self.call(method, path, **options)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    async def publish(self, message_id: str, **fields: Any) -> Any:
        body = {"content": message_id, "message_id": message_id, "target": "custom", **fields}
        return await self.data("POST", "/system/notice?wait_ms=5000", json=body, headers=self.admin)

    async def waiting(self, user_id: Any) -> list[str]:
        found = await self.data("GET", "/notification/offline-messages", params={"user_id": user_id})
        return [item["message_id"] for item in found["offline_messages"]]

    async def client(self, user_id: Any, query: str = "") -> Any:
        return await self.probe.client(query=f"token={token(user_id, 0)}&{query}")


@pytest.fixture(params=KINDS)
async def house(request: pytest.FixtureRequest, start: Any) -> House:
    kind = KINDS[request.param]
    house = House(await start(auth=JWT, directory={"user_ids": kind.name}), kind)
    await house.publish("n", user_ids=[kind.ann, kind.bob])
    return house


# ---- where ids are given: a request that names Ann, and what shows that she was meant

Given = tuple[Callable[[Any], dict[str, Any]], Callable[[House, Any], Awaitable[bool]]]


def query(**others: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda user_id: {"params": {"user_id": user_id, **others}}


def body(**others: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda user_id: {"json": {"user_id": user_id, **others}}


def to(field: str) -> Callable[[Any], dict[str, Any]]:
    def fields(user_id: Any) -> dict[str, Any]:
        users = (
            {"user_ids": ["1", "2", BIG], "exclude_ids": [user_id]}
            if field == "exclude_ids"
            else {"user_ids": [user_id]}
        )
        return {"content": "x", "message_id": "m", "target": "custom", **users}

    return lambda user_id: {"json": fields(user_id)}


def in_batch(field: str) -> Callable[[Any], dict[str, Any]]:
    return lambda user_id: {"json": {"notices": [to(field)(user_id)["json"]]}}


def sender(user_id: Any) -> dict[str, Any]:
    return {"params": {"sender_id": user_id}}


async def got_it(house: House, _: Any) -> bool:
    return "m" in await until(lambda: house.waiting(house.kind.ann)) and "m" not in await house.waiting(house.kind.bob)


async def others_got_it(house: House, _: Any) -> bool:
    record = await house.data("GET", "/notification/records/m")
    return record["record"]["recipients_count"] == "2_users" and "m" not in await house.waiting(house.kind.ann)


async def is_one(_: House, data: Any) -> bool:
    counts = data if "total_records" in data else data["stats"]
    return counts.get("total_records", counts.get("total_users")) == 1


async def is_anns(house: House, data: Any) -> bool:
    return data["user_id"] == house.kind.ann and data.get("total_count", data.get("cleared_count")) == 1


async def has_one(_: House, data: Any) -> bool:
    return [item["message_id"] for item in data["items"]] == ["n"]


async def one_is_unread(_: House, data: Any) -> bool:
    return data["unread_count"] == 1


async def is_by_id(house: House, data: Any) -> bool:
    return list(data) == [str(house.kind.ann)] and len(data[str(house.kind.ann)]) == 1


async def ann_has_read(house: House, _: Any) -> bool:
    read = await house.data("GET", "/notification/admin-receive-records", params={"is_read": "true"})
    return [item["user_id"] for item in read["items"]] == [house.kind.ann]


async def is_done(_: House, data: Any) -> bool:
    return data["success_count"] == 1


async def none_is_closed(_: House, data: Any) -> bool:
    return data == {"closed": 0}


MARK, MARKS = {"message_id": "n"}, {"message_ids": ["n"]}
GIVEN_IN: dict[str, Given] = {
    "POST /system/notice body.user_ids[]": (to("user_ids"), got_it),
    "POST /system/notice body.exclude_ids[]": (to("exclude_ids"), others_got_it),
    "POST /system/notices body.notices[].user_ids[]": (in_batch("user_ids"), got_it),
    "POST /system/notices body.notices[].exclude_ids[]": (in_batch("exclude_ids"), others_got_it),
    "GET /notification/records query.sender_id": (sender, is_one),
    "GET /notification/stats query.sender_id": (sender, is_one),
    "GET /notification/admin-receive-records query.user_id": (query(), is_one),
    "POST /notification/receive-records/batch body.user_ids[]": (lambda it: {"json": {"user_ids": [it]}}, is_by_id),
    "POST /notification/mark-read body.user_id": (body(**MARK), ann_has_read),
    "POST /notification/mark-confirmed body.user_id": (body(**MARK), ann_has_read),
    "POST /notification/batch-mark-read body.user_id": (body(**MARKS), ann_has_read),
    "GET /notification/inbox query.user_id": (query(), has_one),
    "GET /notification/unread-count query.user_id": (query(), one_is_unread),
    "POST /notification/read-all body.user_id": (body(), ann_has_read),
    "POST /notification/archive body.user_id": (body(**MARKS), ann_has_read),
    "POST /notification/unarchive body.user_id": (body(**MARKS), is_done),
    "GET /notification/user-summary query.user_id": (query(), is_anns),
    "GET /notification/offline-messages query.user_id": (query(), is_anns),
    "DELETE /notification/offline-messages query.user_id": (query(), is_anns),
    "POST /websocket/disconnect body.user_id": (body(), none_is_closed),
}
# The bodies of these are decoded notice by notice.
RAW = {place for place in GIVEN_IN if "notices[]." in place}


# ---- where ids are shown: how to ask, and whom the answer must name

SHOWN_IN: dict[str, dict[str, Any]] = {
    "GET /notification/records data.items[].target_user_ids[]": {},
    "GET /notification/records data.items[].sender_id": {},
    "GET /notification/records/{message_id} data.record.target_user_ids[]": {},
    "GET /notification/records/{message_id} data.record.sender_id": {},
    "GET /notification/admin-receive-records data.items[].user_id": {"params": {"sort_by": "user_id"}},
    "POST /notification/receive-records/batch data{}[].user_id": {"json": {"user_ids": ["ann"]}},
    "GET /notification/online-users data.users[].user_id": {},
    "GET /notification/admin-receive-stats data.users[].user_id": {},
    "GET /notification/user-summary data.user_id": {"params": {"user_id": "ann"}},
    "GET /notification/offline-messages data.user_id": {"params": {"user_id": "ann"}},
    "DELETE /notification/offline-messages data.user_id": {"params": {"user_id": "ann"}},
}


def every_endpoint() -> tuple[Endpoint, ...]:
    return table.endpoints(table.Api(**get_type_hints(table.Api)))


def marked(kind: Any, mark: str) -> Iterator[str]:
    """The paths inside a form or a view that have this mark."""
    (schema,), schemas = msgspec.json.schema_components([kind], ref_template="{name}")

    def walk(part: dict[str, Any], path: str) -> Iterator[str]:
        if mark in part:
            yield path
        if "$ref" in part:
            yield from walk(schemas[part["$ref"]], path)
        for choice in part.get("anyOf", ()):
            yield from walk(choice, path)
        for name, field in part.get("properties", {}).items():
            yield from walk(field, f"{path}.{name}")
        if isinstance(part.get("items"), dict):
            yield from walk(part["items"], f"{path}[]")
        if isinstance(part.get("additionalProperties"), dict):
            yield from walk(part["additionalProperties"], f"{path}{{}}")

    return walk(schema, "")


def places(endpoint: Endpoint) -> Iterator[str]:
    name = f"{endpoint.method} {endpoint.path}"
    for part, form in (("query", endpoint.query), ("body", endpoint.body)):
        yield from (f"{name} {part}{path}" for path in marked(form, GIVEN) if form is not None)
    yield from (f"{name} data{path}" for path in marked(endpoint.data, SHOWN))
    yield from (f"{name} path.{part}" for part in endpoint.path.split("/") if part in ("{user_id}", "{id}"))


def test_the_table_has_every_place() -> None:
    found = {place for endpoint in every_endpoint() for place in places(endpoint)}
    listed = GIVEN_IN.keys() - RAW | SHOWN_IN.keys()
    assert found - listed == set(), "places where an id is given or shown that have no row here"
    assert listed - found == set(), "rows about what is not there"


def split(place: str) -> tuple[str, str, str]:
    method, path, where = place.split(" ")
    return method, path.replace("{message_id}", "n"), where


@pytest.mark.parametrize("spelling", [0, 1])
@pytest.mark.parametrize("place", GIVEN_IN)
async def test_given(house: House, place: str, spelling: int) -> None:
    """A spelling of an id means its user; what is no id is refused, and the field and what was found named."""
    method, path, where = split(place)
    request, is_meant = GIVEN_IN[place]
    field = where.rpartition(".")[2].removesuffix("[]")
    is_query = where.startswith("query")
    wrong = house.kind.wrong | ({} if is_query else NO_IDS)
    if field == "sender_id" and house.kind.name == "integer":
        del wrong["0"]  # whoever is no user
    for name, value in wrong.items():
        response = await house.call(method, path, **request(value))
        answer = response.json()
        if "notices[]" in where:
            (answer,) = answer["data"]["items"]
            assert answer["code"] == 400, (name, answer)
        else:
            assert response.status_code == 400, (name, response.text)
        assert answer["message"].startswith(field), (name, answer)
        assert answer["data"]["field"].startswith(field)
        if isinstance(value, str) and 0 < len(value) < 65:
            assert f"found {json.dumps(value)}, expected " in answer["message"]
    value = [*house.kind.spellings.values()][spelling]
    response = await house.call(method, path, **request(value))
    assert response.status_code == 200, response.text
    assert await is_meant(house, response.json()["data"]), response.text


def values(data: Any, path: str) -> Iterator[Any]:
    """What an answer has at a path of a place."""
    if not path:
        yield data
    elif path.startswith("[]"):
        for item in data:
            yield from values(item, path[2:])
    elif path.startswith("{}"):
        for item in data.values():
            yield from values(item, path[2:])
    else:
        name = path[1:].partition(".")[0].partition("[")[0].partition("{")[0]
        yield from values(data[name], path[1 + len(name) :])


@pytest.mark.parametrize("place", SHOWN_IN)
async def test_shown(house: House, place: str) -> None:
    """As what it is: a number, or a text."""
    method, path, where = split(place)
    asked = json.loads(json.dumps(SHOWN_IN[place]).replace('"ann"', json.dumps(house.kind.ann)))
    if "online" in path:
        await house.client(house.kind.ann)
    data = await house.data(method, path, **asked)
    shown = [*values(data, where.removeprefix("data"))]
    assert house.kind.ann in shown
    assert {type(value) for value in shown} == {type(house.kind.ann)}
