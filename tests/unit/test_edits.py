"""The next version of a notice."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pushd.config.schema import LimitsConfig
from pushd.delivery.edits import Edit, edited, edited_before_it_goes_out
from pushd.errors import RequestError
from pushd.model import parsed
from tests.samples import notice

NOW_MS = 1_700_000_000_000
LIMITS = LimitsConfig()
WHOLE = notice(7, title="t", url="/u", tags=("a",), data={"n": 1}, expires_ms=NOW_MS + 5000)


def edit(**fields: Any) -> Edit:
    return msgspec.json.decode(msgspec.json.encode(fields), type=Edit)


def test_what_is_left_out_stays() -> None:
    newest = edited(WHOLE, edit(content="new"), NOW_MS, LIMITS)
    assert newest == msgspec.structs.replace(WHOLE, content="new", version=2)
    assert edited(newest, edit(content="new"), NOW_MS, LIMITS).version == 3


def test_null_takes_away() -> None:
    gone = edit(title=None, url=None, tags=None, data=None, expires_in_s=None)
    newest = edited(WHOLE, gone, NOW_MS, LIMITS)
    assert newest == msgspec.structs.replace(WHOLE, title="", url="", tags=(), data=None, expires_ms=0, version=2)


def test_all_of_it() -> None:
    fields = {"content": "c", "title": "T", "url": "https://x/", "tags": ["b", "b"], "data": [1], "expires_in_s": 2.5}
    newest = edited(WHOLE, edit(**fields), NOW_MS, LIMITS)
    said = (newest.content, newest.title, newest.url, newest.tags, parsed(newest.data), newest.expires_ms)
    assert said == ("c", "T", "https://x/", ("b",), [1], NOW_MS + 2500)
    assert WHOLE.saying(newest) == newest


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "INVALID_REQUEST"),
        ({"version": 1, "reset": ["read"]}, "INVALID_REQUEST"),
        ({"content": "c", "version": 2}, "CONFLICT"),
        ({"content": "c" * 501}, "CONTENT_TOO_LONG"),
        ({"data": "d" * 70_000}, "BODY_TOO_LARGE"),
        ({"url": "//x"}, "INVALID_REQUEST"),
        ({"tags": ["\n"]}, "INVALID_REQUEST"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(RequestError) as refused:
        edited(WHOLE, edit(**fields), NOW_MS, LIMITS)
    assert refused.value.code == code


def test_before_it_goes_out() -> None:
    """Its expiry counts from when it goes out."""
    due_ms = NOW_MS + 60_000
    scheduled = msgspec.structs.replace(WHOLE, accepted_ms=due_ms, send_at_ms=due_ms, expires_ms=due_ms + 1000)
    later = edited_before_it_goes_out(scheduled, edit(send_at=due_ms + 500), NOW_MS, LIMITS)
    assert (later.accepted_ms, later.send_at_ms, later.expires_ms) == (due_ms + 500, due_ms + 500, due_ms + 1500)
    both = edited_before_it_goes_out(scheduled, edit(send_at=due_ms + 500, expires_in_s=2), NOW_MS, LIMITS)
    assert (both.expires_ms, both.version) == (due_ms + 2500, 2)
    same = edited_before_it_goes_out(scheduled, edit(content="c", expires_in_s=2), NOW_MS, LIMITS)
    assert (same.send_at_ms, same.expires_ms) == (due_ms, due_ms + 2000)
