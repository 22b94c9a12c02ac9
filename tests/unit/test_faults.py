"""Failures nobody foresaw: every one is counted, each cause is in the log once, and none is a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import StoreError
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics


@pytest.fixture
def entries() -> Iterator[list[Any]]:
    with capture_logs() as captured:
        yield captured


def fail(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def fail_elsewhere() -> Exception:
    try:
        raise ValueError("x")
    except ValueError as error:
        return error


def test_each_is_counted_and_its_cause_logged_once(entries: list[Any]) -> None:
    metrics = Metrics()
    for number in range(100):
        faults.noted(metrics, "purge", fail(f"of item {number}"), item=number)
    faults.noted(metrics, "purge", fail_elsewhere())
    faults.noted(metrics, "check", fail("x"))
    assert metrics.errors.labels("purge").value == 101
    assert [entry["kind"] for entry in entries] == ["purge", "purge", "check"]
    assert entries[0]["item"] == 0
    assert str(entries[0]["exc_info"]) == "of item 0"


def test_of_a_store_s_refusal_the_texts_are_logged(entries: list[Any]) -> None:
    error = StoreError("mailbox", "never")
    error.__cause__ = fail("deeper")
    faults.noted(Metrics(), "write", error)
    assert (entries[0]["error"], entries[0]["cause"]) == ("mailbox: never", "ValueError('deeper')")


def test_no_more_causes_are_remembered_than_have_room() -> None:
    metrics = Metrics()
    assert all(metrics.is_new_cause((str(number),)) for number in range(1000))
    assert not metrics.is_new_cause(("999",))
    assert metrics.is_new_cause(("0",))


async def cancelled() -> None:
    raise asyncio.CancelledError


async def test_what_is_cancelled_by_something_else_is_a_failure() -> None:
    with pytest.raises(RuntimeError, match="cancelled by something else"):
        await faults.unless_cancelled(cancelled())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await faults.unless_cancelled(asyncio.sleep(60))


async def test_who_is_cancelled_himself_stays_so() -> None:
    task = asyncio.create_task(faults.unless_cancelled(asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


class Panic(BaseException):
    """What a library in Rust raises, by its class, when it is wrong about itself."""


async def raising(error: BaseException) -> None:
    raise error


async def test_a_panic_is_a_failure_like_any_other() -> None:
    with pytest.raises(RuntimeError, match="Panic: index out of bounds"):
        await faults.unless_cancelled(raising(Panic("index out of bounds")))


@pytest.mark.parametrize("ending", [*faults.ENDINGS])
def test_what_ends_a_process_or_a_coroutine_is_let_through(ending: type[BaseException]) -> None:
    with pytest.raises(ending):
        faults.unless_cancelled(raising(ending())).send(None)
