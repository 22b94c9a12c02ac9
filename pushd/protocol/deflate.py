"""permessage-deflate (RFC 7692) without I/O: which offer is accepted, messages deflated and inflated.

Neither side takes a context over, so nothing is kept between messages: one deflated frame serves every connection that
negotiated it, and a connection costs no more memory for it.
"""

from __future__ import annotations

import zlib

from pushd.errors import CloseCode, ProtocolError

RSV1 = 0x40  # of a frame's first byte: the message is deflated (section 6)
LEAST_BYTES = 512  # FACTS: below, it is not worth the time
# 4 KB of window find about what 32 KB do in payloads of this size, in less time and for clients with less memory.
WINDOW_BITS = 12
_LEVEL, _MEMORY_LEVEL = 6, 5
_NAME = "permessage-deflate"
_ANSWER = f"{_NAME}; server_no_context_takeover; client_no_context_takeover"
_TAIL = b"\x00\x00\xff\xff"  # what a flush ends with and is not sent (section 7.2.1)
_END = b"\x03\x00"  # an empty, final block: it is found only by a stream that is whole
# Nothing behind our own, or behind the sender's what follows it (section 7.2.3.4; some leave its last byte out).
_BEHIND_FINAL_BLOCK = (b"", _TAIL + _END, b"\x00" + _TAIL + _END)

# The values each parameter may have, None meaning no value (section 7.1).
_VALUES: dict[str, frozenset[str | None]] = {
    "server_no_context_takeover": frozenset({None}),
    "client_no_context_takeover": frozenset({None}),
    "client_max_window_bits": frozenset({None, *map(str, range(8, 16))}),
    "server_max_window_bits": frozenset(map(str, range(WINDOW_BITS, 16))),  # a smaller one is not on offer here
}


def negotiate(offers: str) -> str:
    """The answer to a Sec-WebSocket-Extensions header: to its first acceptable offer, "" when there is none.

    What is malformed is declined like what is unknown; a client does well without the extension. RFC 6455 section 9.1
    lets values be quoted only when they could do without, so no quotes hide a comma or semicolon.
    """
    return next(filter(None, map(_answer, offers.split(","))), "")


def _answer(offer: str) -> str:
    """Section 7.1: both sides' contexts end with the message whether or not the client thought of it."""
    name, *parameters = (part.strip(" \t") for part in offer.split(";"))
    if name != _NAME:
        return ""
    seen: set[str] = set()
    for parameter in parameters:
        key, value = _parse_parameter(parameter)
        if key in seen or value not in _VALUES.get(key, ()):
            return ""
        seen.add(key)
    return f"{_ANSWER}; server_max_window_bits={WINDOW_BITS}" if "server_max_window_bits" in seen else _ANSWER


def _parse_parameter(parameter: str) -> tuple[str, str | None]:
    key, equals, value = parameter.partition("=")
    value = value.lstrip(" \t")
    if len(value) > 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return key.rstrip(" \t"), value if equals else None


def deflated(payload: bytes) -> bytes | None:
    """The payload of a frame with RSV1, or None when the message is small or does not get smaller.

    20 us for 2 KB, 120 us for 16 KB of JSON.
    """
    if len(payload) < LEAST_BYTES:
        return None
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -WINDOW_BITS, _MEMORY_LEVEL)
    smaller = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    size = len(smaller) - len(_TAIL)
    return smaller[:size] if size < len(payload) else None


def most_wire_bytes(max_bytes: int) -> int:
    """What a message of `max_bytes` may take deflated: noise gets longer, by 4 % at worst, and flushes add to it."""
    return max_bytes + max_bytes // 16 + 512


def inflated(payload: bytes, max_bytes: int) -> bytes:
    """The message whose frames with RSV1 carried `payload`. Raises ProtocolError.

    Nothing is made of what goes beyond `max_bytes`. Data that is no whole deflate stream is a violation of the
    protocol the two sides agreed on: 1002, as 1007 is about text.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)  # serves all window sizes
    try:
        message = inflater.decompress(payload, max_bytes + 1)
        if len(message) > max_bytes:
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message too big")
        swallowed = inflater.decompress(_TAIL + _END, 1)  # by a block that was cut short
    except zlib.error:
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "invalid compressed data") from None
    if swallowed or not inflater.eof or inflater.unused_data not in _BEHIND_FINAL_BLOCK:
        raise ProtocolError(CloseCode.PROTOCOL_ERROR, "invalid compressed data")
    return message
