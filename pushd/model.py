"""What pushd talks about: notices, whom they are for, and what became of them.

Times are integers: milliseconds since the Unix epoch (`_ms`), unless a name says otherwise.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

import msgspec

from pushd.user_ids import GivenUserId as GivenUserId
from pushd.user_ids import UserId as UserId

# Of the protocol's own frames: no publisher's notice has one of these types.
RESERVED_TYPES = frozenset({"hello", "pong", "receipt", "error", "revoke", "update", "unread", "remind"})
RESERVED_PREFIX = "pushd."
DEFAULT_TYPE = "system_notice"


def is_reserved(name: str) -> bool:
    """Whether a type belongs to the protocol, so that no publisher's notice has it."""
    return name in RESERVED_TYPES or name.startswith(RESERVED_PREFIX)


def public_type(name: str) -> str:
    """The type under which a notice that waited goes out: not one of the protocol's, whoever wrote it, and when."""
    return DEFAULT_TYPE if not name or is_reserved(name) else name


class Priority(IntEnum):
    """One lane each; a higher one is always served first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    URGENT = 3


class TargetKind(StrEnum):
    """Whom a notice addresses."""

    ALL = "all"
    ADMIN = "admin"
    ROLE = "role"
    CUSTOM = "custom"
    ONLINE = "online"
    GROUP = "group"


class Target(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A notice's addressees: `user_ids` belong to CUSTOM, `roles` to ROLE, `groups` to GROUP, `exclude_ids` to any
    kind."""

    kind: TargetKind
    user_ids: tuple[UserId, ...] = ()
    roles: tuple[int, ...] = ()
    exclude_ids: tuple[UserId, ...] = ()
    groups: tuple[str, ...] = ()


def recipients_text(target: Target) -> str:
    """Whom a notice was for, in the words of CONTRACT section 3: "all_users", "all_admins", "3_users"."""
    if target.kind is TargetKind.CUSTOM:
        user_ids, exclude_ids = target.user_ids, target.exclude_ids
        is_obvious = len(user_ids) == 1 and not exclude_ids
        return "1_users" if is_obvious else f"{len(set(user_ids).difference(exclude_ids))}_users"
    return "all_admins" if target.kind is TargetKind.ADMIN else f"{target.kind}_users"


def parsed(data: Any) -> Any:
    """The `data` of a notice, of a waiting item or of a record as values, whichever of its forms it has."""
    return msgspec.json.decode(data) if type(data) is msgspec.Raw else data


class Step(StrEnum):
    """How far a recipient got with a notice; the later ones include the former."""

    RECEIVED = "received"
    READ = "read"
    CONFIRMED = "confirmed"


class Reminder(msgspec.Struct, frozen=True):
    """The `n`th reminder of a notice that was accepted at `accepted_ms`: for those who have not got to `step`."""

    n: int
    step: Step
    accepted_ms: int


EDITED = ("content", "title", "data", "url", "tags", "expires_ms", "version")


