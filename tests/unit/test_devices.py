"""What a User-Agent says about a device."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pushd.users import devices
from pushd.users.devices import LONGEST_TEXT, Device, device_of

WEBKIT = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
BLINK = "AppleWebKit/537.36 (KHTML, like Gecko)"
KNOWN = {
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {BLINK} Chrome/126.0.0.0 Safari/537.36":
        ("desktop", "Windows", "Chrome"),
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {BLINK} Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0":
        ("desktop", "Windows", "Edge"),
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Version/17.5 Safari/605.1.15":
        ("desktop", "Mac OS X", "Safari"),
    "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0":
        ("desktop", "Linux", "Firefox"),
    f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {BLINK} Chrome/126.0.0.0 Safari/537.36":
        ("desktop", "Chrome OS", "Chrome"),
    "Mozilla/5.0 (Windows NT 6.1; WOW64; Trident/7.0; SLCC2; Tablet PC 2.0; rv:11.0) like Gecko":
        ("desktop", "Windows", "IE"),
    f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) {WEBKIT} Version/17.5 Mobile/15E148 Safari/604.1":
        ("mobile", "iOS", "Mobile Safari"),
    f"Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) {WEBKIT} Version/17.5 Mobile/15E148 Safari/604.1":
        ("tablet", "iOS", "Mobile Safari"),
    f"Mozilla/5.0 (Linux; Android 14; Pixel 8) {BLINK} Chrome/126.0.0.0 Mobile Safari/537.36":
        ("mobile", "Android", "Chrome Mobile"),
    f"Mozilla/5.0 (Linux; Android 13; SM-X700) {BLINK} Chrome/126.0.0.0 Safari/537.36":
        ("tablet", "Android", "Chrome"),
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)":
        ("bot", "", "Googlebot"),
    "curl/8.7.1": ("other", "", "curl"),
    "something of our own": ("other", "", ""),
    "": ("", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("user_agent", KNOWN)
def test_known_devices(user_agent: str) -> None:
    assert device_of(user_agent) == Device(*KNOWN[user_agent])


@given(st.text(max_size=100))
@example("\ud800 Chrome/1")  # no UTF-8
@example("\x00")
def test_anything_is_some_device(user_agent: str) -> None:
    device = device_of(user_agent)
    assert device.device_type in {"desktop", "mobile", "tablet", "bot", "other"} or user_agent == ""


def test_only_the_beginning_of_a_long_text_is_looked_at() -> None:
    firefox = next(text for text in KNOWN if "Firefox" in text)
    assert device_of(firefox.ljust(LONGEST_TEXT)) == device_of(firefox.ljust(100_000)) == Device(*KNOWN[firefox])
    assert device_of(" " * LONGEST_TEXT + firefox) == Device("other", "", "")


# Each makes some pattern of ua-parser's try every way to divide a long text, when a matcher backtracks.
@pytest.mark.parametrize(
    "text", ["; Apanda ", "; MODECOM ", "Mozilla/5.0 (Linux; Android 1; ", "HbbTV/1.1.1 (;;;;;", "a"]
)
@pytest.mark.parametrize("pumped", ["a", " ", "1", ";", "a ", "Build/", "-_", "(("])
def test_ill_meant_texts_are_some_device(text: str, pumped: str) -> None:
    assert device_of(text + pumped * 100_000).device_type in {"other", "mobile", "tablet", "desktop", "bot"}


def test_patterns_do_not_backtrack() -> None:
    """Time linear in the text is a property of the matcher: not Python's `re`."""
    from ua_parser_rs import DeviceExtractor

    evil = DeviceExtractor([("(a+)+$", None, None, None, None)])  # 2^40 steps, if it did
    assert evil.extract("a" * 40 + "!") is None


def test_a_text_at_which_the_matcher_panics_is_some_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(text: str, domain: object) -> None:
        raise BaseException("index out of bounds")

    monkeypatch.setattr(devices, "_resolver", lambda: panic)
    assert device_of("a text of this test alone") == devices.UNKNOWN
