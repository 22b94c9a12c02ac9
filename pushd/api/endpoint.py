"""What an endpoint is, and what its handler gets."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Generic, TypeVar

import msgspec

from pushd.api.forms import Nothing
from pushd.auth.authenticator import Identity
from pushd.errors import ErrorCode, RequestError
from pushd.http.messages import Request
from pushd.model import UserId
from pushd.user_ids import INTEGERS, UserIds

Query = TypeVar("Query")
Body = TypeVar("Body")


class Rights(IntEnum):
    """Who may call."""

    PUBLIC = 0
    USER = 1
    ADMIN = 2


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """One row of the table. `{name}` in the path matches one segment.

    `handler` takes a `Call`, and returns what goes into `data`, a `Later` for it, or an awaitable.
    """

    method: str
    path: str
    rights: Rights
    handler: Callable[[Call[Any, Any]], Any]
    data: Any
    about: str
    query: type = Nothing
    body: type | None = None
    is_idempotent_by_key: bool = False

    @property
    def name(self) -> str:
        """Unique: aliases of a path have names of their own."""
        words = [word.strip("{}") for word in self.path.split("/") if word]
        return "_".join([self.method.lower(), *words]).replace("-", "_")


class Call(msgspec.Struct, Generic[Query, Body], eq=False):
    """One request on its way through a handler."""

    request: Request
    identity: Identity
    params: dict[str, str]
    query: Query
    body: Body
    ids: UserIds = INTEGERS

    def user(self, user_id: UserId | None) -> UserId:
        """Whose data this is about: the named user for an admin, else the token's own. Raises RequestError."""
        mine = self.identity.user_id
        if user_id is None:
            if mine == 0:
                raise RequestError(ErrorCode.INVALID_REQUEST, "user_id: required", details={"field": "user_id"})
            return mine
        user_id = self.ids.given(user_id, "user_id")
        if user_id != mine and not self.identity.is_admin:
            raise RequestError(ErrorCode.FORBIDDEN, "user_id: only your own data, or admin rights")
        return user_id
