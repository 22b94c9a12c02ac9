"""Who hears what comes from a connection: the reader and the hub call it, and know nothing else of it. Pure."""

from __future__ import annotations

from codecs import IncrementalDecoder
from typing import Protocol


class Owner(Protocol):
    """What `Connection.owner` must be able to do. All of it is called on the loop's thread."""

    def receive(self, opcode: int, is_final: bool, reserved: int, payload: bytes, now: float) -> None:
        """Take one WebSocket frame of an open connection, which came at `now` (s, the loop's clock).

        `reserved`: the RSV bits, where a frame has them.
        """

    def text_under_way(self, opcode: int, reserved: int) -> IncrementalDecoder | None:
        """What the payload of a frame that has not come whole must pass as it arrives; None for one that need not."""

    def text_failed(self) -> None:
        """A payload did not pass what `text_under_way` gave: the connection must be closed."""

    def protocol_failed(self, code: int) -> None:
        """The parser found a violation and wants CLOSE with `code`; it goes no further."""

    def data_received(self, data: bytes) -> None:
        """Take bytes that came by TLS, before they are parsed."""

    def lost(self) -> None:
        """The transport is about to close its descriptor. Nothing else is called from then on."""
