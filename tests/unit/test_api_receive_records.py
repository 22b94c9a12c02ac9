"""Receive records as people see them."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from pushd.api.receive_records import receipt_stats_view, receipt_view, user_receipts_view
from pushd.records import ReceiptRow, ReceiptStats, UserReceipts

ZONE = ZoneInfo("Asia/Shanghai")
AT_MS, AT = 1_740_758_400_123, "2025-03-01T00:00:00.123+08:00"

RECEIPT = ReceiptRow(
    message_id="m", user_id=7, username="ann", user_role=1, is_online=True, is_received=True, received_ms=AT_MS,
    is_read=False, read_ms=0, is_confirmed=False, confirmed_ms=0, device_type="desktop", platform="Linux",
    browser="Firefox", client_ip="::1", user_agent="x", connection_id="c", push_channel="websocket",
    delivery_status="delivered", retry_count=0, error_message=None, created_ms=AT_MS, updated_ms=AT_MS,
)  # fmt: skip


def test_a_receive_record() -> None:
    view = receipt_view(RECEIPT, ZONE)
    assert (view.received_at, view.read_at, view.confirmed_at) == (AT, None, None)
    assert (view.created_at, view.updated_at) == (AT, AT)
    for field in ("message_id", "user_id", "username", "device_type", "push_channel", "delivery_status", "client_ip"):
        assert getattr(view, field) == getattr(RECEIPT, field)


def test_counts_with_rates() -> None:
    view = receipt_stats_view(ReceiptStats(8, 6, 4, 2, 1))
    assert (view.receive_rate, view.read_rate, view.confirm_rate, view.online_rate) == (50.0, 25.0, 12.5, 75.0)
    assert receipt_stats_view(ReceiptStats()).online_rate == 0.0
    user = user_receipts_view(UserReceipts(7, "ann", 8, 4, 2, 1))
    assert (user.receive_rate, user.read_rate, user.confirm_rate) == (50.0, 25.0, 12.5)
