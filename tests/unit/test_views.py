"""What answers contain: rates, times, and rows as people see them."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import msgspec
import pytest

from pushd.api import views
from pushd.model import MailboxItem
from pushd.records import PushRow, PushStats, ReceiptRow, ReceiptStats, UserReceipts

ZONE = ZoneInfo("Asia/Shanghai")
AT_MS, AT = 1_740_758_400_123, "2025-03-01T00:00:00.123+08:00"

PUSH = PushRow(
    message_id="m", content="c", message_type="t", target="all", target_user_ids=None, target_roles=None,
    recipients_count="all_users", status="success", success=True, error=None, push_ms=AT_MS, expires_ms=0,
    sender_id=1, sender_name="ann", priority=1, need_confirm=False, extra_data={"a": 1}, total_count=3, online_count=2,
    delivered_count=2, failed_count=0, created_ms=AT_MS, updated_ms=AT_MS,
)  # fmt: skip
RECEIPT = ReceiptRow(
    message_id="m", user_id=7, username="ann", user_role=1, is_online=True, is_received=True, received_ms=AT_MS,
    is_read=False, read_ms=0, is_confirmed=False, confirmed_ms=0, device_type="desktop", platform="Linux",
    browser="Firefox", client_ip="::1", user_agent="x", connection_id="c", push_channel="websocket",
    delivery_status="delivered", retry_count=0, error_message=None, created_ms=AT_MS, updated_ms=AT_MS,
)  # fmt: skip


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(0, 0, 0.0), (0, 5, 0.0), (5, 5, 100.0), (1, 3, 33.33), (2, 3, 66.67), (1, 8, 12.5), (1, 100_000, 0.0)],
)
def test_rates_are_percent_with_two_decimals(part: int, whole: int, expected: float) -> None:
    assert views.rate(part, whole) == expected


@pytest.mark.parametrize(("at_ms", "text"), [(AT_MS, AT), (0, "1970-01-01T08:00:00.000+08:00")])
def test_moments(at_ms: int, text: str) -> None:
    assert views.moment(at_ms, ZONE) == text


def test_moments_that_no_calendar_has() -> None:
    for zone in (ZONE, ZoneInfo("America/Adak"), ZoneInfo("Pacific/Kiritimati")):
        assert views.moment(2**63 - 1, zone).startswith("9999-12-3")
        assert views.moment(-(2**63), zone).startswith("0001-01-0")


def test_a_push_record() -> None:
    view = views.push_view(PUSH, ZONE)
    assert (view.push_time, view.created_at, view.updated_at, view.expires_at) == (AT, AT, AT, None)
    assert view.extra_data == {"a": 1}
    assert views.push_view(msgspec.structs.replace(PUSH, expires_ms=AT_MS), ZONE).expires_at == AT


def test_a_receive_record() -> None:
    view = views.receipt_view(RECEIPT, ZONE)
    assert (view.received_at, view.read_at, view.confirmed_at) == (AT, None, None)
    assert (view.created_at, view.updated_at) == (AT, AT)
    for field in ("message_id", "user_id", "username", "device_type", "push_channel", "delivery_status", "client_ip"):
        assert getattr(view, field) == getattr(RECEIPT, field)


def test_counts_with_rates() -> None:
    counts = (8, 6, 4, 2, 1)
    view = views.status_view(ReceiptStats(*counts))
    assert (view.receive_rate, view.read_rate, view.confirm_rate) == (50.0, 25.0, 12.5)
    assert views.receipt_stats_view(ReceiptStats(*counts)).online_rate == 75.0
    assert views.receipt_stats_view(ReceiptStats()).online_rate == 0.0
    user = views.user_receipts_view(UserReceipts(7, "ann", 8, 4, 2, 1))
    assert (user.receive_rate, user.read_rate, user.confirm_rate) == (50.0, 25.0, 12.5)
    assert views.push_stats_view(PushStats(1, 2, 3, 4, 5, 6)) == views.PushStatsView(1, 2, 3, 4, 5, 6)


def test_a_waiting_notice_shows_nothing_internal() -> None:
    item = MailboxItem(type="t", content="c", message_id="m", ts=AT_MS, expires_ms=AT_MS + 1)
    assert "expires_ms" not in msgspec.to_builtins(views.offline_message(item))
