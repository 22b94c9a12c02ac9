"""What the core needs from the outside, and what it may rely on.

Every method is called on the event loop and never blocks it. Errors are `StoreUnavailable` (worth
repeating later) or `StoreError`; drivers' own exceptions do not come through. All writes are
idempotent in (`message_id`, `user_id`): doing one twice leaves the store as doing it once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pushd.change_ports import Amendments as Amendments
from pushd.change_ports import Due as Due
from pushd.change_ports import Scheduled as Scheduled
from pushd.change_ports import ScheduleStore as ScheduleStore
from pushd.change_ports import Unfollowed as Unfollowed
from pushd.model import (
    Arrival,
    Group,
    MailboxItem,
    Mark,
    Notice,
    Outcome,
    PushRecord,
    Receipt,
    Step,
    User,
    UserId,
    Version,
)
from pushd.records import (
    InboxFilter,
    InboxPage,
    OnlineStatus,
    Part,
    PushFilter,
    PushRow,
    PushSort,
    PushStats,
    ReceiptFilter,
    ReceiptRow,
    ReceiptSort,
    ReceiptStats,
    UserReceipts,
    UserSummary,
)

# Called on the loop for every operation: store, operation, seconds it took, whether it succeeded.
Observe = Callable[[str, str, float, bool], None]
# Called on the loop: so many elements of a mailbox could not be used, and were left where they are.
LeftAside = Callable[[int], None]
# What a store does by itself for as long as it is open: runs until it is cancelled, and can be run again.
Work = Callable[[], Coroutine[Any, Any, None]]


NO_VERSIONS: Mapping[str, int] = {}


class Journal(Protocol):
    """Accepted notices on disk: what makes a 200 true."""

    async def last_seq(self) -> int:
        """The highest `seq` ever appended; 0 for a new journal."""

    def append(self, notices: Sequence[Notice]) -> Awaitable[None]:
        """Keep `notices`. Once awaited they survive `kill -9` and a power cut (with `delivery.fsync` "off": kill -9).

        What was scheduled leaves the schedule in the same transaction. All or nothing. Raises StoreUnavailable when the
        disk is full; nothing is kept then. What cannot be encoded raises at once or when awaited.
        """

    async def settle(self, seqs: Sequence[int]) -> None:
        """Nothing is left to do for these notices: `unsettled` no longer returns them."""

    async def unsettled(self) -> list[Notice]:
        """Notices that a former process accepted and did not settle, by `seq`; those that can be decoded."""

    async def spoiled(self) -> list[tuple[int, bytes, str]]:
        """What `unsettled` leaves out because it cannot be decoded: `seq`, what is stored, and why."""

    async def since(self, accepted_ms: int) -> list[Notice]:
        """Notices accepted at or after that time, settled or not, by `seq`; `purge` may have taken settled ones.

        What cannot be decoded is left out.
        """

    async def purge(self, before_ms: int, limit: int) -> int:
        """Drop at most `limit` settled notices accepted before that time; how many were dropped."""


class Mailbox(Protocol):
    """Notices waiting for absent users: per user the newest `mailbox.max_per_user`, for `mailbox.ttl_days`."""

    @property
    def writers(self) -> int:
        """How many calls write at the same time, at present."""

    async def save(self, saves: Sequence[tuple[MailboxItem, Collection[UserId]]], *, is_first: bool = False) -> None:
        """Put each item into the mailboxes of its users; order within one user is the order of the call.

        A `message_id` that already waits for a user is not put there twice; with `is_first` the caller knows that none
        of them can, and the store need not look.
        """

    async def read(self, user_ids: Collection[UserId]) -> dict[UserId, list[MailboxItem]]:
        """What waits for each of these users, expired items left out; users with nothing are absent.

        Oldest first: our own by `ts`, what other programs put there by its place. What cannot be read is left out and
        counted. Reading removes nothing. Sees every `save` that returned before the call.
        """

    async def remove(self, removals: Mapping[UserId, Collection[str]]) -> None:
        """Take items, named per user by `message_id`, out; unknown ones are ignored."""

    async def replace(self, item: MailboxItem, user_ids: Collection[UserId]) -> None:
        """For whom of these users something waits under the id of `item`, that is in its place from now on."""

    async def clear(self, user_id: UserId) -> int:
        """Empty one user's mailbox; how many items were in it."""

    async def purge(self, now_ms: int, limit: int) -> int:
        """Drop at most `limit` items past their time; how many were dropped. 0 where the store does it by itself."""


