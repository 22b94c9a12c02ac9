"""The schema of the configuration: every key with its default, range, unit and meaning, and the cross-checks.

One frozen struct per section of CONTRACT section 2. A struct can only be made with values that fit
together: `ConfigError` otherwise, whose text starts with the key (`server.host: found …, expected …`).
Ranges and choices are in the types; `config.toml.parse`, which reads TOML and environment, enforces them.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pushd.config.checks import check_networks, check_origins, check_role_names, check_timezone, fail, quote
from pushd.urls import is_ambiguous, mask_url
from pushd.user_ids import KINDS, UserIds
from pushd.values import MAX_NAME_CHARS, MAX_ROLE, MIN_ROLE

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"
]

# What this version refuses, by key: the values (of URLs: their beginnings), or ANY for all but the default.
# A line goes when its feature comes.
ANY = "*"
NOT_YET: dict[str, tuple[str, ...]] = {
    "cluster.url": ("redis://",),
}

# What a URL can be, by key; one that ends in "://" goes on with an address.
URL_FORMS: dict[str, tuple[str, ...]] = {
    "auth.revocation_url": ("", "redis://", "rediss://"),
    "mailbox.url": ("sqlite:", "redis://", "rediss://"),
    "records.url": ("sqlite:", "mongodb://", "mongodb+srv://"),
    "directory.url": ("sqlite:", "mysql://", "none"),
    "presence.url": ("", "sqlite:", "mongodb://", "mongodb+srv://"),
    "cluster.url": ("", "redis://"),
}


def _number(about: str, low: float, high: float) -> Meta:
    return Meta(description=about, ge=low, le=high)


def _text(
    about: str, pattern: str | None = None, form: str = "", *, is_secret: bool = False, has_lines: bool = False
) -> Meta:
    """A text's meaning, its pattern and that pattern in words; `has_lines`: it may be of several."""
    return Meta(description=about, pattern=pattern, extra={"form": form, "secret": is_secret, "lines": has_lines})


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ServerConfig(_Section, frozen=True):
    """The port, and what holds for the whole daemon."""

    host: Annotated[
        str,
        _text(
            'Address to listen on; "0.0.0.0" = all of IPv4, "::" = all of IPv6 and IPv4. '
            'Other than loopback ("localhost", 127.0.0.0/8, "::1") it needs auth.mode = "jwt".',
            r"\A\S+\Z",
            "a host name or an IP address",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, _number("TCP port, for HTTP and WebSocket alike; 0 = any free one.", 0, 65535)] = 8801
    api_prefix: Annotated[
        str,
        _text(
            "Path under which the API lives.",
            r"\A(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+\Z",
            'a path like "/api/admin" that starts with "/" and does not end with "/"',
        ),
    ] = "/api/admin"
    data_dir: Annotated[
        str,
        _text("Directory of pushd.db; a relative path starts at the working directory.", r".", "a directory's path"),
    ] = "pushd-data"
    drain_s: Annotated[
        float,
        _number("Seconds over which a stop spreads the closing of connections; 0 = all at once.", 0, 3600),
    ] = 10
    timezone: Annotated[
        str,
        _text("Time zone of the `time` field of notices.", r".", 'an IANA time zone such as "UTC" or "Asia/Shanghai"'),
    ] = "UTC"
    tls_cert: Annotated[
        str, _text('PEM file of the certificate chain; "" = no TLS. Set tls_key too. SIGHUP reads it again.')
    ] = ""
    tls_key: Annotated[str, _text('PEM file of the private key; "" = no TLS. Set tls_cert too.')] = ""
    trusted_proxies: Annotated[
        tuple[str, ...],
        _text(
            "Networks whose X-Forwarded-For and X-Forwarded-Proto name the client's address and scheme; empty = none.",
            form='networks such as "10.0.0.0/8"',
        ),
    ] = ()
    status_in_body: Annotated[
        bool, _text("Answer HTTP 200 always and give the status in the body's `code` only (20001, 20002: credentials).")
    ] = False
    compression: Annotated[
        Literal["off", "on"],
        _text("Compress notices of 512 bytes or more for clients that ask for it (permessage-deflate)."),
    ] = "off"

    def __post_init__(self) -> None:
        check_timezone(self.timezone)
        check_networks(self.trusted_proxies)
        if bool(self.tls_cert) != bool(self.tls_key):
            key, other = ("tls_key", "tls_cert") if self.tls_cert else ("tls_cert", "tls_key")
            fail(f"server.{key}", '""', f"a file, because server.{other} is set (both or neither)")


class AuthConfig(_Section, frozen=True):
    """Who may connect and publish."""

    mode: Annotated[
        Literal["none", "jwt"],
        _text(
            '"none" asks for no credentials and works on loopback only; "jwt" asks for a signed token or an API key.'
        ),
    ] = "none"
    jwt_secret: Annotated[
        str, _text("Secret of the HS algorithms, at least as many bytes as their hash: 32, 48 or 64.", is_secret=True)
    ] = ""
    jwt_public_key_file: Annotated[str, _text("PEM file of the public key of the RS, ES, PS or EdDSA algorithms.")] = ""
    jwt_algorithms: Annotated[
        tuple[Algorithm, ...],
        Meta(
            description="Algorithms a token may be signed with; either HS only, or others only.",
            min_length=1,
        ),
    ] = ("HS256",)
    jwt_issuer: Annotated[str, _text('The `iss` a token must have; "" = not checked.')] = ""
    jwt_audience: Annotated[str, _text('The `aud` a token must have; "" = not checked.')] = ""
    user_claim: Annotated[str, _text("Claim that holds the user id.", r".", "a claim's name")] = "uid"
    role_claim: Annotated[str, _text("Claim that holds the role.", r".", "a claim's name")] = "type"
    admin_roles: Annotated[
        tuple[Annotated[int, Meta(ge=MIN_ROLE, le=MAX_ROLE)], ...],
        _text("Roles with admin rights; empty = API keys only."),
    ] = (1,)
    leeway_s: Annotated[
        float, _number("Seconds a clock may be off when a token's times are checked; 0 = none.", 0, 3600)
    ] = 5
    api_keys: Annotated[
        tuple[Annotated[str, Meta(pattern=r"\A[!-~]{16,}\Z")], ...],
        _text(
            "Keys that give a backend admin rights; empty = none.",
            form="keys of at least 16 visible ASCII characters each",
            is_secret=True,
        ),
    ] = ()
    revocation_url: Annotated[
        str, _text('Where revoked tokens are listed, as keys jwt_blacklist:{jti}; "" = none.')
    ] = ""
    allowed_origins: Annotated[
        tuple[str, ...],
        _text(
            'Web origins that may call, such as "https://admin.example.com"; empty = the same host only, "*" = any. '
            '"null" and "file://" are pages out of files and sandboxes, whoever wrote them.',
            form='origins such as "https://admin.example.com", or "*"',
        ),
    ] = ()

    def __post_init__(self) -> None:
        check_origins(self.allowed_origins)
        _check_algorithms(self)
        if self.mode == "jwt":
            _check_jwt_keys(self)


class LimitsConfig(_Section, frozen=True):
    """What one client, one address and all together may use."""

    max_connections: Annotated[int, _number("Connections of this node.", 1, 10_000_000)] = 100_000
    max_connections_per_user: Annotated[
        int, _number("Connections of one user; one more closes the oldest.", 1, 1_000_000)
    ] = 20
    max_connections_per_ip: Annotated[
        int, _number("Connections from one address, IPv6 by /64; 0 = no limit.", 0, 10_000_000)
    ] = 0
    connects_per_ip_per_min: Annotated[
        int, _number("New connections per minute from one address, IPv6 by /64; 0 = no limit.", 0, 10_000_000)
    ] = 0
    handshake_timeout_s: Annotated[float, _number("Seconds a client may take to send a request.", 0.1, 300)] = 5
    max_frame_bytes: Annotated[
        int, _number("Bytes of one message from a WebSocket client, inflated.", 128, 16_777_216)
    ] = 16_384
    max_frames_per_s: Annotated[
        int, _number("Messages per second from one WebSocket client, acknowledgements not counted.", 1, 1_000_000)
    ] = 50
    max_ids_per_s: Annotated[
        int, _number("Ids per second that one WebSocket client may acknowledge, read and confirm.", 1, 10_000_000)
    ] = 5000
    max_pending_bytes: Annotated[
        int, _number("Unsent bytes of one connection, over which it is closed as slow.", 1024, 1_073_741_824)
    ] = 1_048_576
    max_body_bytes: Annotated[int, _number("Bytes of one HTTP request's body.", 1024, 1_073_741_824)] = 1_048_576
    max_bodies_bytes: Annotated[
        int, _number("Bytes of all request bodies under way, over which 503 is answered.", 1024, 1_099_511_627_776)
    ] = 67_108_864
    max_content_chars: Annotated[int, _number("Characters of a notice's `content`.", 1, 1_000_000)] = 500
    max_data_bytes: Annotated[
        int, _number("Bytes of a notice's `data`, as JSON; 0 = no `data` at all.", 0, 16_777_216)
    ] = 65_536
    max_user_ids: Annotated[int, _number("Ids in `user_ids` of one notice.", 1, 1_000_000)] = 10_000
    publishes_per_s: Annotated[
        int, _number("Notices published per second, over which 429 is answered; 0 = no limit.", 0, 10_000_000)
    ] = 0
    remind_every_s: Annotated[
        int,
        _number("Seconds between two reminders of a notice, under which 429 is answered; 0 = no limit.", 0, 31_536_000),
    ] = 300


class DeliveryConfig(_Section, frozen=True):
    """How notices are queued, sent and acknowledged."""

    queue_size: Annotated[int, _number("Notices waiting for a worker, over which 503 is answered.", 1, 10_000_000)] = (
        50_000
    )
    min_workers: Annotated[int, _number("Workers kept when idle.", 1, 1024)] = 2
    max_workers: Annotated[int, _number("Workers under load; not below min_workers.", 1, 1024)] = 16
    heartbeat_s: Annotated[float, _number("Seconds between two pings to a connection.", 0.1, 3600)] = 25
    heartbeat_timeout_s: Annotated[
        float,
        _number("Seconds a ping may go unanswered before the connection is closed; not above heartbeat_s.", 0.1, 3600),
    ] = 10
    ack_timeout_s: Annotated[
        float,
        _number("Seconds an acknowledging client has; a notice it leaves goes back to the mailbox.", 0.1, 86_400),
    ] = 30
    dedup_window_s: Annotated[
        float, _number("Seconds in which a repeated message_id or Idempotency-Key is recognised.", 0.1, 604_800)
    ] = 300
    fsync: Annotated[
        Literal["batch", "off"],
        _text('"batch" makes accepted notices survive a power cut, many with one fsync; "off": a crash of pushd only.'),
    ] = "batch"

    def __post_init__(self) -> None:
        if self.min_workers > self.max_workers:
            expected = f"at most delivery.max_workers ({self.max_workers})"
            fail("delivery.min_workers", str(self.min_workers), expected)
        if self.heartbeat_timeout_s > self.heartbeat_s:
            expected = f"at most delivery.heartbeat_s ({self.heartbeat_s})"
            fail("delivery.heartbeat_timeout_s", str(self.heartbeat_timeout_s), expected)


class MailboxConfig(_Section, frozen=True):
    """Notices waiting for absent users."""

    url: Annotated[str, _text('The store: "sqlite:" is embedded, in server.data_dir.')] = "sqlite:"
    key_prefix: Annotated[str, _text("Redis: what a user's key starts with.")] = "offline_msg:"
    max_per_user: Annotated[int, _number("Notices kept for one user, the newest.", 1, 1_000_000)] = 100
    ttl_days: Annotated[int, _number("Days a notice waits.", 1, 3650)] = 7


class RecordsConfig(_Section, frozen=True):
    """Push records and receive records."""

    url: Annotated[str, _text('The store: "sqlite:" is embedded, in server.data_dir.')] = "sqlite:"
    database: Annotated[str, _text("MongoDB: the database's name.", r".", "a name")] = "notification_log_db"
    retention_days: Annotated[int, _number("Days a record is kept.", 1, 3650)] = 30
    batch_size: Annotated[int, _number("Records written at once.", 1, 10_000)] = 500
    flush_ms: Annotated[int, _number("Milliseconds a record may wait to be written with others.", 1, 60_000)] = 100
    memory_mb: Annotated[
        int,
        _number(
            'With "sqlite:": MiB of memory for what is known of receipts. Above it the times and clients of the oldest '
            "are read from the disk when they are asked for; the rest, 1 to 13 bytes of each, stays. 0 = of all.",
            0,
            1_048_576,
        ),
    ] = 256


class DirectoryConfig(_Section, frozen=True):
    """Where users, names and roles come from."""

    url: Annotated[str, _text('The store: "sqlite:" is embedded, in server.data_dir; filled with `import-users`.')] = (
        "sqlite:"
    )
    table: Annotated[str, _text("MySQL: the table.", r".", "a name")] = "user"
    id_column: Annotated[str, _text("MySQL: the column of user ids.", r".", "a name")] = "id"
    name_column: Annotated[str, _text("MySQL: the column of names.", r".", "a name")] = "username"
    role_column: Annotated[str, _text("MySQL: the column of roles.", r".", "a name")] = "user_type"
    cache_ttl_s: Annotated[float, _number("Seconds until a user is asked for again.", 0.1, 604_800)] = 300
    cache_size: Annotated[int, _number("Users remembered.", 1, 10_000_000)] = 10_000
    role_names: Annotated[
        dict[str, str],
        _text(
            'What people call the roles: { 1 = "Administrators", 2 = "Editors" }; {} = nothing but their numbers.',
            form=f"a table of names of 1 to {MAX_NAME_CHARS} characters, by role",
        ),
    ] = {}
    groups_query: Annotated[
        str,
        _text(
            "MySQL: who is in which group, as a SELECT that returns the columns `group`, user_id and, if there is one, "
            'title; "" = nobody is in any. pushd adds conditions and a limit. For the embedded store: `import-groups`.',
            r"\A\s*(\Z|((?i:SELECT|WITH)\b|\()[^;]*\Z)",
            'a SELECT without ";"',
            has_lines=True,
        ),
    ] = ""

    user_ids: Annotated[Literal["integer", "string"], _text("What users' ids are, in every store.")] = "integer"

    def __post_init__(self) -> None:
        check_role_names(self.role_names)
        if self.groups_query.strip() and not self.url.startswith("mysql://"):
            found = quote(self.groups_query)
            fail("directory.groups_query", found, f'"", because directory.url is {quote(mask_url(self.url))}')

    @property
    def ids(self) -> UserIds:
        """What users' ids are."""
        return KINDS[self.user_ids]


class PresenceConfig(_Section, frozen=True):
    """The stored form of who is connected."""

    url: Annotated[str, _text('The store; "" = the one of the records.')] = ""
    status_ttl_s: Annotated[float, _number("Seconds after which a stored online status is out of date.", 1, 86_400)] = (
        30
    )


class ClusterConfig(_Section, frozen=True):
    """Several nodes as one."""

    url: Annotated[str, _text('The bus between nodes; "" = this node is alone.')] = ""
    node_id: Annotated[
        str,
        _text(
            'This node\'s name, shown to clients in `hello`; "" = host name and process id.',
            r"\A[A-Za-z0-9._:-]{0,64}\Z",
            'at most 64 letters, digits or "._:-"',
        ),
    ] = ""


class LogConfig(_Section, frozen=True):
    """The log, on stderr."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _text("The least severe level to log.")] = "info"
    format: Annotated[Literal["console", "json"], _text('"console" for people, "json" for machines.')] = "console"


class DebugConfig(_Section, frozen=True):
    """For tests; refused on other than loopback addresses."""

    echo: Annotated[bool, _text("Answer every message on /ws/echo with itself, for conformance tests.")] = False


class Config(_Section, frozen=True):
    """The whole configuration; `Config()` is the built-in one."""

    server: ServerConfig = msgspec.field(default_factory=ServerConfig)
    auth: AuthConfig = msgspec.field(default_factory=AuthConfig)
    limits: LimitsConfig = msgspec.field(default_factory=LimitsConfig)
    delivery: DeliveryConfig = msgspec.field(default_factory=DeliveryConfig)
    mailbox: MailboxConfig = msgspec.field(default_factory=MailboxConfig)
    records: RecordsConfig = msgspec.field(default_factory=RecordsConfig)
    directory: DirectoryConfig = msgspec.field(default_factory=DirectoryConfig)
    presence: PresenceConfig = msgspec.field(default_factory=PresenceConfig)
    cluster: ClusterConfig = msgspec.field(default_factory=ClusterConfig)
    log: LogConfig = msgspec.field(default_factory=LogConfig)
    debug: DebugConfig = msgspec.field(default_factory=DebugConfig)

    def __post_init__(self) -> None:
        for key in URL_FORMS:
            _check_url(key, _value(self, key))
        for key, refused in NOT_YET.items():
            _check_available(key, _value(self, key), refused)
        if not is_loopback(self.server.host):
            _check_exposed(self)


def is_loopback(host: str) -> bool:
    """True for "localhost", 127.0.0.0/8 and ::1; no name is looked up."""
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address == IPv6Address("::1") if address.version == 6 else address.is_loopback


def _value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _is_hmac(algorithm: str) -> bool:
    return algorithm.startswith("HS")


def _check_algorithms(auth: AuthConfig) -> None:
    """HS and public-key algorithms together would let a forger sign with the public key as the secret."""
    found, hmacs = quote(auth.jwt_algorithms), [name for name in auth.jwt_algorithms if _is_hmac(name)]
    if 0 < len(hmacs) < len(auth.jwt_algorithms):
        fail("auth.jwt_algorithms", found, "either HS algorithms only or others only: a mix lets tokens be forged")
    least_bytes = max((int(name[2:]) // 8 for name in hmacs), default=0)
    if auth.jwt_secret and len(auth.jwt_secret.encode()) < least_bytes:
        expected = f"at least {least_bytes} bytes for {' and '.join(hmacs)} (RFC 7518 section 3.2)"
        fail("auth.jwt_secret", "a shorter text (not shown)", expected)


def _check_jwt_keys(auth: AuthConfig) -> None:
    """The key that belongs to the algorithms is there, and the other one is not."""
    found, because = quote(auth.jwt_algorithms), f"because auth.jwt_algorithms is {quote(auth.jwt_algorithms)}"
    has_hmac = any(_is_hmac(name) for name in auth.jwt_algorithms)
    if has_hmac and auth.jwt_public_key_file and not auth.jwt_secret:
        fail("auth.jwt_algorithms", found, "RS, ES, PS or EdDSA algorithms, because auth.jwt_public_key_file is set")
    if not auth.jwt_public_key_file and not auth.jwt_secret:
        expected = 'a secret of at least 32 bytes, or auth.jwt_public_key_file, because auth.mode is "jwt"'
        fail("auth.jwt_secret", '""', expected)
    if has_hmac and auth.jwt_public_key_file:
        fail("auth.jwt_public_key_file", quote(auth.jwt_public_key_file), f"none, {because}")
    if not has_hmac and not auth.jwt_public_key_file:
        fail("auth.jwt_public_key_file", '""', f"a PEM file, {because}")
    if not has_hmac and auth.jwt_secret:
        fail("auth.jwt_secret", "a text (not shown)", f"none, {because}")


def _starts(value: str, form: str) -> bool:
    return (value.startswith(form) and value != form) if form.endswith("://") else value == form


def _check_url(key: str, url: str) -> None:
    forms = URL_FORMS[key]
    if not any(_starts(url, form) for form in forms):
        fail(key, quote(mask_url(url)), describe_forms(key))
    if is_ambiguous(url):
        expected = 'a URL in whose user and password "/", "?", "#" and "@" are written as %2F, %3F, %23 and %40'
        fail(key, quote(mask_url(url)), expected)


def describe_forms(key: str) -> str:
    """What the URL `key` can be, in words: `"sqlite:" or redis://… (not available in this version)`."""
    refused = NOT_YET.get(key, ())
    words = []
    for form in URL_FORMS[key]:
        word = f"{form}…" if form.endswith("://") else quote(form)
        words.append(word + " (not available in this version)" * (form in refused))
    return " or ".join(words)


def _check_available(key: str, value: str, refused: tuple[str, ...]) -> None:
    default = _default(key)
    is_refused = any(_starts(value, form) for form in refused) or (ANY in refused and value != default)
    if is_refused:
        fail(key, f"{quote(mask_url(value))}, which is not available in this version", quote(default))


def _default(key: str) -> Any:
    section, _, name = key.partition(".")
    types = {field.name: field.default_factory for field in msgspec.structs.fields(Config)}
    return getattr(types[section](), name)


def _check_exposed(config: Config) -> None:
    """What a daemon that strangers can reach must not do."""
    found = quote(config.server.host)
    if config.auth.mode == "none":
        fail("server.host", found, 'a loopback address because auth.mode is "none"; elsewhere set auth.mode = "jwt"')
    if config.debug.echo:
        fail("debug.echo", "true", f"false, because server.host is {found}, not a loopback address")