class Notice(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An accepted notice, as the journal keeps it.

    `seq` orders notices of this node (the journal's key); `data` is any JSON value or None: a msgspec.Raw, which is the
    JSON itself, where it was published or sent again in this process, else as values (`parsed`). `expires_ms` 0 means
    never.
    """

    seq: int
    message_id: str
    content: str
    target: Target
    accepted_ms: int
    type: str = DEFAULT_TYPE
    data: Any = None
    priority: Priority = Priority.NORMAL
    need_confirm: bool = False
    expires_ms: int = 0
    idempotency_key: str = ""
    sender_id: UserId = 0
    sender_name: str = ""
    title: str = ""
    url: str = ""
    tags: tuple[str, ...] = ()
    version: int = 1  # of what it says: each edit is the next one
    is_resent: bool = False  # only for those of its recipients who have not received it,
    reminder: Reminder | None = None  # or who have not got so far
    send_at_ms: int = 0  # when it was to go out, where it was scheduled; before that `seq` is 0, and `accepted_ms` this
    submitted_ms: int = 0  # then: when its publisher scheduled it

    def saying(self, newest: Notice) -> Notice:
        """The same notice with what `newest` says, which is an edited version of it."""
        return msgspec.structs.replace(self, **newest.said())

    def said(self) -> dict[str, Any]:
        """What of it an edit may change, by name: its copies have fields of these names, too."""
        return {name: getattr(self, name) for name in EDITED}

    def is_expired(self, now_ms: int) -> bool:
        """True when the notice must no longer be delivered."""
        return 0 < self.expires_ms <= now_ms


class User(msgspec.Struct, frozen=True):
    """An account, as the directory has it or as a token says.

    `issued_ms`: when that token was made (`iat`); 0: it does not say; None: no token says this.
    """

    user_id: UserId
    username: str = ""
    role: int = 0
    issued_ms: int | None = None

    def after(self, known: User | None) -> User | None:
        """What is known once this was said, too; None where that is nothing new.

        The newest token counts: of two that say when they were made the later one, else the one that is used later.
        A token without a name leaves the name; one without a role says role 0.
        """
        if known is None:
            return self
        known_ms = known.issued_ms or 0
        if self.issued_ms is None or 0 < self.issued_ms < known_ms:
            return None
        told = User(self.user_id, self.username or known.username, self.role, max(self.issued_ms, known_ms))
        return None if told == known else told

    def is_as(self, other: User | None) -> bool:
        """Whether both have the same name and role."""
        return other is not None and (self.username, self.role) == (other.username, other.role)


class Group(msgspec.Struct, frozen=True):
    """Users addressed together, as the directory has them: what people call them, and how many they are."""

    name: str
    title: str = ""
    users: int = 0


class Membership(NamedTuple):
    """A line of a file of groups: this user is in the group; None: the line names the group, and nobody."""

    line: int
    group: str
    user_id: UserId | None
    title: str


class Arrival(msgspec.Struct, frozen=True):
    """A user's first connection, as presence stores it."""

    user_id: UserId
    username: str
    connection_id: str
    client_ip: str
    user_agent: str
    at_ms: int


class Channel(StrEnum):
    """How a receive record says its notice went out."""

    WEBSOCKET = "websocket"
    OFFLINE = "offline"


class DeliveryStatus(StrEnum):
    """How far a notice came with one recipient. Only moves forward: pending, offline, expired, delivered."""

    PENDING = "pending"
    OFFLINE = "offline"
    EXPIRED = "expired"
    DELIVERED = "delivered"


class Mark(StrEnum):
    """What a recipient did with a notice; CONFIRMED includes READ, and both include that it was received."""

    READ = "read"
    CONFIRMED = "confirmed"


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What is known about one recipient at one moment: shared by all recipients it is true of.

    Outcomes of the same recipient merge: flags and times once set stay set, so writing one twice or
    two in the wrong order does no harm.
    """

    created_ms: int
    is_online: bool = False
    received_ms: int = 0
    status: DeliveryStatus = DeliveryStatus.PENDING
    channel: Channel = Channel.WEBSOCKET


class Receipt(msgspec.Struct, frozen=True):
    """One receive record to be written: `outcome` of `message_id` for one user."""

    message_id: str
    user_id: UserId
    username: str
    role: int
    connection_id: str
    client_ip: str
    user_agent: str
    outcome: Outcome
    device_type: str = ""
    platform: str = ""
    browser: str = ""
    is_late: bool = False  # an answer to a copy from the mailbox: writes nothing when the push record is gone
    message_type: str = ""  # of the notice; "": not known here
    tags: tuple[str, ...] = ()
    expires_ms: int = 0


class PushRecord(msgspec.Struct, frozen=True):
    """The record of a notice: written when it is taken up, and again when its recipients are known.

    `is_whole`: what the notice says may be another than what was written before.
    """

    notice: Notice
    status: str
    total_count: int
    online_count: int
    is_whole: bool = False


class MailboxItem(msgspec.Struct, omit_defaults=True):
    """One waiting notice, in the shape other programs may also write to a mailbox (CONTRACT section 5).

    `time` is for people, "YYYY-MM-DD HH:MM:SS"; `ts` and `saved_at` are milliseconds since the epoch; `data` has the
    forms of a notice's.
    """

    type: str
    content: str
    message_id: str = ""
    data: Any = None
    time: str = ""
    ts: int = 0
    priority: int = 1
    need_confirm: bool = False
    expires_ms: int = 0
    saved_at: int = 0
    title: str = ""
    url: str = ""
    tags: tuple[str, ...] = ()
    version: int = 1


class Amended(msgspec.Struct, frozen=True):
    """What was changed of a notice after it was accepted.

    `version`: of what it says now; `reminders`: how often its recipients were reminded, the last time at `reminded_ms`.
    """

    message_id: str
    is_revoked: bool = False
    version: int = 1
    reminders: int = 0
    reminded_ms: int = 0


class Version(msgspec.Struct, frozen=True):
    """What a notice said before it was edited, and who replaced that, and when."""

    notice: Notice
    at_ms: int
    editor_id: UserId
    editor_name: str


class Client(msgspec.Struct):
    """What the edge knows of a connection's client; `Connection.details`."""

    username: str
    role: int
    client_ip: str
    user_agent: str
    connected_ms: int = 0
    token_id: str = ""  # of the token that it came with, until another one comes
    issued_ms: int | None = None  # when that was made, until the directory has learned it (`User.issued_ms`)
    tokens: tuple[tuple[str, float], ...] = ()  # from then on, all that it answers for: id, and when it expires (s)
    number: int = 0  # by which the ledger knows it, of this time (`ports.ReceiptLedger.client`)
