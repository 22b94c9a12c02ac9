"""What a look at JSON tells, compared with what parsing it tells; and what becomes of `data` in a publish."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushd.config.schema import LimitsConfig
from pushd.delivery.submission import MAX_DATA_DEPTH, Submission, checked_data, data_bytes_of
from pushd.errors import ErrorCode, RequestError
from pushd.model import Notice, Target, TargetKind
from pushd.protocol._json import survey
from pushd.values import is_deeper

LIMITS = LimitsConfig()
decode = msgspec.json.Decoder(Submission).decode
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.sampled_from(["1e5", "e", '"\\', "//", "123456789012345678901", " [{", "\u2028\0\x7f"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)  # fmt: skip


def data_given(text: bytes) -> bytes:
    """What a notice has that is published with this."""
    data = checked_data(decode(b'{"content":"x","data":' + text + b"}").data, LIMITS)
    assert data is not None
    return bytes(data)


def depth_of(value: Any) -> int:
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth_of, inner), default=0)
    return 0


@st.composite
def texts(draw: st.DrawFn) -> tuple[Any, bytes]:
    """A value, and JSON of it in one of the ways in which people write it."""
    value = draw(values)
    way: dict[str, Any] = {"ensure_ascii": draw(st.booleans()), "indent": draw(st.sampled_from([None, None, 1]))}
    if way["indent"] is None:
        way["separators"] = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    return value, json.dumps(value, **way).encode()


@given(texts())
@settings(max_examples=300, deadline=None)
def test_depth_and_plainness(case: tuple[Any, bytes]) -> None:
    value, text = case
    depth, is_plain = survey(text)
    assert depth == depth_of(value)
    outside = re.sub(rb'"(\\.|[^"\\])*"', b'""', text)
    has_escapes = re.search(rb"(?<!\\)(\\\\)*\\[u/]", text) is not None
    has_odd_numbers = re.search(rb"\d{19}|\d[eE]", outside) is not None
    assert is_plain == (not re.search(rb"[ \n\r\t]", outside) and not has_escapes and not has_odd_numbers)


@given(st.binary())
def test_no_bytes_do_harm(text: bytes) -> None:
    survey(text)
    survey(b'"' + text)
    survey(text + b"\\")


@given(texts())
@settings(max_examples=300, deadline=None)
def test_what_is_refused_and_what_is_carried_is_as_if_it_had_been_parsed(case: tuple[Any, bytes]) -> None:
    value, text = case
    submitted = decode(b'{"content":"x","data":' + text + b"}").data
    if value is None:
        assert checked_data(submitted, LIMITS) is None
        return
    try:
        msgspec.msgpack.encode(value)
    except OverflowError:
        with pytest.raises(RequestError, match="data: integers beyond 64 bits"):
            checked_data(submitted, LIMITS)
        return
    carried = data_given(text)
    assert msgspec.json.decode(carried) == msgspec.json.decode(text)
    assert carried in (text, msgspec.json.encode(msgspec.json.decode(text)))
    assert carried.decode()


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", '"x"', "7", "-0", "true", "1.50", '{"a":1,"a":2}',
     '{"a":[1,{"b":"\\n\\"\\\\ \\b\\f\\r\\t"}]}', '"消息 é"',
     "999999999999999999", "-999999999999999999.123", '"12345678901234567890 1e5 [ { "', '"\x7f"'],
)  # fmt: skip
def test_what_is_written_plainly_goes_through_byte_for_byte(text: str) -> None:
    assert data_given(f" {text} ".encode()) == text.encode()


@pytest.mark.parametrize(
    ("text", "carried"),
    [
        ('{"a": 1,\n"b":\t[ ]}', '{"a":1,"b":[]}'),
        ('"\\u6d88\\u606f \\ud83d\\ude00"', '"消息 😀"'),
        ('"\\u0041\\/\\u000a\\u0022\\u0000"', '"A/\\n\\"\\u0000"'),
        ("1e2", "100.0"),
        ("[18446744073709551615,-9223372036854775808]", "[18446744073709551615,-9223372036854775808]"),
        ("1.0000000000000000000000001", "1.0"),
    ],
)
def test_what_is_not_is_written_anew(text: str, carried: str) -> None:
    assert data_given(text.encode()) == carried.encode()


NOT_UTF8 = "the body is not valid JSON: Invalid UTF-8 encoded string"


def nested(depth: int) -> bytes:
    return b'{"a":[' * (depth // 2) + b"[]" * (depth % 2) + b"]}" * (depth // 2)


@pytest.mark.parametrize(
    ("text", "code", "message", "field"),
    [
        (b'"\xff"', ErrorCode.INVALID_JSON, NOT_UTF8, None),
        (b'{"\xed\xa0\x80":1}', ErrorCode.INVALID_JSON, NOT_UTF8, None),
        (b'{"a": "\xc0\x80"}', ErrorCode.INVALID_JSON, NOT_UTF8, None),
        (b"1e400", ErrorCode.INVALID_REQUEST, "data: Number out of range", "data"),
        (b'{"a":[1e400]}', ErrorCode.INVALID_REQUEST, "data[...][0]: Number out of range", "data[...][0]"),
        (b"9" * 400 + b".0", ErrorCode.INVALID_REQUEST, "data: Number out of range", "data"),
        (b"9" * 5000, ErrorCode.INVALID_REQUEST, "data: Integer value out of range", "data"),
        (b"[18446744073709551616]", ErrorCode.INVALID_REQUEST, "data: integers beyond 64 bits", "data"),
        (b"-9223372036854775809", ErrorCode.INVALID_REQUEST, "data: integers beyond 64 bits", "data"),
        (nested(101), ErrorCode.INVALID_REQUEST, "data: nested more than 100 levels deep", "data"),
        (nested(102), ErrorCode.INVALID_REQUEST, "data: nested more than 100 levels deep", "data"),
        (b'"' + b"x" * 65_535 + b'"', ErrorCode.BODY_TOO_LARGE, "data: 65537 bytes as JSON, at most 65536", "data"),
    ],
)  # fmt: skip
def test_refusals_are_those_of_what_is_parsed(text: bytes, code: ErrorCode, message: str, field: str | None) -> None:
    submitted = decode(b'{"content":"x","data":' + text + b"}").data
    with pytest.raises(RequestError) as caught:
        checked_data(submitted, LIMITS)
    assert caught.value.code is code
    assert caught.value.text.startswith(message)
    assert (caught.value.details or {}).get("field") == field


def test_limits_are_inclusive() -> None:
    for text in (b'"' + b"x" * 65_534 + b'"', b'{"a": "' + "é".encode() * 32_764 + b'"}', nested(MAX_DATA_DEPTH)):
        assert not is_deeper(msgspec.json.decode(data_given(text)), MAX_DATA_DEPTH)


@pytest.mark.parametrize("text", [b'"\\ud800"', b'"a\x01"', b"01", b"1.", b"[1,]", b"{1:2}", b"nul", b"NaN", b'"\\x"'])
def test_what_is_no_json_is_refused_with_the_body(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(b'{"content":"x","data":' + text + b"}")


@pytest.mark.parametrize("body", ['{"content":"x"}', '{"content":"x","data":null}', '{"data": null ,"content":"x"}'])
def test_none_is_null(body: str) -> None:
    assert checked_data(decode(body.encode()).data, LIMITS) is None


def test_how_much_it_weighs() -> None:
    """In both of its forms."""
    for data, size in ((None, 0), ({"a": 1}, 7), (msgspec.Raw(b'{"a":1}'), 7), ("", 2)):
        assert data_bytes_of(Notice(1, "m", "c", Target(TargetKind.ALL), 1, data=data)) == size


def test_of_a_record_it_is_what_json_says() -> None:
    assert checked_data(None, LIMITS) is None
    for value, text in (
        ([], b"[]"),
        ({}, b"{}"),
        (0, b"0"),
        (False, b"false"),
        ("", b'""'),
        ({"a": [1.5]}, b'{"a":[1.5]}'),
    ):
        assert bytes(checked_data(value, LIMITS) or b"") == text
