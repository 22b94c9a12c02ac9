"""What a value from outside must be, so that everything that may have to carry it can.

Names, roles, ids and times come from tokens, requests, files, tables and documents, and go into SQLite, BSON, MySQL,
Redis, JSON and MessagePack. All of these take a text that is UTF-8 (no lone surrogates), a whole number of signed 64
bits, and a time of the years 1 to 9999. U+0000 ends a text in SQLite's JSON functions and its lower().

Whoever reads such a value asks here. Pure.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Any, TypeGuard

MAX_USER_ID = 2**63 - 1
MIN_ROLE, MAX_ROLE = -(2**31), 2**31 - 1  # what an INT column has room for
MAX_NAME_CHARS = 255
MAX_TOKEN_ID_CHARS = 255
MIN_INT64, MAX_INT64 = -(2**63), 2**63 - 1
# 0001-01-02 to 9999-12-30: a day less at either end, so that every time zone can show them.
MIN_MS, MAX_MS = -62_135_510_400_000, 253_402_214_400_000
NO_NUL = r"\A[^\x00]*\Z"  # a pattern
MAX_TITLE_CHARS = 200
MAX_LINK_CHARS = 2048
MAX_TAGS, MAX_TAG_CHARS = 10, 32
# Patterns. Browsers leave tabs and line ends out of addresses and take a backslash for a slash; //host is another site.
_NO = r"\\\s\x00-\x1f\x7f-\x9f"
LINK = rf"\A(?:https?://[\w.~!$&'()*+,;=:%@-]+(?:[/?#][^{_NO}]*)?|/(?:[^/{_NO}][^{_NO}]*)?)?\Z"
TAG = r"\A[^\x00-\x1f\x7f-\x9f]{1,32}\Z"
# Of a group; a pattern.
GROUP_NAME = r"\A(?!\s)[^\x00-\x1f\x7f-\x9f]{1,64}(?<!\s)\Z"
GROUP_NAME_IN_WORDS = "1 to 64 characters, no control characters, no space at either end"

_LINK = re.compile(LINK)
_LINK_TO_ADDRESS = re.compile(rf"\Ahttps?://\[([0-9A-Fa-f:.]+)\](?::\d+)?(?:[/?#][^{_NO}]*)?\Z")
_GROUP_NAME = re.compile(GROUP_NAME)
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters and surrogates


def is_plain(text: str) -> bool:
    """Whether a text can be encoded and has no control characters."""
    return text.isprintable() or _UNUSABLE.search(text) is None


def clean_name(value: object) -> str:
    """A user's name as well as it can be carried: what cannot be is U+FFFD, the rest is cut; "" for what is no text."""
    if not isinstance(value, str):
        return ""
    return (value if value.isprintable() else _UNUSABLE.sub("\ufffd", value))[:MAX_NAME_CHARS]


def is_link(text: str) -> bool:
    """Whether this is "", or may be the `url` of a notice: http, https, or a path that begins with one "/"."""
    if len(text) > MAX_LINK_CHARS:
        return False
    return _LINK.match(text) is not None or _has_ipv6_address(text)


def _has_ipv6_address(text: str) -> bool:
    found = _LINK_TO_ADDRESS.match(text)
    try:
        return found is not None and bool(IPv6Address(found[1]))
    except ValueError:
        return False


def is_group_name(text: str) -> bool:
    """Whether a group can be called this: GROUP_NAME_IN_WORDS."""
    return _GROUP_NAME.search(text) is not None and is_plain(text)


def usable_title(value: object) -> str:
    """A notice's title, whoever wrote it; "" for none."""
    return _SURROGATE.sub("\ufffd", value[:MAX_TITLE_CHARS]) if isinstance(value, str) else ""


def usable_link(value: object) -> str:
    """A notice's `url`, whoever wrote it; "" for what is none."""
    return value if isinstance(value, str) and is_link(value) and is_plain(value) else ""


def usable_tags(value: object) -> tuple[str, ...]:
    """A notice's tags, whoever wrote them, each once and without what is none."""
    if not isinstance(value, list | tuple):
        return ()
    tags = (tag for tag in value if isinstance(tag, str) and 0 < len(tag) <= MAX_TAG_CHARS and is_plain(tag))
    return tuple(dict.fromkeys(tags))[:MAX_TAGS]


def is_whole(value: object, least: int, most: int) -> TypeGuard[int]:
    """Whether this is a whole number of the range; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def describe(value: object) -> str:
    """A value in a few words, for whoever sent it; texts and nested ones by their kind only."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if value.bit_length() <= 64 else "a number beyond 64 bits"
        case float():
            return str(value)
        case str():
            return "a text"
        case list() | tuple():
            return "a list"
    return "an object"


def is_deeper(data: object, levels: int) -> bool:
    """Whether lists and objects stand in each other more than `levels` deep."""
    inner: list[Any] = [data]
    for _ in range(levels + 1):
        containers = [item.values() if isinstance(item, dict) else item for item in inner if type(item) in (dict, list)]
        if not containers:
            return False
        inner = [item for container in containers for item in container]
    return True
