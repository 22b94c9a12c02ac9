"""What waits in a mailbox as people see it."""

from __future__ import annotations

import msgspec

from pushd.api.mailboxes import offline_message
from pushd.model import MailboxItem


def test_a_waiting_notice_shows_nothing_internal() -> None:
    item = MailboxItem(type="t", content="c", message_id="m", ts=1_740_758_400_123, expires_ms=1_740_758_400_124)
    assert "expires_ms" not in msgspec.to_builtins(offline_message(item))


def test_a_waiting_notice_has_a_title_a_url_and_tags_where_it_has_some() -> None:
    item = MailboxItem(type="t", content="c", message_id="m")
    assert not {"title", "url", "tags"} & msgspec.to_builtins(offline_message(item)).keys()
    item = MailboxItem(type="t", content="c", message_id="m", title="T", url="/u", tags=("a",))
    assert msgspec.to_builtins(offline_message(item)).items() >= {"title": "T", "url": "/u", "tags": ("a",)}.items()
