"""Starting under odd circumstances: it works, or ends with one line and the status of CONTRACT section 1."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import raw
from tests.daemon import Probe, Process, until
from tests.fault.test_stop import connected, crowd
from tests.servers import free_port

PUSHD = (sys.executable, "-m", "pushd")
BARE = {"PUSHD_SERVER_DRAIN_S": "1", "PUSHD_LOG_LEVEL": "warning"}


def shell(script: str, **environ: str) -> list[str]:
    """A shell that becomes whatever `script` ends with; $PUSHD is the daemon."""
    return ["env", *(f"{name}={value}" for name, value in environ.items()), "sh", "-c", script]


@contextlib.asynccontextmanager
async def running(
    where: Path, command: Iterable[str], environ: dict[str, str] | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int, Path]]:
    """The process, the port it is to serve, and what it says on stderr."""
    port, said = free_port(), where / "said"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PUSHD_")}
    ours = {"PUSHD_SERVER_PORT": str(port), "PUSHD_SERVER_DATA_DIR": str(where / "data"), "PUSHD": " ".join(PUSHD)}
    with said.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=where, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=stderr,
            env=inherited | BARE | ours | (environ or {}),
        )  # fmt: skip
    try:
        yield process, port, said
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def served(process: asyncio.subprocess.Process, port: int) -> bool:
    """Until it is ready, or has ended."""

    async def answered() -> Any:
        if process.returncode is not None:
            return "ended"
        with contextlib.suppress(httpx.TransportError):
            return (await http.get("/readyz")).status_code == 200 and "ready"
        return ""

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        return await until(answered, 20) == "ready"


async def ended(process: asyncio.subprocess.Process, within_s: float = 7) -> int:
    async with asyncio.timeout(within_s):
        return await process.wait()


@pytest.mark.parametrize(
    "command",
    [
        shell("exec $PUSHD <&-"),
        shell("exec $PUSHD >&-"),
        shell("exec $PUSHD 2>&-"),
        shell("exec $PUSHD <&- >&- 2>&-"),
        shell("exec $PUSHD 2>/dev/full"),
        shell("trap '' HUP INT TERM; exec $PUSHD"),
        shell("umask 0; exec $PUSHD"),
        shell("ulimit -n 64; exec $PUSHD"),
        shell("mkdir gone; cd gone; rmdir ../gone; exec $PUSHD"),
        shell("unset HOME USER LOGNAME PATH; exec $PUSHD"),
        shell("exec $PUSHD", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PUSHD_SERVER_DATA_DIR="数据"),
        shell("exec $PUSHD", PYTHONIOENCODING="utf-16"),
        shell("exec $PUSHD", TZ="Nowhere/At_All"),
        shell("exec $PUSHD", NOTIFY_SOCKET="/nobody/listens"),
    ],
    ids=lambda command: " ".join(command).partition("sh -c ")[2] + " ".join(command[1:-3]),
)
async def test_it_serves_and_stops(tmp_path: Path, command: list[str]) -> None:
    async with running(tmp_path, command) as (process, port, said):
        assert await served(process, port), said.read_text()
        async with Probe(port) as probe:
            client = await probe.client(7, ack=True)
            published = await probe.publish(target="custom", user_ids=[7])
            assert await client.receive_ids(1) == [published["message_id"]]
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
    databases = [*tmp_path.rglob("pushd.db")]
    assert [database.stat().st_mode & 0o077 for database in databases] == [0]
    with contextlib.closing(sqlite3.connect(databases[0])) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (shell("ulimit -n 20; exec $PUSHD"), ["pushd.db"]),
        (shell("ulimit -f 1; exec $PUSHD 2>&1 | cat >&2"), ["pushd.db"]),
        (shell("mkdir gone; cd gone; rmdir ../gone; PUSHD_SERVER_DATA_DIR=data exec $PUSHD"), ["data directory data"]),
        (shell("touch taken; PUSHD_SERVER_DATA_DIR=taken exec $PUSHD"), ["data directory taken"]),
        (shell("PUSHD_SERVER_DATA_DIR=/proc/data exec $PUSHD"), ["data directory /proc/data"]),
    ],
    ids=lambda item: item[-1] if isinstance(item[-1], str) else "",
)
async def test_it_refuses_with_one_line(tmp_path: Path, command: list[str], parts: list[str]) -> None:
    async with running(tmp_path, command) as (process, port, said):
        assert not await served(process, port)
        assert process.returncode in (1, 0 if "cat" in command[-1] else 1)
        (line,) = said.read_text().splitlines()
        assert line.startswith("pushd: ")
        assert all(part in line for part in parts), line
        assert "internal error" not in line


async def test_a_start_with_everybody_at_the_door(tmp_path: Path) -> None:
    """It was killed with notices on their way, and its clients reconnect as fast as they can while it starts."""
    users = range(1, 101)
    got: dict[int, set[str]] = {user_id: set() for user_id in users}

    async def client(number: int) -> None:
        async with connected(port) as (reader, writer):
            writer.write(raw.upgrade(f"/ws?user_id={number + 1}"))
            text = b""
            while piece := await reader.read(4096):
                text += piece
                got[number + 1].update(re.findall(r'"message_id":"([^"]+)"', text.decode("latin-1")))

    port = free_port()
    async with Process(tmp_path, server={"port": port, "drain_s": 1}) as daemon:
        async with await daemon.start() as probe:
            for _ in range(10):
                await probe.publish(target="custom", user_ids=list(users))
            answers = [await probe.publish(target="custom", user_ids=list(users), wait_ms=0) for _ in range(20)]
            await daemon.kill()
        async with crowd(len(users), client):
            async with await daemon.start() as probe:
                accepted = {answer["message_id"] for answer in answers}
                await until(lambda: all(accepted <= ids for ids in got.values()), 30)
                assert (await probe.http.get("/readyz")).status_code == 200
            await daemon.signal(signal.SIGTERM)
            assert await daemon.ended(6) == 0


# ---- signals before it is ready

SIGNALS = signal.SIGHUP, signal.SIGINT, signal.SIGTERM


def holds_signals(pid: int) -> bool:
    """Whether they wait to be heard: from then on the program, and no longer the interpreter, is in charge."""
    status = Path(f"/proc/{pid}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    return all(blocked >> signum - 1 & 1 for signum in SIGNALS)


async def test_sighup_before_it_is_ready_is_no_end(tmp_path: Path) -> None:
    async with running(tmp_path, PUSHD) as (process, port, said):
        await until(lambda: holds_signals(process.pid))
        for _ in range(20):
            process.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.02)  # all through the start
        assert await served(process, port), said.read_text()
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0


async def test_a_change_told_of_before_it_is_ready_counts(tmp_path: Path) -> None:
    """The database is held by another process, so that it waits before it is ready."""
    async with Process(tmp_path, server={"drain_s": 1}) as daemon:
        async with await daemon.start():
            pass
        await daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0
        config = daemon.config_file
        with contextlib.closing(sqlite3.connect(tmp_path / "data" / "pushd.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with running(tmp_path, [*PUSHD, "--config", str(config)]) as (process, port, said):
                await until(lambda: _has_open(process.pid, "pushd.lock"))
                config.write_text(config.read_text() + "[limits]\nmax_content_chars = 5\n")
                process.send_signal(signal.SIGHUP)
                await until(lambda: not _is_pending(process.pid, signal.SIGHUP))
                other.execute("ROLLBACK")
                assert await served(process, port), said.read_text()
                async with Probe(port) as probe:
                    await until(lambda: _is_refused(probe))


async def _is_refused(probe: Probe) -> bool:
    answer = await probe.post("/system/notice", {"content": "longer than five"})
    return bool(answer.json().get("error") == "CONTENT_TOO_LONG")


def _has_open(pid: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
        return any(os.readlink(link).endswith(name) for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _is_pending(pid: int, signum: int) -> bool:
    waiting = Path(f"/proc/{pid}/status").read_text().partition("ShdPnd:")[2].split()[0]
    return bool(int(waiting, 16) >> signum - 1 & 1)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_before_it_is_ready(tmp_path: Path, signum: signal.Signals) -> None:
    async with running(tmp_path, PUSHD) as (process, _, said):
        await until(lambda: holds_signals(process.pid))
        process.send_signal(signum)
        assert (await ended(process), said.read_text()) == (0, "")
    async with running(tmp_path, PUSHD) as (process, port, _):  # and it left nothing that would keep the next one away
        assert await served(process, port)


async def test_a_stop_while_it_waits_for_its_database(tmp_path: Path) -> None:
    async with running(tmp_path, PUSHD) as (process, port, _):
        assert await served(process, port)
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "pushd.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with running(tmp_path, PUSHD) as (process, _, said):
            await until(lambda: _has_open(process.pid, "pushd.db"))
            process.send_signal(signal.SIGTERM)
            assert (await ended(process, 3), said.read_text()) == (0, "")


# ---- as process 1, and with a loop that hangs

needs_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode != 0,
    reason="may not make a PID namespace",
)


@needs_namespaces
async def test_process_1_obeys_too(tmp_path: Path) -> None:
    command = ["unshare", "--pid", "--fork", "--kill-child", *PUSHD]
    environ = {"PUSHD_SERVER_DRAIN_S": "30", "PUSHD_LOG_LEVEL": "info"}
    async with running(tmp_path, command, environ) as (process, port, said):
        assert await served(process, port), said.read_text()
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        async with Probe(port) as probe:
            for _ in range(300):  # closed over more than a second
                await probe.client()
            os.kill(int(child), signal.SIGHUP)
            await until(lambda: "configuration reloaded" in said.read_text())
            os.kill(int(child), signal.SIGTERM)
            await until(lambda: "draining" in said.read_text())
            await asyncio.sleep(0.1)  # one stroke and another
            os.kill(int(child), signal.SIGTERM)
            assert await ended(process, 1) in (-signal.SIGTERM, 128 + signal.SIGTERM)


@pytest.mark.parametrize("hang", ["time.sleep(60)", "while True: pass"])
def test_the_bound_of_a_stop_needs_no_loop(hang: str) -> None:
    code = f"""
        import os, signal, time
        from pushd.signals import Signals
        signals = Signals()
        signals.listen()
        signals.obey(lambda: print("stop", flush=True), print, 0.5, lambda: print("cut off", flush=True))
        os.kill(os.getpid(), signal.SIGTERM)
        {hang}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"stop\ncut off\n", b"")


def test_two_signals_of_one_stroke_are_one() -> None:
    code = """
        import os, signal, time
        from pushd.signals import Signals
        signals = Signals()
        signals.listen()
        signals.obey(lambda: print("stop", flush=True), print, 60, print)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        print("goes on", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"stop\ngoes on\n")
