"""What is agreed in the opening handshake, and the 101 that says so."""

from __future__ import annotations

from typing import Any

import pytest

from pushd.auth.authenticator import Identity
from pushd.protocol.frames import Dialect
from pushd.ws.upgrade import Upgrade, negotiate_subprotocol

KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3


def upgrade(**agreed: Any) -> Upgrade:
    fields = {"subprotocol": "", "dialect": Dialect.JSON, "is_acking": False, "is_echo": False}
    return Upgrade(identity=Identity(user_id=7), client_ip="192.0.2.1", **{**fields, **agreed})


@pytest.mark.parametrize(
    ("agreed", "lines"),
    [
        ({}, []),
        ({"subprotocol": "pushd.v1.json"}, ["Sec-WebSocket-Protocol: pushd.v1.json"]),
        ({"extensions": "permessage-deflate"}, ["Sec-WebSocket-Extensions: permessage-deflate"]),
        (
            {"subprotocol": "pushd.v1.json", "extensions": "permessage-deflate"},
            ["Sec-WebSocket-Protocol: pushd.v1.json", "Sec-WebSocket-Extensions: permessage-deflate"],
        ),
    ],
)
def test_the_answer_names_what_was_agreed(agreed: dict[str, Any], lines: list[str]) -> None:
    assert upgrade(**agreed).answer(KEY).decode().split("\r\n") == [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {ACCEPT}",
        *lines,
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        ("", ("", Dialect.JSON)),
        ("chat", ("", Dialect.JSON)),
        ("pushd.v1.json", ("pushd.v1.json", Dialect.JSON)),
        ("pushd.v1.msgpack", ("pushd.v1.msgpack", Dialect.MSGPACK)),
        ("chat,pushd.v1.msgpack , pushd.v1.json", ("pushd.v1.msgpack", Dialect.MSGPACK)),
        ("PUSHD.V1.JSON", ("", Dialect.JSON)),
    ],
)
def test_the_first_subprotocol_that_is_spoken_counts(offered: str, expected: tuple[str, Dialect]) -> None:
    assert negotiate_subprotocol(offered) == expected
