"""Makes notices of what publishers submit and of stored records: checked, with ids and times. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from pushd.config.schema import LimitsConfig
from pushd.errors import ErrorCode, RequestError
from pushd.local_time import MOMENT, moment_ms
from pushd.model import DEFAULT_TYPE, GivenUserId, Notice, Priority, Target, TargetKind, UserId, is_reserved
from pushd.protocol._json import survey
from pushd.records import PushRow
from pushd.user_ids import UserIds
from pushd.values import (
    GROUP_NAME,
    GROUP_NAME_IN_WORDS,
    LINK,
    MAX_INT64,
    MAX_LINK_CHARS,
    MAX_ROLE,
    MAX_TAG_CHARS,
    MAX_TAGS,
    MAX_TITLE_CHARS,
    MIN_ROLE,
    TAG,
    is_group_name,
    is_link,
    is_plain,
    usable_link,
    usable_tags,
    usable_title,
)

MAX_DATA_DEPTH = 100  # decoders of clients, and ours with what is put around `data`, give up somewhere beyond
MAX_ROLES = MAX_GROUPS = 100
MOST_DELAY_S = 365 * 86_400  # a notice may be scheduled for so much later
RANDOM_BYTES, RANDOM_IDS = 10, 256  # of an id; of so many in one call of the kernel

Role = Annotated[int, msgspec.Meta(ge=MIN_ROLE, le=MAX_ROLE)]
GroupName = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": GROUP_NAME})]
NoticeType = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.:-]{1,64}\Z")]
PublicId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.:=+/@-]{1,128}\Z")]
Title = Annotated[str, msgspec.Meta(max_length=MAX_TITLE_CHARS)]
# The patterns of links, tags and groups are for documents: `link_of`, `tags_of` and `_target` say better what is wrong.
Link = Annotated[str, msgspec.Meta(max_length=MAX_LINK_CHARS, extra_json_schema={"pattern": LINK})]
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TAG_CHARS, extra_json_schema={"pattern": TAG})]
Tags = Annotated[list[Tag], msgspec.Meta(max_length=MAX_TAGS)]
_Moment = msgspec.Meta(
    max_length=64,
    description="ISO 8601 with an offset, or milliseconds since the epoch; at most a year from now.",
    extra_json_schema={"format": "date-time"},
)
Delay = Annotated[float, msgspec.Meta(gt=0, le=MOST_DELAY_S, description="Seconds, instead of send_at.")]
SendAt = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT64)] | Annotated[str, _Moment]
PriorityWord = Literal["low", "normal", "high", "urgent"]

Id = TypeVar("Id")  # of a user, a role or a group

_KINDS: dict[str, TargetKind] = {kind.value: kind for kind in TargetKind}
_PRIORITIES: dict[int | str, Priority] = {
    **{priority.value: priority for priority in Priority},
    **{priority.name.lower(): priority for priority in Priority},
}
_random: list[str] = []  # hexadecimal digits, drawn in advance


class Submission(msgspec.Struct, forbid_unknown_fields=False):
    """The body of a publish, as CONTRACT section 3 has it. `expires_in_s`: seconds from when it goes out, at most 10
    years. With `send_at` or `delay_s` it goes out then."""

    content: Annotated[str, msgspec.Meta(pattern=r"\S")]
    type: NoticeType = DEFAULT_TYPE
    target: TargetKind = TargetKind.ALL
    user_ids: list[GivenUserId] = []
    roles: Annotated[list[Role], msgspec.Meta(max_length=MAX_ROLES)] = []
    groups: Annotated[list[GroupName], msgspec.Meta(max_length=MAX_GROUPS)] = []
    exclude_ids: list[GivenUserId] = []
    data: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    priority: Annotated[int, msgspec.Meta(ge=0, le=3)] | PriorityWord = 1
    need_confirm: bool = False
    expires_in_s: Annotated[float, msgspec.Meta(gt=0, le=315_360_000)] | None = None
    message_id: PublicId | None = None
    title: Title | None = None
    url: Link | None = None
    tags: Tags | None = None
    send_at: SendAt | None = None
    delay_s: Delay | None = None

    @property
    def is_for_later(self) -> bool:
        """Whether it is to be scheduled."""
        return self.send_at is not None or self.delay_s is not None


class Sender(msgspec.Struct, frozen=True):
    """Who publishes; 0 and "" for an API key or where there are no credentials."""

    user_id: UserId = 0
    name: str = ""


def notice_of(
    submission: Submission,
    sender: Sender,
    idempotency_key: str,
    seq: int,
    now_ms: int,
    limits: LimitsConfig,
    ids: UserIds,
) -> Notice:
    """Make a notice of what is submitted. Raises RequestError.

    What is for later has no `seq` yet: 0. Its time is to be checked (`to_come`) where it repeats no other: who asks
    again about a notice that has gone out meanwhile must not be told that it was refused.
    """
    at_ms = now_ms
    if submission.is_for_later:
        at_ms = _moment_ms(submission.send_at, submission.delay_s, now_ms)
    # By position: by name it takes three times as long.
    notice = Notice(
        seq,
        submission.message_id or new_message_id(now_ms),
        checked_content(submission.content, limits),
        _target(submission, limits, ids),
        at_ms,
        _notice_type(submission.type),
        checked_data(submission.data, limits) if submission.data else None,
        _PRIORITIES[submission.priority],
        submission.need_confirm,
        0 if submission.expires_in_s is None else at_ms + int(submission.expires_in_s * 1000),
        idempotency_key,
        sender.user_id,
        sender.name,
        submission.title or "",
        link_of(submission.url) if submission.url else "",
        tags_of(submission.tags) if submission.tags else (),
    )
    if not submission.is_for_later:
        return notice
    return msgspec.structs.replace(notice, send_at_ms=at_ms, submitted_ms=now_ms)


def link_of(url: str | None) -> str:
    """A given `url`; "" for none. Raises RequestError."""
    if not url:
        return ""
    if not is_link(url):
        raise RequestError(
            ErrorCode.INVALID_REQUEST,
            'url: expected http://…, https://… or a path that begins with one "/", without spaces, backslashes and'
            f" control characters; found {url[:40]!a}",
            details={"field": "url"},
        )
    return url


def tags_of(tags: list[str] | None) -> tuple[str, ...]:
    """Given tags, each once. Raises RequestError."""
    if not tags:
        return ()
    for place, tag in enumerate(tags):
        if not is_plain(tag):
            field = f"tags[{place}]"
            text = f"{field}: control characters are not allowed"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": field})
    return tuple(dict.fromkeys(tags))


def due_ms(send_at: int | str | None, delay_s: float | None, now_ms: int) -> int:
    """When a notice is to go out that says so, in one of two ways: a time to come. Raises RequestError."""
    return to_come(_moment_ms(send_at, delay_s, now_ms), now_ms)


def to_come(at_ms: int, now_ms: int) -> int:
    """This time, if a notice may be scheduled for it. Raises RequestError."""
    if at_ms <= now_ms:
        late_s = (now_ms - at_ms) / 1000
        raise _no_time("send_at", f"found a time that was {late_s:.3f} s ago, expected one to come")
    if at_ms > now_ms + MOST_DELAY_S * 1000:
        raise _no_time("send_at", f"found a time in {(at_ms - now_ms) // 86_400_000} days, expected at most 365 days")
    return at_ms


def _moment_ms(send_at: int | str | None, delay_s: float | None, now_ms: int) -> int:
    if send_at is None:
        return now_ms + max(1, round((delay_s or 0) * 1000))
    if delay_s is not None:
        raise _no_time("delay_s", "found together with send_at, expected one of them")
    try:
        return moment_ms(send_at) if isinstance(send_at, str) else send_at
    except ValueError:
        raise _no_time("send_at", f"found {send_at!r}, {MOMENT}, or milliseconds since the epoch") from None


def _no_time(field: str, text: str) -> RequestError:
    return RequestError(ErrorCode.INVALID_REQUEST, f"{field}: {text}", details={"field": field})


def data_bytes_of(notice: Notice) -> int:
    """How large `data` is as JSON; 0 for none."""
    data = notice.data
    if type(data) is msgspec.Raw:
        return len(memoryview(data))
    return 0 if data is None else len(msgspec.json.encode(data))


def stored_notice(row: PushRow, sender: Sender, seq: int, now_ms: int, limits: LimitsConfig) -> Notice:
    """Make a notice of a record, whoever wrote it. Raises RequestError for what no publisher may say.

    Who has not received it is asked of the receive records: a target that is not known here is as good as any.
    """
    is_known = row.target in _KINDS
    return Notice(
        seq=seq,
        message_id=row.message_id,
        content=checked_content(_with_text(row.content), limits),
        target=Target(
            kind=_KINDS[row.target] if is_known else TargetKind.CUSTOM,
            user_ids=_stored_ids(row.target_user_ids or (), limits),
            roles=tuple(row.target_roles or ()),
            groups=tuple(row.target_groups or ()),
        ),
        accepted_ms=now_ms,
        type=_notice_type(_well_formed(row.message_type) if row.message_type else DEFAULT_TYPE),
        data=checked_data(row.extra_data, limits),
        priority=_PRIORITIES.get(row.priority, Priority.NORMAL),
        need_confirm=row.need_confirm,
        expires_ms=row.expires_ms,
        sender_id=sender.user_id,
        sender_name=sender.name,
        title=usable_title(row.title),
        url=usable_link(row.url),
        tags=usable_tags(row.tags),
        version=row.version,
        is_resent=True,
    )


def noticed(row: PushRow) -> Notice:
    """The notice of a record, whoever wrote that, as it was sent; without a `seq`, and without those it was for."""
    return Notice(
        seq=0,
        message_id=row.message_id,
        content=row.content,
        target=Target(_KINDS.get(row.target, TargetKind.CUSTOM)),
        accepted_ms=row.push_ms,
        type=row.message_type,
        data=row.extra_data,
        priority=_PRIORITIES.get(row.priority, Priority.NORMAL),
        need_confirm=row.need_confirm,
        expires_ms=row.expires_ms,
        sender_id=row.sender_id,
        sender_name=row.sender_name,
        title=usable_title(row.title),
        url=usable_link(row.url),
        tags=usable_tags(row.tags),
        version=row.version,
    )


def _stored_ids(user_ids: Collection[UserId], limits: LimitsConfig) -> tuple[UserId, ...]:
    limit = limits.max_user_ids
    if len(user_ids) > limit:
        text = f"user_ids: {len(user_ids)} ids, at most {limit} are allowed"
        raise RequestError(ErrorCode.TOO_MANY_USER_IDS, text)
    return tuple(user_ids)


def checked_content(content: str, limits: LimitsConfig) -> str:
    """A given `content`. Raises RequestError."""
    limit = limits.max_content_chars
    if len(content) > limit:
        raise RequestError(
            ErrorCode.CONTENT_TOO_LONG,
            f"content: {len(content)} characters, at most {limit} are allowed",
            details={"field": "content", "max": limit},
        )
    return content


def checked_data(data: Any, limits: LimitsConfig) -> msgspec.Raw | None:
    """Given `data`, as JSON that every client's dialect and every store can carry; None for null. Raises RequestError.

    What is written plainly stays as it is, byte for byte, and is not parsed; else it is written anew, so that nobody
    pays for a publisher's spaces and escapes. A Raw must be valid JSON, but for UTF-8 and the range of its numbers.
    """
    try:
        text = bytes(data) if type(data) is msgspec.Raw else msgspec.json.encode(data)
    except RecursionError:
        raise _too_deep() from None
    if not text or text == b"null":
        return None
    depth, is_plain = survey(text)
    if depth > MAX_DATA_DEPTH:
        raise _too_deep()
    if not is_plain:
        text = _written_anew(text)
    elif not text.isascii():
        _check_utf8(text)
    limit = limits.max_data_bytes
    if len(text) > limit:
        raise RequestError(
            ErrorCode.BODY_TOO_LARGE,
            f"data: {len(text)} bytes as JSON, at most {limit} are allowed",
            details={"field": "data", "max": limit},
        )
    return msgspec.Raw(text)


def _too_deep() -> RequestError:
    text = f"data: nested more than {MAX_DATA_DEPTH} levels deep"
    return RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "data", "max": MAX_DATA_DEPTH})


def _check_utf8(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError:
        raise RequestError(ErrorCode.INVALID_JSON, "the body is not valid JSON: Invalid UTF-8 encoded string") from None


def _written_anew(text: bytes) -> bytes:
    _check_utf8(text)
    try:
        data = msgspec.json.decode(text)
        msgspec.msgpack.encode(data)  # what JSON can say and MessagePack cannot: integers beyond 64 bits
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        field = "data" + path.removesuffix("`")
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{field}: {reason}", details={"field": field}) from None
    except OverflowError:
        reason = "data: integers beyond 64 bits"
        raise RequestError(ErrorCode.INVALID_REQUEST, reason, details={"field": "data"}) from None
    return msgspec.json.encode(data)


def _target(submission: Submission, limits: LimitsConfig, ids: UserIds) -> Target:
    kind = _KINDS[submission.target]
    limit = limits.max_user_ids
    if len(submission.user_ids) > limit or len(submission.exclude_ids) > limit:
        raise _too_many_ids(submission, limit)
    if submission.groups:
        _check_groups(submission.groups)
    user_ids = ids.all_given(submission.user_ids, "user_ids")
    exclude_ids: tuple[UserId, ...] = ()
    if submission.exclude_ids:
        exclude_ids = _distinct(ids.all_given(submission.exclude_ids, "exclude_ids"))
    if kind is TargetKind.CUSTOM:
        return Target(kind, _required("user_ids", user_ids, kind), exclude_ids=exclude_ids)
    if kind is TargetKind.ROLE:
        return Target(kind, roles=_required("roles", submission.roles, kind), exclude_ids=exclude_ids)
    if kind is TargetKind.GROUP:
        return Target(kind, groups=_required("groups", submission.groups, kind), exclude_ids=exclude_ids)
    return Target(kind, exclude_ids=exclude_ids)


def _check_groups(groups: list[str]) -> None:
    for place, name in enumerate(groups):
        if not is_group_name(name):
            field = f"groups[{place}]"
            text = f"{field}: expected {GROUP_NAME_IN_WORDS}; found {name[:80]!a}"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": field})


def _required(field: str, ids: list[Id], kind: TargetKind) -> tuple[Id, ...]:
    if not ids:
        code = ErrorCode.MISSING_USER_IDS if kind is TargetKind.CUSTOM else ErrorCode.INVALID_REQUEST
        raise RequestError(code, f'{field}: required with target "{kind}"', details={"field": field})
    return _distinct(ids)


def _too_many_ids(submission: Submission, limit: int) -> RequestError:
    field = "user_ids" if len(submission.user_ids) > limit else "exclude_ids"
    count = len(getattr(submission, field))
    text = f"{field}: {count} ids, at most {limit} are allowed"
    return RequestError(ErrorCode.TOO_MANY_USER_IDS, text, details={"field": field, "max": limit})


def new_message_id(now_ms: int) -> str:
    """A new id: unique, and sorted by time to the millisecond."""
    if not _random:
        digits = secrets.token_hex(RANDOM_BYTES * RANDOM_IDS)
        _random.extend(digits[at : at + 2 * RANDOM_BYTES] for at in range(0, len(digits), 2 * RANDOM_BYTES))
    return f"{now_ms:012x}{_random.pop()}"


def _distinct(ids: list[Id]) -> tuple[Id, ...]:
    return tuple(ids) if len(ids) < 2 else tuple(dict.fromkeys(ids))


def _with_text(content: str) -> str:
    if not content.strip():
        raise RequestError(ErrorCode.CONTENT_EMPTY, "content: it has none")
    return content


def _well_formed(name: str) -> str:
    try:
        return msgspec.convert(name, NoticeType)
    except msgspec.ValidationError:
        raise RequestError(ErrorCode.INVALID_REQUEST, "type: expected 1 to 64 of A-Za-z0-9_.:-") from None


def _notice_type(name: str) -> str:
    if is_reserved(name):
        raise RequestError(
            ErrorCode.INVALID_REQUEST, f"type: {name!r} is a type of the protocol itself", details={"field": "type"}
        )
    return name
