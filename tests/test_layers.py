"""ARCHITECTURE's layers, enforced: who may import whom, who may name a driver, and how long a file may grow.

Every module has a number; imports go to a lower one. A layer whose modules build on each other is split (4.0, 4.1, ...)
so that the rule stays that simple. Inside a folder of `edge/` or `stores/` modules may import each other.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    # words everybody uses
    1.0: "errors model tallies moments urls values waiters",
    1.1: "config queries deflate metrics",
    1.2: "wire configfile userfile live logs faults",
    1.3: "devices",
    # pure state machines, the hub, and what reads for its connections
    2.0: "_fastpath _columns session lanes publication",
    2.1: "_inlet",
    3.0: "ports",
    # the domain: what the others stand on, what stands on it, and so on
    3.1: "aside",
    4.0: "stage writebehind directory",
    4.1: "recording",
    4.2: "submission outbox",
    4.3: "intake receipts health maintenance",
    4.4: "presence supervision",
    4.5: "dispatch",
    # the outside
    5.0: "edge stores process streams signals",
    6.0: "app",
    7.0: "cli",
    8.0: "__main__",
}
LAYER_OF = {f"pushd.{name}": layer for layer, names in LAYERS.items() for name in names.split()} | {"pushd": 0.0}
FOLDERS = ("pushd.edge", "pushd.stores")

PICOWS_USERS = {"pushd.edge.websocket", "pushd._inlet"}
DRIVERS = {
    "sqlite3": "pushd.stores",
    "redis": "pushd.stores",
    "hiredis": "pushd.stores",
    "motor": "pushd.stores",
    "pymongo": "pushd.stores",
    "bson": "pushd.stores",
    "aiomysql": "pushd.stores",
    "pymysql": "pushd.stores",
    "httptools": "pushd.edge",
}
# What opens sockets, files and processes: not for modules below layer 5.
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
# The hub is one extension module: a border inside it would run through the fan-out's inner loop.
LONGER = {"pushd/_fastpath.pyx": 740}

CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+(.+)|c?import\s+(.+))$")


def module_of(path: str) -> str:
    """The dotted name of a source file's module."""
    return re.sub(r"(\.__init__)?\.(py|pyx|pxd|pyi)$", "", path.replace("/", ".")).removesuffix(".__init__")


def python_imports(source: str, package: str) -> Iterator[tuple[str, str]]:
    """(module, name) for every import anywhere in Python source; name is "" for a plain import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((module, alias.name) for alias in node.names)


def cython_imports(source: str) -> Iterator[tuple[str, str]]:
    """The same for Cython: import and cimport lines, those in parentheses or continued included."""
    joined = re.sub(r"\\\n", " ", re.sub(r"#.*", "", source))
    joined = re.sub(r"\(([^()]*)\)", lambda match: match[1].replace("\n", " "), joined)
    for line in joined.splitlines():
        if match := CIMPORT.match(line):
            module, names, modules = match.groups()
            for name in (names or modules).split(","):
                words = name.split()
                if words:
                    yield (module, words[0]) if module else (words[0], "")


def imports(path: str, source: str, modules: set[str]) -> set[str]:
    """Modules a source imports: `from package import module` is an import of that module."""
    own = module_of(path)
    package = own if path.endswith("__init__.py") else own.rpartition(".")[0]
    found = python_imports(source, package) if path.endswith((".py", ".pyi")) else cython_imports(source)
    return {f"{module}.{name}" if f"{module}.{name}" in modules else module for module, name in found} - {own}


def layer(module: str) -> float | None:
    """The number of a module: its own, or its folder's."""
    while module and module not in LAYER_OF:
        module = module.rpartition(".")[0]
    return LAYER_OF[module] if module and (module != "pushd") else None


def folder(module: str) -> str:
    return next((name for name in FOLDERS if f"{module}.".startswith(f"{name}.")), "")


def is_driver(imported: str, name: str) -> bool:
    return f"{imported}.".startswith(f"{name}.")


