"""The embedded stores with no memory for what is old: whatever can be is read from the file."""

from __future__ import annotations

from typing import Any

from pushd.config.schema import RecordsConfig

from .conftest import Node


class ColdNode(Node):
    """A node whose ledger keeps no columns of blocks that are stored."""

    def sections(self) -> dict[str, Any]:
        return {"records": RecordsConfig(memory_mb=0)}
