"""Documents that other programs wrote: whatever stands in a field, what is read of it can be carried and shown."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import bson
import msgspec
import pytest
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st

from pushd.api.receive_records import receipt_view
from pushd.api.records import push_view
from pushd.local_time import rfc3339
from pushd.records import PushFilter, PushRow, ReceiptFilter, ReceiptRow
from pushd.stores.mongo.connection import CODEC
from pushd.stores.mongo.documents import milliseconds, number, plain, text
from pushd.stores.mongo.push_queries import condition as push_condition
from pushd.stores.mongo.push_queries import push_row
from pushd.stores.mongo.receipt_queries import condition as receipt_condition
from pushd.stores.mongo.receipt_queries import receipt_row
from pushd.user_ids import INTEGERS, STRINGS, UserIds
from pushd.values import MAX_INT64, MAX_MS, MIN_INT64, MIN_MS

ZONES = [ZoneInfo(name) for name in ("UTC", "Pacific/Kiritimati", "America/Adak")]
ODD: list[Any] = [
    None, True, 0, -1, 2**31, 2**53, Int64(2**63 - 1), Int64(-(2**63)), 1e-300, 1e11, 1e300, -1e300, math.nan, math.inf,
    -math.inf, "", "x" * 1000, "a\0b", "9" * 100, "9" * 5000, "1712011111111", "2024-02-30", "0001-01-01", "9999-12-31",
    "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", "10000-01-01", "24:00", b"\xff", Binary(b"x", 128), [],
    [1, [2]], {}, {"$gt": 1}, {"a.b": [None]}, ObjectId(), Decimal128("NaN"), Decimal128("1E+6144"),
    Decimal128(Decimal("7")),
    DatetimeMS(0), DatetimeMS(2**63 - 1), DatetimeMS(-(2**63)), datetime(2024, 1, 1, tzinfo=UTC),
    Timestamp(2**32 - 1, 1), Regex("x"), Code("x"), Code("x", {"y": 1}), MinKey(), MaxKey(), DBRef("a", 1),
]  # fmt: skip


def stored(value: Any) -> Any:
    """As it comes back from the server."""
    return bson.decode(bson.encode({"value": value}), CODEC)["value"]


def check_row(row: PushRow | ReceiptRow, view: Any) -> None:
    """It can be shown in every zone, and is what its types say."""
    for zone in ZONES:
        assert msgspec.json.decode(msgspec.json.encode(view(row, zone)))["message_id"] == row.message_id
    fields = msgspec.structs.asdict(row)
    fields.pop("extra_data", None)
    assert type(row)(**fields, **({"extra_data": None} if isinstance(row, PushRow) else {}))
    for value in fields.values():
        assert not isinstance(value, int) or MIN_INT64 <= value <= MAX_INT64
    assert msgspec.convert(fields | {"extra_data": None}, type(row), strict=True)


@pytest.mark.parametrize("kind", [INTEGERS, STRINGS], ids=["integer", "string"])
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:30])
def test_any_value_in_any_field(value: Any, kind: UserIds) -> None:
    value = stored(value)
    for row, make, view in (
        (PushRow, lambda found, zone: push_row(found, 0, 0, zone, kind), push_view),
        (ReceiptRow, lambda found, zone: receipt_row(found, zone, kind), receipt_view),
    ):
        names = {name.replace("_ms", "_at") for name in row.__struct_fields__} | {"push_time", "extra_json", "_id"}
        for zone in ZONES:
            check_row(make(dict.fromkeys(names, value), zone), view)  # type: ignore[operator]
            for name in names:
                check_row(make({name: value}, zone), view)  # type: ignore[operator]


@given(st.integers() | st.floats() | st.text(st.characters()) | st.integers(-(2**63), 2**63 - 1).map(DatetimeMS))
def test_numbers_and_times_are_in_their_range(value: Any) -> None:
    assert MIN_INT64 <= number(value) <= MAX_INT64
    for zone in ZONES:
        at_ms = milliseconds(value, zone)
        assert MIN_MS <= at_ms <= MAX_MS
        rfc3339(at_ms, zone)


def test_what_can_be_read_is_read() -> None:
    assert [number(value) for value in (7, 7.9, "7", True, Int64(7))] == [7, 7, 7, 1, 7]
    assert number("x", 3) == number(None, 3) == number(2.0**70, 3) == 3
    assert milliseconds(DatetimeMS(-1), ZONES[0]) == -1
    assert milliseconds(1.5, ZONES[0]) == 1500
    assert text(None) == ""
    assert plain({"a": (1, b"x", DatetimeMS(0))}) == {"a": [1, "eA==", "1970-01-01T00:00:00.000+00:00"]}


def test_a_tag_is_compared_as_what_it_is() -> None:
    """By equality, which an index on `tags` serves; whatever it looks like, it is no pattern and no operator."""
    zone = ZONES[0]
    for tag in ("a.*", "$ne", "", "café"):
        assert push_condition(PushFilter(tag=tag), zone) == {"tags": tag}
        assert receipt_condition(ReceiptFilter(tag=tag), zone) == {"tags": tag}
