"""The opening handshake (RFC 6455 section 4): what was agreed with a client, and the 101 that says so."""

from __future__ import annotations

import base64
import hashlib

import msgspec

from pushd.auth.authenticator import Identity
from pushd.protocol.frames import SUBPROTOCOLS, Dialect

ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class Upgrade(msgspec.Struct, frozen=True):
    """An upgrade that was allowed: whose connection it will be, and how the two sides will speak."""

    identity: Identity
    client_ip: str
    subprotocol: str
    dialect: Dialect
    is_acking: bool
    is_echo: bool
    is_told_changes: bool = False  # frames of revoked, edited and reminded notices may go to it
    is_told_unread: bool = False
    extensions: str = ""  # the answer to what was offered; when there is one, permessage-deflate is on

    def answer(self, key: str) -> bytes:
        """The 101 (section 4.2.2) to the request whose `Sec-WebSocket-Key` is `key`."""
        digest = hashlib.sha1(key.encode() + ACCEPT_GUID, usedforsecurity=False).digest()
        agreed = {"Sec-WebSocket-Protocol": self.subprotocol, "Sec-WebSocket-Extensions": self.extensions}
        lines = "".join(f"{name}: {value}\r\n" for name, value in agreed.items() if value)
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            + base64.b64encode(digest)
            + f"\r\n{lines}\r\n".encode("latin-1")
        )


def negotiate_subprotocol(offered: str) -> tuple[str, Dialect]:
    """The first offered subprotocol that pushd speaks (section 4.2.2), and its dialect; none of them means JSON."""
    for name in (name.strip() for name in offered.split(",")):
        if name in SUBPROTOCOLS:
            return name, SUBPROTOCOLS[name]
    return "", Dialect.JSON
