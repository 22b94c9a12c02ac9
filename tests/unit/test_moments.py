"""Points in time as people write them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd import moments

ZONE = ZoneInfo("Asia/Shanghai")  # UTC+8
BERLIN = ZoneInfo("Europe/Berlin")
DAY_MS = 86_400_000
MIDNIGHT = 1_740_758_400_000  # 2025-03-01 00:00:00 in ZONE


@pytest.mark.parametrize(
    ("text", "since", "before"),
    [
        ("2025-03-01", MIDNIGHT, MIDNIGHT + DAY_MS),
        (" 2025-03-01 ", MIDNIGHT, MIDNIGHT + DAY_MS),
        ("2025-03-01 00:00:00", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-03-01T00:00:00", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-03-01T00:00", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-03-01T00:00:00.250", MIDNIGHT + 250, MIDNIGHT + 251),
        ("2025-02-28T16:00:00Z", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-02-28T17:00:00+01:00", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-02-28T16:00:00.001+00:00", MIDNIGHT + 1, MIDNIGHT + 2),
    ],
)
def test_from_and_up_to(text: str, since: int, before: int) -> None:
    assert moments.since_ms(text, ZONE) == since
    assert moments.before_ms(text, ZONE) == before


@pytest.mark.parametrize(("date", "hours"), [("2025-03-30", 23), ("2025-10-26", 25), ("2025-06-01", 24)])
def test_a_day_is_as_long_as_its_zone_has_it(date: str, hours: int) -> None:
    assert moments.before_ms(date, BERLIN) - moments.since_ms(date, BERLIN) == hours * 3_600_000


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2025-13-01", "2025-02-30", "2025-03-01 24:30:00", "1740758400", "9999-12-31", "0000-01-01",
     "2025-03-01T00:00:00+99:00", "2025-03-01 00:00:00 Europe/Berlin", "２０２５-03-01", "2025-03-01\0", "%", "NaN"],
)  # fmt: skip
def test_what_is_no_moment(text: str) -> None:
    for parse in (moments.since_ms, moments.before_ms):
        with pytest.raises(ValueError, match="YYYY-MM-DD HH:MM:SS"):
            parse(text, ZONE)


@given(at=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_milliseconds_are_exact(at: datetime) -> None:
    at = at.replace(microsecond=at.microsecond // 1000 * 1000)
    at_ms = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert moments.since_ms(at.isoformat(), ZONE) == at_ms
    assert moments.before_ms(at.isoformat(), ZONE) > at_ms


@given(st.text(min_size=10, max_size=40))
def test_any_text_is_a_moment_or_a_value_error(text: str) -> None:
    for parse in (moments.since_ms, moments.before_ms):
        with suppress(ValueError):
            assert abs(parse(text, ZONE)) < 2**53


def test_local_time() -> None:
    assert moments.local_time(MIDNIGHT + 999, ZONE) == "2025-03-01 00:00:00"
    assert moments.local_time(MIDNIGHT, ZoneInfo("UTC")) == "2025-02-28 16:00:00"
