"""The URL of a MySQL directory, and what its options mean."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from pymysql.charset import charset_by_name  # type: ignore[import-untyped]

from pushd.errors import StartError

FORM = "mysql://user:password@host:port/database"
OPTIONS = ("charset", "ssl", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify")
FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is and how to log in. Never printed: it has the password."""

    host: str
    port: int
    user: str
    password: str
    database: str
    charset: str
    tls: ssl.SSLContext | None


def parse_url(url: str) -> Address:
    """Take `directory.url` apart. Raises StartError without a word of the password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # its text may have a piece of the password
        raise _bad_url(
            'cannot be read: "/", "?", "#" and "@" in a password are written as %2F, %3F, %23, %40'
        ) from None
    database = parts.path.removeprefix("/")
    if not host or not parts.username:
        raise _bad_url("names no user or no host")
    if not database or "/" in database:
        raise _bad_url("names no database")
    options = _options(parts.query)
    return Address(
        host=unquote(host),
        port=port or 3306,
        user=unquote(parts.username),
        password=unquote(parts.password or ""),
        database=unquote(database),
        charset=_charset(options.get("charset", "utf8mb4")),
        tls=_tls(options),
    )


def _bad_url(found: str) -> StartError:
    return StartError(f"directory.url {found}; expected {FORM}")


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS:
            raise StartError(f"directory.url: unknown option {name!r}; expected one of {', '.join(OPTIONS)}")
        options[name] = value
    return options


def _charset(name: str) -> str:
    if charset_by_name(name) is None:
        raise StartError(f"directory.url: charset={name} is not known; expected utf8mb4 or another one of MySQL's")
    return name


def _flag(options: dict[str, str], name: str, *, default: bool) -> bool:
    text = options.get(name)
    if text is None:
        return default
    if text not in FLAGS:
        raise StartError(f"directory.url: {name}={text}; expected true or false")
    return FLAGS[text]


def _tls(options: dict[str, str]) -> ssl.SSLContext | None:
    files = [name for name in ("ssl_ca", "ssl_cert", "ssl_key") if name in options]
    if not _flag(options, "ssl", default=bool(files) or "ssl_verify" in options):
        return None
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca"))
        if "ssl_cert" in options:
            context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"))
    except OSError as error:
        found = ", ".join(f"{name}={options[name]}" for name in files)
        raise StartError(f"directory.url: {found} cannot be used ({error}); expected files in PEM form") from error
    if not _flag(options, "ssl_verify", default=True):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
