"""What kind of device a User-Agent names (ua-parser and its pattern list).

The patterns are matched by ua-parser-rs, in time linear in the text whatever it says; Python's `re` takes a hundred
times as long, and backtracks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ua_parser import Domain, load_lazy_builtins
from ua_parser.regex import Resolver

from pushd.telemetry import faults

LONGEST_TEXT = 512  # characters that are looked at; browsers write 150, applications within browsers 300
DESKTOP_SYSTEMS = frozenset({"Windows", "Mac OS X", "Linux", "Ubuntu", "Debian", "Fedora", "Chrome OS", "FreeBSD"})


class Device(NamedTuple):
    """The device fields of a receive record; "" where nothing is known."""

    device_type: str  # desktop, mobile, tablet, bot, other
    platform: str
    browser: str


UNKNOWN = Device("other", "", "")


def device_of(user_agent: str) -> Device:
    """20 us for a User-Agent not seen lately, 100 us for an ill-meant one; asked when a receive record is written."""
    return _device_of(user_agent[:LONGEST_TEXT])


@lru_cache(maxsize=4096)
def _device_of(user_agent: str) -> Device:
    if not user_agent:
        return Device("", "", "")
    try:
        found = _resolver()(user_agent, Domain.ALL)
    except faults.ENDINGS:
        raise
    except BaseException:  # no UTF-8, a match without what its pattern promises, or a panic
        return UNKNOWN
    system = found.os.family if found.os else ""
    browser = found.user_agent.family if found.user_agent else ""
    return Device(_device_type(user_agent, system, found.device), system, browser)


@lru_cache(maxsize=1)
def _resolver() -> Resolver:
    return Resolver(load_lazy_builtins())


def prepare() -> None:
    """Compile the patterns now, which takes 0.15 s, rather than when the first browser's notice is recorded."""
    device_of("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")


def _device_type(user_agent: str, system: str, device: object) -> str:
    family = getattr(device, "family", "") or ""
    brand = getattr(device, "brand", "") or ""
    if family == "Spider":
        return "bot"
    words = user_agent.replace("Tablet PC", "")  # a part of Windows, on any desktop
    if family == "iPad" or "Tablet" in brand or "Tablet" in words:
        return "tablet"
    if system in ("iOS", "Android", "HarmonyOS", "KaiOS", "Windows Phone"):
        return "mobile" if system != "Android" or "Mobile" in user_agent else "tablet"
    return "desktop" if system in DESKTOP_SYSTEMS else "other"
