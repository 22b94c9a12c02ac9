"""How a configuration's values are refused, and checks of single ones that no type can say. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import NoReturn
from zoneinfo import ZoneInfo

from pushd.errors import ConfigError
from pushd.values import MAX_NAME_CHARS, MAX_ROLE, MIN_ROLE


def quote(value: object, *, limit: int = 80) -> str:
    """A value as TOML would write it, for an error's single line; cut to `limit` characters."""
    match value:
        case str():
            shown = json.dumps(value[: limit + 1], ensure_ascii=False)
            text = "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in shown)
        case bool():
            text = str(value).lower()
        case list() | tuple():
            text = "[" + ", ".join(quote(item) for item in value[:limit]) + "]"
        case dict():
            text = "a table" if value else "{}"
        case _:
            text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def fail(key: str, found: str, expected: str) -> NoReturn:
    """Raise the ConfigError every refusal of a value looks like."""
    raise ConfigError(f"{key}: found {found}, expected {expected}")


def check_timezone(name: str) -> None:
    """`server.timezone` is one that is known here."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        fail("server.timezone", quote(name), 'an IANA time zone such as "UTC" or "Asia/Shanghai"')


def check_networks(networks: Iterable[str]) -> None:
    """Those of `server.trusted_proxies`."""
    for network in networks:
        try:
            ip_network(network)
        except ValueError:
            fail("server.trusted_proxies", quote(network), 'networks such as "10.0.0.0/8", without host bits')


_ORIGIN = re.compile(r"\A(?:null|file://)\Z|\A[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?\Z")


def check_origins(origins: Iterable[str]) -> None:
    """Browsers send origins in lower case, without a path and without the scheme's own port (RFC 6454)."""
    for origin in origins:
        is_own_port = re.search(r"\A(http://.*:80|https://.*:443)\Z", origin)
        if origin != "*" and (is_own_port or not _ORIGIN.search(origin)):
            form = "scheme://host[:port] in lower case, without a path and the scheme's own port"
            expected = f'"*", "null", "file://" or {form}'
            fail("auth.allowed_origins", quote(origin), expected)


def check_role_names(names: Mapping[str, str]) -> None:
    """Names of roles, by their numbers as TOML has keys."""
    for role, name in names.items():
        if not (re.search(r"\A(0|-?[1-9][0-9]{0,9})\Z", role) and MIN_ROLE <= int(role) <= MAX_ROLE):
            fail("directory.role_names", quote(role), f"roles, whole numbers from {MIN_ROLE} to {MAX_ROLE}")
        if not 1 <= len(name) <= MAX_NAME_CHARS:
            found = f"{quote(name)} as the name of role {role}"
            fail("directory.role_names", found, f"names of 1 to {MAX_NAME_CHARS} characters")
