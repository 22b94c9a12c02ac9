"""Web origins (RFC 6454) and what browsers are told about them (the Fetch standard's CORS protocol). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import NamedTuple

Headers = tuple[tuple[str, str], ...]

DEFAULT_PORTS = {"http": 80, "https": 443}
METHODS = ("GET", "POST", "DELETE")
REQUEST_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "X-API-Key")
EXPOSED_HEADERS = "Allow, Date, Retry-After, WWW-Authenticate"  # beside those every page may read
PREFLIGHT_MAX_AGE_S = "600"

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^]:/?#@[\s]+)(?::([0-9]{0,5}))?", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2


class Origin(NamedTuple):
    """Where a page or a server is: two are the same when all three are."""

    scheme: str
    host: str
    port: int | None  # None: the scheme has none of its own, and none was named


@lru_cache(maxsize=256)
def parsed(text: str) -> Origin | None:
    """An origin in any case, with or without its scheme's own port; None for what is none, such as "null"."""
    match = _ORIGIN.fullmatch(text.lower())
    if match is None:
        return None
    scheme, host, port = match.groups()
    try:
        host = f"[{IPv6Address(host[1:-1])}]" if host.startswith("[") else host
    except ValueError:
        return None
    return Origin(scheme, host, int(port) if port else DEFAULT_PORTS.get(scheme))


def is_listed(origin: str, listed: Iterable[str]) -> bool:
    """Whether `listed` names the origin, or any with "*"; "null" and "file://" must be named like others."""
    if "*" in listed or origin.lower() in listed:
        return True
    page = parsed(origin)
    return page is not None and page in map(parsed, listed)


def is_of(origin: str, host: str, schemes: Iterable[str]) -> bool:
    """Whether a page is from the server itself, which was called `host` and is reached by one of `schemes`."""
    page = parsed(origin)
    return page is not None and any(page == parsed(f"{scheme}://{host}") for scheme in schemes)


def sharing_headers(origin: str) -> Headers:
    """The headers that let a page of `origin` read an answer."""
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", EXPOSED_HEADERS),
        ("Vary", "Origin"),
    )


def preflight_headers(asked: dict[str, str]) -> Headers:
    """The headers that let a page send what it asks for in its preflight (`asked`)."""
    methods = _with(METHODS, asked.get("access-control-request-method", ""))
    names = _with(REQUEST_HEADERS, asked.get("access-control-request-headers", ""))
    headers = (
        ("Access-Control-Allow-Methods", methods),
        ("Access-Control-Allow-Headers", names),
        ("Access-Control-Max-Age", PREFLIGHT_MAX_AGE_S),
    )
    is_private = asked.get("access-control-request-private-network") == "true"
    return (*headers, ("Access-Control-Allow-Private-Network", "true")) if is_private else headers


def _with(known: tuple[str, ...], asked: str) -> str:
    """The list of what is always allowed and of each token that is asked for; the request itself is judged later."""
    lower = {name.lower() for name in known}
    more = [name for name in map(str.strip, asked.split(",")) if _TOKEN.fullmatch(name) and name.lower() not in lower]
    return ", ".join((*known, *dict.fromkeys(more)))
