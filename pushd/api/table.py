"""The API as one table: method, path, who may, the handler, and the shapes of what goes in and comes out."""

from __future__ import annotations

from typing import NamedTuple

from pushd.api.amending import AmendingHandlers, EditedNotice, RemindBody, RemindedNotice, RevokedNotice
from pushd.api.connections import Closed, ConnectionHandlers, DisconnectBody, OnlineUsers
from pushd.api.endpoint import Endpoint, Rights
from pushd.api.forms import UserQuery
from pushd.api.inbox import AllRead, InboxHandlers, InboxQuery, InboxView, ReadAllBody, UnreadCount
from pushd.api.mailboxes import Cleared, MailboxHandlers, OfflineMessages
from pushd.api.node import NodeHandlers, NodeHealth, Stats
from pushd.api.publishing import BatchBody, Published, PublishedBatch, PublishingHandlers, WaitQuery
from pushd.api.receipts import MarkBody, Marked, MarkedBatch, MarksBody, ReceiptHandlers, StatusView, Summary
from pushd.api.receive_records import (
    ReceiptsByUser,
    ReceiveRecordHandlers,
    ReceiveRecords,
    ReceiveRecordsQuery,
    ReceiveStatsQuery,
    ReceiveTotals,
    UsersBody,
)
from pushd.api.records import (
    Cancelled,
    Deleted,
    PushStatsView,
    RecordDetail,
    RecordHandlers,
    Records,
    RecordsQuery,
    StatsQuery,
)
from pushd.delivery.edits import Edit
from pushd.delivery.submission import Submission

USER, ADMIN = Rights.USER, Rights.ADMIN


class Api(NamedTuple):
    """The handlers, by subject."""

    publishing: PublishingHandlers
    amending: AmendingHandlers
    records: RecordHandlers
    receive_records: ReceiveRecordHandlers
    receipts: ReceiptHandlers
    inbox: InboxHandlers
    mailboxes: MailboxHandlers
    connections: ConnectionHandlers
    node: NodeHandlers


def endpoints(api: Api) -> tuple[Endpoint, ...]:
    """Every endpoint. The paths are below `server.api_prefix`."""
    # fmt: off
    return (
        Endpoint("POST", "/system/notice", ADMIN, api.publishing.publish, Published,
                 "Publish a notice.", WaitQuery, Submission, is_idempotent_by_key=True),
        Endpoint("POST", "/system/notices", ADMIN, api.publishing.publish_batch, PublishedBatch,
                 "Publish many notices.", body=BatchBody),
        Endpoint("GET", "/notification/records", ADMIN, api.records.page, Records,
                 "List push records.", RecordsQuery),
        Endpoint("GET", "/notification/records/{message_id}", ADMIN, api.records.detail, RecordDetail,
                 "One push record, and how far it came."),
        Endpoint("PUT", "/notification/records/{message_id}", ADMIN, api.amending.edit, EditedNotice,
                 "Have a notice say something else, from its next version on.", body=Edit),
        Endpoint("DELETE", "/notification/records/{message_id}", ADMIN, api.records.delete, Deleted,
                 "Drop a push record and its receive records."),
        Endpoint("POST", "/notification/records/{message_id}/resend", ADMIN, api.publishing.resend, Published,
                 "Push again to those who have not received it.", WaitQuery),
        Endpoint("POST", "/notification/records/{message_id}/revoke", ADMIN, api.amending.revoke, RevokedNotice,
                 "Take a notice back: out of every mailbox, and nobody gets it any more."),
        Endpoint("POST", "/notification/records/{message_id}/cancel", ADMIN, api.records.cancel, Cancelled,
                 "See to it that a scheduled notice never goes out."),
        Endpoint("POST", "/notification/records/{message_id}/remind", ADMIN, api.amending.remind, RemindedNotice,
                 "Bring a notice to those again who have not got so far.", body=RemindBody),
        Endpoint("GET", "/notification/stats", ADMIN, api.records.stats, PushStatsView,
                 "Sums over push records.", StatsQuery),
        Endpoint("GET", "/notification/admin-receive-records", ADMIN, api.receive_records.page, ReceiveRecords,
                 "List receive records.", ReceiveRecordsQuery),
        Endpoint("POST", "/notification/receive-records/batch", ADMIN, api.receive_records.of_users, ReceiptsByUser,
                 "The newest receive records of many users.", body=UsersBody),
        Endpoint("GET", "/notification/messages/{message_id}/receive-status", ADMIN, api.receipts.status, StatusView,
                 "How far a notice came."),
        Endpoint("POST", "/notification/mark-read", USER, api.receipts.mark_read, Marked,
                 "The user has read a notice.", body=MarkBody),
        Endpoint("POST", "/notification/mark-confirmed", USER, api.receipts.mark_confirmed, Marked,
                 "The user confirmed a notice.", body=MarkBody),
        Endpoint("POST", "/notification/batch-mark-read", USER, api.receipts.batch_mark_read, MarkedBatch,
                 "The user has read many notices.", body=MarksBody),
        Endpoint("GET", "/notification/inbox", USER, api.inbox.page, InboxView,
                 "A user's own notices, newest first.", InboxQuery),
        Endpoint("GET", "/notification/unread-count", USER, api.inbox.unread_count, UnreadCount,
                 "How many notices a user has not read.", UserQuery),
        Endpoint("POST", "/notification/read-all", USER, api.inbox.read_all, AllRead,
                 "The user has read everything.", body=ReadAllBody),
        Endpoint("POST", "/notification/archive", USER, api.inbox.archive, MarkedBatch,
                 "The user puts notices away, read.", body=MarksBody),
        Endpoint("POST", "/notification/unarchive", USER, api.inbox.unarchive, MarkedBatch,
                 "The user puts notices back.", body=MarksBody),
        Endpoint("GET", "/notification/online-users", ADMIN, api.connections.online_users, OnlineUsers,
                 "Who is connected to this node."),
        Endpoint("GET", "/notification/admin-receive-stats", ADMIN, api.receive_records.totals, ReceiveTotals,
                 "Receive records counted, in all and by user.", ReceiveStatsQuery),
        Endpoint("GET", "/notification/user-summary", USER, api.receipts.summary, Summary,
                 "A user's notices, counted.", UserQuery),
        Endpoint("GET", "/notification/offline-messages", USER, api.mailboxes.show, OfflineMessages,
                 "What waits in a mailbox.", UserQuery),
        Endpoint("DELETE", "/notification/offline-messages", ADMIN, api.mailboxes.clear, Cleared,
                 "Empty a mailbox.", UserQuery),
        Endpoint("POST", "/websocket/disconnect", ADMIN, api.connections.disconnect, Closed,
                 "Revoke live connections.", body=DisconnectBody),
        Endpoint("GET", "/websocket/stats", ADMIN, api.node.stats, Stats, "What the node does."),
        Endpoint("GET", "/ws/stats", ADMIN, api.node.stats, Stats, "What the node does."),
        Endpoint("GET", "/websocket/health", ADMIN, api.node.health, NodeHealth, "How the node is."),
        Endpoint("GET", "/ws/health", ADMIN, api.node.health, NodeHealth, "How the node is."),
    )
    # fmt: on
