"""Servers that a benchmark starts for itself: private ports, private directories, one core each; ended with it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from bench.loadlib.machine import usage_of
from bench.loadlib.options import LoadError

ROOT = Path(__file__).resolve().parents[2]
MONGO_JAVA = ROOT / "build" / "mongo-java"
READY_WITHIN_S = 30.0
STOP_WITHIN_S = 30.0
AS_ROOT = ["--user=root"] if os.geteuid() == 0 else []
PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/usr/libexec"])


@dataclass(frozen=True)
class Cores:
    """Where the daemon runs, and where everything else does: the same where there is only one."""

    daemon: int
    others: int


@cache
def cores() -> Cores:
    """The first core for the daemon, the last for Redis and the load: of those allowed when first asked."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[-1])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started meanwhile runs on this core, with all its threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory, gone at the end. Its name is short: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="pdb-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@dataclass
class Server:
    """A running process and where it listens."""

    name: str
    port: int
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def cpu_s(self) -> float:
        """CPU it has used so far, all threads."""
        return usage_of(self.process.pid).cpu_s

    @property
    def rss_bytes(self) -> int:
        """Its resident memory."""
        return usage_of(self.process.pid).rss_bytes


@contextmanager
def running(name: str, command: Sequence[str], log: Path, environ: dict[str, str] | None = None) -> Iterator[Server]:
    """A process until the end of the block, where it has some seconds to stop by itself."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**os.environ, **(environ or {})},
        )  # fmt: skip
    try:
        yield Server(name, 0, process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_port(server: Server, log: Path) -> None:
    """Return when somebody listens. Raises LoadError."""
    ends = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < ends and server.process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return
        time.sleep(0.02)
    raise LoadError(f"{server.name} did not start: {log.read_text(errors='replace')[-500:]}")


@contextmanager
def redis_server(directory: Path) -> Iterator[Server]:
    """A redis-server that keeps nothing. Raises LoadError where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        raise LoadError("redis-server is not installed (Debian: apt-get install redis-server)")
    port, log = free_port(), directory / "redis.log"
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
               "--dir", str(directory)]  # fmt: skip
    with running("redis-server", command, log) as server:
        server.port = port
        wait_for_port(server, log)
        yield server


@contextmanager
def mariadb_server(directory: Path) -> Iterator[Server]:
    """A mariadbd whose root has no password. Raises LoadError where there is none."""
    install, program = shutil.which("mariadb-install-db", path=PLACES), shutil.which("mariadbd", path=PLACES)
    if install is None or program is None:
        raise LoadError("mariadbd is not installed (Debian: mariadb-server-core, mariadb-client-core)")
    data, log, port = directory / "maria", directory / "maria.log", free_port()
    made = subprocess.run(
        [install, "--no-defaults", *AS_ROOT, f"--datadir={data}", "--auth-root-authentication-method=normal",
         "--skip-test-db", "--innodb-log-file-size=8M"],
        capture_output=True, check=False, env={**os.environ, "PATH": PLACES}, timeout=120,
    )  # fmt: skip
    if made.returncode:
        raise LoadError(f"mariadb-install-db: {made.stderr.decode(errors='replace')[-500:]}")
    command = [program, "--no-defaults", *AS_ROOT, f"--datadir={data}", f"--socket={directory}/s",
               f"--pid-file={directory}/pid", f"--port={port}", "--bind-address=127.0.0.1", "--skip-name-resolve",
               "--character-set-server=utf8mb4"]  # fmt: skip
    with running("mariadbd", command, log) as server:
        server.port = port
        wait_for_port(server, log)
        yield server


def mongo_java(port: int) -> list[str]:
    """The command that runs mongo-java-server. Raises LoadError with the reason where it cannot be run."""
    program = shutil.which("java")
    if program is None:
        raise LoadError("java is not installed")
    if not (MONGO_JAVA / "ready").exists():
        raise LoadError("bench/install-mongo-java.sh has not been run, or could not install it")
    # One core; and what a benchmark writes all stays, so that to collect seldom is to collect little.
    machine = [program, "-XX:+UseSerialGC", "-Xms2g", "-Xmx2g", "-Xmn1g"]
    return [*machine, "-cp", f"{MONGO_JAVA}:{MONGO_JAVA}/*", "MongoJava", str(port)]


@dataclass(frozen=True)
class Mongo:
    """A MongoDB: given, a mongod, mongo-java-server or the tests' stand-in; `why` says why nothing better."""

    kind: str
    url: str
    why: str = ""


@contextmanager
def mongo_server(directory: Path) -> Iterator[Mongo]:
    """$PUSHD_TEST_MONGO_URL, else a mongod, else mongo-java-server, else tests.mongo_stub. Raises LoadError."""
    if given := os.environ.get("PUSHD_TEST_MONGO_URL", ""):
        yield Mongo("given", given)
        return
    port, log = free_port(), directory / "mongo.log"
    kind, why, command = _mongo_command(directory, port)
    with running(kind, command, log) as server:
        server.port = port
        wait_for_port(server, log)
        yield Mongo(kind, f"mongodb://127.0.0.1:{port}/", why)


def _mongo_command(directory: Path, port: int) -> tuple[str, str, list[str]]:
    """What it is, why nothing better, and how to run it."""
    if program := shutil.which("mongod"):
        data = directory / "mongo"
        data.mkdir()
        return "mongod", "", [program, "--port", str(port), "--bind_ip", "127.0.0.1", "--dbpath", str(data)]
    try:
        return "mongo-java-server", "no mongod on PATH", mongo_java(port)
    except LoadError as error:
        why = f"no mongod on PATH; mongo-java-server: {error}"
        return "stand-in", why, [sys.executable, "-m", "tests.mongo_stub", str(port)]


# ---- the daemon


@contextmanager
def daemon(
    directory: Path, config: str, users: int, *, core: int, environ: dict[str, str] | None = None
) -> Iterator[Server]:
    """A daemon with an embedded directory of `users` users, on one core. `config`: TOML beside server and log."""
    file = directory / "pushd.toml"
    server = f'[server]\nport = 0\ndata_dir = "{directory}/data"\ndrain_s = 1\n[log]\nformat = "json"\n'
    file.write_text(server + config)
    _import_users(file, directory / "users.csv", users)
    with daemon_again(directory, core=core, environ=environ) as started:
        yield started


@contextmanager
def daemon_again(directory: Path, *, core: int, environ: dict[str, str] | None = None) -> Iterator[Server]:
    """The daemon that `daemon` had there, started once more with what it left."""
    log, file = directory / "pushd.log", directory / "pushd.toml"
    log.unlink(missing_ok=True)
    with ExitStack() as stack:
        with on_core(core):
            started = stack.enter_context(
                running("pushd", [sys.executable, "-m", "pushd", "--config", str(file)], log, environ)
            )
        started.port = _serving_port(started, log)
        yield started


def _import_users(config: Path, file: Path, users: int) -> None:
    rows = "".join(f"{user_id},user{user_id},2\n" for user_id in range(1, users + 1))
    file.write_text("id,username,user_type\n" + rows)
    command = [sys.executable, "-m", "pushd", "import-users", "--config", str(config), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=120)
    if done.returncode:
        raise LoadError(f"import-users: {done.stderr.decode(errors='replace')[-500:]}")


def _serving_port(server: Server, log: Path) -> int:
    ends = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < ends and server.process.poll() is None:
        for line in log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "serving":
                return int(event["port"])
        time.sleep(0.02)
    raise LoadError(f"the daemon did not start: {log.read_text(errors='replace')[-1000:]}")
