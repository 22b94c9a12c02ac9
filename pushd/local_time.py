"""Points in time as people write them, in the daemon's time zone, and as milliseconds since the epoch."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from pushd.values import MAX_MS, MIN_MS

FORMS = 'expected "YYYY-MM-DD", "YYYY-MM-DD HH:MM:SS" or ISO 8601 such as "2026-03-01T12:00:00+08:00"'
# The whole grammar: `datetime.fromisoformat` alone takes digits, weeks and 24:00 for dates as well.
_FORM = re.compile(
    r"""\d{4}-\d\d-\d\d
        (?: (?: [ ]\d\d:\d\d:\d\d(?:\.\d{1,9})? | T\d\d:\d\d(?: :\d\d(?:\.\d{1,9})? )? )
            (?: Z | [+-]\d\d(?: :?[0-5]\d )? )? )?""",
    re.ASCII | re.VERBOSE,
)
MOMENT = 'expected ISO 8601 with an offset, such as "2026-03-01T12:00:00+08:00"'
_OFFSET = re.compile(r":\d\d(?:\.\d+)?(?:Z|[+-]\d\d(?::?\d\d)?)\Z", re.ASCII)
_UTC = ZoneInfo("UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def date_and_time(at_ms: int, timezone: ZoneInfo) -> str:
    """A time as "YYYY-MM-DD HH:MM:SS" in `timezone`."""
    return _of_second(at_ms // 1000, timezone)


@lru_cache(maxsize=1024)
def _of_second(at_s: int, timezone: ZoneInfo) -> str:
    """The text is remembered: it is the same for all notices of a second."""
    return datetime.fromtimestamp(at_s, timezone).strftime("%Y-%m-%d %H:%M:%S")


def rfc3339(at_ms: int, timezone: ZoneInfo) -> str:
    """A time in RFC 3339 with milliseconds. Of a time that no calendar has (other programs write into stores, too) it
    is the nearest that one has."""
    at_ms = max(MIN_MS, min(at_ms, MAX_MS))
    return datetime.fromtimestamp(at_ms / 1000, timezone).isoformat(timespec="milliseconds")


def rfc3339_or_none(at_ms: int, timezone: ZoneInfo) -> str | None:
    """The same of a time that may be 0, which means never."""
    return rfc3339(at_ms, timezone) if at_ms else None


def since_ms(text: str, timezone: ZoneInfo) -> int:
    """The first moment that `text` means: of a date its beginning, of a time that comes twice the earlier one.

    Raises ValueError with a text for people.
    """
    return _ms(_parse(text, timezone))


def before_ms(text: str, timezone: ZoneInfo) -> int:
    """The first moment after what `text` means: a date means the whole day, a second the whole second, and both of
    them if it comes twice.

    Raises ValueError with a text for people.
    """
    moment = _parse(text, timezone)
    if _is_date(text):
        return _ms(moment + timedelta(days=1))
    return _ms(moment.replace(fold=1)) + (1000 if moment.microsecond == 0 else 1)


def moment_ms(text: str) -> int:
    """The time that `text` means: ISO 8601 with an offset.

    Raises ValueError with a text for people.
    """
    if not _FORM.fullmatch(text) or _OFFSET.search(text) is None:
        raise ValueError(MOMENT)
    try:
        return _ms(_parse(text, _UTC))
    except ValueError:
        raise ValueError(MOMENT) from None


def _is_date(text: str) -> bool:
    return len(text) == len("YYYY-MM-DD")


def _parse(text: str, timezone: ZoneInfo) -> datetime:
    if not _FORM.fullmatch(text) or text[11:13] == "24":  # which Python 3.13 takes for the next day's midnight
        raise ValueError(FORMS)
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone)
        _ms(moment + timedelta(days=1))
        is_skipped = not _is_date(text) and moment.astimezone(UTC).astimezone(moment.tzinfo) != moment
    except (ValueError, OverflowError):
        raise ValueError(FORMS) from None
    if is_skipped:
        raise ValueError(f"there is no such time in {timezone}, where clocks were put forward")
    return moment


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