def violations(sources: Mapping[str, str]) -> list[str]:
    """What is wrong with these source files (path -> text), a line each."""
    modules = {module_of(path) for path in sources}
    found: list[str] = []
    for path, source in sorted(sources.items()):
        own = module_of(path)
        imported = imports(path, source, modules)
        found += size_violations(path, source)
        if own == "pushd":
            found += [f"{path}: the package imports {name}" for name in imported if name.startswith("pushd.")]
            continue
        if layer(own) is None:
            found.append(f"{path}: has no layer; give it one here and in ARCHITECTURE")
            continue
        found += layer_violations(path, own, imported)
        found += driver_violations(path, own, imported)
        found += outside_violations(path, own, imported, source)
    return found


def size_violations(path: str, source: str) -> list[str]:
    lines, limit = source.count("\n"), LONGER.get(path, MAX_LINES)
    return [f"{path}: {lines} lines, more than {limit}"] if lines > limit else []


def layer_violations(path: str, own: str, imported: set[str]) -> Iterator[str]:
    for name in sorted(imported):
        if not f"{name}.".startswith("pushd.") or name == "pushd":
            continue
        number, other = layer(own), layer(name)
        if other is None:
            yield f"{path}: imports {name}, which has no layer"
        elif folder(own) and folder(own) == folder(name):
            continue
        elif number is not None and other >= number:
            yield f"{path}: layer {number} imports {name} of layer {other}"


def driver_violations(path: str, own: str, imported: set[str]) -> Iterator[str]:
    for name in sorted(imported):
        if is_driver(name, "picows") and own not in PICOWS_USERS:
            yield f"{path}: names picows"
        for driver, where in DRIVERS.items():
            if is_driver(name, driver) and not f"{own}.".startswith(f"{where}."):
                yield f"{path}: names {driver}, which belongs to {where}"


