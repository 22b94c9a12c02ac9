"""The way in: a submission is checked, recognised if it is a repeat, made durable, and put into its lane."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from pushd import wire
from pushd.errors import ErrorCode, RequestError, StoreError
from pushd.lanes import DedupWindow, Lanes, TokenBucket
from pushd.live import Live
from pushd.metrics import Metrics
from pushd.model import Notice, Priority, Target, TargetKind
from pushd.ports import Journal
from pushd.publication import Publication
from pushd.queries import PushRow

MAX_USER_ID = 2**63 - 1
MAX_DATA_DEPTH = 100  # decoders of clients, and ours with what is put around `data`, give up somewhere beyond
UserId = Annotated[int, msgspec.Meta(ge=1, le=MAX_USER_ID)]
Role = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
NoticeType = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.:-]{1,64}\Z")]
PublicId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.:=+/@-]{1,128}\Z")]
PriorityWord = Literal["low", "normal", "high", "urgent"]


class Submission(msgspec.Struct, forbid_unknown_fields=False):
    """The body of a publish, as CONTRACT section 3 has it. `expires_in_s`: seconds from now, at most 10 years."""

    content: Annotated[str, msgspec.Meta(pattern=r"\S")]
    type: NoticeType = "system_notice"
    target: TargetKind = TargetKind.ALL
    user_ids: list[UserId] = []
    roles: list[Role] = []
    exclude_ids: list[UserId] = []
    data: Any = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=3)] | PriorityWord = 1
    need_confirm: bool = False
    expires_in_s: Annotated[float, msgspec.Meta(gt=0, le=315_360_000)] | None = None
    message_id: PublicId | None = None


class Sender(msgspec.Struct, frozen=True):
    """Who publishes; 0 and "" for an API key or where there are no credentials."""

    user_id: int = 0
    name: str = ""


class Accepted(msgspec.Struct, frozen=True):
    """A publish that is durable. A duplicate carries the publication it repeats."""

    publication: Publication
    is_duplicate: bool


class _Attempt:
    """What the dedup window keeps: a publication, and whether it is in the journal yet."""

    __slots__ = ("journaled", "publication")

    def __init__(self, publication: Publication, journaled: asyncio.Future[None]) -> None:
        self.publication = publication
        self.journaled = journaled


class Intake:
    """Accepts notices. `put` hands a durable one to the dispatcher; `now` is the loop's clock, `wall_ms` the day's."""

    def __init__(
        self,
        journal: Journal,
        lanes: Lanes[Publication],
        live: Live,
        metrics: Metrics,
        *,
        now: Callable[[], float],
        wall_ms: Callable[[], int],
        wake: Callable[[], None],
        on_settled: Callable[[Publication], None],
        last_seq: int,
    ) -> None:
        self._journal = journal
        self._lanes = lanes
        self._live = live
        self._metrics = metrics
        self._now = now
        self._wall_ms = wall_ms
        self._wake = wake
        self._on_settled = on_settled
        self._seqs = itertools.count(last_seq + 1)
        self._window: DedupWindow[_Attempt] = DedupWindow(live.config.delivery.dedup_window_s)
        per_s = live.config.limits.publishes_per_s
        self._bucket = TokenBucket(per_s, per_s, now())
        self._commits: set[asyncio.Task[None]] = set()
        self.is_draining = False
        self.unsettled_total = 0

    async def accept(self, submission: Submission, sender: Sender, idempotency_key: str = "") -> Accepted:
        """Make a notice durable. Raises RequestError; nothing is kept then."""
        self._admit()
        notice = self._notice(submission, sender, idempotency_key)
        keys = dedup_keys(notice, is_named=submission.message_id is not None)
        while (earlier := self._window.find(keys, self._now())) is not None:
            if await _is_journaled(earlier):
                self._metrics.dedup_hits.inc()
                self._count(notice, "duplicate")
                return Accepted(earlier.publication, is_duplicate=True)
        return Accepted(await self._commit(notice, keys), is_duplicate=False)

    def _admit(self) -> None:
        if self.is_draining:
            raise RequestError(ErrorCode.DRAINING, "the server is shutting down", retry_after_s=5)
        self._bucket.rate = self._bucket.burst = self._live.config.limits.publishes_per_s
        if not self._bucket.take(self._now()):
            raise RequestError(ErrorCode.RATE_LIMITED, "too many publishes per second", retry_after_s=1)

    async def _commit(self, notice: Notice, keys: list[str]) -> Publication:
        if not self._lanes.reserve():
            self._count(notice, "queue_full")
            raise RequestError(ErrorCode.QUEUE_FULL, "the queue is full", retry_after_s=1)
        publication = self._publication(notice)
        journaled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        attempt = _Attempt(publication, journaled)
        self._window.keep(keys, attempt, self._now())
        # A task of its own: a publisher who goes away must not leave a durable notice outside its lane.
        task = asyncio.create_task(self._make_durable(attempt, keys))
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        try:
            await asyncio.shield(journaled)
        except StoreError:
            raise RequestError(ErrorCode.STORE_UNAVAILABLE, "the notice could not be stored", retry_after_s=5) from None
        return publication

    async def _make_durable(self, attempt: _Attempt, keys: list[str]) -> None:
        publication, journaled = attempt.publication, attempt.journaled
        notice = publication.notice
        try:
            await self._journal.append([notice])
        except BaseException as error:
            self._window.drop(keys, attempt)
            self._lanes.cancel()
            self._count(notice, "store_unavailable")
            journaled.set_exception(error)
            journaled.exception()  # the publisher may have gone: then nobody else looks at it
            if not isinstance(error, StoreError):
                raise
            return
        self.unsettled_total += 1
        self._lanes.put(publication, notice.priority, self._now())
        self._wake()
        self._count(notice, "accepted")
        journaled.set_result(None)

    async def resend(self, row: PushRow, sender: Sender) -> Accepted:
        """Publish a stored notice again, for those who have not received it. Raises RequestError."""
        self._admit()
        notice = _stored_notice(row, next(self._seqs), self._wall_ms(), sender)
        if notice.is_expired(self._wall_ms()):
            text = "message_id: the notice has expired"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "message_id"})
        return Accepted(await self._commit(notice, []), is_duplicate=False)

    def restore(self, notices: list[Notice], *, queue: bool) -> None:
        """Notices of a former process: recognised when repeated and, with `queue`, delivered."""
        now, wall_ms = self._now(), self._wall_ms()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        for notice in notices:
            publication = self._publication(notice, is_restored=True)
            age_s = max(0.0, (wall_ms - notice.accepted_ms) / 1000)
            self._window.keep(dedup_keys(notice, is_named=True), _Attempt(publication, done), now - age_s)
            publication.saves = int(queue)  # the others were delivered: who repeats one need not wait
            if queue:
                self.unsettled_total += 1
                self._lanes.restore(publication, notice.priority, now)
                self._wake()

    async def finished(self) -> None:
        """Every publish that was begun is durable or refused."""
        while self._commits:
            await asyncio.wait(self._commits)

    def _publication(self, notice: Notice, *, is_restored: bool = False) -> Publication:
        publication = Publication(notice, self._now(), is_restored=is_restored)
        publication.on_settled = self._settled
        return publication

    def _settled(self, publication: Publication) -> None:
        self.unsettled_total -= 1
        self._on_settled(publication)

    def _count(self, notice: Notice, result: str) -> None:
        self._metrics.count_notice(notice.target.kind.value, notice.priority.name.lower(), result)

    def _notice(self, submission: Submission, sender: Sender, idempotency_key: str) -> Notice:
        now_ms = self._wall_ms()
        expires_ms = 0 if submission.expires_in_s is None else now_ms + int(submission.expires_in_s * 1000)
        return Notice(
            seq=next(self._seqs),
            message_id=submission.message_id or new_message_id(now_ms),
            content=self._content(submission.content),
            target=self._target(submission),
            accepted_ms=now_ms,
            type=_notice_type(submission.type),
            data=self._data(submission.data),
            priority=_priority(submission.priority),
            need_confirm=submission.need_confirm,
            expires_ms=expires_ms,
            idempotency_key=idempotency_key,
            sender_id=sender.user_id,
            sender_name=sender.name,
        )

    def _content(self, content: str) -> str:
        limit = self._live.config.limits.max_content_chars
        if len(content) > limit:
            raise RequestError(
                ErrorCode.CONTENT_TOO_LONG,
                f"content: {len(content)} characters, at most {limit} are allowed",
                details={"field": "content", "max": limit},
            )
        return content

    def _data(self, data: Any) -> Any:
        if data is None:
            return None
        limit = self._live.config.limits.max_data_bytes
        if _is_deeper(data, MAX_DATA_DEPTH):
            text = f"data: nested more than {MAX_DATA_DEPTH} levels deep"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "data", "max": MAX_DATA_DEPTH})
        try:
            size = len(msgspec.json.encode(data))
            msgspec.msgpack.encode(data)  # what JSON can say and MessagePack cannot: integers beyond 64 bits
        except OverflowError:
            text = "data: integers beyond 64 bits"
            raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "data"}) from None
        if size > limit:
            raise RequestError(
                ErrorCode.BODY_TOO_LARGE,
                f"data: {size} bytes as JSON, at most {limit} are allowed",
                details={"field": "data", "max": limit},
            )
        return data

    def _target(self, submission: Submission) -> Target:
        kind = TargetKind(submission.target)
        self._check_ids(kind, submission)
        return Target(
            kind=kind,
            user_ids=tuple(dict.fromkeys(submission.user_ids)) if kind is TargetKind.CUSTOM else (),
            roles=tuple(dict.fromkeys(submission.roles)) if kind is TargetKind.ROLE else (),
            exclude_ids=tuple(dict.fromkeys(submission.exclude_ids)),
        )

    def _check_ids(self, kind: TargetKind, submission: Submission) -> None:
        if kind is TargetKind.CUSTOM and not submission.user_ids:
            raise RequestError(
                ErrorCode.MISSING_USER_IDS, 'user_ids: required with target "custom"', details={"field": "user_ids"}
            )
        if kind is TargetKind.ROLE and not submission.roles:
            raise RequestError(
                ErrorCode.INVALID_REQUEST, 'roles: required with target "role"', details={"field": "roles"}
            )
        limit = self._live.config.limits.max_user_ids
        for field, ids in (("user_ids", submission.user_ids), ("exclude_ids", submission.exclude_ids)):
            if len(ids) > limit:
                raise RequestError(
                    ErrorCode.TOO_MANY_USER_IDS,
                    f"{field}: {len(ids)} ids, at most {limit} are allowed",
                    details={"field": field, "max": limit},
                )


async def _is_journaled(attempt: _Attempt) -> bool:
    """Whether the first publish of a repeated one was kept; waits while that is undecided."""
    try:
        await asyncio.shield(attempt.journaled)
    except StoreError:
        return False
    return True


def new_message_id(now_ms: int) -> str:
    """Unique, and sorted by time to the millisecond."""
    return f"{now_ms:012x}{secrets.token_hex(10)}"


def dedup_keys(notice: Notice, *, is_named: bool) -> list[str]:
    """By what a repeat is recognised: the publisher's message_id and idempotency key."""
    keys = [f"id:{notice.message_id}"] if is_named else []
    if notice.idempotency_key:
        keys.append(f"key:{notice.idempotency_key}")
    return keys


