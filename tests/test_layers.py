"""The rules of the house, enforced: what each package may import, who may name a driver, who may open sockets and
files, and how long a file may grow. ARCHITECTURE.md draws the packages; test_architecture.py compares the drawing.

To let a package use another one below it, add that one to its line in MAY_IMPORT. A new package gets a line, below all
that it may import. A new module inside a package needs nothing here. No module is excepted: two that need each other
are a circle, and it opens when one of them writes down in a Protocol what it needs of the other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import pytest

from tests.imports import circles, import_graph, imports, module_of, read_sources

# Modules at the root that belong to everybody. TOOLS know nothing of notices; WORDS are what pushd talks about.
TOOLS = "batched clock errors later limits local_time retry turns urls user_ids values waiters"
WORDS = "change_ports in_flight model ports records"
GROUPS = {"tools": TOOLS.split(), "words": WORDS.split()}

# From the ground up: what each package, and each module beside the packages, may import. Modules of one line may import
# each other as long as they form no circle. A name with a dot is a package, or a single module, inside another package.
MAY_IMPORT = {
    # base: what everything else stands on
    "tools": "",
    "words": "tools",
    "signals": "",
    "streams": "",
    "config": "tools",
    "protocol": "tools words config",
    "telemetry": "tools words config",
    "basis": "tools config telemetry",
    "ledger": "tools words",
    # core: what a node does, however it is reached and wherever it stores
    "users": "tools words config telemetry",
    "_fastpath": "tools words protocol",
    "writing": "tools words config protocol telemetry users _fastpath",
    "delivery": "tools words config protocol telemetry basis users _fastpath writing",
    "presence": "tools words config protocol telemetry basis users _fastpath writing delivery",
    "core": "tools words config protocol telemetry basis users _fastpath writing delivery presence",
    # edge: how a node is reached. HTTP and who is asking know nothing of what a node does
    "http": "tools config telemetry",
    "auth": "tools words config telemetry http",
    "ws": "tools words config protocol telemetry users _fastpath writing delivery presence http auth",
    "api": "tools words config protocol telemetry users _fastpath writing delivery presence http auth ws",
    # stores: where things are kept. They know the words and their own database
    "stores.guard": "tools words",
    "stores.causes": "",
    "stores.nobody": "tools words",
    "stores.mysql": "tools words config stores.guard",
    "stores.mongo": "tools words config stores.guard",
    "stores.redis": "tools words config stores.guard stores.causes",
    "stores.sqlite.engine": "tools words",
    "stores.sqlite": "tools words config ledger stores.causes stores.sqlite.engine",
    "stores": "tools words config stores.nobody stores.mysql stores.mongo stores.redis stores.sqlite",
    # start: the parts become a process
    "app": "tools words config telemetry basis users writing presence http auth ws api core stores signals streams",
    "daemon": "tools config telemetry signals streams app",
    "cli": "tools config auth users stores stores.sqlite signals daemon",
    "__main__": "signals streams cli",
}

# Drivers, and the only packages or modules that may name them. Of picows private parts are used.
DRIVERS = {
    "picows": "ws.parser ws._reader",
    "httptools": "http",
    "sqlite3": "stores.sqlite",
    "redis": "stores.redis",
    "hiredis": "stores.redis",
    "motor": "stores.mongo",
    "pymongo": "stores.mongo",
    "bson": "stores.mongo",
    "aiomysql": "stores.mysql",
    "pymysql": "stores.mysql",
}

# The only packages and modules that may open sockets, files and processes: everything else is given what it needs.
OPENS = (
    "__main__ cli app signals streams stores http.server http.sockets http.admission auth.keys "
    "telemetry.process telemetry.systemd"
)
OUTSIDE_MODULES = [
    "socket",
    "ssl",
    "select",
    "selectors",
    "socketserver",
    "http.client",
    "http.server",
    "urllib.request",
    "subprocess",
    "multiprocessing",
    "pathlib",
    "shutil",
    "tempfile",
    "mmap",
    "fcntl",
]
OUTSIDE_CALLS = [
    "open",
    "open_connection",
    "start_server",
    "open_unix_connection",
    "start_unix_server",
    "create_server",
    "create_connection",
    "create_unix_server",
    "create_unix_connection",
    "create_datagram_endpoint",
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "create_subprocess_exec",
    "create_subprocess_shell",
]

MAX_LINES = 500
# The hub is one extension module: a border inside it would run through the fan-out's inner loop. What Python calls of
# the ledger are methods of one class.
LONGER = {"pushd/_fastpath.pyx": 850, "pushd/ledger/_ledger.pyx": 840}


def is_in(module: str, name: str) -> bool:
    """Whether a module is `name` or inside of it."""
    return f"{module}.".startswith(f"{name}.")


def room_of(module: str) -> str:
    """The line of MAY_IMPORT that a module stands in: its own, its package's, its group's. "" for none."""
    for group, members in GROUPS.items():
        if module in members:
            return group
    while module and (module not in MAY_IMPORT or module in GROUPS):
        module = module.rpartition(".")[0]
    return module


def violations(sources: Mapping[str, str]) -> list[str]:
    """What is wrong with these source files (path -> text), a line each; circles are `circles`' matter."""
    modules = {module_of(path) for path in sources}
    found: list[str] = []
    for path, source in sorted(sources.items()):
        own, foreign = imports(path, source, modules)
        found += size_violations(path, source)
        found += import_violations(path, own)
        found += driver_violations(path, foreign)
        found += outside_violations(path, foreign, source)
    return found


