"""URLs of stores, which have passwords in them: what of one may be shown to people. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote

_HOST = re.compile(r"\A(\[[^\[\]]*\]|[^:\[\]]*)(:\d*)?\Z")
_SCHEME = re.compile(r"\A[A-Za-z][A-Za-z0-9+.-]*\Z")  # RFC 3986 section 3.1
_SECRET_OPTION = re.compile(r"(?i)pass|pwd|secret|token|key|cred|properties")


def mask_url(url: str) -> str:
    """The URL without passwords, for people: `redis://user:***@host/0`. Rather hides too much than too little."""
    scheme, slashes, rest = url.partition("://")
    if not _SCHEME.match(scheme):  # "://" stands in something else, such as a password
        scheme, slashes, rest = "", "", url
    credentials, at, place = rest.rpartition("@")
    authority = re.split(r"[/?#]", place, maxsplit=1)[0]
    if "?" in credentials or (slashes and not all(map(_HOST.match, authority.split(",")))):
        return f"{scheme}{slashes}***"  # "@" in an option, or a password without an "@": where it ends, nobody knows
    user, colon, _ = credentials.partition(":")
    shown = f"{user}:" if colon and re.fullmatch(r"[^/#@]*", user) else ""
    path, question, query = place.partition("?")
    if slashes:
        path = _without_fragment(path)
    options = "&".join(_masked_option(option, is_url=bool(slashes)) for option in query.split("&"))
    return f"{scheme}{slashes}{f'{shown}***@' if at else ''}{path}{question}{options}"


def is_secret_option(text: str) -> bool:
    """Whether an option of a URL, or its name, is not for people."""
    return _SECRET_OPTION.search(unquote(unquote(text))) is not None


def _without_fragment(text: str) -> str:
    before, sign, _ = text.partition("#")
    return f"{before}#***" if sign else text


def _masked_option(option: str, *, is_url: bool) -> str:
    name, sign, _ = option.partition("=")
    if sign and is_secret_option(option):
        return f"{name}=***"
    if is_url:  # what is no option, or comes behind "#", is a piece of something that was not percent-encoded
        return _without_fragment(option) if sign else "***" * bool(option)
    return option


def is_ambiguous(url: str) -> bool:
    """Whether an "@" stands where drivers do not look for one: a password was not percent-encoded."""
    path, _, query = re.sub(r"\A[^/?#]*", "", url.partition("://")[2]).partition("?")
    return "@" in path or any("@" in option.partition("=")[0] for option in query.split("&"))
