"""The command line: arguments in, checked options out. Pure."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode, urlsplit
from uuid import UUID

from bench.loadlib.ledger import MIN_CONTENT

DELIVERIES_PER_S = 10_000
MAX_CONNECTIONS = 100_000
MAX_NOTICES = 10_000_000
MAX_DELIVERIES = 100_000_000
MAX_USER_IDS = 10_000  # of one notice: limits.max_user_ids
TOKEN_TEMPLATE = '{"uid": {user_id}, "type": {role}}'
TEXT_TOKEN_TEMPLATE = '{"uid": "{user_id}", "type": {role}}'  # where ids are texts
TARGETS = ("custom", "all", "online")


class LoadError(Exception):
    """Why there is nothing to report: one line for people."""


@dataclass(frozen=True)
class Options:
    """What to do. `rate`: publishes/s, 0 for as fast as possible."""

    host: str
    port: int
    path: str
    query: str
    connections: int
    notices: int
    target: str
    rate: float
    is_acking: bool
    publishers: int
    pipeline: int
    batch: int
    concurrency: int
    size: int
    timeout_s: float
    max_s: float
    offline: int
    idle_s: float
    first_user: int
    user_ids: str
    api_prefix: str
    secret: str
    token_template: str
    admin_role: int
    api_key: str
    pid: int
    is_remote: bool
    is_quiet: bool
    json_file: str

    @property
    def authority(self) -> str:
        """Host and port as the URL has them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_broadcast(self) -> bool:
        """Every notice is for every connection."""
        return self.target != "custom"

    def user_id(self, connection: int) -> int | str:
        """The user of a connection; a text is one of 36 characters, as UUIDs are."""
        number = self.first_user + connection
        return str(UUID(int=number)) if self.user_ids == "string" else number

    def resource(self, connection: int) -> str:
        """Path and query of a connection's upgrade request."""
        parts = [self.query] if self.query else []
        if not self.secret:
            parts.append(urlencode({"user_id": self.user_id(connection)}))
        if self.is_acking:
            parts.append("ack=1")
        return f"{self.path}?{'&'.join(parts)}" if parts else self.path

    def claims(self, user_id: int | str, role: int, expires_s: int) -> dict[str, Any]:
        """What a token states. Raises LoadError."""
        return {**fill_template(self.token_template, user_id, role), "exp": expires_s}


def fill_template(template: str, user_id: int | str, role: int) -> dict[str, Any]:
    """The claims of a template in which {user_id} and {role} are replaced. Raises LoadError."""
    try:
        claims = json.loads(template.replace("{user_id}", str(user_id)).replace("{role}", str(role)))
    except ValueError:
        claims = None
    if not isinstance(claims, dict):
        raise LoadError("--token-template: expected a JSON object with {user_id} and {role} to be replaced")
    return claims


def default_rate(target: str, connections: int) -> float:
    """Publishes/s that make DELIVERIES_PER_S."""
    return DELIVERIES_PER_S / (1 if target == "custom" else connections)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"load: {message} (--help tells more)\n")