def size_violations(path: str, source: str) -> Iterator[str]:
    lines, limit = source.count("\n"), LONGER.get(path, MAX_LINES)
    if lines > limit:
        yield f"{path}: {lines} lines, more than {limit}"


def import_violations(path: str, imported: set[str]) -> Iterator[str]:
    module = module_of(path)
    room = room_of(module)
    if module and not room:
        yield f"{path}: has no line in MAY_IMPORT; give it one here and in ARCHITECTURE.md"
        return
    allowed = {room, *MAY_IMPORT.get(room, "").split()} - {""}
    for name in sorted(imported):
        if not room_of(name):
            yield f"{path}: imports {name}, which has no line in MAY_IMPORT"
        elif room_of(name) not in allowed and name not in allowed:
            yield f"{path}: {room or 'the package'} may not import {name}"


def driver_violations(path: str, imported: set[str]) -> Iterator[str]:
    module = module_of(path)
    for name in sorted(imported):
        for driver, places in DRIVERS.items():
            if is_in(name, driver) and not any(is_in(module, place) for place in places.split()):
                yield f"{path}: names {driver}, which belongs to {places}"


def outside_violations(path: str, imported: set[str], source: str) -> Iterator[str]:
    if any(is_in(module_of(path), place) for place in OPENS.split()):
        return
    for name in sorted(imported):
        if any(is_in(name, outside) for outside in OUTSIDE_MODULES):
            yield f"{path}: imports {name}, but is not among OPENS"
    if path.endswith(".py"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and (called := called_name(node)) in OUTSIDE_CALLS:
                yield f"{path}:{node.lineno}: calls {called}, but is not among OPENS"


def called_name(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def shown(found: list[list[str]]) -> list[str]:
    """Circles as people read them."""
    return [" -> ".join(circle) for circle in found]


# ---- the house as it is


def test_the_house() -> None:
    found = violations(read_sources())
    assert not found, "\n".join(found)


def test_no_circles() -> None:
    """Imports for type checkers and inside functions count, too: a reader goes round in them all the same."""
    found = shown(circles(import_graph(read_sources())))
    assert not found, "\n".join(found)


def test_the_tables_name_what_there_is() -> None:
    """No rule is left for a module that is gone."""
    modules = {module_of(path) for path in read_sources()}
    named = {*MAY_IMPORT, *OPENS.split(), *" ".join([*MAY_IMPORT.values(), *DRIVERS.values(), TOOLS, WORDS]).split()}
    assert named - modules == {"tools", "words"}
    assert set(LONGER) <= set(read_sources())


def test_the_table_goes_upwards() -> None:
    """A line names only what stands in the table before it: so packages form no circle."""
    lines = list(MAY_IMPORT)
    for number, (room, names) in enumerate(MAY_IMPORT.items()):
        upwards = {name for name in names.split() if room_of_name(name) not in lines[:number]}
        assert upwards == set(), f"{room} may import what stands below it"


def room_of_name(name: str) -> str:
    """The line of a name in the table: a room's own, or that of a single module."""
    return name if name in MAY_IMPORT else room_of(name)


def test_all_kinds_of_sources_are_looked_at() -> None:
    sources = read_sources()
    modules = {module_of(path) for path in sources}
    extensions = {f"pushd/{name}.{kind}" for name in ("_fastpath", "ws/_reader") for kind in ("pyx", "pxd", "pyi")}
    extensions |= {f"pushd/ledger/_ledger.{kind}" for kind in ("pyx", "pxd", "pyi")}
    assert extensions | {"pushd/cli.py"} <= set(sources)
    for path, own, foreign in [
        ("pushd/_fastpath.pyx", {"errors", "protocol.frames"}, {"cpython.bytes"}),
        ("pushd/ws/_reader.pyx", {"_fastpath", "protocol.frames"}, {"picows.picows", "cpython.bytes"}),
        ("pushd/ws/_reader.pxd", {"_fastpath"}, {"picows.picows", "libc.stdint"}),
        ("pushd/ws/_reader.pyi", {"_fastpath"}, {"picows", "picows.picows"}),
        ("pushd/delivery/dispatch.py", {"_fastpath"}, {"asyncio"}),
    ]:
        found = imports(path, sources[path], modules)
        assert own <= found[0]
        assert foreign <= found[1]


# ---- it fails when the house is broken

SOUND = {
    "pushd/__init__.py": '__version__ = "1"\n',
    "pushd/errors.py": "import enum\n",
    "pushd/values.py": "",
    "pushd/waiters.py": "from pushd.values import x\n",
    "pushd/model.py": "from pushd import values\n",
    "pushd/ports.py": "from pushd.model import Notice\nfrom .errors import StoreError\n",
    "pushd/config/__init__.py": "",
    "pushd/config/schema.py": "from pushd import errors\n",
    "pushd/protocol/__init__.py": "",
    "pushd/protocol/frames.py": "from pushd import errors\nfrom ..model import Notice\n",
    "pushd/protocol/session.py": "from pushd.protocol.frames import decode\nfrom pushd.config.schema import Config\n",
    "pushd/_fastpath.pyx": "from pushd.protocol.frames import PING\n",
    "pushd/_fastpath.pxd": "from libc.stdint cimport int64_t\n",
    "pushd/telemetry/__init__.py": "",
    "pushd/telemetry/metrics.py": "from pushd.config.schema import Config\n",
    "pushd/telemetry/process.py": "from pathlib import Path\nfrom pushd.telemetry.metrics import x\n",
    "pushd/writing/__init__.py": "",
    "pushd/writing/writers.py": "from pushd.ports import Stores\nfrom pushd._fastpath import Hub\n",
    "pushd/delivery/__init__.py": "",
    "pushd/delivery/intake.py": "from pushd.writing.writers import Writers\n",
    "pushd/delivery/dispatch.py": "from pushd.telemetry import metrics\nfrom . import intake\n",
    "pushd/presence/__init__.py": "",
    "pushd/presence/arrivals.py": "from pushd.delivery import dispatch\nfrom pushd.delivery.intake import Intake\n",
    "pushd/http/__init__.py": "",
    "pushd/http/messages.py": "",
    "pushd/http/server.py": "import socket\nfrom pushd.http import parser\n",
    "pushd/http/parser.py": "import httptools\nfrom pushd.http.messages import Request\n",
    "pushd/ws/__init__.py": "",
    "pushd/ws/_reader.pyx": "from picows.picows cimport WSFrame\nfrom pushd._fastpath cimport Connection\n",
    "pushd/ws/_reader.pxd": "from picows.picows cimport WSListener\nfrom pushd._fastpath cimport Connection\n",
    "pushd/ws/_reader.pyi": "from picows import WSListener\nfrom pushd._fastpath import Connection\n",
    "pushd/ws/client.py": "from pushd.ws._reader import FrameParser\n",
    "pushd/ws/gateway.py": "from . import client\nfrom ..presence.arrivals import Presence\n",
    "pushd/api/__init__.py": "",
    "pushd/api/router.py": "from pushd.ws.gateway import Gateway\nfrom pushd.http.messages import Request\n",
    "pushd/stores/__init__.py": "def f():\n    from pushd.stores import sqlite\n",
    "pushd/stores/guard.py": "from pushd.ports import Remote\n",
    "pushd/stores/redis/__init__.py": "from pushd.stores.redis import client\n",
    "pushd/stores/redis/client.py": "import redis.asyncio\nfrom ..guard import Guard\nfrom ...model import Notice\n",
    "pushd/stores/sqlite/__init__.py": "import sqlite3\nfrom .engine.thread import x\nfrom ...ports import Stores\n",
    "pushd/stores/sqlite/engine/__init__.py": "",
    "pushd/stores/sqlite/engine/thread.py": "open('x')\n",
    "pushd/core.py": "from pushd.presence.arrivals import Presence\n",
    "pushd/app.py": "from pushd import core, stores\nfrom pushd.http import server\nimport socket\n",
    "pushd/cli.py": "from pathlib import Path\nfrom pushd.config.schema import Config\n",
    "pushd/__main__.py": "from pushd.cli import main\n",
}


def test_a_sound_house() -> None:
    assert violations(SOUND) == []
    assert circles(import_graph(SOUND)) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("pushd/errors.py", "from pushd.model import x", "tools may not import model"),
        ("pushd/errors.py", "import pushd.protocol.frames", "may not import protocol.frames"),
        ("pushd/errors.py", "from pushd.protocol import frames", "may not import protocol.frames"),
        ("pushd/errors.py", "from pushd import protocol", "may not import protocol"),
        ("pushd/errors.py", "from .protocol import frames", "may not import protocol.frames"),
        ("pushd/errors.py", "from .protocol.frames import x", "may not import protocol.frames"),
        ("pushd/errors.py", "def f():\n    if 1:\n        from pushd.cli import main", "may not import cli"),
        ("pushd/model.py", "from pushd.config import schema", "words may not import config.schema"),
        ("pushd/config/schema.py", "from pushd.model import x", "config may not import model"),
        ("pushd/protocol/frames.py", "from pushd._fastpath import x", "protocol may not import _fastpath"),
        ("pushd/protocol/frames.py", "from pushd.telemetry import metrics", "may not import telemetry.metrics"),
        ("pushd/writing/writers.py", "from pushd.delivery import intake", "may not import delivery.intake"),
        ("pushd/delivery/intake.py", "from pushd.presence import arrivals", "may not import presence.arrivals"),
        ("pushd/delivery/intake.py", "from ..http.server import x", "delivery may not import http.server"),
        ("pushd/delivery/intake.py", "from pushd.stores import sqlite", "may not import stores.sqlite"),
        ("pushd/delivery/intake.py", "from pushd import stores", "may not import stores"),
        ("pushd/core.py", "from pushd.stores import sqlite", "core may not import stores.sqlite"),
        ("pushd/core.py", "from pushd.api.router import Router", "core may not import api.router"),
        ("pushd/http/server.py", "from pushd.model import Notice", "http may not import model"),
        ("pushd/http/server.py", "from pushd.ws.gateway import Gateway", "http may not import ws.gateway"),
        ("pushd/ws/gateway.py", "from pushd.api import router", "ws may not import api.router"),
        ("pushd/api/router.py", "from ..stores.sqlite import x", "api may not import stores.sqlite"),
        ("pushd/api/router.py", "from pushd.app import x", "api may not import app"),
        ("pushd/stores/guard.py", "from pushd.stores import redis", "stores.guard may not import stores.redis"),
        ("pushd/stores/sqlite/__init__.py", "from ..redis import client", "may not import stores.redis.client"),
        ("pushd/stores/sqlite/__init__.py", "from ..guard import Guard", "may not import stores.guard"),
        ("pushd/stores/sqlite/__init__.py", "from pushd import stores", "stores.sqlite may not import stores"),
        ("pushd/stores/sqlite/__init__.py", "from pushd.http import server", "may not import http.server"),
        ("pushd/stores/sqlite/__init__.py", "from pushd.protocol import frames", "may not import protocol.frames"),
        (
            "pushd/stores/sqlite/engine/thread.py",
            "from .. import x",
            "engine may not import stores.sqlite",
        ),
        ("pushd/stores/sqlite/engine/thread.py", "from ....app import x", "may not import app"),
        ("pushd/stores/redis/client.py", "from pushd.protocol import session", "may not import protocol.session"),
        ("pushd/app.py", "import pushd.cli as c", "app may not import cli"),
        ("pushd/__init__.py", "from pushd.app import run", "the package may not import app"),
        ("pushd/_fastpath.pyx", "from pushd.config.schema cimport X", "_fastpath may not import config.schema"),
        ("pushd/_fastpath.pyx", "from pushd.errors import (A,\n    B)\nimport pushd.telemetry, os", "import telemetry"),
        ("pushd/_fastpath.pxd", "cimport pushd.delivery.intake", "_fastpath may not import delivery.intake"),
        ("pushd/_fastpath.pxd", "from pushd.config cimport schema  # why", "_fastpath may not import config.schema"),
        ("pushd/_fastpath.pxd", "from pushd.config \\\n    cimport schema", "_fastpath may not import config.schema"),
        ("pushd/_fastpath.pyx", "from pushd.ws._reader cimport Reader", "_fastpath may not import ws._reader"),
        ("pushd/_fastpath.pyi", "from pushd.ws._reader import Reader", "_fastpath may not import ws._reader"),
        ("pushd/ws/_reader.pyx", "from pushd.stores cimport X", "ws may not import stores"),
        ("pushd/ws/_reader.pxd", "from pushd.api cimport router", "ws may not import api.router"),
        ("pushd/ws/_reader.pyi", "from pushd.api.router import X", "ws may not import api.router"),
        ("pushd/novelty.py", "", "has no line in MAY_IMPORT"),
        ("pushd/novelty/inside.py", "", "has no line in MAY_IMPORT"),
        ("pushd/words.py", "", "has no line in MAY_IMPORT"),
        ("pushd/config/schema.py", "from pushd.novelty import x", "imports novelty, which has no line"),
        ("pushd/protocol/session.py", "import picows", "names picows"),
        ("pushd/_fastpath.pyx", "from picows.picows cimport WSTransport", "names picows"),
        ("pushd/_fastpath.pxd", "from picows.picows cimport WSListener", "names picows"),
        ("pushd/http/server.py", "from picows import ws", "names picows"),
        ("pushd/ws/gateway.py", "from picows.picows import WSProtocol", "names picows, which belongs to ws."),
        ("pushd/stores/redis/client.py", "def f():\n    import picows.url", "names picows"),
        ("pushd/http/server.py", "import sqlite3", "names sqlite3"),
        ("pushd/app.py", "from redis.asyncio import Redis", "names redis"),
        ("pushd/cli.py", "import aiomysql", "names aiomysql"),
        ("pushd/ports.py", "from motor.motor_asyncio import X", "names motor"),
        ("pushd/stores/guard.py", "import redis", "names redis, which belongs to stores.redis"),
        ("pushd/stores/redis/client.py", "import sqlite3", "names sqlite3, which belongs to stores.sqlite"),
        ("pushd/protocol/session.py", "import httptools.parser", "names httptools"),
        ("pushd/stores/sqlite/engine/thread.py", "import httptools", "names httptools"),
        ("pushd/protocol/session.py", "import socket", "imports socket"),
        ("pushd/ports.py", "from pathlib import Path", "imports pathlib"),
        ("pushd/delivery/dispatch.py", "import urllib.request", "imports urllib.request"),
        ("pushd/telemetry/metrics.py", "import socket", "imports socket"),
        ("pushd/http/messages.py", "import ssl", "imports ssl"),
        ("pushd/ws/client.py", "from http.client import HTTPException", "imports http.client"),
        ("pushd/delivery/dispatch.py", "def f(p):\n    return open(p)", "pushd/delivery/dispatch.py:2: calls open"),
        ("pushd/core.py", "async def f(l):\n    await l.create_server(None)", "calls create_server"),
        ("pushd/ws/_reader.pyx", "import socket", "imports socket"),
        ("pushd/model.py", "\n" * 501, "501 lines, more than 500"),
        ("pushd/_fastpath.pxd", "\n" * 501, "501 lines, more than 500"),
        ("pushd/_fastpath.pyx", "\n" * 851, "851 lines, more than 850"),
        ("pushd/ws/_reader.pyx", "\n" * 501, "501 lines, more than 500"),
        ("pushd/stores/sqlite/engine/thread.py", "\n" * 501, "501 lines, more than 500"),
    ],
)
def test_a_broken_house(path: str, source: str, complaint: str) -> None:
    (found,) = violations(SOUND | {path: source + "\n" if "\n" * 9 not in source else source})
    assert found.startswith(path)
    assert complaint in found


