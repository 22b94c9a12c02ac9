"""Whose records a part of a name asks for, in the form in which SQLite tells members from others fastest."""

from __future__ import annotations

from typing import NamedTuple

import orjson

from pushd.stores.sqlite.statements import Parameter

# One byte each is looked up for up to so many user_ids: two thirds of what IN costs, which is left for those above.
DENSE_IDS = 1 << 20

# Who has the name, who of them has had another, so that not every record need have it, and how many names there are.
# Mostly nobody has had two, which is seen at once.
MEMBERS = """
SELECT CAST(json_group_array(user_id) AS BLOB),
       CAST(json_group_array(user_id) FILTER (
         WHERE (SELECT count(*) > (SELECT count(*) FROM (SELECT DISTINCT user_id FROM receive_names))
                  FROM receive_names)
           AND EXISTS (SELECT 1 FROM receive_names AS other
                        WHERE other.user_id = name.user_id AND other.username <> name.username)
       ) AS BLOB),
       (SELECT CAST(count(*) AS BLOB) FROM receive_names)
  FROM receive_names AS name NOT INDEXED
 WHERE instr(folded, lower(:username)) > 0
"""

# Ids of users are positive, as places in a text are: guests, who have negative ones, have no records.
_IS_DENSE = "substr(:members, receipt.user_id, 1) = x'01'"
_IS_LISTED = "receipt.user_id IN (SELECT value FROM json_each(CAST(:members AS TEXT)))"
_HAS_NAME = """
(receipt.user_id NOT IN (SELECT value FROM json_each(CAST(:renamed AS TEXT)))
 OR instr(lower(receipt.username), lower(:username)) > 0)
"""


# So many users' records are counted in one go: in two it would take longer, or not much less.
WHOLE_USERS = 300


class Owners(NamedTuple):
    """What a statement needs to go through the records of each user with the name, or of some of them."""

    conditions: tuple[str, ...]
    parameters: dict[str, Parameter]
    parts: tuple[bytes, ...]  # what `owners` may be one after the other instead
    user_ids: list[int]


class Members(NamedTuple):
    """What a statement needs to tell whether `receipt` belongs to a user with the name."""

    conditions: tuple[str, ...]
    parameters: dict[str, Parameter]
    share: float  # of all names, those that match
    owners: Owners
    is_asked_last: bool = False  # where few records have the state that is asked for


def members(username: str, matching: bytes | None, renamed: bytes | None, names: bytes | None) -> Members:
    """From the documents of MEMBERS. Costs the loop a tenth of a microsecond for each who has the name."""
    user_ids: list[int] = sorted(orjson.loads(matching or b"[]"))
    several: list[int] = orjson.loads(renamed or b"[]")
    share = len(user_ids) / max(1, int(names or 0))
    has_name: dict[str, Parameter] = {"renamed": orjson.dumps(several), "username": username} if several else {}
    is_dense = not user_ids or (min(user_ids) > 0 and max(user_ids) < DENSE_IDS)
    listed = {"members": _marks(user_ids) if is_dense else orjson.dumps(user_ids)}
    owners = _owners(list(dict.fromkeys(user_ids)) if several else user_ids, has_name)
    return Members((_IS_DENSE if is_dense else _IS_LISTED, *owners.conditions), listed | has_name, share, owners)


def _owners(user_ids: list[int], has_name: dict[str, Parameter]) -> Owners:
    middle = len(user_ids) // 2
    halves = (user_ids[:middle], user_ids[middle:]) if len(user_ids) > WHOLE_USERS else (user_ids,)
    listed = {"owners": orjson.dumps(user_ids)}
    return Owners((_HAS_NAME,) if has_name else (), listed | has_name, tuple(map(orjson.dumps, halves)), user_ids)


def _marks(user_ids: list[int]) -> bytes:
    marks = bytearray(max(user_ids, default=0))
    for user_id in user_ids:
        marks[user_id - 1] = 1
    return bytes(marks)
