"""What can be carried, is; by everything that may have to."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from typing import Any

import bson
import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.values import (
    MAX_NAME_CHARS,
    MAX_ROLE,
    MAX_TAG_CHARS,
    MAX_TAGS,
    MAX_TITLE_CHARS,
    MIN_ROLE,
    clean_name,
    describe,
    is_link,
    is_plain,
    is_whole,
    usable_link,
    usable_tags,
    usable_title,
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def carry(value: Any) -> None:
    """Through everything that may have to carry it, unchanged."""
    assert orjson.loads(orjson.dumps(value)) == value
    assert msgspec.json.decode(msgspec.json.encode(value)) == value
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value)) == value
    assert bson.decode(bson.encode({"value": value})) == {"value": value}
    with closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute("SELECT ?", (value,)).fetchone() == (value,)
        row = connection.execute("SELECT json_extract(?, '$[0]')", (orjson.dumps([value]).decode(),)).fetchone()
        assert row == (value,)


@given(anything)
def test_a_clean_name_can_be_carried(value: Any) -> None:
    name = clean_name(value)
    carry(name)
    assert len(name) <= MAX_NAME_CHARS
    assert clean_name(name) == name
    assert is_plain(name)
    if isinstance(value, str) and is_plain(value):
        assert name == value[:MAX_NAME_CHARS]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("bob\ud83d", "bob\ufffd"),
        ("a\0b\x1f\x7f\x9f", "a\ufffdb\ufffd\ufffd\ufffd"),
        ("Zoë 博布 👩\u200d🚀\u00a0", "Zoë 博布 👩\u200d🚀\u00a0"),  # with what isprintable() does not like
        ("x" * 300, "x" * 255),
        (None, ""),
        (7, ""),
        (["bob"], ""),
        (b"bob", ""),
    ],
)
def test_names(value: Any, name: str) -> None:
    assert clean_name(value) == name


@given(anything)
def test_a_role_can_be_carried(value: Any) -> None:
    if is_whole(value, MIN_ROLE, MAX_ROLE):
        carry(value)


@pytest.mark.parametrize("value", [MIN_ROLE - 1, MAX_ROLE + 1, 2**63, 2**64, True, 1.0, math.nan, "1", None, [1]])
def test_what_is_no_role(value: Any) -> None:
    assert not is_whole(value, MIN_ROLE, MAX_ROLE)


@given(anything)
def test_a_description_is_short_and_quotes_nothing(value: Any) -> None:
    text = describe(value)
    assert len(text) <= 30
    carry(text)


def test_descriptions() -> None:
    assert [describe(value) for value in (None, True, 7, 2**64, 10**5000, 1.5, "secret", [1], {})] == [
        "none",
        "true",
        "7",
        "a number beyond 64 bits",
        "a number beyond 64 bits",
        "1.5",
        "a text",
        "a list",
        "an object",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "/a", "/orders/5?x=1#y", "/a//b", "/:80", "http://a", "https://a.test/x y".replace(" ", "%20"),
        "https://例え.test/道?q=é", "https://user@a.test:8443/", "http://[::1]/", "https://[2001:db8::7]:80?x",
        "/" + "x" * 2047,
    ],
)  # fmt: skip
def test_links(text: str) -> None:
    assert is_link(text)
    assert usable_link(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "javascript:alert(1)", "JavaScript:alert(1)", "java\tscript:alert(1)", "data:text/html,x", "vbscript:x",
        "mailto:a@b", "//evil.test", "///evil.test", "/\\evil.test", "\\\\evil.test", "/\t/evil.test", "/\n/evil.test",
        "\t/a", "/a\0", "/a\x7f", "/a\x85", "/a b", " /a", "/a ", "/a\n", "http:/a", "http:a", "http://", "http:///a",
        "https://?x", "https://#x", "http://\\a", "http:\\\\a", "HTTP://a", "Https://a", "hTTps://a", " http://a",
        "ftp://a", "a", "a.test", "?x", "#x", "./a", "../a", "http://a\u2028b", "/" + "x" * 2048, "\u3000/a",
        "https:\n//a", "http://[", "http://[x]/", "http://[::1", "http://[1:2]/", "http://a[b]",
        "http://\u2100", "http://<a>",
    ],
)  # fmt: skip
def test_what_is_no_link(text: str) -> None:
    assert not is_link(text)
    assert usable_link(text) == ""


@given(anything)
def test_whatever_stands_for_title_url_and_tags_can_be_used(value: Any) -> None:
    title, link, tags = usable_title(value), usable_link(value), usable_tags(value)
    assert len(title) <= MAX_TITLE_CHARS
    title.encode()  # it has no half surrogates
    carry(link)
    assert is_link(link)
    assert len(tags) == len(set(tags)) <= MAX_TAGS
    for tag in tags:
        carry(tag)
        assert 0 < len(tag) <= MAX_TAG_CHARS


def test_of_tags_those_are_left_that_can_be_used() -> None:
    assert usable_tags(["a", "", "b", 5, None, "a", "x" * 33, "c\n", ["d"], "é"]) == ("a", "b", "é")
    assert usable_tags([str(number) for number in range(20)]) == tuple(str(number) for number in range(10))
    assert usable_tags("abc") == usable_tags(None) == usable_tags({"a": 1}) == ()
