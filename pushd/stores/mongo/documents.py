"""What stands in the collections, and what other programs put there, as values of our own.

Documents of the program that pushd replaces may have dates as texts ("YYYY-MM-DD HH:MM:SS" in the server's time zone,
or ISO 8601), flags and numbers of other types, and fields missing: they are read as well as they can be, never refused.
What nothing else could carry (pushd.values) is as good as missing.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

from bson.datetime_ms import DatetimeMS

from pushd.user_ids import INTEGERS, UserId, UserIds
from pushd.values import MAX_INT64, MAX_MS, MIN_INT64, MIN_MS

PUSH_RECORDS = "push_records"
RECEIVE_RECORDS = "admin_user_receive_records"
VERSIONS = "push_record_versions"
ONLINE_STATUS = "admin_user_online_status"

# A number that should be a time: seconds up to this, milliseconds above (it is the year 5138, or 1973).
MOST_SECONDS = 100_000_000_000
LAST_TEXT = "9999-12-31 23:59:59"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


def date(ms: int) -> DatetimeMS:
    """A BSON date."""
    return DatetimeMS(ms)


def milliseconds(value: object, zone: ZoneInfo) -> int:
    """A stored time; 0 for none, for what cannot be read as one, and outside the years 1 to 9999."""
    try:
        at_ms = _milliseconds(value, zone)
    except (ValueError, OverflowError):  # no date, no number, or without end
        return 0
    return at_ms if MIN_MS <= at_ms <= MAX_MS else 0


def _milliseconds(value: object, zone: ZoneInfo) -> int:
    match value:
        case DatetimeMS():
            return int(value)
        case datetime():
            return round(_aware(value, UTC).timestamp() * 1000)
        case str():
            return round(_aware(datetime.fromisoformat(value.strip()), zone).timestamp() * 1000)
        case bool():
            return 0
        case int() | float():
            return int(value) if abs(value) > MOST_SECONDS else int(value * 1000)
    return 0


def _aware(time: datetime, zone: timezone | ZoneInfo) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=zone)


def as_text(ms: int, zone: ZoneInfo) -> str:
    """A time as the former program wrote it."""
    try:
        return datetime.fromtimestamp(ms / 1000, zone).strftime(TIME_FORMAT)
    except (ValueError, OverflowError, OSError):
        return "" if ms < 0 else LAST_TEXT


def text(value: object) -> str:
    """A stored text; "" for none."""
    return "" if value is None else str(value)  # of a Code, too, which is a str of BSON's


def number(value: object, default: int = 0) -> int:
    """A stored whole number of 64 bits; else `default`."""
    try:
        whole = default if value is None else int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return default
    return whole if MIN_INT64 <= whole <= MAX_INT64 else default


def optional_text(value: object) -> str | None:
    """A stored text; None for none."""
    return None if value is None else text(value)


def flag(value: object) -> bool:
    """A stored flag; what is no flag is not set, as the server sees it."""
    return value is True


def numbers(value: object) -> list[int] | None:
    """A stored list of ids; None for none."""
    if not isinstance(value, list) or not value:
        return None
    return [int(item) for item in value if isinstance(item, int)]


def texts(value: object) -> list[str] | None:
    """A stored list of texts; None for none."""
    if not isinstance(value, list) or not value:
        return None
    return [str(item) for item in value if isinstance(item, str)]


def stored_id(value: object, ids: UserIds) -> UserId:
    """A stored id, whoever wrote it; `nobody` for what is none."""
    return number(value) if ids is INTEGERS else ids.accepted(_plain_text(value)) or ids.nobody


def stored_ids(value: object, ids: UserIds) -> list[UserId] | None:
    """A stored list of ids; None for none."""
    if not isinstance(value, list) or not value:
        return None
    return [stored_id(item, ids) for item in value if ids.accepted(_plain_text(item)) is not None]


def _plain_text(value: object) -> object:
    """A text of a kind of BSON's own is a text."""
    return text(value) if isinstance(value, str) else value


def plain(value: object) -> Any:
    """A stored value of any kind as JSON has it."""
    match value:
        case None | bool() | float():
            return value
        case str():
            return str(value)
        case int():
            return int(value)
        case Mapping():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case bytes():
            return b64encode(value).decode()
        case DatetimeMS():
            return _iso(int(value))
    return str(value)


def _iso(ms: int) -> str | int:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return ms
