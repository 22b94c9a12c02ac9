"""Points in time as people write them, in the daemon's time zone, and as milliseconds since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

FORMS = 'expected "YYYY-MM-DD", "YYYY-MM-DD HH:MM:SS" or ISO 8601'
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def local_time(at_ms: int, timezone: ZoneInfo) -> str:
    """ "YYYY-MM-DD HH:MM:SS" in `timezone`."""
    return _second_text(at_ms // 1000, timezone)


@lru_cache(maxsize=1024)
def _second_text(at_s: int, timezone: ZoneInfo) -> str:
    """Remembered: notices of the same second say the same."""
    return datetime.fromtimestamp(at_s, timezone).strftime("%Y-%m-%d %H:%M:%S")


def since_ms(text: str, timezone: ZoneInfo) -> int:
    """The moment from which on `text` counts: a date means its first. Raises ValueError."""
    return _ms(_parse(text, timezone))


def before_ms(text: str, timezone: ZoneInfo) -> int:
    """The first moment after `text`: a date includes the whole day, a second the whole second. Raises ValueError."""
    moment = _parse(text, timezone)
    if len(text.strip()) == len("YYYY-MM-DD"):
        return _ms(moment + timedelta(days=1))
    return _ms(moment) + (1000 if moment.microsecond == 0 else 1)


def _parse(text: str, timezone: ZoneInfo) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone)
        _ms(moment + timedelta(days=1))
    except (ValueError, OverflowError):
        raise ValueError(FORMS) from None
    return moment


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
