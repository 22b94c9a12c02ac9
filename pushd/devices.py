"""What kind of device a User-Agent names (ua-parser and its pattern list)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ua_parser import parse

DESKTOP_SYSTEMS = frozenset({"Windows", "Mac OS X", "Linux", "Ubuntu", "Debian", "Fedora", "Chrome OS", "FreeBSD"})


class Device(NamedTuple):
    """The device fields of a receive record; "" where nothing is known."""

    device_type: str  # desktop, mobile, tablet, bot, other
    platform: str
    browser: str


@lru_cache(maxsize=4096)
def device_of(user_agent: str) -> Device:
    """About a millisecond for a User-Agent not seen lately; asked when a receive record is written, not at connect."""
    if not user_agent:
        return Device("", "", "")
    found = parse(user_agent)
    system = found.os.family if found.os else ""
    browser = found.user_agent.family if found.user_agent else ""
    return Device(_device_type(user_agent, system, found.device), system, browser)


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
