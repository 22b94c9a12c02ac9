"""Points in time as people write them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.local_time import before_ms, date_and_time, rfc3339, rfc3339_or_none, since_ms

ZONE = ZoneInfo("Asia/Shanghai")  # UTC+8
BERLIN = ZoneInfo("Europe/Berlin")
DAY_MS = 86_400_000
MIDNIGHT = 1_740_758_400_000  # 2025-03-01 00:00:00 in ZONE


@pytest.mark.parametrize(
    ("text", "since", "before"),
    [
        ("2025-03-01", MIDNIGHT, MIDNIGHT + DAY_MS),
        ("2025-03-01 00:00:00", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-03-01T00:00:00", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-03-01T00:00", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-03-01T00:00:00.250", MIDNIGHT + 250, MIDNIGHT + 251),
        ("2025-02-28T16:00:00Z", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-02-28T17:00:00+01:00", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-02-28T16:00:00.001+00:00", MIDNIGHT + 1, MIDNIGHT + 2),
        ("2025-03-01 00:00:00.5", MIDNIGHT + 500, MIDNIGHT + 501),
        ("2025-03-01 00:00:00.000001", MIDNIGHT, MIDNIGHT + 1),
        ("2025-02-28T16:00:00.123456789Z", MIDNIGHT + 123, MIDNIGHT + 124),
        ("2025-02-28T17:30:00+0130", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-02-28T15:00:00-01", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-02-28T16:00:00-00:00", MIDNIGHT, MIDNIGHT + 1000),
        ("2025-02-28 17:00:00+01:00", MIDNIGHT, MIDNIGHT + 1000),
        ("2024-02-29", MIDNIGHT - 366 * DAY_MS, MIDNIGHT - 365 * DAY_MS),
        ("0001-01-01", -62_135_625_943_000, -62_135_539_543_000),
    ],
)
def test_from_and_up_to(text: str, since: int, before: int) -> None:
    assert since_ms(text, ZONE) == since
    assert before_ms(text, ZONE) == before


@pytest.mark.parametrize(("date", "hours"), [("2025-03-30", 23), ("2025-10-26", 25), ("2025-06-01", 24)])
def test_a_day_is_as_long_as_its_zone_has_it(date: str, hours: int) -> None:
    assert before_ms(date, BERLIN) - since_ms(date, BERLIN) == hours * 3_600_000


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2025-13-01", "2025-02-30", "2025-03-01 24:30:00", "1740758400", "9999-12-31", "0000-01-01",
     "2025-03-01T00:00:00+99:00", "2025-03-01 00:00:00 Europe/Berlin", "２０２５-03-01", "2025-03-01\0", "%", "NaN",
     "1740758400000", "1712011111111", "17120111", "20250301", "20250301T000000Z", "2025-W09-6", "2025W096", "2025-060",
     "2025-03-01T24:00", "2025-03-01T24:00:00Z", "2025-03-01 24:00:00", "2025-03-01T23:59:60Z", "2025-02-29",
     "2025-03-01T00:00:00,5", "2025-03-01 00:00:00,000", "2025-03-01T00:00:00.", "2025-03-01T00:00.5",
     "2025-03-01T00:00:00.1234567890", " 2025-03-01", "2025-03-01 ", "2025-03-01\n", "2025-03-01 00:00",
     "2025-03-01  00:00:00", "2025-03-01_00:00:00", "2025-03-01t00:00:00z", "2025-03-01T", "2025-03-01T00",
     "2025-03-01Z", "2025-03-01+08:00", "2025-03-01T00:00:00 08:00", "2025-03-01T00:00:00 +08:00",
     "2025-03-01T00:00:00+24:00", "2025-03-01T00:00:00+08:60", "2025-03-01T00:00:00+8", "2025-03-01T00:00:00UTC",
     "2025/03/01", "01.03.2025", "2025-3-1", "25-03-01", "+2025-03-01", "-2025-03-01", "12025-03-01", "2025-03",
     "2025-03-0１", "2025-03-01T０0:00:00", "2025‐03‐01", "٢٠٢٥-03-01", "null", "0", "-1", "1e12",
     "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "0000-00-00 00:00:00"],
)  # fmt: skip
def test_what_is_no_moment(text: str) -> None:
    for parse in (since_ms, before_ms):
        with pytest.raises(ValueError, match="YYYY-MM-DD HH:MM:SS"):
            parse(text, ZONE)


def test_a_time_that_was_skipped_is_none() -> None:
    for text in ("2025-03-30 02:30:00", "2025-03-30T02:00", "2025-03-30T02:59:59.999"):
        with pytest.raises(ValueError, match="Europe/Berlin"):
            since_ms(text, BERLIN)
        assert since_ms(text, ZONE)
    assert since_ms("2025-03-30T02:30:00Z", BERLIN) == since_ms("2025-03-30 04:30:00", BERLIN)


def test_a_time_that_came_twice_is_meant_both_times() -> None:
    text, hour_ms = "2025-10-26 02:30:00", 3_600_000
    assert before_ms(text, BERLIN) - since_ms(text, BERLIN) == hour_ms + 1000


def test_a_day_whose_midnight_was_skipped_begins_after_it() -> None:
    zone = ZoneInfo("America/Sao_Paulo")
    begin = since_ms("2017-10-15", zone)
    assert begin == since_ms("2017-10-15 01:00:00", zone) == before_ms("2017-10-14", zone)
    assert before_ms("2017-10-15", zone) - begin == 23 * 3_600_000


@given(at=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_milliseconds_are_exact(at: datetime) -> None:
    at = at.replace(microsecond=at.microsecond // 1000 * 1000)
    at_ms = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert since_ms(at.isoformat(), ZONE) == at_ms
    assert before_ms(at.isoformat(), ZONE) > at_ms


@given(st.text(min_size=10, max_size=40))
def test_any_text_is_a_moment_or_a_value_error(text: str) -> None:
    for parse in (since_ms, before_ms):
        with suppress(ValueError):
            assert abs(parse(text, ZONE)) < 2**53


@pytest.mark.parametrize(
    ("at_ms", "zone", "text"),
    [
        (MIDNIGHT + 999, "Asia/Shanghai", "2025-03-01 00:00:00"),
        (MIDNIGHT, "UTC", "2025-02-28 16:00:00"),
        (0, "UTC", "1970-01-01 00:00:00"),
        (1_711_846_799_000, "Europe/Berlin", "2024-03-31 01:59:59"),
        (1_711_846_800_000, "Europe/Berlin", "2024-03-31 03:00:00"),
    ],
)
def test_date_and_time(at_ms: int, zone: str, text: str) -> None:
    assert date_and_time(at_ms, ZoneInfo(zone)) == text


@pytest.mark.parametrize(
    ("at_ms", "text"), [(MIDNIGHT + 123, "2025-03-01T00:00:00.123+08:00"), (0, "1970-01-01T08:00:00.000+08:00")]
)
def test_rfc3339(at_ms: int, text: str) -> None:
    assert rfc3339(at_ms, ZONE) == text


def test_0_may_mean_never() -> None:
    assert rfc3339_or_none(0, ZONE) is None
    assert rfc3339_or_none(MIDNIGHT, ZONE) == rfc3339(MIDNIGHT, ZONE)


def test_times_that_no_calendar_has() -> None:
    for zone in (ZONE, ZoneInfo("America/Adak"), ZoneInfo("Pacific/Kiritimati")):
        assert rfc3339(2**63 - 1, zone).startswith("9999-12-3")
        assert rfc3339(-(2**63), zone).startswith("0001-01-0")