@pytest.mark.parametrize(
    ("changed", "circle"),
    [
        # inside a package
        ({"http/messages.py": "from pushd.http.parser import x"}, "http.messages -> http.parser -> http.messages"),
        ({"http/messages.py": "from . import parser"}, "http.messages -> http.parser -> http.messages"),
        (
            {"http/messages.py": "from pushd.http import server"},
            "http.messages -> http.server -> http.parser -> http.messages",
        ),
        (
            {"ws/client.py": "if TYPE_CHECKING:\n    from pushd.ws.gateway import Gateway"},
            "ws.client -> ws.gateway -> ws.client",
        ),
        ({"ws/client.py": "def f():\n    from pushd.ws import gateway"}, "ws.client -> ws.gateway -> ws.client"),
        ({"ws/_reader.pyi": "from pushd.ws.client import x"}, "ws._reader -> ws.client -> ws._reader"),
        ({"ws/_reader.pxd": "from pushd.ws cimport client"}, "ws._reader -> ws.client -> ws._reader"),
        # between modules at the root, which one line of the table has together
        ({"values.py": "from pushd import waiters"}, "values -> waiters -> values"),
        # a package and a module of it
        (
            {"stores/redis/client.py": "from pushd.stores import redis"},
            "stores.redis -> stores.redis.client -> stores.redis",
        ),
        # across packages
        (
            {"writing/writers.py": "from pushd.delivery.intake import x"},
            "delivery.intake -> writing.writers -> delivery.intake",
        ),
        (
            {"protocol/frames.py": "import pushd._fastpath"},
            "_fastpath -> protocol.frames -> _fastpath",
        ),
        (
            {"_fastpath.pxd": "from pushd.ws._reader cimport Reader"},
            "_fastpath -> ws._reader -> _fastpath",
        ),
        (
            {"delivery/intake.py": "from pushd.presence import arrivals"},
            "delivery.intake -> presence.arrivals -> delivery.intake",
        ),
        (
            {"writing/writers.py": "from pushd.ws import gateway"},
            "delivery.intake -> writing.writers -> ws.gateway -> presence.arrivals -> delivery.intake",
        ),
    ],
)
def test_a_circle_is_found(changed: dict[str, str], circle: str) -> None:
    """One of the shortest of those that a change makes."""
    sources = SOUND | {f"pushd/{path}": text + "\n" for path, text in changed.items()}
    assert shown(circles(import_graph(sources))) == [circle]


def test_each_knot_of_modules_is_told() -> None:
    sources = SOUND | {
        "pushd/values.py": "from pushd import waiters\n",
        "pushd/ws/client.py": "from pushd.ws import gateway\n",
    }
    assert shown(circles(import_graph(sources))) == [
        "values -> waiters -> values",
        "ws.client -> ws.gateway -> ws.client",
    ]