class RecordStore(Protocol):
    """Push records (one per notice) and receive records (one per notice and recipient)."""

    async def write(self, records: Sequence[PushRecord], receipts: Sequence[Receipt]) -> None:
        """Create or merge. Flags of a receive record are only ever set, times keep their first value."""

    async def mark(
        self,
        user_id: UserId,
        message_ids: Sequence[str],
        mark: Mark,
        at_ms: int,
        versions: Mapping[str, int] = NO_VERSIONS,
    ) -> list[str]:
        """Note that the user read or confirmed these; the ids for which the user has a receive record, in order.

        `versions`: of which version of a notice a confirmation is, where that is not the first.
        """

    async def receive_status(self, message_id: str) -> ReceiptStats | None:
        """Counts over the receive records; None for an unknown notice."""

    async def received_by(self, message_id: str) -> set[UserId]:
        """The users whose receive record says received."""

    async def not_received_by(self, message_id: str) -> list[UserId]:
        """The users whose receive record says not received."""

    async def not_at(self, message_id: str, step: Step) -> list[UserId]:
        """The users whose receive record says that they have not got to `step`."""

    async def sent_to(self, message_id: str) -> list[UserId]:
        """The users who were connected when it went out, or have received it, as their receive records say."""

    async def edit(self, newest: Notice, versions: Sequence[Version], *, is_reset: bool) -> bool:
        """The notice was edited: its push record says so, with what it said before; with `is_reset` it is unread again
        for whoever has read it. False: there is no push record. For stores outside this process, as `revoke`."""

    async def revoke(self, message_id: str, at_ms: int) -> bool:
        """The notice was revoked: its push record says so, and it is unread for nobody; receive records stay. False:
        there is no push record. For stores outside this process: in others `Amendments` does it."""

    async def unread_counts(self, user_ids: Collection[UserId]) -> dict[UserId, int]:
        """Unread receive records per user, of notices that are neither expired nor revoked; users with none may be
        absent."""

    async def push_records(self, where: PushFilter, sort: PushSort, part: Part) -> list[PushRow]:
        """A part of the matching push records; ties by push time and message_id, so that pages do not overlap."""

    async def push_record(self, message_id: str) -> PushRow | None:
        """One push record."""

    async def push_stats(self, where: PushFilter) -> PushStats:
        """Sums over the matching push records."""

    async def delete(self, message_id: str) -> bool:
        """Drop a push record and its receive records; False when there was none. Not what waits in mailboxes."""

    async def receive_records(self, where: ReceiptFilter, sort: ReceiptSort, part: Part) -> list[ReceiptRow]:
        """A part of the matching receive records, sorted without ties."""

    async def receive_stats(self, where: ReceiptFilter) -> ReceiptStats:
        """Counts over the matching receive records."""

    async def newest_receive_records(self, user_ids: Collection[UserId], limit: int) -> dict[UserId, list[ReceiptRow]]:
        """For each of these users the newest `limit` receive records, newest first, in one round trip; none: absent."""

    async def user_receipts(self, since_ms: int, before_ms: int, limit: int) -> list[UserReceipts]:
        """Receive records created in that time, counted by user; the users with the most first, at most `limit`."""

    async def user_summary(self, user_id: UserId) -> UserSummary:
        """One user's receive records, counted."""

    async def expire(self, since_ms: int, now_ms: int, limit: int) -> int:
        """Mark at most `limit` receive records as expired: not received, of notices that expired after `since_ms`
        and up to `now_ms`; how many were marked."""

    async def purge(self, before_ms: int, limit: int) -> int:
        """Drop at most `limit` records created before that time; how many were dropped. 0 where the store does it."""


