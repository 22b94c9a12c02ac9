"""Failures that nobody foresaw, about one user's, one notice's or one batch's data: counted, and logged once per cause.

Whoever works for many catches them where that data is handled, notes them here, and goes on with the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import structlog

from pushd.errors import PushdError
from pushd.telemetry.metrics import Metrics

log = structlog.get_logger("pushd.faults")
T = TypeVar("T")
# Not a failure: the process or a coroutine is to end. Any other BaseException is a failure, as are panics of libraries
# in Rust.
ENDINGS = (KeyboardInterrupt, SystemExit, GeneratorExit)
FOR_GOOD = "failed for good"


def noted(metrics: Metrics, kind: str, error: BaseException, *, event: str = FOR_GOOD, **about: Any) -> None:
    """Count `error` as one of `kind`, and log it unless its cause is in the log already."""
    metrics.errors.labels(kind).inc()
    logged(metrics, kind, error, event=event, **about)


def logged(metrics: Metrics, kind: str, error: BaseException, *, event: str = FOR_GOOD, **about: Any) -> None:
    """Log `error` unless its cause was logged within the last hour: a flood of bad data must not fill the disk.

    `event`: what the log says of an error of our own; others are unexpected.
    """
    if not metrics.is_new_cause((kind, *_causes(error))):
        return
    if isinstance(error, PushdError):
        log.error(event, kind=kind, error=str(error), cause=repr(error.__cause__), **about)
    else:
        log.error("unexpected failure", kind=kind, exc_info=error, **about)


def _causes(error: BaseException) -> tuple[str, ...]:
    """What was raised, and the line that raised it. Not its text, which may say something else of every item."""
    cause = error.__cause__ or error
    place, trace = "", cause.__traceback__
    while trace is not None:
        place, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
    return type(error).__name__, type(cause).__name__, place


def is_being_cancelled() -> bool:
    """Whether it is the running task that is cancelled, and not something it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def unless_cancelled(work: Awaitable[T]) -> T:
    """What `work` gives. Raises an Exception for any failure, also when it was cancelled but this task was not."""
    try:
        return await work
    except asyncio.CancelledError as error:
        if is_being_cancelled():
            raise
        raise RuntimeError("what was awaited was cancelled by something else") from error
    except (Exception, *ENDINGS):
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
