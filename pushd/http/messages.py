"""What HTTP/1.1 messages mean (RFC 9110, RFC 9112), without I/O: requests, their faults, and answers as bytes.

`parser` cuts a connection's bytes into heads and bodies; here a head becomes a `Request` or a `Refusal`: the
forms of a target, Host, framing, expectations, and which requests are WebSocket upgrades (RFC 6455 section 4.2.1).
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Hashable, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]+)(:[0-9]*)?")
_VERSIONS = frozenset({"1.0", "1.1"})
# RFC 3986 section 2.3: letters, digits, "-", ".", "_", "~".
_UNRESERVED = re.compile(rb"%(?:3[0-9]|[46][1-9A-F]|[57][0-9A]|2[DE]|5F|7E)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# What load balancers ask for, often without naming a host.
HEALTH_CHECKS = frozenset({"/healthz", "/readyz", "/metrics"})
_HEALTH_CHECKS = frozenset(path.encode() for path in HEALTH_CHECKS)
_BODILESS = frozenset({204, 304})  # RFC 9110 section 8.6: no Content-Length, and no body either


class Refusal(NamedTuple):
    """Why a request is not served: an HTTP status, a text for people, and headers that the status calls for."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


class Memo:
    """What the application keeps about a head, for all requests that have the same one, byte for byte."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None


class Request:
    """One request, whole. Header names are lower case, repeated headers joined with ", "; requests may share them.

    `memo` is there for a head that is expected to come again.
    """

    __slots__ = (
        "_query",
        "body",
        "headers",
        "is_secure",
        "is_upgrade",
        "keep_alive",
        "memo",
        "method",
        "path",
        "peer",
        "query_string",
        "target",
    )

    def __init__(
        self,
        method: str = "GET",
        target: bytes = b"/",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        *,
        keep_alive: bool = True,
        is_upgrade: bool = False,
        peer: str = "",
        is_secure: bool = False,
    ) -> None:
        """`target` is in origin or asterisk form; ValueError when its path is not UTF-8 once percent-decoded.

        `path` is normalised, not decoded: what is reserved, a `%2F` above all, is still as it came.
        """
        path, _, self.query_string = target.partition(b"?")
        self.path = _normalised(path)
        self.method = method
        self.target = target
        self.headers = {} if headers is None else headers
        self.body = body
        self.keep_alive = keep_alive
        self.is_upgrade = is_upgrade
        self.peer = peer
        self.is_secure = is_secure
        self.memo: Memo | None = None
        self._query: dict[str, str] | None = None

    def again(self, body: bytes, peer: str, is_secure: bool) -> Request:
        """Another request with the same head."""
        other = Request.__new__(Request)
        other.path = self.path
        other.query_string = self.query_string
        other.method = self.method
        other.target = self.target
        other.headers = self.headers
        other.body = body
        other.keep_alive = self.keep_alive
        other.is_upgrade = self.is_upgrade
        other.peer = peer
        other.is_secure = is_secure
        other.memo = self.memo
        other._query = self._query
        return other

    @property
    def query(self) -> dict[str, str]:
        """The query's fields; the first of repeated ones wins. Parsed when first asked for."""
        if self._query is None:
            self._query = dict(reversed(_pairs(self.query_string.decode("latin-1"))))
        return self._query


def _normalised(path: bytes) -> str:
    """A path as proxies compare it: unreserved characters are not percent-encoded (RFC 3986 section 6.2.2.2)."""
    try:
        if b"%" not in path:
            return path.decode()
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise ValueError("its path is not UTF-8") from None
    if _BAD_ESCAPE.search(path):
        raise ValueError("a percent sign is not followed by two hexadecimal digits")
    return _UNRESERVED.sub(lambda escape: bytes.fromhex(escape[0][1:].decode()), path).decode()


def _pairs(query: str) -> list[tuple[str, str]]:
    if "%" in query or "+" in query:
        return parse_qsl(query, keep_blank_values=True)
    return [(name, value) for name, _, value in (pair.partition("=") for pair in query.split("&") if pair)]


