"""Which module imports which, read from the sources of `pushd/`, Python and Cython, without importing them.

Modules are named without the leading `pushd.`; the package itself is "".
"""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+(.+)|c?import\s+(.+))$")

Graph = Mapping[str, set[str]]


def read_sources() -> dict[str, str]:
    """Path -> text of all source files of the package."""
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for path in sorted((ROOT / "pushd").rglob("*"))
        if path.suffix in {".py", ".pyx", ".pxd", ".pyi"}
    }


def module_of(path: str) -> str:
    """The name of a source file's module: "delivery.intake" for pushd/delivery/intake.py."""
    dotted = re.sub(r"\.(py|pyx|pxd|pyi)$", "", path).replace("/", ".").removesuffix(".__init__")
    return dotted.removeprefix("pushd").removeprefix(".")


def imports(path: str, source: str, modules: set[str]) -> tuple[set[str], set[str]]:
    """(own, foreign) modules a source imports, wherever it does; `from package import module` imports that module.

    Own ones that are not among `modules` are named all the same.
    """
    own, foreign = set(), set()
    package = "pushd." + module_of(path)
    if not path.endswith("__init__.py"):
        package = package.rpartition(".")[0]
    found = _python_imports(source, package) if path.endswith((".py", ".pyi")) else _cython_imports(source)
    for module, name in found:
        if f"{module}.".startswith("pushd."):
            inside = module.removeprefix("pushd").removeprefix(".")
            inner = f"{inside}.{name}".removeprefix(".")
            own.add(inner if inner in modules else inside)
        else:
            foreign.add(module)
    return own - {module_of(path), ""}, foreign


def import_graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> the modules of pushd it imports, those of its .pyx, .pxd and .pyi together."""
    graph: dict[str, set[str]] = {module_of(path): set() for path in sources}
    for path, source in sources.items():
        graph[module_of(path)] |= imports(path, source, set(graph))[0]
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """The shortest circle of each knot of modules that need each other: [a, b, a]. Empty when there is none."""
    reached = {module: _reachable(graph, module) for module in graph}
    found: list[list[str]] = []
    knotted: set[str] = set()
    for module in sorted(graph):
        if module in reached[module] and module not in knotted:
            knot = {name for name in reached[module] if module in reached[name]}
            knotted |= knot
            found.append(min((_shortest_circle(graph, name) for name in sorted(knot)), key=len))
    return found


def _shortest_circle(graph: Graph, start: str) -> list[str]:
    """The shortest way from a module back to itself; it must be in a circle."""
    came_from: dict[str, str] = {}
    queue = deque([start])
    while queue:
        module = queue.popleft()
        for name in sorted(graph.get(module, ())):
            if name == start:
                way = [module]
                while way[-1] != start:
                    way.append(came_from[way[-1]])
                return [*reversed(way), start]
            if name not in came_from:
                came_from[name] = module
                queue.append(name)
    raise ValueError(f"{start} is in no circle")


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = graph.get(left.pop(), set()) - found
        found |= new
        left += new
    return found


def _python_imports(source: str, package: str) -> Iterator[tuple[str, str]]:
    """(module, name) for every import anywhere in Python source; name is "" for a plain import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from ((module, alias.name) for alias in node.names)


def _cython_imports(source: str) -> Iterator[tuple[str, str]]:
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
