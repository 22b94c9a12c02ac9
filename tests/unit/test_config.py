"""The schema, its defaults, the cross-checks and what is not available yet."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pushd.config.checks import quote
from pushd.config.schema import (
    ANY,
    NOT_YET,
    URL_FORMS,
    AuthConfig,
    Config,
    DeliveryConfig,
    LimitsConfig,
    ServerConfig,
    is_loopback,
)
from pushd.config.toml import KEYS, describe, parse
from pushd.errors import ConfigError

SECRET = "s3cret-" + "x" * 57

# CONTRACT section 2.
CONTRACT: dict[str, dict[str, Any]] = {
    "server": {
        "host": "127.0.0.1",
        "port": 8801,
        "api_prefix": "/api/admin",
        "data_dir": "pushd-data",
        "drain_s": 10,
        "timezone": "UTC",
        "tls_cert": "",
        "tls_key": "",
        "trusted_proxies": [],
        "status_in_body": False,
        "compression": "off",
    },
    "auth": {
        "mode": "none",
        "jwt_secret": "",
        "jwt_public_key_file": "",
        "jwt_algorithms": ["HS256"],
        "jwt_issuer": "",
        "jwt_audience": "",
        "user_claim": "uid",
        "role_claim": "type",
        "admin_roles": [1],
        "leeway_s": 5,
        "api_keys": [],
        "revocation_url": "",
        "allowed_origins": [],
    },
    "limits": {
        "max_connections": 100000,
        "max_connections_per_user": 20,
        "max_connections_per_ip": 0,
        "connects_per_ip_per_min": 0,
        "handshake_timeout_s": 5,
        "max_frame_bytes": 16384,
        "max_frames_per_s": 50,
        "max_ids_per_s": 5000,
        "max_pending_bytes": 1048576,
        "max_body_bytes": 1048576,
        "max_bodies_bytes": 67108864,
        "max_content_chars": 500,
        "max_data_bytes": 65536,
        "max_user_ids": 10000,
        "publishes_per_s": 0,
        "remind_every_s": 300,
    },
    "delivery": {
        "queue_size": 50000,
        "min_workers": 2,
        "max_workers": 16,
        "heartbeat_s": 25,
        "heartbeat_timeout_s": 10,
        "ack_timeout_s": 30,
        "dedup_window_s": 300,
        "fsync": "batch",
    },
    "mailbox": {"url": "sqlite:", "key_prefix": "offline_msg:", "max_per_user": 100, "ttl_days": 7},
    "records": {
        "url": "sqlite:",
        "database": "notification_log_db",
        "retention_days": 30,
        "batch_size": 500,
        "flush_ms": 100,
        "memory_mb": 256,
    },
    "directory": {
        "url": "sqlite:",
        "table": "user",
        "id_column": "id",
        "name_column": "username",
        "role_column": "user_type",
        "cache_ttl_s": 300,
        "cache_size": 10000,
        "role_names": {},
        "groups_query": "",
        "user_ids": "integer",
    },
    "presence": {"url": "", "status_ttl_s": 30},
    "cluster": {"url": "", "node_id": ""},
    "log": {"level": "info", "format": "console"},
    "debug": {"echo": False},
}


def read(text: str = "", **environ: str) -> Config:
    return parse(text, source="pushd.toml", environ=environ)


def refusal(text: str = "", **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    line = str(caught.value)
    assert "\n" not in line
    assert "stage" not in line
    return line


def toml(key: str, value: str) -> str:
    section, _, name = key.partition(".")
    return f"[{section}]\n{name} = {value}\n"


class TestSchema:
    def test_keys_and_defaults_are_the_contracts(self) -> None:
        assert msgspec.json.decode(msgspec.json.encode(Config())) == CONTRACT
        assert read() == Config()

    def test_structs_refuse_unknown_fields_and_changes(self) -> None:
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.convert({"prot": 1}, ServerConfig)
        with pytest.raises(AttributeError):
            Config().server.port = 1  # type: ignore[misc]

    @pytest.mark.parametrize("key", KEYS)
    def test_every_key_says_what_it_is(self, key: str) -> None:
        assert KEYS[key].about.endswith(".")
        assert describe(key)

    @pytest.mark.parametrize(
        ("ending", "unit"),
        [
            ("_s", "seconds"),
            ("_ms", "milliseconds"),
            ("_bytes", "bytes"),
            ("_chars", "characters"),
            ("_days", "days"),
            ("_per_s", "per second"),
            ("_per_min", "per minute"),
        ],
    )
    def test_every_key_with_a_unit_names_it(self, ending: str, unit: str) -> None:
        longest = max((other for other in ("_s", "_per_s") if ending == other), default=ending)
        keys = [key for key in KEYS if key.endswith(longest) and not (ending == "_s" and key.endswith("_per_s"))]
        assert keys
        for key in keys:
            assert unit.rstrip("s") in KEYS[key].about.lower(), key

    @pytest.mark.parametrize("key", [key for key in KEYS if " from 0 to " in describe(key)])
    def test_a_limit_that_can_be_zero_says_what_zero_means(self, key: str) -> None:
        assert "0 = " in KEYS[key].about

    def test_every_number_has_a_range_with_its_default_inside(self) -> None:
        for key, known in KEYS.items():
            if isinstance(known.default, int) and not isinstance(known.default, bool):
                assert " from " in describe(key), key
                assert read(toml(key, str(known.default))) == Config()

    def test_tables_name_known_keys(self) -> None:
        assert {*NOT_YET, *URL_FORMS} <= set(KEYS)
        assert all(value == ANY or value in URL_FORMS.get(key, ("on",)) for key in NOT_YET for value in NOT_YET[key])


JWT = f"[auth]\nmode = 'jwt'\njwt_secret = '{SECRET}'\n"


class TestCrossChecks:
    @pytest.mark.parametrize(
        ("text", "key", "expected"),
        [
            ("[server]\nhost = '0.0.0.0'", "server.host", 'a loopback address because auth.mode is "none"'),
            ("[server]\nhost = '::'", "server.host", 'auth.mode = "jwt"'),
            (JWT + "[server]\nhost = '::'\n[debug]\necho = true", "debug.echo", "not a loopback address"),
            ("[server]\ntls_cert = 'a'", "server.tls_key", "because server.tls_cert is set"),
            ("[server]\ntls_key = 'a'", "server.tls_cert", "because server.tls_key is set"),
            ("[server]\ntimezone = 'Mars/Olympus'", "server.timezone", "an IANA time zone"),
            ("[server]\ntimezone = 'Europe'", "server.timezone", "an IANA time zone"),
            ("[server]\ntimezone = '../../etc/passwd'", "server.timezone", "an IANA time zone"),
            ("[server]\ntrusted_proxies = ['10.0.0.0/33']", "server.trusted_proxies", "networks such as"),
            ("[server]\ntrusted_proxies = ['10.0.0.1/8']", "server.trusted_proxies", "without host bits"),
            ("[server]\ntrusted_proxies = ['proxy']", "server.trusted_proxies", "networks such as"),
            ("[auth]\nmode = 'jwt'", "auth.jwt_secret", "jwt_public_key_file"),
            ("[auth]\njwt_secret = 'short-secret'", "auth.jwt_secret", "at least 32 bytes for HS256 (RFC 7518"),
            (
                f"[auth]\njwt_secret = '{'x' * 63}'\njwt_algorithms = ['HS256', 'HS512']",
                "auth.jwt_secret",
                "at least 64 bytes for HS256 and HS512",
            ),
            ("[auth]\njwt_algorithms = ['HS256', 'RS256']", "auth.jwt_algorithms", "a mix lets tokens be forged"),
            ("[auth]\nmode = 'jwt'\njwt_public_key_file = 'k'", "auth.jwt_algorithms", "RS, ES, PS or EdDSA"),
            (JWT + "jwt_public_key_file = 'k'", "auth.jwt_public_key_file", "none, because"),
            (JWT + "jwt_algorithms = ['ES256']", "auth.jwt_public_key_file", "a PEM file, because"),
            (JWT + "jwt_algorithms = ['ES256']\njwt_public_key_file = 'k'", "auth.jwt_secret", "none, because"),
            ("[auth]\napi_keys = ['short']", "auth.api_keys", "at least 16 visible ASCII characters"),
            ("[auth]\napi_keys = ['0123456789 abcdefg']", "auth.api_keys", "visible ASCII"),
            ("[auth]\nallowed_origins = ['example.com']", "auth.allowed_origins", "scheme://host[:port]"),
            ("[auth]\nallowed_origins = ['https://e.com/']", "auth.allowed_origins", "without a path"),
            ("[auth]\nallowed_origins = ['https://E.com']", "auth.allowed_origins", "lower case"),
            ("[auth]\nallowed_origins = ['https://e.com:443']", "auth.allowed_origins", "own port"),
            ("[auth]\nallowed_origins = ['http://e.com:80']", "auth.allowed_origins", "own port"),
            ("[auth]\nallowed_origins = ['https://*.e.com']", "auth.allowed_origins", "scheme://host[:port]"),
            ("[auth]\nallowed_origins = ['NULL']", "auth.allowed_origins", "scheme://host[:port]"),
            ("[auth]\nallowed_origins = ['file:///']", "auth.allowed_origins", '"file://"'),
            ("[auth]\nallowed_origins = ['file:']", "auth.allowed_origins", "scheme://host[:port]"),
            ("[auth]\nallowed_origins = ['null ']", "auth.allowed_origins", "scheme://host[:port]"),
            ("[auth]\nallowed_origins = ['']", "auth.allowed_origins", "scheme://host[:port]"),
            ("[delivery]\nmin_workers = 17", "delivery.min_workers", "at most delivery.max_workers (16)"),
            ("[delivery]\nheartbeat_timeout_s = 26", "delivery.heartbeat_timeout_s", "delivery.heartbeat_s (25)"),
        ],
    )
    def test_refused(self, text: str, key: str, expected: str) -> None:
        line = refusal(text)
        assert line.startswith(f"pushd.toml: {key}: found ")
        assert expected in line.partition(", expected ")[2]
        assert "short-secret" not in line
        assert SECRET not in line

    @pytest.mark.parametrize(
        "text",
        [
            JWT + "[server]\nhost = '0.0.0.0'",
            "[auth]\nmode = 'jwt'\njwt_algorithms = ['RS256', 'EdDSA']\njwt_public_key_file = 'k.pem'",
            f"[auth]\njwt_secret = '{SECRET}'",
            f"[auth]\njwt_algorithms = ['HS512']\njwt_secret = '{SECRET}'",
            f"[auth]\njwt_secret = '{'é' * 16}'",
            "[auth]\nallowed_origins = ['*']",
            "[auth]\nallowed_origins = ['null', 'file://']",
            "[auth]\nallowed_origins = ['https://e.com', 'http://localhost:3000', 'http://[::1]:80801', 'app://x']",
            "[server]\ntrusted_proxies = ['10.0.0.0/8', '192.168.1.1', 'fd00::/8']",
            "[server]\ntls_cert = 'a'\ntls_key = 'b'",
            "[server]\ntimezone = 'Asia/Shanghai'",
            "[delivery]\nmin_workers = 4\nmax_workers = 4\nheartbeat_s = 5\nheartbeat_timeout_s = 5",
            "[debug]\necho = true",
        ],
    )
    def test_accepted(self, text: str) -> None:
        read(text)

    def test_structs_made_by_hand_are_checked_too(self) -> None:
        with pytest.raises(ConfigError, match=r"^server\.host: "):
            Config(server=ServerConfig(host="0.0.0.0"))
        with pytest.raises(ConfigError, match=r"^auth\.jwt_secret: "):
            AuthConfig(mode="jwt")
        with pytest.raises(ConfigError, match=r"^delivery\.min_workers: "):
            DeliveryConfig(min_workers=3, max_workers=2)
        assert LimitsConfig(max_connections=3).max_connections == 3


class TestNotYet:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("cluster.url", "redis://h"),
        ],
    )
    def test_is_refused_in_words_for_users(self, key: str, value: str) -> None:
        line = refusal(toml(key, f'"{value}"'))
        assert line.startswith(f'pushd.toml: {key}: found "{value}", which is not available in this version')
        assert NOT_YET[key]

    @pytest.mark.parametrize("key", NOT_YET)
    def test_the_default_may_be_written_down(self, key: str) -> None:
        assert read(toml(key, quote(KEYS[key].default))) == Config()

    @pytest.mark.parametrize("key", URL_FORMS)
    @pytest.mark.parametrize("url", ["foo://h", "foo", "sqlite", "redis:/h", "sqlite:x"])
    def test_an_unknown_scheme_is_told_which_exist(self, key: str, url: str) -> None:
        line = refusal(toml(key, f'"{url}"'))
        assert all(form in line.partition("expected ")[2] for form in URL_FORMS[key])

    def test_a_scheme_needs_an_address(self) -> None:
        assert 'found "redis://", expected "sqlite:" or redis://… or rediss://…' in refusal(
            toml("mailbox.url", '"redis://"')
        )


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.255.1.2", "::1", "0:0::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert read(toml("server.host", f'"{host}"')).server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "example.com", "127.1", "localhost.x"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
