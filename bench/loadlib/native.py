"""The programs in C under bench/native: compiled when first needed, and driven from here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bench.loadlib.options import LoadError
from bench.loadlib.servers import ROOT, Server, free_port, on_core, running, wait_for_port

SOURCES = ROOT / "bench" / "native"
BUILD = SOURCES / "build"
FLAGS = ("-O2", "-Wall", "-Wextra")
COMPILE_WITHIN_S = 120.0


def built(name: str) -> Path:
    """The program `<name>.c`, or the library if its name ends with .so, compiled unless it is newer than its sources.

    Raises LoadError without a compiler, or when it does not like the source.
    """
    program, source = BUILD / name, SOURCES / f"{name.removesuffix('.so')}.c"
    newest = max(file.stat().st_mtime for file in (source, *SOURCES.glob("*.h")))
    if program.exists() and program.stat().st_mtime > newest:
        return program
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise LoadError("a C compiler is needed for this benchmark (Debian: apt-get install gcc; or set CC)")
    BUILD.mkdir(exist_ok=True)
    fresh = BUILD / f".{name}.{os.getpid()}"  # then renamed: others may be running the old one
    shared = ("-shared", "-fPIC") if name.endswith(".so") else ()
    command = [compiler, *FLAGS, *shared, "-o", str(fresh), str(source)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=COMPILE_WITHIN_S)
    if done.returncode:
        raise LoadError(f"{source.name}: {done.stderr.decode(errors='replace')[-1500:]}")
    fresh.rename(program)
    return program


@contextmanager
def limit_server(directory: Path, connections: int, *, core: int) -> Iterator[Server]:
    """The C server that does nothing but send, on one core."""
    port, log = free_port(), directory / "limit.log"
    command = [str(built("limit")), "--port", str(port), "--connections", str(connections)]
    with ExitStack() as stack:
        with on_core(core):
            server = stack.enter_context(running("limit", command, log))
        server.port = port
        wait_for_port(server, log)
        yield server


class LoadClient:
    """The C load client, whose connections are open. bench/native/load.c says what it promises and checks."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self.connected: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        """Of the client's process."""
        return self._process.pid

    async def answer(self) -> dict[str, Any]:
        """The next line it says. Raises LoadError when that is a complaint, or it has ended."""
        assert self._process.stdout is not None, "started with a pipe"
        line = await self._process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line.endswith(b"}\n") else {"error": "ended"}
        if "error" in said:
            raise LoadError(f"load client: {said}; {self._log.read_text(errors='replace')[-700:]}")
        return said

    async def tell(self, command: str) -> None:
        """Begin with a command; its `answer` comes when it is done."""
        assert self._process.stdin is not None, "started with a pipe"
        with contextlib.suppress(RuntimeError, ConnectionError):  # it has ended: its last words are in the answer
            self._process.stdin.write(command.encode() + b"\n")
            await self._process.stdin.drain()

    async def ask(self, command: str) -> dict[str, Any]:
        """A command and its answer."""
        await self.tell(command)
        return await self.answer()


@asynccontextmanager
async def load_client(directory: Path, name: str, options: Sequence[str], *, core: int) -> AsyncIterator[LoadClient]:
    """A client until the end of the block, on one core; connected."""
    log = directory / f"{name}.log"
    program = await asyncio.to_thread(built, "load")
    with log.open("ab") as output, on_core(core):
        process = await asyncio.create_subprocess_exec(
            program, *options, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=output
        )
    client = LoadClient(process, log)
    try:
        client.connected = await client.answer()
        yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
