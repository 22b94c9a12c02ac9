"""What of a store's URL is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.urls import is_ambiguous, mask_url
from tests.unit.test_config_toml import refusal, toml

SECRET = "zX9qW7"
KEYS = {
    "mailbox.url": "redis://",
    "records.url": "mongodb://",
    "presence.url": "mongodb://",
    "directory.url": "mysql://",
    "auth.revocation_url": "rediss://",
}


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://u:p@h/0", "redis://u:***@h/0"),
        ("redis://:p@h", "redis://:***@h"),
        ("redis://p@h", "redis://***@h"),
        ("redis://u:p@q@h", "redis://u:***@h"),
        ("redis://h/0?db=1&Password=x&y=z", "redis://h/0?db=1&Password=***&y=z"),
        ("p@h", "***@h"),
        ("user:p://x@h", "user:***@h"),
        ("h/0?password=p://&x=1", "h/0?password=***&x=1"),
        ("sqlite:", "sqlite:"),
        ("", ""),
        ("none", "none"),
        ("/a?b", "/a?b"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://:p/a#b@h/0", "redis://:***@h/0"),
        ("mysql://u:p://x@h/d", "mysql://u:***@h/d"),
        ("redis://u:p?q@h/0", "redis://***"),
        ("redis://h/0?password=p@q&x=1", "redis://***"),
        ("redis://:p/q", "redis://***"),
        ("redis://h/0?p%61ssword=p#q;r&s", "redis://h/0?p%61ssword=***&***"),
        (
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:p&w=1",
            "mongodb://h/?authMechanismProperties=***&w=1",
        ),
        ("mongodb://h1,h2/?replicaSet=r", "mongodb://h1,h2/?replicaSet=r"),
    ],
)
def test_mask_url(url: str, masked: str) -> None:
    assert mask_url(url) == masked


FORMS = [
    "{scheme}user:a{sign}{secret}@127.0.0.1:1/db",
    "{scheme}user:{secret}{sign}a@127.0.0.1:1/db",
    "{scheme}:1{sign}{secret}@127.0.0.1/db",
    "{scheme}u@v:{secret}{sign}@127.0.0.1/db",
    "{scheme}127.0.0.1/db?password={secret}{sign}",
    "{scheme}127.0.0.1/db?password=a{sign}{secret}",
    "{scheme}127.0.0.1/db?w=1&pass%77ord={secret}{sign}&x=1",
]


@pytest.mark.parametrize("form", FORMS)
@given(
    sign=st.text("/?#@:;,%[]=+ \\é", min_size=1, max_size=3), scheme=st.sampled_from([*KEYS.values(), "", "http://"])
)
def test_no_password_is_shown(form: str, sign: str, scheme: str) -> None:
    assert SECRET not in mask_url(form.format(scheme=scheme, sign=sign, secret=SECRET))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("sign", ["/", "#", "?", "@/", "/@"])
def test_a_password_that_is_not_percent_encoded_is_refused(key: str, sign: str) -> None:
    line = refusal(toml(key, f'"{KEYS[key]}user:12{sign}{SECRET}@127.0.0.1/db"'))
    assert f"{key}: found" in line
    assert "%2F" in line
    assert SECRET not in line


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:p%2F@h/0",
        "redis://u:p@q@h/0",
        "mongodb://h1,h2/db?appName=me@home",
        "mysql://u@h/d?charset=utf8",
        "sqlite:",
    ],
)
def test_what_drivers_understand(url: str) -> None:
    assert not is_ambiguous(url)