class Inbox(Protocol):
    """Each user's own list of notices: those of which he has a receive record and that are neither expired nor revoked.

    What the records say is shown, and what is changed here is changed there. A user who is not known has an empty one.
    """

    async def page(self, user_id: UserId, where: InboxFilter, limit: int, before: str | None) -> InboxPage:
        """At most `limit` of the matching notices, newest first: from the beginning, or behind a cursor.

        Whoever follows the cursors gets no notice twice, and none is left out that was there all the time, whatever
        comes, goes or changes meanwhile. Raises ValueError for a text that is no cursor.
        """

    async def read_all(self, user_id: UserId, where: InboxFilter, until_ms: int, at_ms: int) -> list[str]:
        """Note that the user has read everything that is unread, not archived and matches, and was accepted up to
        `until_ms`; which notices these were. On return that is on disk. `where.is_read` and `where.is_archived` make
        no difference."""

    async def archive(self, user_id: UserId, message_ids: Sequence[str], at_ms: int) -> list[str]:
        """Put these away, and note that the user has read them; the ids for which there is a receive record, in order.

        On return that is on disk.
        """

    async def unarchive(self, user_id: UserId, message_ids: Sequence[str], at_ms: int) -> list[str]:
        """Put these back, as read as they are; the ids for which there is a receive record, in order."""

    def unread_changed(self) -> Collection[UserId] | None:
        """Whose count of unread notices may have changed since this was asked last; None: anybody's."""


class ReceiptLedger(Protocol):
    """What a RecordStore in this process can do at once, without a receipt object for each recipient: the embedded one.

    Notices are named by their `seq` and, where that is not known or not the one under which their receipts stand, by
    their `message_id`. Whoever asks the store sees a change from then on; once `commit` returns it is on disk.
    """

    @property
    def oldest_client(self) -> int:
        """Numbers of clients below are of an earlier time, and are not used any more."""

    def client(self, connection_id: str, client_ip: str, user_agent: str) -> int:
        """The number that stands for these facts in `note`."""

    def note(
        self, seq: int, message_id: str, user_ids: Sequence[UserId], outcome: Outcome, clients: list[int], many: int
    ) -> bool:
        """Merge `outcome` into the receipts of these users; False: nothing is done, the notice is to be found first.

        `clients`: a number for each user, 0 where there is no connection, or none at all; `many`: how many recipients
        the notice has, where that is known when the first of them are noted, else 0. Notices that do not exist have no
        receipts, nor have those whose record was deleted. Costs 0.1 us a recipient.
        """

    def user_number(self, user_id: UserId) -> int | None:
        """By which the user is known here; None for who has not been noted yet."""

    def sent(self, seq: int, number: int, client: int, received_ms: int) -> bool:
        """It went out to its only recipient, who is connected and has received it, unless `received_ms` is 0: `note`
        and `conclude`. False: these have to do it."""

    def received(self, seq: int, number: int, at_ms: int) -> bool:
        """`note` for one user, to whom it went out: he has received it. False: `note` has to do it."""

    def conclude(self, seq: int, message_id: str, status: str) -> bool:
        """The status of a notice's push record; False as in `note`."""

    async def find(self, message_ids: Collection[str]) -> Mapping[str, int]:
        """The `seq` under which the receipts of these stand; the unknown are absent. Raises StoreError."""

    def name(self, users: Sequence[tuple[User, int]]) -> None:
        """What users are called in receipts of the notice with that `seq`, and of later ones."""

    def undescribed(self) -> list[tuple[int, str]]:
        """Clients whose devices are not known yet, by number, with their User-Agents."""

    def describe(self, client: int, device: tuple[str, str, str]) -> None:
        """device_type, platform and browser of a client."""

    async def commit(self) -> None:
        """All that was changed before is on disk. Raises StoreError; the changes are kept, and go with the next."""


class Directory(Protocol):
    """Who exists, with name and role. pushd only reads it, but for users it learns from their connections."""

    async def users(self, user_ids: Collection[UserId]) -> dict[UserId, User]:
        """The known ones of these users."""

    async def all_ids(self) -> list[UserId]:
        """Every user id, ascending."""

    async def ids_by_role(self, roles: Collection[int]) -> list[UserId]:
        """Ids of users that have one of these roles, ascending."""

    async def ids_by_group(self, groups: Collection[str]) -> list[UserId]:
        """Ids of users in one of these groups, each once; an unknown group has nobody in it.

        Names are compared byte for byte. Whether somebody of that id is known otherwise plays no part.
        """

    async def groups(self, limit: int) -> list[Group]:
        """The groups there are, by name; the first `limit`."""

    async def learn(self, claims: Sequence[User]) -> set[UserId]:
        """These users exist, as their tokens say; ids of those who are new, or have another name or role now.

        A directory of our own adds unknown ones, and of those who were not imported it follows the newest token
        (`User.after`); what says nothing new writes nothing. Others' directories ignore it.
        """