def _count(low: int, high: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, found {text!r}")
        return int(text)

    return parse


def _number(low: float, high: float) -> Any:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, found {text!r}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="load",
        description="Open connections, publish notices through the admin API, account for every delivery.",
        epilog="Exit status: 0 everything arrived, 1 something was lost or it could not be measured, 2 wrong usage.",
    )
    add = parser.add_argument
    add("url", help="where clients connect: ws://localhost:8801/ws")
    add("-c", dest="connections", type=_count(1, MAX_CONNECTIONS), default=100, metavar="N", help="connections (100)")
    add("-n", dest="notices", type=_count(1, MAX_NOTICES), default=1000, metavar="N", help="notices (1000)")
    add("--target", choices=TARGETS, default="custom", help="custom: each notice to one user in turn (default)")
    add("--rate", type=_number(0, 1e6), metavar="N", help="publishes/s; 0: no pause (10000 deliveries/s worth)")
    add("--ack", dest="is_acking", action="store_true", help="acknowledge, in batches, at most 20 frames/s each")
    add("--publishers", type=_count(1, 1024), default=32, metavar="N", help="HTTP connections to publish on (32)")
    add("--pipeline", type=_count(1, 64), default=2, metavar="N", help="unanswered requests on each (2)")
    add("--batch", type=_count(1, 1000), default=1, metavar="N", help="notices in one POST, to /system/notices (1)")
    add("--concurrency", type=_count(1, 10_000), default=64, metavar="N", help="connects under way at once (64)")
    add("--size", type=_count(MIN_CONTENT, 1_000_000), default=100, metavar="N", help="characters of content (100)")
    add("--timeout", dest="timeout_s", type=_number(0.1, 3600), default=30.0, metavar="S",
        help="seconds without an answer or a delivery before giving up (30)")  # fmt: skip
    add("--max-time", dest="max_s", type=_number(1, 86_400), default=3600.0, metavar="S", help="in all (3600 s)")
    add("--offline", type=_count(0, 10_000), default=0, metavar="N",
        help="first publish N notices to every user while absent, and measure their replay")  # fmt: skip
    add("--idle", dest="idle_s", type=_number(0, 86_400), default=0.0, metavar="S",
        help="publish nothing, hold the connections for S seconds and watch the daemon's memory")  # fmt: skip
    add("--pid", type=_count(0, 2**31), default=0, metavar="PID", help="the daemon's process; else its /metrics tell")
    add("--first-user", type=_count(1, 2**62), default=1, metavar="ID", help="user ids start here (1)")
    add("--user-ids", choices=("integer", "string"), default="integer", help="as directory.user_ids (integer)")
    add("--api-prefix", default="/api/admin", metavar="PATH", help="server.api_prefix (/api/admin)")
    add("--secret", default="", help="auth.jwt_secret to sign tokens with, or @FILE that holds it")
    add("--token-template", default=TOKEN_TEMPLATE, metavar="JSON", help="claims of a token, " + TOKEN_TEMPLATE)
    add("--admin-role", type=_count(0, 2**31 - 1), default=1, metavar="N", help="{role} of the publisher's token (1)")
    add("--api-key", default="", metavar="KEY", help="publish with this key, or @FILE that holds it")
    add("--json", dest="json_file", default="", metavar="FILE", help="write the figures there, too")
    add("--quiet", dest="is_quiet", action="store_true", help="no progress bar")
    add("--remote", dest="is_remote", action="store_true", help="allow a host that is not this machine")
    return parser


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line. Exits with 2 and one line when they are wrong."""
    parser = _parser()
    given = vars(parser.parse_args(argv))
    try:
        return _checked(given)
    except LoadError as error:
        parser.error(str(error))


def _checked(given: dict[str, Any]) -> Options:
    place = _split_url(given.pop("url"))
    given["secret"] = _read_secret("--secret", given["secret"])
    given["api_key"] = _read_secret("--api-key", given["api_key"])
    if given["rate"] is None:
        given["rate"] = default_rate(given["target"], given["connections"])
    if not given["api_prefix"].startswith("/"):
        raise LoadError("--api-prefix: expected a path that begins with /")
    if not given["api_prefix"].isascii() or any(char.isspace() for char in given["api_prefix"] + place["path"]):
        raise LoadError("the URL's path and --api-prefix: expected printable ASCII")
    if given["user_ids"] == "string" and given["token_template"] == TOKEN_TEMPLATE:
        given["token_template"] = TEXT_TOKEN_TEMPLATE
    options = Options(**place, **given)
    _check_sum(options)
    fill_template(options.token_template, 1, 1)
    return options


def _check_sum(options: Options) -> None:
    deliveries = options.notices * (options.connections if options.is_broadcast else 1)
    if not options.idle_s and deliveries > MAX_DELIVERIES:
        raise LoadError(f"-c times -n: {deliveries} deliveries, at most {MAX_DELIVERIES} are counted")
    if options.offline and options.connections > MAX_USER_IDS:
        raise LoadError(f"--offline: at most {MAX_USER_IDS} connections, as many as one notice can name")
    if options.offline * options.connections > MAX_DELIVERIES:
        raise LoadError(f"-c times --offline: at most {MAX_DELIVERIES} deliveries are counted")


def _split_url(url: str) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        raise LoadError(f"{url!r}: not a URL") from None
    if parts.scheme == "wss":
        raise LoadError("wss:// is not spoken here: measure the daemon behind its TLS front, with ws://")
    if parts.scheme != "ws" or not host:
        raise LoadError(f"expected a URL such as ws://localhost:8801/ws, found {url!r}")
    if not url.isascii() or not url.isprintable():
        raise LoadError("expected a URL of printable ASCII")
    return {"host": host, "port": port, "path": parts.path or "/", "query": parts.query}


def _read_secret(option: str, value: str) -> str:
    if value.startswith("@"):
        try:
            value = Path(value[1:]).read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise LoadError(f"{option}: cannot read the file") from None
    if not value.isprintable() or not value.isascii():
        raise LoadError(f"{option}: expected printable ASCII")
    return value
