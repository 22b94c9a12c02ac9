"""The configuration in force. Parts read it through the one `CurrentConfig`, so that SIGHUP reaches all of them."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from pushd.config.schema import Config


class CurrentConfig:
    """Holds the current configuration; only `app` replaces it. `timezone` never changes while it runs."""

    __slots__ = ("config", "timezone")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.timezone = ZoneInfo(config.server.timezone)
