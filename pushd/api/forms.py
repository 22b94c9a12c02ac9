"""What requests to several subjects may contain: structs that check them and make `/openapi.json`, and their meaning.

The docstrings of forms and views are part of that document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from pushd.errors import ErrorCode, RequestError
from pushd.local_time import before_ms, since_ms
from pushd.model import GivenUserId
from pushd.records import Part
from pushd.values import NO_NUL

# Of the local times only those that every month has: whoever makes one up by the pattern is not refused.
_LOCAL_TIME = r"^(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8]) ([01]\d|2[0-3]):[0-5]\d:[0-5]\d$"
Page = Annotated[int, Meta(ge=1, le=1_000_000, description="Page, from 1.")]
PageSize = Annotated[int, Meta(ge=1, le=100, description="Items of a page.")]
Order = Literal["asc", "desc"]
Time = Annotated[
    str,
    Meta(
        description='"YYYY-MM-DD", "YYYY-MM-DD HH:MM:SS" (in server.timezone) or ISO 8601.',
        extra_json_schema={"anyOf": [{"format": "date"}, {"format": "date-time"}, {"pattern": _LOCAL_TIME}]},
    ),
]
Text = Annotated[str, Meta(max_length=500, pattern=NO_NUL)]


class Form(msgspec.Struct, kw_only=True, frozen=True):
    """A query or a body."""


class Nothing(Form, frozen=True):
    """No fields."""


class UserQuery(Form, frozen=True):
    """Whose data; by default the token's user."""

    user_id: GivenUserId | None = None


class PeriodQuery(Form, frozen=True):
    """A time; both ends included."""

    start_date: Time | None = None
    end_date: Time | None = None

    def bounds(self, timezone: ZoneInfo) -> tuple[int | None, int | None]:
        """The first millisecond of it and the first one after it, where they are named. Raises RequestError."""
        since = _milliseconds("start_date", self.start_date, since_ms, timezone)
        return since, _milliseconds("end_date", self.end_date, before_ms, timezone)


def _milliseconds(field: str, text: str | None, read: Callable[[str, ZoneInfo], int], timezone: ZoneInfo) -> int | None:
    if text is None:
        return None
    try:
        return read(text, timezone)
    except ValueError as error:
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{field}: {error}", details={"field": field}) from None


def part_of(page: int, page_size: int, order: Order) -> Part:
    """The part of a sorted list that a page is."""
    return Part(offset=(page - 1) * page_size, limit=page_size, is_descending=order == "desc")
