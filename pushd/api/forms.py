"""What requests to several subjects may contain: structs that check them and make `/openapi.json`, and their meaning.

The docstrings of forms and views are part of that document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta, inspect
from msgspec.structs import replace

from pushd.errors import ErrorCode, RequestError
from pushd.local_time import before_ms, since_ms
from pushd.model import GivenUserId
from pushd.records import Part
from pushd.user_ids import UserIds
from pushd.values import NO_NUL

Filled = TypeVar("Filled")

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


class IdField(NamedTuple):
    """A field of a form that names a user, several, or who sent something."""

    name: str
    is_list: bool = False
    is_sender: bool = False


def id_fields(form: type | None) -> tuple[IdField, ...]:
    """The fields of a form in which ids are given; a list without a limit is left to whoever knows its limit."""
    return () if form is None else tuple(_id_fields(form))


def _id_fields(form: type) -> Iterator[IdField]:
    info = inspect.type_info(form)
    assert isinstance(info, inspect.StructType)  # noqa: S101 - for the type checker
    for field in info.fields:
        kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        for kind in kinds:
            kind, is_list = _unwrapped(kind)
            is_sender = _is_marked(kind, "is_sender_id")
            if is_sender or _is_marked(kind, "is_user_id"):
                yield IdField(field.name, is_list, is_sender)


def _unwrapped(kind: inspect.Type) -> tuple[inspect.Type, bool]:
    if isinstance(kind, inspect.ListType) and kind.max_length is not None:
        return kind.item_type, True
    return kind, False


def _is_marked(kind: inspect.Type, mark: str) -> bool:
    return isinstance(kind, inspect.Metadata) and mark in (kind.extra or {})


def with_ids(form: Filled, fields: tuple[IdField, ...], ids: UserIds) -> Filled:
    """A form with what is given in these fields made ids. Raises RequestError for what cannot be one."""
    changed: dict[str, Any] = {}
    for name, is_list, is_sender in fields:
        given = getattr(form, name)
        if given is None:
            continue
        meant = ids.all_given(given, name) if is_list else (ids.sender if is_sender else ids.given)(given, name)
        if meant is not given:
            changed[name] = meant
    return replace(form, **changed) if changed else form  # type: ignore[type-var]


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
