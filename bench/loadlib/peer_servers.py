"""The servers that `bench.peers` measures beside pushd: what each needs, how it is started, how one publishes to it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from bench.loadlib.machine import usage_of
from bench.loadlib.options import LoadError
from bench.loadlib.servers import AS_ROOT, PLACES, ROOT, Server, free_port, on_core, running, wait_for_port

SOURCES = ROOT / "bench" / "peers_servers"
INSTALLED = ROOT / "build" / "peers"
MODULES = ("/usr/lib/nginx/modules", "/usr/share/nginx/modules", "/usr/lib64/nginx/modules")
SPARE_DESCRIPTORS = 200
ROOM = 1.25  # nginx closes idle connections when less than a sixteenth of its places are left
SUBJECT = "bench"
BY_POST = ("--post-path", "/publish", "--publish", "post")
BY_FRAME = ("--post-path", "/publish", "--publish", "frame")
BY_NATS = ("--publish", "nats", "--nats", SUBJECT)


@dataclass(frozen=True)
class Place:
    """Where a server is to be, and for how many connections."""

    directory: Path
    port: int
    publish_port: int
    connections: int


@dataclass(frozen=True)
class Peer:
    """One of them. `command` raises LoadError where it is not installed; `publish`: options of the load client."""

    name: str
    command: Callable[[Place], Sequence[str]]
    publish: Sequence[str]
    environ: dict[str, str] = field(default_factory=dict)
    has_publish_port: bool = False


@dataclass
class Family(Server):
    """A process with those it has started, which do the work of some. `publish_port`: if not that of all clients."""

    publish_port: int = 0

    @classmethod
    def of(cls, server: Server, publish_port: int = 0) -> Family:
        """A server that runs."""
        return cls(server.name, server.port, server.process, publish_port)

    @property
    def cpu_s(self) -> float:
        """Of all of them, finer than by ticks of 10 ms."""
        return sum(cpu_ns(pid) for pid in family(self.process.pid)) / 1e9

    @property
    def rss_bytes(self) -> int:
        """Of all of them."""
        return sum(usage_of(pid).rss_bytes for pid in family(self.process.pid))


def cpu_ns(pid: int) -> int:
    """What all threads of a process have used; those that ended are not counted."""
    total = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # ended just now
            total += int(file.read_text().split()[0])
    return total


def family(pid: int) -> list[int]:
    """A process and its children, and theirs. Raises LoadError."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        raise LoadError(f"process {pid} has ended") from None
    return [pid, *(member for child in children for member in family(int(child)))]


# ---- how each is started


def program(name: str) -> str:
    """Where it is. Raises LoadError."""
    found = shutil.which(name, path=PLACES)
    if found is None:
        raise LoadError(f"{name} is not installed (see bench/install-peers.sh)")
    return found


def existing(*files: Path) -> Path:
    """The first of some that is there. Raises LoadError."""
    for file in files:
        if file.exists():
            return file
    raise LoadError(f"{files[0].name} is not installed (see bench/install-peers.sh)")


def filled(name: str, place: Place, **values: object) -> Path:
    """A configuration file, made from its template."""
    file = place.directory / name
    text = Template((SOURCES / name).read_text())
    file.write_text(text.substitute({
        "directory": place.directory, "port": place.port, "publish_port": place.publish_port,
        "descriptors": int(ROOM * place.connections) + SPARE_DESCRIPTORS, **values,
    }))  # fmt: skip
    return file


def uwebsockets(place: Place) -> list[str]:
    """In its own environment."""
    existing(*INSTALLED.glob("venv/lib/python*/site-packages/socketify"), Path("socketify"))
    return [str(INSTALLED / "venv" / "bin" / "python"), str(SOURCES / "uws.py"), str(place.port)]


def ws(place: Place) -> list[str]:
    """By Node."""
    existing(INSTALLED / "node_modules" / "ws")
    return [program("node"), str(SOURCES / "ws.js"), str(place.port)]


def websockets(place: Place) -> list[str]:
    """In pushd's environment, where tests need it."""
    return [sys.executable, str(SOURCES / "websockets_server.py"), str(place.port)]


def nchan(place: Place) -> list[str]:
    """nginx with its module; one worker."""
    module = existing(*(Path(directory) / "ngx_nchan_module.so" for directory in MODULES))
    user = "user root;" if AS_ROOT else ""  # who may write below the directory
    return [program("nginx"), "-p", str(place.directory), "-e", "stderr",
            "-c", str(filled("nchan.conf", place, module=module, user=user))]  # fmt: skip


def nats(place: Place) -> list[str]:
    """On one core, so with one thread that runs Go."""
    return [program("nats-server"), "-c", str(filled("nats.conf", place))]


PEERS = (
    Peer("uWebSockets", uwebsockets, BY_FRAME),
    Peer("ws", ws, BY_FRAME, {"NODE_PATH": str(INSTALLED / "node_modules")}),
    Peer("websockets", websockets, BY_FRAME),
    Peer("Nchan", nchan, BY_POST),
    Peer("NATS", nats, BY_NATS, {"GOMAXPROCS": "1"}, has_publish_port=True),
)


@contextmanager
def peer_server(peer: Peer, directory: Path, connections: int, *, core: int) -> Iterator[Family]:
    """It runs until the end of the block, on one core. Raises LoadError."""
    place = Place(directory, free_port(), free_port(), connections)
    log = directory / "server.log"
    command = peer.command(place)
    with ExitStack() as stack:
        with on_core(core):
            started = stack.enter_context(running(peer.name, command, log, peer.environ))
        started.port = place.port
        wait_for_port(started, log)
        yield Family.of(started, place.publish_port if peer.has_publish_port else 0)
