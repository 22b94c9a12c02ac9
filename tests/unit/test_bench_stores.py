"""What bench/stores.py measures with: which MongoDB, and what the loop's delays are put down to."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from bench.loadlib import servers
from bench.loadlib.options import LoadError
from bench.loadlib.paired import timed


async def test_what_the_process_itself_does_to_its_loop():
    """Time that it computes is its own, in whichever thread; time that it does not is not."""

    async def compute() -> None:
        ends = time.thread_time() + 0.03
        while time.thread_time() < ends:
            pass

    async def stand_still() -> None:
        time.sleep(0.03)  # on the loop, which waits for it without CPU

    computing, standing = await timed(compute), await timed(stand_still)
    assert computing.own_lag_s > 0.025
    assert standing.lag_s > 0.025
    assert standing.own_lag_s < 0.01


async def test_delays_of_no_work():
    cost = await timed(lambda: asyncio.sleep(0))
    assert 0 <= cost.own_lag_s <= cost.lag_s


def test_a_mongo_of_java_says_why_it_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    java = tmp_path / "java"
    java.touch(0o755)
    monkeypatch.setattr(servers, "MONGO_JAVA", tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LoadError, match="java is not installed"):
        servers.mongo_java(1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadError, match=r"install-mongo-java\.sh has not been run"):
        servers.mongo_java(1)
    (tmp_path / "ready").touch()
    assert servers.mongo_java(1234)[-2:] == ["MongoJava", "1234"]


def test_a_given_mongo_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PUSHD_TEST_MONGO_URL", "mongodb://there/")
    with servers.mongo_server(tmp_path) as found:
        assert (found.kind, found.url, found.why) == ("given", "mongodb://there/", "")


def test_which_mongo_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "MONGO_JAVA", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    kind, why, _ = servers._mongo_command(tmp_path, 1)
    assert (kind, why) == ("stand-in", "no mongod on PATH; mongo-java-server: java is not installed")
    for name in ("java", "ready"):
        (tmp_path / name).touch(0o755)
    assert servers._mongo_command(tmp_path, 1)[:2] == ("mongo-java-server", "no mongod on PATH")
    (tmp_path / "mongod").touch(0o755)
    kind, why, command = servers._mongo_command(tmp_path, 1)
    assert (kind, why, command[0]) == ("mongod", "", str(tmp_path / "mongod"))
