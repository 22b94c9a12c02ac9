"""Makes the next version of a notice of what is to be changed of it: checked as a publish is. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from pushd.config.schema import LimitsConfig
from pushd.delivery.schedule import put_off
from pushd.delivery.submission import Link, SendAt, Tags, Title, checked_content, checked_data, due_ms, link_of, tags_of
from pushd.errors import ErrorCode, RequestError
from pushd.model import Notice

CHANGING = ("content", "title", "data", "url", "tags", "expires_in_s", "send_at")


class Edit(msgspec.Struct, omit_defaults=True):
    """What of a notice is to be replaced: what is left out stays; null takes title, data, url, tags or expiry away.

    `expires_in_s`: seconds from now. `version`: the one that is in force, as the editor knows it. `reset`: it is unread
    again for whoever has read it. `send_at`: when a scheduled one is to go out instead, from when its expiry counts.
    """

    content: Annotated[str, Meta(pattern=r"\S")] | UnsetType = UNSET
    title: Title | UnsetType | None = UNSET
    data: Any = UNSET
    url: Link | UnsetType | None = UNSET
    tags: Tags | UnsetType | None = UNSET
    expires_in_s: Annotated[float, Meta(gt=0, le=315360000)] | UnsetType | None = UNSET
    version: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    send_at: SendAt | UnsetType = UNSET
    reset: Annotated[list[Literal["read"]], Meta(max_length=1)] = []


def edited(notice: Notice, edit: Edit, now_ms: int, limits: LimitsConfig) -> Notice:
    """The next version; seconds until it expires are counted from `now_ms`. Raises RequestError."""
    if all(getattr(edit, name) is UNSET for name in CHANGING):
        text = f"body: nothing to replace; expected at least one of {', '.join(CHANGING)}"
        raise RequestError(ErrorCode.INVALID_REQUEST, text)
    if edit.version is not UNSET and edit.version != notice.version:
        raise RequestError(
            ErrorCode.CONFLICT,
            f"version: found {edit.version}, but {notice.version} is in force",
            details={"field": "version", "version": notice.version},
        )
    changes: dict[str, Any] = {"version": notice.version + 1}
    if edit.content is not UNSET:
        changes["content"] = checked_content(edit.content, limits)
    if edit.title is not UNSET:
        changes["title"] = edit.title or ""
    if edit.data is not UNSET:
        changes["data"] = None if edit.data is None else checked_data(edit.data, limits)
    if edit.url is not UNSET:
        changes["url"] = link_of(edit.url)
    if edit.tags is not UNSET:
        changes["tags"] = tags_of(edit.tags)
    if edit.expires_in_s is not UNSET:
        changes["expires_ms"] = 0 if edit.expires_in_s is None else now_ms + int(edit.expires_in_s * 1000)
    return msgspec.structs.replace(notice, **changes)


def edited_before_it_goes_out(notice: Notice, edit: Edit, now_ms: int, limits: LimitsConfig) -> Notice:
    """The next version of a scheduled notice. Raises RequestError."""
    if edit.send_at is not UNSET:
        notice = put_off(notice, due_ms(edit.send_at, None, now_ms))
    return edited(notice, edit, notice.accepted_ms, limits)
