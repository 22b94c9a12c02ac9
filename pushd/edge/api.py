"""The handlers of the API: each takes a `Call`, asks the core, and says what goes into `data`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec

from pushd import wire
from pushd._fastpath import Hub
from pushd.dispatch import Dispatcher
from pushd.edge import answers
from pushd.edge.auth import Authenticator, Identity
from pushd.edge.http1 import Request
from pushd.errors import ErrorCode, RequestError
from pushd.health import Health
from pushd.intake import MAX_USER_ID, Accepted, Intake, Sender, Submission, UserId
from pushd.lanes import Lanes
from pushd.live import Live
from pushd.metrics import Metrics, total
from pushd.model import MailboxItem, Mark, Priority, ReceiveStatus, TargetKind
from pushd.outbox import Outbox
from pushd.ports import Stores
from pushd.publication import Publication
from pushd.receipts import Receipts

T = TypeVar("T")
MAX_WAIT_MS = 10_000
MAX_KEY_CHARS = 255


class Batch(msgspec.Struct):
    """The body of a batch publish; each notice is decoded by itself, so that a bad one harms no other."""

    notices: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=1000)]


class MarkBody(msgspec.Struct):
    """One notice to be marked."""

    message_id: wire.MessageId
    user_id: UserId | None = None


class MarksBody(msgspec.Struct):
    """Many notices to be marked."""

    message_ids: wire.MessageIds
    user_id: UserId | None = None


class Call:
    """One request on its way through a handler."""

    __slots__ = ("identity", "params", "request")

    def __init__(self, request: Request, identity: Identity, params: dict[str, str]) -> None:
        self.request = request
        self.identity = identity
        self.params = params

    def body(self, decoder: Callable[[bytes], T]) -> T:
        """The decoded body. Raises RequestError UNSUPPORTED_MEDIA_TYPE, INVALID_JSON or INVALID_REQUEST."""
        media_type = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise RequestError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "Content-Type: application/json is required")
        return decode(decoder, self.request.body)

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number of the query."""
        text = self.request.query.get(name)
        if text is None:
            return default
        digits = text.removeprefix("-")
        if digits.isascii() and digits.isdigit() and len(digits) < 20 and low <= int(text) <= high:
            return int(text)
        raise RequestError(
            ErrorCode.INVALID_REQUEST, f"{name}: expected a whole number from {low} to {high}", details={"field": name}
        )

    def user(self, user_id: int | None) -> int:
        """Whose data this is about: the named user for an admin, else the token's own."""
        mine = self.identity.user_id
        if user_id is None:
            if mine == 0:
                raise RequestError(ErrorCode.INVALID_REQUEST, "user_id: required", details={"field": "user_id"})
            return mine
        if user_id != mine and not self.identity.is_admin:
            raise RequestError(ErrorCode.FORBIDDEN, "user_id: only your own data, or admin rights")
        return user_id

    def queried_user(self) -> int:
        """The same, from the query."""
        named = "user_id" in self.request.query
        return self.user(self.number("user_id", 0, 1, MAX_USER_ID) if named else None)