class Response(msgspec.Struct):
    """One answer. A header named here replaces the one `encode` would add.

    A long body goes on in `more`, in pieces that are written as the peer takes them; they count as the `owner`'s.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    more: Sequence[bytes] = ()
    owner: Hashable = 0


class Head(NamedTuple):
    """A head whose syntax is right, to be judged."""

    method: str
    version: str
    target: bytes
    headers: dict[str, str]
    content_length: int
    is_chunked: bool

    @property
    def has_body(self) -> bool:
        """Whether bytes of content follow."""
        return self.is_chunked or self.content_length > 0

    @property
    def has_expectation(self) -> bool:
        """Whether the client waits to be asked for the body (RFC 9110 section 10.1.1: not with HTTP/1.0)."""
        return "expect" in self.headers and self.version == "1.1"

    def judge(self, max_body_bytes: int, peer: str = "") -> Request | Refusal:
        """The request, its body still to come; or why it is not served, whatever it is about."""
        if self.version not in _VERSIONS:
            return Refusal(400, "the HTTP version is neither 1.0 nor 1.1")
        refusal = self._find_host_fault(peer) or self._find_framing_fault(max_body_bytes)
        if refusal is not None:
            return refusal
        try:
            authority, origin_form = _split_target(self.method, self.target)
            request = Request(self.method, origin_form, self.headers)
        except ValueError as error:
            return Refusal(400, f"the request target is malformed: {error}")
        if authority:  # it overrides Host (RFC 9112 section 3.2.2)
            self.headers["host"] = authority
        request.target = self.target
        request.is_upgrade = self._is_upgrade()
        if request.is_upgrade and self.has_body:
            return Refusal(400, "an upgrade request has no body")
        return request

    def _is_upgrade(self) -> bool:
        """RFC 6455 section 4.2.1, items 1 to 4; `find_upgrade_fault` looks at the key and the version."""
        return (
            "upgrade" in self.headers
            and self.method == "GET"
            and self.version == "1.1"
            and "websocket" in _tokens(self.headers["upgrade"])
            and "upgrade" in _tokens(self.headers.get("connection", ""))
        )

    def _find_host_fault(self, peer: str) -> Refusal | None:
        host = self.headers.get("host")
        if host is None:
            is_served = self.version == "1.0" or (self.target in _HEALTH_CHECKS and is_loopback(peer))
            return None if is_served else Refusal(400, "header Host is missing")
        return None if _is_host(host) else Refusal(400, "header Host is malformed")

    def _find_framing_fault(self, max_body_bytes: int) -> Refusal | None:
        if self.is_chunked and self.version == "1.0":
            return Refusal(400, "HTTP/1.0 has no Transfer-Encoding")
        if self.is_chunked and self.headers["transfer-encoding"].lower() != "chunked":
            return Refusal(501, "the only transfer coding known here is chunked")
        if self.content_length > max_body_bytes:
            return Refusal(413, too_big(max_body_bytes))
        if self.has_expectation and self.headers["expect"].lower() != "100-continue":
            return Refusal(417, "the only expectation known here is 100-continue")
        return None


def _split_target(method: str, target: bytes) -> tuple[str, bytes]:
    """The authority named in a target ("" for none) and the rest, in origin form; ValueError for other forms."""
    if b"#" in target or method == "CONNECT":
        raise ValueError("it has a fragment, or is meant for a proxy")
    if target.startswith(b"/") or (target == b"*" and method == "OPTIONS"):
        return "", target
    scheme, separator, rest = target.partition(b"://")
    authority = re.split(b"[/?]", rest, maxsplit=1)[0].decode("ascii")
    if not separator or scheme.lower() not in {b"http", b"https"} or not _HOST.fullmatch(authority):
        raise ValueError("it is neither a path nor a URL of this server")
    origin_form = rest[len(authority) :]
    return authority, origin_form if origin_form.startswith(b"/") else b"/" + origin_form


def find_upgrade_fault(request: Request) -> Refusal | None:
    """Why the WebSocket handshake of an `is_upgrade` request fails (RFC 6455 sections 4.2.1 and 4.2.2), if it does."""
    if request.headers.get("sec-websocket-version") != "13":
        advice = (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"))
        return Refusal(426, "the WebSocket version must be 13", advice)
    try:
        key = b64decode(request.headers.get("sec-websocket-key", ""), validate=True)
    except ValueError:
        key = b""
    return None if len(key) == 16 else Refusal(400, "header Sec-WebSocket-Key is not 16 bytes in base64")


@lru_cache(maxsize=64)
def is_loopback(address: str) -> bool:
    """Whether this is an address of the machine itself; "" is none."""
    return bool(address) and ip_address(address).is_loopback


@lru_cache(maxsize=64)
def _is_host(value: str) -> bool:
    return _HOST.fullmatch(value) is not None


@lru_cache(maxsize=64)
def _tokens(value: str) -> frozenset[str]:
    """The tokens of a list such as `keep-alive, Upgrade`, which is what Firefox sends as Connection."""
    return frozenset(token.strip() for token in value.lower().split(","))


def too_big(max_body_bytes: int) -> str:
    """The text of a 413."""
    return f"the body is bigger than {max_body_bytes} bytes"


@lru_cache(maxsize=1)
def date_line(at_s: int) -> bytes:
    """The header Date (RFC 9110 section 6.6.1), which all answers of a second share."""
    return b"Date: %b\r\n" % formatdate(at_s, usegmt=True).encode()


def encode(response: Response, keep_alive: bool, head_only: bool, date: bytes = b"") -> bytes:
    """The bytes of an answer but for `more`; of the head alone for HEAD. `date` is a `date_line`.

    ValueError when a header would break the message.
    """
    head = _encode_head(response.status, response.content_type, response.headers, keep_alive, date)
    if response.status in _BODILESS:
        return head + b"\r\n"
    size = len(response.body)
    if response.more:
        size += sum(map(len, response.more))
    return b"%bContent-Length: %d\r\n\r\n%b" % (head, size, b"" if head_only else response.body)


@lru_cache(maxsize=256)
def _encode_head(
    status: int, content_type: str, headers: tuple[tuple[str, str], ...], keep_alive: bool, date: bytes
) -> bytes:
    fields = {
        "content-type": content_type,
        "connection": "keep-alive" if keep_alive else "close",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
    }
    lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
    named = {name.lower() for name, _ in headers}
    lines += [f"{name.title()}: {value}" for name, value in fields.items() if name not in named]
    lines += [f"{name}: {value}" for name, value in headers]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n"
    if head.count(b"\r") != len(lines) or head.count(b"\n") != len(lines):
        raise ValueError("a line break inside a header")
    return head + date


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
