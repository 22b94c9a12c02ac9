"""What connections share: tasks that end with the server, and a log that is not flooded by refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from pushd.config.schema import LimitsConfig
from pushd.http.shared import Shared
from tests.unit.http_support import Application


@pytest.fixture
def refused() -> list[str]:
    return []


@pytest.fixture
async def shared(refused: list[str]) -> AsyncIterator[Shared]:
    shared = Shared(Application(), LimitsConfig(), on_refused=refused.append)
    yield shared
    shared.first_reads.close()


async def test_each_refusal_counts_and_the_log_hears_of_a_reason_once(shared: Shared, refused: list[str]) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            assert shared.crowded().status == 503
        shared.note_refused("queue_full")
    assert refused == ["bodies_full", "bodies_full", "bodies_full", "queue_full"]
    assert [line["reason"] for line in logs] == ["bodies_full", "queue_full"]


async def test_tasks_end_with_the_server(shared: Shared) -> None:
    tasks = [shared.spawn(asyncio.sleep(60)) for _ in range(3)]
    await shared.spawn(asyncio.sleep(0))
    await shared.end_tasks()
    assert all(task.cancelled() for task in tasks)
