"""What health says for each combination of stores, failures and drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pushd.errors import StartError, StoreLost
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from tests.daemon import until
from tests.unit.parts import Clock


@pytest.fixture
def node_health(clock: Clock) -> Health:
    return Health(Metrics(), clock)


def observe(node_health: Health, store: str, *, ok: bool) -> None:
    node_health.observe_store(store, "write", 0.001, ok)


def test_a_fresh_node_is_healthy(node_health: Health, clock: Clock) -> None:
    clock.move(12.5)
    assert node_health.status == "healthy"
    assert node_health.can_publish
    assert node_health.error == ""
    assert node_health.uptime_s == 12.5
    assert node_health.store_states() == {"mailbox": "up", "records": "up", "directory": "up"}


@pytest.mark.parametrize("store", ["mailbox", "records", "directory", "presence"])
def test_degraded_while_a_store_is_down(node_health: Health, store: str) -> None:
    observe(node_health, store, ok=False)
    assert node_health.status == "degraded"
    assert node_health.can_publish
    if store in node_health.store_states():
        assert [name for name, state in node_health.store_states().items() if state == "down"] == [store]
    assert node_health.error == f"{store}: write failed"
    observe(node_health, store, ok=True)
    assert node_health.status == "healthy"
    assert node_health.error == f"{store}: write failed"  # the last one is remembered


def test_unhealthy_while_the_journal_refuses(node_health: Health) -> None:
    observe(node_health, "journal", ok=False)
    assert node_health.status == "unhealthy"
    assert not node_health.can_publish
    observe(node_health, "journal", ok=True)
    assert node_health.status == "healthy"


def test_unhealthy_while_draining(node_health: Health) -> None:
    node_health.is_draining = True
    assert node_health.status == "unhealthy"
    assert not node_health.can_publish


class Part:
    """What may have to wait for a store."""

    failure = ""


class Entries:
    """What is set aside."""

    total = 0


def test_degraded_while_something_waits(node_health: Health) -> None:
    writer, replays = Part(), Part()
    node_health.watch({"mailbox: writes": writer, "mailbox: replays": replays}, Entries())
    assert node_health.status == "healthy"
    replays.failure = "no answer"
    assert node_health.status == "degraded"
    assert node_health.error == "mailbox: replays wait for the store"
    observe(node_health, "records", ok=False)
    assert node_health.error == "mailbox: replays wait for the store"  # what fails at present comes first
    replays.failure = ""
    assert node_health.error == "records: write failed"


def test_every_observation_is_counted(node_health: Health) -> None:
    observe(node_health, "mailbox", ok=False)
    text = node_health._metrics.text().decode()
    assert 'pushd_store_up{store="mailbox"} 0.0' in text
    assert 'pushd_store_errors_total{store="mailbox"} 1.0' in text


async def test_loop_lag_is_measured(node_health: Health) -> None:
    running = asyncio.create_task(node_health.watch_loop(every_s=0.0))
    await until(lambda: "pushd_loop_lag_seconds_count 0.0" not in node_health._metrics.text().decode())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


# ---- stores outside


class Outside:
    """A remote store that is away, or that can never be used, when the test says so."""

    store = "records"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
async def watched(node_health: Health) -> AsyncIterator[Outside]:
    outside = Outside()
    task = asyncio.create_task(node_health.watch_store(outside, every_s=0.001, away_most_s=0.001))
    yield outside
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_store_that_is_away_and_comes_back(node_health: Health, watched: Outside) -> None:
    await until(lambda: watched.checks)
    assert node_health.status == "healthy"
    watched.error = StoreLost("records", "no answer within 1 s")
    await until(lambda: node_health.status == "degraded")
    assert node_health.store_states()["records"] == "down"
    assert node_health.error == "records: no answer within 1 s"
    watched.error = None
    await until(lambda: node_health.status == "healthy")


async def test_what_is_wrong_with_a_configuration_is_for_the_log(node_health: Health, watched: Outside) -> None:
    watched.error = StartError("records.url: user 'pushd' is refused")
    await until(lambda: node_health.status == "degraded")
    assert node_health.error == "records: cannot be used as configured, see the log"


@pytest.mark.parametrize("error", [TypeError("odd"), RecursionError(), asyncio.CancelledError()])
async def test_a_check_that_fails_in_a_way_nobody_foresaw_is_repeated(
    node_health: Health, watched: Outside, error: Exception
) -> None:
    watched.error = error
    await until(lambda: node_health.store_states()["records"] == "down")
    assert "odd" not in node_health.error  # what is wrong inside is for the log
    watched.error = None
    await until(lambda: node_health.store_states()["records"] == "up")
    assert node_health._metrics.errors.labels("check").value >= 1


def test_what_is_set_aside_is_said_and_is_no_illness(node_health: Health) -> None:
    entries = Entries()
    node_health.watch({}, entries)
    assert (node_health.error, node_health.set_aside_total) == ("", 0)
    entries.total = 3
    assert node_health.set_aside_total == 3
    assert node_health.error == "3 set aside: see pushd-server set-aside list"
    assert node_health.status == "healthy"