def outside_violations(path: str, own: str, imported: set[str], source: str) -> Iterator[str]:
    number = layer(own)
    if number is None or number >= 5:
        return
    for name in sorted(imported):
        if any(is_driver(name, outside) for outside in OUTSIDE_MODULES):
            yield f"{path}: imports {name}, but opens nothing"
    if path.endswith(".py"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and (called := called_name(node)) in OUTSIDE_CALLS:
                yield f"{path}:{node.lineno}: calls {called}"


def called_name(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def read_sources() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for path in sorted((ROOT / "pushd").rglob("*"))
        if path.suffix in {".py", ".pyx", ".pxd", ".pyi"}
    }


def test_the_house() -> None:
    assert violations(read_sources()) == []


def test_the_layers_name_what_there_is() -> None:
    """No layer for a module that is gone."""
    modules = {module_of(path) for path in read_sources()}
    assert set(LAYER_OF) - modules == set()


def test_all_kinds_of_sources_are_looked_at() -> None:
    sources = read_sources()
    modules = {module_of(path) for path in sources}
    extensions = {f"pushd/{name}.{kind}" for name in ("_fastpath", "_inlet") for kind in ("pyx", "pxd", "pyi")}
    extensions |= {"pushd/_columns.pyx", "pushd/_columns.pyi"}
    assert extensions | {"pushd/cli.py"} <= set(sources)
    for path, imported in {
        "pushd/_fastpath.pyx": {"pushd.errors", "pushd.wire", "cpython.bytes"},
        "pushd/_inlet.pyx": {"picows.picows", "pushd._fastpath", "pushd.wire", "cpython.bytes"},
        "pushd/_inlet.pxd": {"picows.picows", "pushd._fastpath", "libc.stdint"},
        "pushd/_inlet.pyi": {"picows", "picows.picows", "pushd._fastpath"},
    }.items():
        assert imported <= imports(path, sources[path], modules)
    assert "pushd._fastpath" in imports("pushd/dispatch.py", sources["pushd/dispatch.py"], modules)
    assert "pushd.wire" in imports("pushd/dispatch.py", sources["pushd/dispatch.py"], modules)


# ---- it fails when the house is broken

SOUND = {
    "pushd/__init__.py": '__version__ = "1"\n',
    "pushd/errors.py": "import enum\n",
    "pushd/wire.py": "from pushd import errors\n",
    "pushd/_fastpath.pyx": "from pushd.wire import PING\n",
    "pushd/_fastpath.pxd": "from libc.stdint cimport int64_t\n",
    "pushd/_inlet.pyx": "from picows.picows cimport WSFrame\nfrom pushd._fastpath cimport Connection\n",
    "pushd/_inlet.pxd": "from picows.picows cimport WSListener\nfrom pushd._fastpath cimport Connection\n",
    "pushd/_inlet.pyi": "from picows import WSListener\nfrom pushd._fastpath import Connection\n",
    "pushd/session.py": "from pushd.wire import decode\n",
    "pushd/ports.py": "from pushd import session\n",
    "pushd/outbox.py": "from pushd.ports import Stores\n",
    "pushd/receipts.py": "from pushd.outbox import Outbox\n",
    "pushd/presence.py": "from pushd.receipts import Receipts\n",
    "pushd/dispatch.py": "from pushd.presence import Presence\nfrom pushd.receipts import Receipts\n",
    "pushd/edge/__init__.py": "",
    "pushd/edge/front.py": "import socket\nimport httptools\nfrom pushd.edge import routes\n",
    "pushd/edge/websocket.py": "from picows.picows import WSProtocol\nfrom pushd._inlet import FrameParser\n",
    "pushd/edge/routes.py": "from . import front\nfrom ..dispatch import Dispatcher\n",
    "pushd/stores/__init__.py": "def f():\n    from pushd.stores import sqlite\n",
    "pushd/stores/sqlite/__init__.py": "import sqlite3\nfrom .thread import Thread\nfrom ...ports import Stores\n",
    "pushd/stores/sqlite/thread.py": "open('x')\n",
    "pushd/app.py": "from pushd import edge, stores\nimport socket\n",
    "pushd/cli.py": "from pathlib import Path\nfrom pushd.app import run\n",
    "pushd/__main__.py": "from pushd.cli import main\n",
}


def test_a_sound_house() -> None:
    assert violations(SOUND) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("pushd/errors.py", "from pushd.wire import x", "layer 1.0 imports pushd.wire of layer 1.2"),
        ("pushd/errors.py", "import pushd.wire", "imports pushd.wire"),
        ("pushd/errors.py", "from pushd import wire", "imports pushd.wire"),
        ("pushd/errors.py", "from . import wire", "imports pushd.wire"),
        ("pushd/errors.py", "from .wire import x", "imports pushd.wire"),
        ("pushd/errors.py", "def f():\n    if 1:\n        from pushd.cli import main", "imports pushd.cli"),
        ("pushd/session.py", "from pushd._fastpath import Hub", "layer 2.0 imports pushd._fastpath of layer 2.0"),
        ("pushd/presence.py", "from pushd import dispatch", "layer 4.4 imports pushd.dispatch"),
        ("pushd/receipts.py", "from pushd.presence import x", "layer 4.3 imports pushd.presence"),
        ("pushd/outbox.py", "from pushd.receipts import x", "layer 4.2 imports pushd.receipts"),
        ("pushd/dispatch.py", "from pushd.edge.front import x", "layer 4.5 imports pushd.edge.front of layer 5.0"),
        ("pushd/dispatch.py", "from pushd.stores import sqlite", "imports pushd.stores.sqlite"),
        ("pushd/edge/routes.py", "from pushd.stores import sqlite", "layer 5.0 imports pushd.stores.sqlite"),
        ("pushd/edge/routes.py", "from ..stores.sqlite import x", "imports pushd.stores.sqlite"),
        ("pushd/stores/sqlite/thread.py", "from pushd.edge import front", "layer 5.0 imports pushd.edge.front"),
        ("pushd/stores/sqlite/thread.py", "from ...app import x", "layer 5.0 imports pushd.app"),
        ("pushd/app.py", "import pushd.cli as c", "layer 6.0 imports pushd.cli"),
        ("pushd/__init__.py", "from pushd.app import run", "the package imports pushd.app"),
        ("pushd/_fastpath.pyx", "from pushd.session cimport X", "layer 2.0 imports pushd.session"),
        ("pushd/_fastpath.pyx", "from pushd.wire import (PING,\n    PONG)\nimport pushd.lanes, os", "pushd.lanes"),
        ("pushd/_fastpath.pxd", "cimport pushd.session", "layer 2.0 imports pushd.session"),
        ("pushd/_fastpath.pxd", "from pushd cimport session  # why", "layer 2.0 imports pushd.session"),
        ("pushd/_fastpath.pxd", "from pushd \\\n    cimport session", "layer 2.0 imports pushd.session"),
        ("pushd/_fastpath.pyx", "from pushd._inlet cimport Inlet", "layer 2.0 imports pushd._inlet of layer 2.1"),
        ("pushd/_fastpath.pyi", "from pushd._inlet import Inlet", "layer 2.0 imports pushd._inlet of layer 2.1"),
        ("pushd/_inlet.pyx", "from pushd.ports cimport X", "layer 2.1 imports pushd.ports of layer 3.0"),
        (
            "pushd/_inlet.pxd",
            "from pushd.edge cimport websocket",
            "layer 2.1 imports pushd.edge.websocket of layer 5.0",
        ),
        ("pushd/_inlet.pyi", "from pushd.edge.gateway import X", "layer 2.1 imports pushd.edge.gateway of layer 5.0"),
        ("pushd/novelty.py", "", "has no layer"),
        ("pushd/wire.py", "from pushd.novelty import x", "imports pushd.novelty, which has no layer"),
        ("pushd/session.py", "import picows", "names picows"),
        ("pushd/_fastpath.pyx", "from picows.picows cimport WSTransport", "names picows"),
        ("pushd/_fastpath.pxd", "from picows.picows cimport WSListener", "names picows"),
        ("pushd/edge/front.py", "from picows import ws", "names picows"),
        ("pushd/edge/routes.py", "from picows.picows import WSProtocol", "names picows"),
        ("pushd/stores/redis.py", "def f():\n    import picows.url", "names picows"),
        ("pushd/edge/front.py", "import sqlite3", "names sqlite3"),
        ("pushd/app.py", "from redis.asyncio import Redis", "names redis"),
        ("pushd/cli.py", "import aiomysql", "names aiomysql"),
        ("pushd/ports.py", "from motor.motor_asyncio import X", "names motor"),
        ("pushd/session.py", "import httptools.parser", "names httptools"),
        ("pushd/stores/sqlite/thread.py", "import httptools", "names httptools"),
        ("pushd/session.py", "import socket", "imports socket"),
        ("pushd/ports.py", "from pathlib import Path", "imports pathlib"),
        ("pushd/dispatch.py", "import urllib.request", "imports urllib.request"),
        ("pushd/dispatch.py", "def f(p):\n    return open(p)", "pushd/dispatch.py:2: calls open"),
        ("pushd/dispatch.py", "async def f(l):\n    await l.create_server(None)", "calls create_server"),
        ("pushd/_inlet.pyx", "import socket", "imports socket"),
        ("pushd/wire.py", "\n" * 501, "501 lines, more than 500"),
        ("pushd/_fastpath.pxd", "\n" * 501, "501 lines, more than 500"),
        ("pushd/_fastpath.pyx", "\n" * 741, "741 lines, more than 740"),
        ("pushd/_inlet.pyx", "\n" * 501, "501 lines, more than 500"),
        ("pushd/stores/sqlite/thread.py", "\n" * 501, "501 lines, more than 500"),
    ],
)
def test_a_broken_house(path: str, source: str, complaint: str) -> None:
    (found,) = violations(SOUND | {path: source + "\n" if "\n" * 9 not in source else source})
    assert found.startswith(path)
    assert complaint in found