class PresenceStore(Protocol):
    """The stored form of who is connected. The hub, not this, is the truth for this node."""

    async def connected(self, arrivals: Sequence[Arrival]) -> None:
        """These users' first connection came."""

    async def disconnected(self, departures: Sequence[tuple[UserId, int]]) -> None:
        """These users' last connection went: (`user_id`, `at_ms`)."""

    async def statuses(self, user_ids: Collection[UserId]) -> dict[UserId, OnlineStatus]:
        """What is stored of these users; the unknown are absent."""

    async def alive(self, at_ms: int) -> None:
        """This node lives: whom it leaves marked as online when it crashes was online at least until then."""

    async def reset(self, at_ms: int) -> list[UserId]:
        """Whoever a former process left marked as online is offline, since it was last `alive` or, where it never
        said so, since `at_ms`; who that was."""


class Revocations(Protocol):
    """Which tokens were revoked before they expired."""

    async def revoked(self, token_ids: Collection[str]) -> set[str]:
        """The revoked ones of these (claim `jti`)."""


class OutboxLog(Protocol):
    """Writes that a store could not take, on disk, in order, by the name of the writer they are waiting in."""

    async def append(self, writer: str, bodies: Sequence[bytes]) -> None:
        """Keep these behind what is there. On return they survive what a journal entry survives. All or nothing."""

    async def oldest(self, writer: str, limit: int) -> list[tuple[int, bytes]]:
        """The oldest `limit` that wait, in order, each with its position."""

    async def drop(self, writer: str, position: int) -> None:
        """They are written: forget them up to and including `position`."""

    async def counts(self) -> dict[str, int]:
        """How many wait, by writer; writers with none are absent."""


class SetAside(Protocol):
    """Data that could not be used, on disk for the operator, who has it tried again or drops it.

    A bounded number of entries and bytes: the newest.
    """

    async def keep(self, kind: str, cause: str, body: bytes) -> int:
        """Keep an entry; how many of the oldest had to go for it."""

    async def wanted(self, but: Collection[int], limit: int) -> list[tuple[int, str, bytes]]:
        """The oldest `limit` that are to be tried again, but for those with these ids: id, kind and body of each."""

    async def refuse(self, entry_id: int, cause: str) -> None:
        """It was tried again, and stays aside."""

    async def drop(self, entry_ids: Sequence[int]) -> None:
        """Forget these entries."""

    async def counts(self) -> dict[str, int]:
        """How many there are, by kind; kinds with none are absent."""


class Remote(Protocol):
    """A store outside this process, which may be away."""

    @property
    def store(self) -> str:
        """Its name in health and metrics: mailbox, records, directory, presence."""

    async def check(self) -> None:
        """Return when it answers and can be used, after creating what it lacks (indexes).

        Asked at the start, often while it is away and now and then otherwise. Raises StoreUnavailable, and StartError
        when it can never be used as configured: wrong credentials, a missing table, an index that conflicts.
        """


@dataclass(frozen=True, slots=True)
class Stores:
    """The opened stores of a node; `remotes` are those that may be away.

    `background` is the work they need done while they are open, by name. Whoever opens them runs it, and runs it again
    when it fails (`telemetry.supervision`): with a StoreError when something cannot be read or written, which another
    run may do better; with any other exception when the machinery is broken.
    """

    journal: Journal
    amendments: Amendments
    schedule: ScheduleStore
    outbox: OutboxLog
    mailbox: Mailbox
    records: RecordStore
    inbox: Inbox
    directory: Directory
    presence: PresenceStore
    set_aside: SetAside
    ledger: ReceiptLedger | None = None  # that of `records`, where these are in this process
    remotes: tuple[Remote, ...] = ()
    background: Mapping[str, Work] = field(default_factory=dict)
