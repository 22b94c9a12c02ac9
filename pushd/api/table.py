"""The API as one table: method, path, who may, the handler, and the shapes of what goes in and comes out."""

from __future__ import annotations

from pushd.api import forms, views
from pushd.api import records as records_api
from pushd.api.endpoint import Endpoint, Rights
from pushd.api.publishing import Api
from pushd.delivery.submission import Submission

USER, ADMIN = Rights.USER, Rights.ADMIN
RECEIPTS = dict[str, list[views.ReceiptView]]

# Below `server.api_prefix`.
# fmt: off
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("POST", "/system/notice", ADMIN, Api.publish, views.Published,
             "Publish a notice.", forms.WaitQuery, Submission, is_idempotent_by_key=True),
    Endpoint("POST", "/system/notices", ADMIN, Api.publish_batch, views.PublishedBatch,
             "Publish many notices.", body=forms.BatchBody),
    Endpoint("GET", "/notification/records", ADMIN, records_api.records, views.Records,
             "List push records.", forms.RecordsQuery),
    Endpoint("GET", "/notification/records/{message_id}", ADMIN, records_api.record, views.RecordDetail,
             "One push record, and how far it came."),
    Endpoint("DELETE", "/notification/records/{message_id}", ADMIN, records_api.delete, views.Deleted,
             "Drop a push record and its receive records."),
    Endpoint("POST", "/notification/records/{message_id}/resend", ADMIN, Api.resend, views.Published,
             "Push again to those who have not received it.", forms.WaitQuery),
    Endpoint("GET", "/notification/stats", ADMIN, records_api.stats, views.PushStatsView,
             "Sums over push records.", forms.StatsQuery),
    Endpoint("GET", "/notification/admin-receive-records", ADMIN, records_api.receive_records, views.ReceiveRecords,
             "List receive records.", forms.ReceiveRecordsQuery),
    Endpoint("POST", "/notification/receive-records/batch", ADMIN, records_api.receive_records_of_users, RECEIPTS,
             "The newest receive records of many users.", body=forms.UsersBody),
    Endpoint("GET", "/notification/messages/{message_id}/receive-status", ADMIN, Api.receive_status, views.StatusView,
             "How far a notice came."),
    Endpoint("POST", "/notification/mark-read", USER, Api.mark_read, views.Marked,
             "The user has read a notice.", body=forms.MarkBody),
    Endpoint("POST", "/notification/mark-confirmed", USER, Api.mark_confirmed, views.Marked,
             "The user confirmed a notice.", body=forms.MarkBody),
    Endpoint("POST", "/notification/batch-mark-read", USER, Api.batch_mark_read, views.MarkedBatch,
             "The user has read many notices.", body=forms.MarksBody),
    Endpoint("GET", "/notification/online-users", ADMIN, records_api.online_users, views.OnlineUsers,
             "Who is connected to this node."),
    Endpoint("GET", "/notification/admin-receive-stats", ADMIN, records_api.receive_totals, views.ReceiveTotals,
             "Receive records counted, in all and by user.", forms.ReceiveStatsQuery),
    Endpoint("GET", "/notification/user-summary", USER, records_api.user_summary, views.Summary,
             "A user's notices, counted.", forms.UserQuery),
    Endpoint("GET", "/notification/offline-messages", USER, Api.offline_messages, views.OfflineMessages,
             "What waits in a mailbox.", forms.UserQuery),
    Endpoint("DELETE", "/notification/offline-messages", ADMIN, Api.clear_offline_messages, views.Cleared,
             "Empty a mailbox.", forms.UserQuery),
    Endpoint("POST", "/websocket/disconnect", ADMIN, Api.disconnect, views.Closed,
             "Revoke live connections.", body=forms.DisconnectBody),
    Endpoint("GET", "/websocket/stats", ADMIN, Api.stats, views.Stats, "What the node does."),
    Endpoint("GET", "/ws/stats", ADMIN, Api.stats, views.Stats, "What the node does."),
    Endpoint("GET", "/websocket/health", ADMIN, Api.node_health, views.NodeHealth, "How the node is."),
    Endpoint("GET", "/ws/health", ADMIN, Api.node_health, views.NodeHealth, "How the node is."),
)
# fmt: on