def _stored_notice(row: PushRow, seq: int, now_ms: int, sender: Sender) -> Notice:
    return Notice(
        seq=seq,
        message_id=row.message_id,
        content=row.content,
        target=Target(
            kind=TargetKind(row.target), user_ids=tuple(row.target_user_ids or ()), roles=tuple(row.target_roles or ())
        ),
        accepted_ms=now_ms,
        type=row.message_type,
        data=row.extra_data,
        priority=Priority(row.priority),
        need_confirm=row.need_confirm,
        expires_ms=row.expires_ms,
        sender_id=sender.user_id,
        sender_name=sender.name,
        is_resent=True,
    )


def _notice_type(name: str) -> str:
    if name in wire.RESERVED_TYPES:
        raise RequestError(
            ErrorCode.INVALID_REQUEST, f"type: {name!r} is a type of the protocol itself", details={"field": "type"}
        )
    return name


def _is_deeper(data: Any, levels: int) -> bool:
    """Whether lists and objects stand in each other more than `levels` deep."""
    inner = [data]
    for _ in range(levels + 1):
        containers = [item.values() if isinstance(item, dict) else item for item in inner if type(item) in (dict, list)]
        if not containers:
            return False
        inner = [item for container in containers for item in container]
    return True


def _priority(value: int | str) -> Priority:
    return Priority[value.upper()] if isinstance(value, str) else Priority(value)
