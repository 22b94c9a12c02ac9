"""What a user's id is: a whole number or, where `directory.user_ids` says so, a text (CONTRACT section 8.2). Pure.

Either may be given as the other, so that JavaScript can write ids beyond 2**53: a number as its digits in a text, and a
text of digits as that number. Digits are canonical, without a sign and leading zeros.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from msgspec import Meta

from pushd.errors import ErrorCode, RequestError
from pushd.values import MAX_USER_ID, describe, is_whole

MAX_ID_CHARS = 64
MANY = 8  # ids
ID_LETTERS = "A-Za-z0-9_.:@-"  # of a text that is an id, as patterns have them
# Marks in JSON schemas of where there is an id, and where one is given.
SHOWN, GIVEN = "x-user-id", "x-given-user-id"

# Of an account or of a guest: which of the two a connection says. `/openapi.json` has the kind in force in its place.
UserId: TypeAlias = Annotated[int | str, Meta(extra_json_schema={SHOWN: True})]
GUEST = "guest:"  # how ids of guests begin where ids are texts
TEXT_PATTERN = f"(?!{GUEST})[{ID_LETTERS}]{{1,{MAX_ID_CHARS}}}"

# What forms take; `is_user_id` is how it is found in them, to be made an id by the kind in force.
GivenUserId = Annotated[
    Annotated[int, Meta(ge=1, le=MAX_USER_ID)] | Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)],
    Meta(extra={"is_user_id": True}, extra_json_schema={GIVEN: True}),
]
GivenSenderId = Annotated[  # 0 where ids are numbers: no user's
    Annotated[int, Meta(ge=0, le=MAX_USER_ID)] | Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)],
    Meta(extra={"is_sender_id": True}, extra_json_schema={GIVEN: True}),
]

_DIGITS = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_TEXT = re.compile(TEXT_PATTERN)
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:@-"


class UserIds(ABC):
    """One kind of ids."""

    kind: ClassVar[Literal["integer", "string"]]  # as `directory.user_ids` has it
    nobody: ClassVar[UserId]  # the sender where there is no user
    type: ClassVar[type]  # of an id
    expected: ClassVar[str]  # for whoever gave something else
    schema: ClassVar[dict[str, Any]]  # of an id that is shown (JSON Schema)

    @abstractmethod
    def given_schema(self, least: int) -> dict[str, Any]:
        """Of an id that is given; of numbers those from `least` on."""

    @abstractmethod
    def accepted(self, value: object) -> UserId | None:
        """The id of an account that this is meant to be; None: it cannot be one."""

    @abstractmethod
    def are_exact(self, values: Sequence[UserId]) -> bool:
        """Whether all of these, which forms took, are ids as they are. Costs 0.1 us each."""

    @abstractmethod
    def guest(self, number: int) -> UserId:
        """The id of a guest, one for each number from 1."""

    @abstractmethod
    def lost(self, number: int) -> UserId:
        """What stands for an id that could not be read, one for each number from 0: no account's."""

    def given(self, value: object, field: str) -> UserId:
        """The id that stands in a field of a request. Raises RequestError."""
        user_id = self.accepted(value)
        if user_id is None:
            text = f"{field}: found {shown(value)}, expected {self.expected}"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": field})
        return user_id

    def sender(self, value: object, field: str) -> UserId:
        """Whom a request names as a sender. Raises RequestError."""
        return self.given(value, field)

    def all_given(self, values: list[UserId], field: str) -> list[UserId]:
        """The ids that stand in a field. Raises RequestError for the first that is none."""
        if not values or self.are_exact(values):
            return values
        return [self.given(value, f"{field}[{place}]") for place, value in enumerate(values)]


class _Integers(UserIds):
    kind = "integer"
    type = int
    nobody = 0
    expected = f"a whole number from 1 to {MAX_USER_ID}"
    schema: ClassVar[dict[str, Any]] = {"type": "integer"}

    def given_schema(self, least: int) -> dict[str, Any]:
        """A number or its digits."""
        digits = rf"^(?:{'0|' if least == 0 else ''}[1-9][0-9]{{0,17}}|[1-8][0-9]{{18}})$"
        number = {"type": "integer", "minimum": least, "maximum": MAX_USER_ID}
        return {"anyOf": [number, {"type": "string", "pattern": digits}]}

    def accepted(self, value: object) -> UserId | None:
        """A number of 63 bits, or its digits."""
        if isinstance(value, str):
            value = int(value) if _DIGITS.fullmatch(value) else None
        return value if is_whole(value, 1, MAX_USER_ID) else None

    def are_exact(self, values: Sequence[UserId]) -> bool:
        """Forms have looked at the range of numbers."""
        return {value.__class__ for value in values} <= {int}

    def sender(self, value: object, field: str) -> UserId:
        """Also 0, which is no user's."""
        return 0 if value in (0, "0") else self.given(value, field)

    def guest(self, number: int) -> UserId:
        """A negative number."""
        return -number

    def lost(self, number: int) -> UserId:
        """A negative number."""
        return -1 - number


class _Strings(UserIds):
    kind = "string"
    type = str
    nobody = ""
    expected = f'a text of 1 to {MAX_ID_CHARS} of A-Z a-z 0-9 _ . : @ -, not beginning with "{GUEST}"'
    schema: ClassVar[dict[str, Any]] = {"type": "string"}

    def given_schema(self, least: int) -> dict[str, Any]:
        """A text; that numbers are taken for their digits is for programs that know no better."""
        return {"type": "string", "pattern": f"^{TEXT_PATTERN}$"}

    def accepted(self, value: object) -> UserId | None:
        """A text of some letters, or a number, whose digits are taken."""
        if is_whole(value, 1, MAX_USER_ID):
            return str(value)
        return value if isinstance(value, str) and _TEXT.fullmatch(value) else None

    def are_exact(self, values: Sequence[UserId]) -> bool:
        """Many are looked at together: ten times as fast as one by one."""
        if len(values) < MANY:
            return all(isinstance(value, str) and _TEXT.fullmatch(value) for value in values)
        try:
            joined = "\n".join(values)  # type: ignore[arg-type]  # numbers among them raise
            others = joined.encode("ascii").translate(None, _LETTERS)
        except (TypeError, UnicodeEncodeError):
            return False
        lengths = [*map(len, values)]  # type: ignore[arg-type]
        return (
            len(others) == len(values) - 1 == others.count(b"\n")
            and min(lengths) >= 1
            and max(lengths) <= MAX_ID_CHARS
            and not joined.startswith(GUEST)
            and f"\n{GUEST}" not in joined
        )

    def guest(self, number: int) -> UserId:
        """A text that no account's id can be."""
        return f"{GUEST}{number}"

    def lost(self, number: int) -> UserId:
        """A text that no account's id can be."""
        return f"{GUEST}lost.{number}"


INTEGERS: UserIds = _Integers()
STRINGS: UserIds = _Strings()
KINDS: dict[str, UserIds] = {ids.kind: ids for ids in (INTEGERS, STRINGS)}


def shown(value: object) -> str:
    """What was found where an id was expected, for whoever sent it."""
    if not isinstance(value, str):
        return describe(value)
    return json.dumps(value) if len(value) <= MAX_ID_CHARS else f"{json.dumps(value[:MAX_ID_CHARS])}…"
