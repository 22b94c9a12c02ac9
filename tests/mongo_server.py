"""The MongoDB server of the tests: a real one where there is one, else a stand-in (tests.mongo_stub).

A real one is what $PUSHD_TEST_MONGO_URL names, which cannot be stopped or frozen, or a `mongod` on PATH. With
PUSHD_TEST_MONGO=java it is mongo-java-server (bench/install-mongo-java.sh): in memory, with less than MongoDB has, but
by other people than the stand-in, so that what both agree on is not the mistake of one.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo.errors import PyMongoError

from bench.loadlib.servers import mongo_java
from tests.daemon import until
from tests.servers import free_port

GIVEN_URL = os.environ.get("PUSHD_TEST_MONGO_URL", "")
JAVA = "mongo-java-server"
LACKS = {JAVA: {"collMod", "$unionWith", "users", "refusal of an index whose name is taken"}}
PATIENCE_MS = 500


def client_of(url: str, **options: Any) -> pymongo.MongoClient[dict[str, Any]]:
    """A client of the tests' own, for looking behind the ports' back."""
    return pymongo.MongoClient(url, serverSelectionTimeoutMS=5000, retryWrites=False, **options)


def chosen_kind() -> str:
    """given, mongod, mongo-java-server or stand-in."""
    if GIVEN_URL:
        return "given"
    if os.environ.get("PUSHD_TEST_MONGO") == "java":
        return JAVA
    return "mongod" if shutil.which("mongod") else "stand-in"


class MongoServer:
    """It keeps what is written over `stop` and `start`. It can be stopped (killed), started again and frozen."""

    def __init__(self, directory: Path) -> None:
        self.kind = chosen_kind()
        self.port = free_port()
        self.url = GIVEN_URL or f"mongodb://127.0.0.1:{self.port}/"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def needs(self, what: str) -> None:
        """Skip the test where the server has it not."""
        if what in LACKS.get(self.kind, ()):
            pytest.skip(f"{self.kind} has no {what}")

    async def start(self) -> None:
        if self.kind != "given":
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parent.parent,
            )  # fmt: skip
        await until(lambda: asyncio.to_thread(self._answers), within_s=30)

    def _command(self) -> list[str]:
        self._directory.mkdir(parents=True, exist_ok=True)
        if self.kind == "mongod":
            # The tests' records are from 1970: a TTL index would drop them.
            return [
                "mongod", "--port", str(self.port), "--bind_ip", "127.0.0.1", "--dbpath", str(self._directory),
                "--setParameter", "ttlMonitorEnabled=false",
            ]  # fmt: skip
        if self.kind == JAVA:
            return mongo_java(self.port)
        return [sys.executable, "-m", "tests.mongo_stub", str(self.port), str(self._directory / "journal.bson")]

    def _answers(self) -> bool:
        try:
            with pymongo.MongoClient(self.url, serverSelectionTimeoutMS=PATIENCE_MS) as client:
                return bool(client.admin.command("ping")["ok"])
        except PyMongoError:
            return False

    async def stop(self) -> None:
        """At once; connections are reset. Skips the test where the server is not ours, or forgets."""
        if self.kind in ("given", JAVA):
            pytest.skip("the MongoDB server is not ours to stop, or would forget what it has")
        self.kill()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """It neither answers nor refuses."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            pytest.skip("the MongoDB server is not ours to freeze")
        self._process.send_signal(number)

    def client(self, **options: Any) -> pymongo.MongoClient[dict[str, Any]]:
        return client_of(self.url, **options)


@cache
def mongo_version() -> str:
    """Which server the tests use, for the header of the report."""
    if GIVEN_URL:
        try:
            with client_of(GIVEN_URL) as client:
                return f"MongoDB: {client.server_info()['version']} ($PUSHD_TEST_MONGO_URL)"
        except PyMongoError:
            return "MongoDB: $PUSHD_TEST_MONGO_URL does not answer"
    if chosen_kind() == JAVA:
        return f"MongoDB: {JAVA}"
    mongod = shutil.which("mongod")
    if mongod:
        said = subprocess.run([mongod, "--version"], capture_output=True, text=True, check=False).stdout
        return f"MongoDB: {said.partition(chr(10))[0].removeprefix('db version ')} ({mongod})"
    return f"MongoDB: stand-in (mongomock {version('mongomock')})"


_shared: list[MongoServer] = []


async def shared_server() -> MongoServer:
    """One server for all tests of this process that do not stop it; it ends with the process."""
    if not _shared:
        directory = Path(tempfile.mkdtemp(prefix="pushd-mongo-"))
        server = MongoServer(directory)
        atexit.register(_end, server, directory)
        await server.start()
        _shared.append(server)
    return _shared[0]


def _end(server: MongoServer, directory: Path) -> None:
    server.kill()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def mongo_server(tmp_path: Path) -> AsyncIterator[MongoServer]:
    """A running MongoDB of the test's own, with nothing in it; the one of $PUSHD_TEST_MONGO_URL is shared."""
    server = MongoServer(tmp_path / "mongo")
    try:
        await server.start()
        yield server
    finally:
        server.kill()
