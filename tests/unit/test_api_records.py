"""Push records as people see them."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import msgspec

from pushd.api.records import PushStatsView, push_stats_view, push_view
from pushd.records import PushRow, PushStats

ZONE = ZoneInfo("Asia/Shanghai")
AT_MS, AT = 1_740_758_400_123, "2025-03-01T00:00:00.123+08:00"

PUSH = PushRow(
    message_id="m", content="c", message_type="t", target="all", target_user_ids=None, target_roles=None,
    recipients_count="all_users", status="success", success=True, error=None, push_ms=AT_MS, expires_ms=0,
    sender_id=1, sender_name="ann", priority=1, need_confirm=False, extra_data={"a": 1}, total_count=3, online_count=2,
    delivered_count=2, failed_count=0, created_ms=AT_MS, updated_ms=AT_MS,
)  # fmt: skip


def test_a_push_record() -> None:
    view = push_view(PUSH, ZONE)
    assert (view.push_time, view.created_at, view.updated_at, view.expires_at) == (AT, AT, AT, None)
    assert view.extra_data == {"a": 1}
    assert push_view(msgspec.structs.replace(PUSH, expires_ms=AT_MS), ZONE).expires_at == AT


def test_a_push_record_has_a_title_a_url_and_tags_where_it_has_some() -> None:
    assert not {"title", "url", "tags"} & msgspec.to_builtins(push_view(PUSH, ZONE)).keys()
    view = push_view(msgspec.structs.replace(PUSH, title="T", url="/u", tags=("a",)), ZONE)
    assert msgspec.to_builtins(view).items() >= {"title": "T", "url": "/u", "tags": ("a",)}.items()


def test_sums() -> None:
    assert push_stats_view(PushStats(1, 2, 3, 4, 5, 6)) == PushStatsView(1, 2, 3, 4, 5, 6)
