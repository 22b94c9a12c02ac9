"""Parsing TOML and environment, printing, and the generated reference."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from pushd.config.checks import quote
from pushd.config.schema import NOT_YET, AuthConfig, Config, ServerConfig, is_loopback
from pushd.config.toml import KEYS, SECTIONS, describe, dump, parse, reference
from pushd.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
SECRET = "s3cret-" + "x" * 57
API_KEY = "k3y-0123456789abcdef"
DEFAULTS: Any = msgspec.json.decode(msgspec.json.encode(Config()))


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


class TestTypesAndRanges:
    @pytest.mark.parametrize(
        ("key", "value", "found", "expected"),
        [
            ("server.port", '"8801"', '"8801"', "a whole number from 0 to 65535"),
            ("server.port", "65536", "65536", "a whole number from 0 to 65535"),
            ("server.port", "-1", "-1", "a whole number from 0 to 65535"),
            ("server.port", "true", "true", "a whole number"),
            ("server.port", "8801.0", "8801.0", "a whole number"),
            ("server.port", "[1, 2]", "[1, 2]", "a whole number"),
            ("server.port", "{a = 1}", "a table", "a whole number"),
            ("server.port", "1979-05-27", "1979-05-27", "a whole number"),
            ("server.drain_s", "nan", "nan", "a number from 0 to 3600"),
            ("server.drain_s", "inf", "inf", "a number from 0 to 3600"),
            ("server.drain_s", "1" + "0" * 400, "10000", "a number from 0 to 3600"),
            ("server.drain_s", "true", "true", "a number"),
            ("server.host", '""', '""', "a host name or an IP address"),
            ("server.host", '"a b"', '"a b"', "a host name or an IP address"),
            ("server.host", "1979-05-27", "1979-05-27", "a host name"),
            ("server.data_dir", '""', '""', "a directory's path"),
            ("server.status_in_body", "1", "1", "true or false"),
            ("server.status_in_body", '"true"', '"true"', "true or false"),
            ("server.compression", '"gzip"', '"gzip"', '"off" or "on"'),
            ("server.api_prefix", '"/"', '"/"', "does not end with"),
            ("server.api_prefix", '""', '""', "starts with"),
            ("server.api_prefix", '"api"', '"api"', "starts with"),
            ("server.api_prefix", '"/api/"', '"/api/"', "does not end with"),
            ("server.api_prefix", '"/a/../b"', '"/a/../b"', "a path"),
            ("server.api_prefix", '"/a?b"', '"/a?b"', "a path"),
            ("server.trusted_proxies", '"10.0.0.0/8"', '"10.0.0.0/8"', "a list of networks"),
            ("auth.mode", '"basic"', '"basic"', '"none" or "jwt"'),
            ("auth.jwt_algorithms", "[]", "[]", "a list, not empty, of"),
            ("auth.jwt_algorithms", '["none"]', '["none"]', '"HS256", "HS384"'),
            ("auth.jwt_algorithms", '["hs256"]', '["hs256"]', 'or "EdDSA"'),
            ("auth.admin_roles", "[true]", "[true]", "a list of whole numbers"),
            (
                "auth.admin_roles",
                "[2147483648]",
                "[2147483648]",
                "a list of whole numbers from -2147483648 to 2147483647",
            ),
            ("auth.user_claim", '""', '""', "a claim's name"),
            ("limits.max_connections", "0", "0", "a whole number from 1 to"),
            ("delivery.fsync", '"on"', '"on"', '"batch" or "off"'),
            ("directory.role_names", "3", "3", "a table of names of 1 to 255 characters, by role"),
            ("directory.role_names", "{1 = 2}", "a table", "a table of names"),
            ("directory.role_names", '{admin = "x"}', '"admin"', "roles, whole numbers from -2147483648 to"),
            ("directory.role_names", '{01 = "x"}', '"01"', "roles, whole numbers from"),
            ("directory.role_names", '{2147483648 = "x"}', '"2147483648"', "roles, whole numbers from"),
            ("directory.role_names", '{1 = ""}', '"" as the name of role 1', "names of 1 to 255 characters"),
            ("directory.groups_query", '"DELETE FROM x"', '"DELETE FROM x"', 'a SELECT without ";"'),
            ("directory.groups_query", '"SELECT 1; SELECT 2"', '"SELECT 1; SELECT 2"', 'a SELECT without ";"'),
            ("directory.groups_query", '"SELECTED"', '"SELECTED"', 'a SELECT without ";"'),
            ("directory.groups_query", '"SELECT 1"', '"SELECT 1"', '"", because directory.url is "sqlite:"'),
            ("cluster.node_id", '"ä"', '"ä"', "letters, digits"),
            ("log.level", '"trace"', '"trace"', '"debug", "info", "warning" or "error"'),
            ("log.level", '"INFO"', '"INFO"', '"debug"'),
            ("log.format", '"xml"', '"xml"', '"console" or "json"'),
        ],
    )
    def test_a_wrong_value_names_file_key_found_and_expected(
        self, key: str, value: str, found: str, expected: str
    ) -> None:
        line = refusal(toml(key, value))
        assert line.startswith(f"pushd.toml: {key}: found {found}")
        assert f"expected {expected}" in line or expected in line.partition("expected")[2]

    def test_a_long_value_is_cut(self) -> None:
        assert len(refusal(toml("log.level", '"' + "x" * 10_000 + '"'))) < 300
        assert len(refusal(toml("server.port", "[" + "1," * 10_000 + "]"))) < 300

    @pytest.mark.parametrize("value", ['"a\\u0000b"', '"a\\nb"', '"a\\u001bb"'])
    def test_control_characters_are_refused(self, value: str) -> None:
        assert "control characters" in refusal(toml("server.data_dir", value))
        assert "control characters" in refusal(toml("auth.allowed_origins", f"[{value}]"))

    def test_names_of_roles(self) -> None:
        assert read().directory.role_names == {}
        names = {"1": "Administrators", "-2": "客人", "0": "x" * 255}
        given = tomli_w.dumps({"directory": {"role_names": names}})
        assert read(given).directory.role_names == names
        assert read(dump(read(given))).directory.role_names == names
        assert read(PUSHD_DIRECTORY_ROLE_NAMES='{"7": "seven"}').directory.role_names == {"7": "seven"}
        assert "as JSON" in refusal(PUSHD_DIRECTORY_ROLE_NAMES="{7}")
        assert "control characters" in refusal(toml("directory.role_names", '{1 = "a\\u0000"}'))

    @pytest.mark.parametrize(
        "query", ["", "  ", "SELECT a\n  FROM b\n", "\n\twith x as (select 1) select 2", "(SELECT 1)"]
    )
    def test_a_query_may_have_lines(self, query: str) -> None:
        given = tomli_w.dumps({"directory": {"url": "mysql://u@h/db", "groups_query": query}})
        assert read(given).directory.groups_query == query
        assert "control characters" in refusal(toml("directory.groups_query", '"SELECT \\u0000"'))

    def test_lists_become_tuples_and_whole_numbers_stay(self) -> None:
        config = read("[auth]\nadmin_roles = [1, 2]\n[server]\ndrain_s = 3\n[delivery]\nheartbeat_timeout_s = 0.5")
        assert config.auth.admin_roles == (1, 2)
        assert (config.server.drain_s, config.delivery.heartbeat_timeout_s) == (3, 0.5)
        assert type(config.server.drain_s) is int


class TestSyntaxAndNames:
    @pytest.mark.parametrize(
        ("text", "place"),
        [("[server]\nport = ]", "line 2, column 8"), ("[server]\nport = 1\nport = 2", "line 3"), ("a = [", "line 1")],
    )
    def test_bad_toml_names_the_line(self, text: str, place: str) -> None:
        line = refusal(text)
        assert line.startswith("pushd.toml: not valid TOML: ")
        assert place in line

    @pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 100_000])
    def test_excess_is_bad_toml_too(self, text: str) -> None:
        assert "not valid TOML" in refusal(text)

    @pytest.mark.parametrize(
        ("text", "start", "hint"),
        [
            ("[sever]", "pushd.toml: sever: unknown section", "did you mean server?"),
            ("[server]\nprot = 1", "pushd.toml: server.prot: unknown key", "did you mean server.port?"),
            ("port = 1", "pushd.toml: port: unknown section", "did you mean server.port?"),
            ("[server]\nmax_connections = 1", "pushd.toml: server.max_connections: unknown key", "limits.max_conn"),
            ("[log]\nzzz = 1", "pushd.toml: log.zzz: unknown key", "expected one of level, format"),
            ("[zzz]", "pushd.toml: zzz: unknown section", "expected one of server, auth"),
            ('["a\\nb"]', 'pushd.toml: "a\\nb": unknown section', "expected one of"),
        ],
    )
    def test_unknown_names_get_a_hint(self, text: str, start: str, hint: str) -> None:
        line = refusal(text)
        assert line.startswith(start)
        assert hint in line

    @pytest.mark.parametrize("text", ["server = 3", "[[server]]", "server = 'x'", "server = 2000-01-01"])
    def test_a_section_must_be_a_table(self, text: str) -> None:
        assert "expected a table [server]" in refusal(text)


class TestEnvironment:
    @pytest.mark.parametrize(
        ("variable", "text", "key", "value"),
        [
            ("PUSHD_SERVER_PORT", "0", "server.port", 0),
            ("PUSHD_SERVER_HOST", "::1", "server.host", "::1"),
            ("PUSHD_SERVER_DRAIN_S", "2", "server.drain_s", 2),
            ("PUSHD_SERVER_DRAIN_S", "0.25", "server.drain_s", 0.25),
            ("PUSHD_DEBUG_ECHO", "true", "debug.echo", True),
            ("PUSHD_SERVER_STATUS_IN_BODY", "false", "server.status_in_body", False),
            ("PUSHD_AUTH_JWT_SECRET", SECRET, "auth.jwt_secret", SECRET),
            ("PUSHD_AUTH_ADMIN_ROLES", "[1, -2]", "auth.admin_roles", (1, -2)),
            ("PUSHD_AUTH_API_KEYS", f'["{API_KEY}"]', "auth.api_keys", (API_KEY,)),
            ("PUSHD_AUTH_JWT_ALGORITHMS", '["HS384"]', "auth.jwt_algorithms", ("HS384",)),
            ("PUSHD_LOG_LEVEL", "debug", "log.level", "debug"),
            ("PUSHD_CLUSTER_NODE_ID", "a-1", "cluster.node_id", "a-1"),
        ],
    )
    def test_overrides_the_file(self, variable: str, text: str, key: str, value: object) -> None:
        section, _, name = key.partition(".")
        config = read("[server]\nport = 1\nhost = 'localhost'\n", **{variable: text})
        assert getattr(getattr(config, section), name) == value

    @pytest.mark.parametrize(
        ("variable", "text", "expected"),
        [
            ("PUSHD_SERVER_PORT", "", "a whole number from 0 to 65535"),
            ("PUSHD_SERVER_PORT", " 1", "a whole number"),
            ("PUSHD_SERVER_PORT", "1_0", "a whole number"),
            ("PUSHD_SERVER_PORT", "٣", "a whole number"),
            ("PUSHD_SERVER_PORT", "tcp://10.0.0.1:8801", "a whole number"),
            ("PUSHD_SERVER_PORT", "9" * 5000, "a whole number"),
            ("PUSHD_SERVER_PORT", "70000", "a whole number from 0 to 65535"),
            ("PUSHD_SERVER_DRAIN_S", "nan", "a number from 0 to 3600"),
            ("PUSHD_SERVER_DRAIN_S", "1e3", "a number from 0 to 3600"),
            ("PUSHD_DEBUG_ECHO", "yes", "true or false"),
            ("PUSHD_DEBUG_ECHO", "True", "true or false"),
            ("PUSHD_LOG_FORMAT", "xml", '"console" or "json"'),
            ("PUSHD_AUTH_ADMIN_ROLES", "1,2", "2147483647, as JSON"),
            ("PUSHD_AUTH_ADMIN_ROLES", "1", "a list of whole numbers"),
            ("PUSHD_AUTH_ADMIN_ROLES", '["1"]', "a list of whole numbers"),
            ("PUSHD_AUTH_ADMIN_ROLES", "[" * 100_000, "as JSON"),
            ("PUSHD_AUTH_ALLOWED_ORIGINS", '["\\ud800"]', "as JSON"),
            ("PUSHD_AUTH_ALLOWED_ORIGINS", '["\udcff"]', "as JSON"),
            ("PUSHD_SERVER_DATA_DIR", "\udcff", "plain text"),
        ],
    )
    def test_a_wrong_value_names_variable_and_key(self, variable: str, text: str, expected: str) -> None:
        section, _, name = variable.removeprefix("PUSHD_").lower().partition("_")
        line = refusal(**{variable: text})
        assert line.startswith(f"environment variable {variable}: {section}.{name}: found ")
        assert expected in line.partition(" expected ")[2]

    @pytest.mark.parametrize(
        ("variable", "hint"),
        [
            ("PUSHD_SERVER_PROT", "did you mean PUSHD_SERVER_PORT?"),
            ("PUSHD_AUTH_SECRET", "did you mean PUSHD_AUTH_JWT_SECRET?"),
            ("PUSHD_SERVER_port", "did you mean PUSHD_SERVER_"),
            ("PUSHD_LIMITS_PORT", "did you mean PUSHD_SERVER_PORT?"),
            ("PUSHD_LOG_ZZZZZZZ", "PUSHD_LOG_LEVEL, PUSHD_LOG_FORMAT"),
        ],
    )
    def test_unknown_variables_of_a_section_are_refused(self, variable: str, hint: str) -> None:
        line = refusal(**{variable: "hunter2"})
        assert f"environment: {variable}: unknown variable" in line
        assert hint in line
        assert "hunter2" not in line

    def test_variables_of_no_section_are_somebody_elses(self) -> None:
        others = ("PUSHD_BUILD", "PUSHD_TEST_MONGO_URL", "PUSHD_LOG", "PUSHD_", "pushd_server_prot", "SERVER_PROT")
        assert read(**dict.fromkeys(others, "x")) == Config()

    def test_a_cross_check_names_the_variable_that_gave_the_value(self) -> None:
        assert refusal(PUSHD_SERVER_HOST="0.0.0.0").startswith("environment variable PUSHD_SERVER_HOST: server.host: ")
        assert refusal("[server]\nhost = '0.0.0.0'").startswith("pushd.toml: server.host: ")


class TestSecrets:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("auth.jwt_secret", '["hunter2"]'),
            ("auth.jwt_secret", '"hunter2"'),
            ("auth.jwt_secret", '"hunter2\\n"'),
            ("auth.api_keys", '["hunter2"]'),
            ("auth.api_keys", '"hunter2"'),
            ("mailbox.url", '"reddis://u:hunter2@h"'),
            ("mailbox.url", '"reddis://hunter2@h"'),
            ("mailbox.url", '"redis//:hunter2@h"'),
            ("mailbox.url", '"foo://h?password=hunter2"'),
            ("mailbox.url", '"reddis://u:a@b/hunter2@h"'),
            ("directory.url", '["mysql"]'),
        ],
    )
    def test_are_not_in_errors(self, key: str, value: str) -> None:
        section, _, name = key.partition(".")
        assert "hunter2" not in refusal(toml(key, value))
        assert "hunter2" not in refusal(**{f"PUSHD_{section}_{name}".upper(): value.strip('"').replace("\\n", "\n")})

    def test_are_masked_in_the_dump(self) -> None:
        config = read(f"[auth]\njwt_secret = '{SECRET}'\napi_keys = ['{API_KEY}', '{API_KEY}2']")
        text = dump(config)
        assert SECRET not in text
        assert API_KEY not in text
        auth = tomllib.loads(text)["auth"]
        assert (auth["jwt_secret"], auth["api_keys"]) == ("***", ["***", "***"])


class TestDump:
    def test_holds_every_key(self) -> None:
        assert tomllib.loads(dump(Config())) == DEFAULTS

    def test_comes_back_the_same(self) -> None:
        config = read(
            "[server]\ndrain_s = 0.5\ntrusted_proxies = ['10.0.0.0/8']\ndata_dir = 'a\"b\\c'\n"
            "[auth]\nadmin_roles = []\nallowed_origins = ['*']\n[debug]\necho = true"
        )
        assert read(dump(config)) == config

    @given(
        port=st.integers(0, 65535),
        drain_s=st.floats(0, 3600) | st.integers(0, 3600),
        directory=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1),
        roles=st.lists(st.integers(-(2**31), 2**31 - 1)),
    )
    def test_comes_back_the_same_for_any_value(
        self, port: int, drain_s: float, directory: str, roles: list[int]
    ) -> None:
        config = Config(
            server=ServerConfig(port=port, drain_s=drain_s, data_dir=directory),
            auth=AuthConfig(admin_roles=tuple(roles)),
        )
        assert read(dump(config)) == config


class TestReference:
    def test_on_disk_is_the_generated_one(self) -> None:
        assert (CONFIGS / "reference.toml").read_text() == reference()

    def test_is_the_default_configuration(self) -> None:
        assert tomllib.loads(reference()) == DEFAULTS
        assert read(reference()) == Config()

    def test_shows_of_every_key_meaning_choices_and_default(self) -> None:
        text = " ".join(line.removeprefix("# ") for line in reference().splitlines())
        for key, known in KEYS.items():
            words = describe(key)
            assert f"{known.about} {words[0].upper()}{words[1:]}; default {quote(known.default)}." in text, key

    def test_says_what_is_not_available(self) -> None:
        assert reference().count("not available in this version") >= len(NOT_YET) - 1
        assert "stage" not in reference()

    def test_has_short_lines(self) -> None:
        assert max(map(len, reference().splitlines())) <= 120


def test_the_development_configuration_is_valid() -> None:
    config = read((CONFIGS / "dev.toml").read_text())
    assert is_loopback(config.server.host)
    assert config.mailbox.url == config.records.url == config.directory.url == "sqlite:"


def test_the_production_configuration_lacks_nothing_but_its_secrets() -> None:
    text = (CONFIGS / "production.toml").read_text()
    assert "auth.jwt_secret" in refusal(text)
    config = read(text, PUSHD_AUTH_JWT_SECRET=SECRET, PUSHD_DIRECTORY_URL="mysql://u:p@h/db")
    urls = (config.mailbox.url, config.records.url, config.directory.url)
    assert [url.partition("://")[0] for url in urls] == ["rediss", "mongodb", "mysql"]
    assert not any("@" in url for url in tomllib.loads(text).values() if isinstance(url, str))


def tables() -> st.SearchStrategy[str]:
    """TOML that is nearly right: known and unknown names with any value."""
    names = st.sampled_from([key.partition(".")[2] for key in KEYS]) | st.text(max_size=5)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    )
    sections = st.sampled_from([*SECTIONS, "sever"])
    return st.builds(
        lambda section, name, value: f"[{section}]\n{quote(name)} = {quote(value, limit=1000)}",
        sections,
        names,
        values,
    )


@given(st.text() | tables())
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    try:
        read(text)
    except ConfigError as error:
        line = str(error)
    else:
        line = "pushd.toml: "
    assert line.startswith("pushd.toml: ")
    assert "\n" not in line


@given(st.sampled_from(sorted(KEYS)), st.text() | st.from_regex(r"\[.*\]|[0-9.]+|(redis|mysql)://.*"))
def test_any_variable_is_a_configuration_or_a_config_error(key: str, text: str) -> None:
    variable = "PUSHD_" + key.upper().replace(".", "_", 1)
    try:
        line = dump(read(**{variable: text}))
    except ConfigError as error:
        line = str(error)
    assert variable in line or "[server]" in line or key.startswith(("auth.", "server.tls"))
