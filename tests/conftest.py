"""What all tests share: uvloop, no unhandled error in the loop, configurations and whole daemons on free ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import uvloop

from pushd import app
from pushd.config import toml
from pushd.config.schema import Config
from tests.daemon import Probe
from tests.mariadb import mariadb_server as mariadb_server  # fixtures
from tests.mariadb import mariadb_version
from tests.mongo_server import mongo_server as mongo_server
from tests.mongo_server import mongo_version
from tests.servers import redis_server as redis_server
from tests.servers import redis_version

MakeConfig = Callable[..., Config]


def pytest_report_header() -> list[str]:
    """Which servers the stores are tested against."""
    return [f"stores: {redis_version()}, {mariadb_version() or 'no MariaDB'}, {mongo_version()}"]


_unhandled: list[dict[str, Any]] = []


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(lambda _, context: _unhandled.append(context))
    return loop


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": _new_loop}


@pytest.fixture(autouse=True)
def loop_errors() -> Iterator[list[dict[str, Any]]]:
    """Errors that nobody handled; a test that expects some empties the list."""
    _unhandled.clear()
    yield _unhandled
    assert not _unhandled, _unhandled


@pytest.fixture
def make_config(tmp_path: Path) -> Iterator[MakeConfig]:
    """A configuration with a free port and a data directory of its own; sections as keyword arguments."""

    def make(**sections: dict[str, Any]) -> Config:
        server = {"port": 0, "data_dir": str(tmp_path / "data"), "drain_s": 1} | sections.pop("server", {})
        log = {"level": "warning"} | sections.pop("log", {})
        return toml.parse(tomli_w.dumps({"server": server, "log": log, **sections}), source="the test's", environ={})

    return make


@pytest.fixture
async def start(make_config: MakeConfig) -> AsyncIterator[Callable[..., Any]]:
    """Starts a whole daemon in this process: `probe = await start(limits={...})`."""
    async with AsyncExitStack() as stack:

        async def start_one(**sections: dict[str, Any]) -> Probe:
            node = await stack.enter_async_context(app.running(make_config(**sections)))
            return await stack.enter_async_context(Probe(node.port, node))

        yield start_one


@pytest.fixture
async def probe(start: Callable[..., Any]) -> Probe:
    """A daemon with the default configuration, and clients for it."""
    return await start()
