"""The mailbox in a Redis of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.servers import RedisServer

from .conftest import Node


class RedisNode(Node):
    """A node whose mailbox is in Redis, everything else embedded."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.server = RedisServer(directory)

    def mailbox_section(self) -> dict[str, Any]:
        return {"url": self.server.url}

    async def begin(self) -> None:
        await self.server.start()

    async def end(self) -> None:
        await self.server.stop()
