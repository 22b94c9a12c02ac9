"""A real MariaDB that tests start for themselves."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pymysql
import pytest

from tests.servers import free_port

WITHIN_S = 30
AS_ROOT = ["--user=root"] if os.geteuid() == 0 else []
# Debian keeps the server where ordinary users do not look.
PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/usr/libexec"])


def found(program: str) -> str | None:
    """Where a program of MariaDB is, on PATH or not."""
    return shutil.which(program, path=PLACES)


@cache
def mariadb_version() -> str:
    """What it calls itself, "" where there is none."""
    server = found("mariadbd")
    if server is None:
        return ""
    answer = subprocess.run([server, "--no-defaults", "--version"], capture_output=True, text=True, check=True)
    return answer.stdout.split("Ver ", 1)[-1].split(" for ")[0].strip()


class MariadbServer:
    """A mariadbd on a free port, in a directory of its own. `url` names the user root, who has no password."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.port = free_port()
        self.database = "test"
        self.directory = Path(tempfile.mkdtemp(prefix="pd-"))  # short: a socket's path has 107 bytes at most
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    @property
    def url(self) -> str:
        """The address of the newest database, for `directory.url`."""
        return self.url_for("root")

    def url_for(self, user: str, password: str = "", database: str | None = None, options: str = "") -> str:
        """The same with other parts, which are percent-encoded already."""
        named = self.database if database is None else database
        return f"mysql://{user}:{password}@127.0.0.1:{self.port}/{named}{options}"

    def install(self) -> None:
        """Make the system tables."""
        program = found("mariadb-install-db")
        assert program is not None
        subprocess.run(
            [
                program, "--no-defaults", *AS_ROOT, f"--datadir={self.directory}/data",
                "--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-log-file-size=8M",
            ],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": PLACES},
        )  # fmt: skip

    def start(self) -> None:
        """Return when it answers."""
        program = found("mariadbd")
        assert program is not None
        log = self.directory / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    program, "--no-defaults", *AS_ROOT, f"--datadir={self.directory}/data",
                    f"--socket={self.directory}/s", f"--pid-file={self.directory}/pid", f"--port={self.port}",
                    "--bind-address=127.0.0.1", "--skip-name-resolve", "--character-set-server=utf8mb4",
                    "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=8M", *self._arguments,
                ],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        ends = time.monotonic() + WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > ends:
                self.stop()
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.01)

    def _answers(self) -> bool:
        with suppress(pymysql.MySQLError):
            self.execute("SELECT 1", database=None)
            return True
        return False

    def stop(self) -> None:
        """At once; connections are reset, what was committed stays."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._process is not None:
            self._process.wait()

    def restart(self) -> None:
        """Stop it, and start it on the same data and port."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """It neither answers nor refuses."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def revive(self) -> None:
        """Whatever was done to it, it runs."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        else:
            self.thaw()

    def new_database(self) -> None:
        """An empty one, which `url` and `execute` mean from now on."""
        self._databases += 1
        self.database = f"test{self._databases}"
        self.execute(f"CREATE DATABASE {self.database}", database=None)

    def drop_database(self) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {self.database}", database=None)

    def execute(self, sql: str, *parameters: Any, database: str | None = "") -> list[tuple[Any, ...]]:
        """The rows of one statement, which root runs in the newest database."""
        named = self.database if database == "" else database
        with closing(
            pymysql.connect(
                host="127.0.0.1", port=self.port, user="root", database=named, charset="utf8mb4", autocommit=True,
                connect_timeout=5, read_timeout=WITHIN_S,
            )
        ) as connection, connection.cursor() as cursor:  # fmt: skip
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall())

    def insert(self, sql: str, rows: list[tuple[Any, ...]]) -> None:
        """`INSERT ... VALUES (%s, ...)` for many rows at once."""
        with closing(
            pymysql.connect(
                host="127.0.0.1", port=self.port, user="root", database=self.database, charset="utf8mb4",
                autocommit=True,
            )
        ) as connection, connection.cursor() as cursor:  # fmt: skip
            cursor.executemany(sql, rows)

    def remove(self) -> None:
        """Stop it and forget its data."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


_shared: list[MariadbServer] = []


def shared_server() -> MariadbServer:
    """The session's server, running and with a new database. Started when first asked for, gone with the process."""
    if not _shared:
        server = MariadbServer()
        _shared.append(server)
        atexit.register(server.remove)
        server.install()
    server = _shared[0]
    server.revive()
    server.new_database()
    return server


@pytest.fixture
def mariadb_server() -> Iterator[MariadbServer]:
    """A running MariaDB with a database of the test's own."""
    if found("mariadbd") is None:
        pytest.skip("mariadbd is not installed")
    server = shared_server()
    yield server
    server.revive()
    server.drop_database()