def decode(decoder: Callable[[bytes], T], body: bytes) -> T:
    """`body` as JSON of the decoder's type. Raises RequestError."""
    try:
        return decoder(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise answers.invalid_json(error) from None


_submission = msgspec.json.Decoder(Submission).decode
_batch = msgspec.json.Decoder(Batch).decode
_mark = msgspec.json.Decoder(MarkBody).decode
_marks = msgspec.json.Decoder(MarksBody).decode


class Api:
    """The handlers and what they need."""

    def __init__(
        self,
        *,
        hub: Hub,
        intake: Intake,
        lanes: Lanes[Publication],
        dispatcher: Dispatcher,
        receipts: Receipts,
        outbox: Outbox,
        stores: Stores,
        health: Health,
        metrics: Metrics,
        live: Live,
        authenticator: Authenticator,
        wall_ms: Callable[[], int],
    ) -> None:
        self.live = live
        self.authenticator = authenticator
        self.metrics = metrics
        self.health = health
        self._hub = hub
        self._intake = intake
        self._lanes = lanes
        self._dispatcher = dispatcher
        self._receipts = receipts
        self._outbox = outbox
        self._mailbox = stores.mailbox
        self._records = stores.records
        self._wall_ms = wall_ms

    # ---- publishing

    async def publish(self, call: Call) -> dict[str, Any]:
        """POST /system/notice."""
        wait_ms = call.number("wait_ms", 0, 0, MAX_WAIT_MS)
        submission = call.body(_submission)
        accepted = await self._intake.accept(submission, _sender(call.identity), _idempotency_key(call.request))
        if wait_ms:
            await _delivered(accepted.publication, wait_ms / 1000)
        return self._published(accepted, is_waited=wait_ms > 0)

    async def publish_batch(self, call: Call) -> dict[str, Any]:
        """POST /system/notices."""
        batch = call.body(_batch)
        sender = _sender(call.identity)
        return {"items": await asyncio.gather(*(self._publish_item(raw, sender) for raw in batch.notices))}

    async def _publish_item(self, raw: msgspec.Raw, sender: Sender) -> dict[str, Any]:
        try:
            accepted = await self._intake.accept(decode(_submission, bytes(raw)), sender)
        except RequestError as error:
            return {
                "success": False,
                "code": error.code.status,
                "error": error.code.value,
                "message": error.text,
                "data": error.details or {},
            }
        return self._published(accepted, is_waited=False)

    def _published(self, accepted: Accepted, *, is_waited: bool) -> dict[str, Any]:
        publication = accepted.publication
        notice = publication.notice
        data = {
            "success": True,
            "message": notice.content,
            "message_id": notice.message_id,
            "push_time": wire.local_time(notice.accepted_ms, self.live.timezone),
            "target": notice.target.kind.value,
            "message_type": notice.type,
            "recipients_count": _recipients_text(publication),
            "status": "delivered" if is_waited and publication.is_delivered else "accepted",
            "duplicate": accepted.is_duplicate,
        }
        if is_waited:
            data |= {
                "total_count": publication.total_count,
                "online_count": publication.online_count,
                "offline_count": publication.offline_count,
                "delivered_count": publication.delivered_count,
            }
        return data

    # ---- receipts

    async def mark_read(self, call: Call) -> dict[str, Any]:
        """POST /notification/mark-read."""
        return await self._mark_one(call, Mark.READ)

    async def mark_confirmed(self, call: Call) -> dict[str, Any]:
        """POST /notification/mark-confirmed."""
        return await self._mark_one(call, Mark.CONFIRMED)

    async def _mark_one(self, call: Call, mark: Mark) -> dict[str, Any]:
        body = call.body(_mark)
        user_id = call.user(body.user_id)
        if not await self._receipts.mark(user_id, [body.message_id], mark):
            raise RequestError(
                ErrorCode.NOT_FOUND, "message_id: no such notice for this user", details={"field": "message_id"}
            )
        return {"message": f"marked as {mark.value}", "success": True}

    async def batch_mark_read(self, call: Call) -> dict[str, Any]:
        """POST /notification/batch-mark-read."""
        body = call.body(_marks)
        message_ids = list(dict.fromkeys(body.message_ids))
        found = set(await self._receipts.mark(call.user(body.user_id), message_ids, Mark.READ))
        failed = [message_id for message_id in message_ids if message_id not in found]
        return {
            "success_count": len(found),
            "failed_count": len(failed),
            "total_count": len(message_ids),
            "success_rate": _rate(len(found), len(message_ids)),
            "errors": [{"message_id": message_id, "error": ErrorCode.NOT_FOUND.value} for message_id in failed],
        }

    async def receive_status(self, call: Call) -> dict[str, Any]:
        """GET /notification/messages/{message_id}/receive-status."""
        await self._outbox.records.writer.flushed()
        status = await self._records.receive_status(call.params["message_id"])
        if status is None:
            raise RequestError(ErrorCode.NOT_FOUND, "message_id: no such notice", details={"field": "message_id"})
        return _receive_status(status)

    # ---- mailboxes

    async def offline_messages(self, call: Call) -> dict[str, Any]:
        """GET /notification/offline-messages."""
        user_id = call.queried_user()
        await self._outbox.mailbox.writer.flushed()
        items = (await self._mailbox.read([user_id])).get(user_id, [])
        return {
            "user_id": user_id,
            "total_count": len(items),
            "offline_messages": [_mailbox_item(item) for item in reversed(items)],
            "query_time": wire.local_time(self._wall_ms(), self.live.timezone),
        }

    async def clear_offline_messages(self, call: Call) -> dict[str, Any]:
        """DELETE /notification/offline-messages."""
        user_id = call.queried_user()
        await self._outbox.mailbox.writer.flushed()
        return {"user_id": user_id, "cleared_count": await self._mailbox.clear(user_id)}

    # ---- the node

    def stats(self, call: Call) -> dict[str, Any]:
        """GET /websocket/stats. Works while a store hangs: asks none."""
        metrics = self.metrics
        published = total(metrics.notices)
        errors = total(metrics.errors) + total(metrics.store_errors)
        return {
            "active_connections": self._hub.connections_total,
            "unique_users": self._hub.users_total,
            "total_connections": int(total(metrics.connects)),
            "total_messages": self._hub.frames_sent,
            "message_latency_ms": {"p50": metrics.latency_ms(0.5), "p99": metrics.latency_ms(0.99)},
            "queue_size": {priority.name.lower(): depth for priority, depth in reversed(sorted_depths(self._lanes))},
            "worker_count": self._dispatcher.worker_count,
            "worker_utilization": round(self._dispatcher.utilization, 4),
            "error_rate": round(errors / max(1.0, published), 4),
            "dedup_hits": int(total(metrics.dedup_hits)),
            "offline_saved": int(total(metrics.mailbox_saved)),
            "offline_delivered": int(total(metrics.mailbox_delivered)),
            "uptime_s": round(self.health.uptime_s, 3),
        }

    def node_health(self, call: Call) -> dict[str, Any]:
        """GET /websocket/health."""
        return {
            "status": self.health.status,
            "active_connections": self._hub.connections_total,
            "queue_size": len(self._lanes),
            "worker_count": self._dispatcher.worker_count,
            "last_error": self.health.error,
            "uptime": round(self.health.uptime_s, 3),
            "stores": self.health.store_states(),
        }


def sorted_depths(lanes: Lanes[Publication]) -> list[tuple[Priority, int]]:
    """How many wait per lane, the lowest priority first."""
    return sorted(lanes.depths().items())


def _sender(identity: Identity) -> Sender:
    return Sender(user_id=identity.user_id, name=identity.username)


def _idempotency_key(request: Request) -> str:
    key = request.headers.get("idempotency-key", "")
    if len(key) > MAX_KEY_CHARS or not key.isprintable():
        raise RequestError(
            ErrorCode.INVALID_REQUEST,
            f"Idempotency-Key: expected at most {MAX_KEY_CHARS} printable characters",
            details={"field": "Idempotency-Key"},
        )
    return key


async def _delivered(publication: Publication, within_s: float) -> None:
    """Return when every recipient was sent to or is in the mailbox, or when the time is over."""
    if publication.is_delivered:
        return
    done = asyncio.Event()
    earlier = publication.on_delivered

    def tell(delivered: Publication) -> None:
        earlier(delivered)
        done.set()

    publication.on_delivered = tell
    try:
        async with asyncio.timeout(within_s):
            await done.wait()
    except TimeoutError:
        pass


def _recipients_text(publication: Publication) -> str:
    target = publication.notice.target
    if target.kind is TargetKind.CUSTOM:
        return f"{len(set(target.user_ids).difference(target.exclude_ids))}_users"
    return {
        TargetKind.ALL: "all_users",
        TargetKind.ADMIN: "all_admins",
        TargetKind.ROLE: "role_users",
        TargetKind.ONLINE: "online_users",
    }[target.kind]


def _rate(part: int, whole: int) -> float:
    """A percentage with 2 decimals; 0 of nothing."""
    return round(100 * part / whole, 2) if whole else 0.0


def _receive_status(status: ReceiveStatus) -> dict[str, Any]:
    return {
        "total_users": status.total_users,
        "online_users": status.online_users,
        "received_users": status.received_users,
        "read_users": status.read_users,
        "confirmed_users": status.confirmed_users,
        "receive_rate": _rate(status.received_users, status.total_users),
        "read_rate": _rate(status.read_users, status.total_users),
        "confirm_rate": _rate(status.confirmed_users, status.total_users),
    }


def _mailbox_item(item: MailboxItem) -> dict[str, Any]:
    return {
        "type": item.type,
        "content": item.content,
        "data": item.data,
        "time": item.time,
        "ts": item.ts,
        "message_id": item.message_id,
        "priority": item.priority,
        "need_confirm": item.need_confirm,
        "saved_at": item.saved_at,
    }
