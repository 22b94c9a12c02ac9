"""The process around a node: signals, garbage, the service manager."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
import uvloop

from pushd import __version__, streams
from pushd.app import Node, running
from pushd.config.schema import Config
from pushd.errors import ConfigError, StartError
from pushd.signals import Signals, end_within
from pushd.telemetry import faults, logs, systemd

log = structlog.get_logger("pushd")

END_WITHIN_S = 4.5  # after the drain: whatever hangs, the process ends


def run(config: Config, reload: Callable[[], Config], signals: Signals) -> None:
    """Serve until SIGTERM or SIGINT. `reload` gives the configuration anew on SIGHUP. Raises StartError."""
    signals.listen()
    streams.stop_waiting_for_stderr()
    logs.configure(config.log)
    gc.disable()  # what a start makes stays: collections over it were half of the time that recent notices take
    uvloop.run(_serve(config, reload, signals))


async def _serve(config: Config, reload: Callable[[], Config], signals: Signals) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    async with running(config) as node:
        loop.set_exception_handler(lambda _, context: _loop_failed(node, context))
        _settle_garbage()
        signals.obey(
            stop=partial(loop.call_soon_threadsafe, stop.set),
            reload=partial(loop.call_soon_threadsafe, _reload, node, reload),
            stops_within_s=config.server.drain_s + END_WITHIN_S,
            cut_off=_cut_off,
        )
        log.info("serving", version=__version__, host=config.server.host, port=node.port, auth=config.auth.mode)
        systemd.notify(os.environ.get("NOTIFY_SOCKET"), "READY=1")
        try:
            await stop.wait()
        except asyncio.CancelledError:  # a part of it has failed
            end_within(END_WITHIN_S, 1, _cut_off)
            raise
        log.info("draining", connections=node.hub.connections_total, within_s=config.server.drain_s)
        systemd.notify(os.environ.get("NOTIFY_SOCKET"), "STOPPING=1")
        await node.drain()
    log.info("stopped")


def _cut_off() -> None:
    log.warning("the stop took too long and is cut off; the journal keeps the rest")


def _reload(node: Node, reload: Callable[[], Config]) -> None:
    try:
        node.reload(reload())
    except (ConfigError, StartError) as error:
        log.error("configuration not reloaded, nothing is changed", error=str(error))


def _loop_failed(node: Node, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, BaseException):
        faults.noted(node.metrics, "loop", error, message=context.get("message"))
    else:
        node.metrics.errors.labels("loop").inc()
        log.error("unhandled error in the event loop", message=context.get("message"))


def _settle_garbage() -> None:
    """Look at young objects only: a full collection over 5,000 connections held the loop up for 350 ms.

    Connections and notices leave no cycles behind, so there is nothing old to collect (tests/system/test_garbage.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 3, 1_000_000)
    gc.enable()
