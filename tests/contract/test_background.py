"""What the embedded stores do by themselves."""

from __future__ import annotations

from .conftest import Node


async def test_every_work_has_a_name_and_runs_until_it_is_cancelled(node: Node) -> None:
    assert set(node.stores.background) == {"database thread", "checkpoint"}
    assert node.health.error == ""
