"""ARCHITECTURE.md says what the code does: its drawing has every package above what it imports, its table of imports is
exact, and the files it names are there. Each complaint begins with the line of ARCHITECTURE.md to change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from tests.imports import ROOT, import_graph, read_sources
from tests.test_layers import MAY_IMPORT, room_of

FILE = "ARCHITECTURE.md"
IMPORTS = "## Imports"

Imports = Mapping[str, set[str]]  # of each room: a package, or a module beside the packages, as MAY_IMPORT has them


def imports_by_room() -> dict[str, set[str]]:
    """What the code imports, package by package."""
    found: dict[str, set[str]] = {room: set() for room in MAY_IMPORT}
    for module, imported in import_graph(read_sources()).items():
        room = room_of(module)
        if room:
            found[room] |= {room_of(name) for name in imported} - {room}
    return found


def drawn_rows(text: str) -> list[tuple[str, int]]:
    """(package, line) of each cell of the drawing, which is the first fenced block; a cell begins with its package."""
    rows: list[tuple[str, int]] = []
    is_inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if is_inside:
                break
            is_inside = True
        elif is_inside:
            cells = [cell for cell in re.split("[│├┤]", line) if cell.strip() and "─" not in cell]
            rows += [(cell.split()[0], number) for cell in cells]
    return rows


def drawing_faults(text: str, imports: Imports) -> list[str]:
    """Packages that are not drawn, or that import what is not drawn below them."""
    drawn = drawn_rows(text)
    rows = dict(drawn)
    found = [f"{FILE}: the drawing lacks {room}" for room in imports if room not in rows]
    found += [f"{FILE}:{row}: draws {room}, which is no package" for room, row in drawn if room not in imports]
    found += [f"{FILE}:{row}: draws {room} once more" for room, row in drawn if (room, row) not in rows.items()]
    return found + [
        f"{FILE}:{rows[room]}: draws {room} no higher than {name} (line {rows[name]}), which it imports"
        for room, names in imports.items()
        for name in sorted(names)
        if room in rows and name in rows and rows[room] >= rows[name]
    ]


def table_faults(text: str, imports: Imports) -> list[str]:
    """Lines of the table of imports that are not what the code says, each with what the line should be."""
    _, heading, table = text.partition(f"\n{IMPORTS}\n")
    before = len(text.splitlines()) - len(table.splitlines())
    stated: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(table.splitlines() if heading else [], before + 1):
        if line.startswith("## "):
            break
        if match := re.match(r"\| `([\w.]+)` \|", line):
            stated[match[1]] = (number, line)
    found = [f"{FILE}:{number}: {room} is no package" for room, (number, _) in stated.items() if room not in imports]
    for room, names in imports.items():
        number, line = stated.get(room, (before, ""))
        if line != (right := table_line(room, names)):
            found.append(f"{FILE}:{number}: should be: {right}")
    return found


def table_line(room: str, names: set[str]) -> str:
    """A package's line of the table: what it imports, the highest first."""
    shown = [f"`{name}`" for name in reversed(MAY_IMPORT) if name in names]
    return f"| `{room}` | {' '.join(shown)} |"


def missing_files(text: str) -> list[str]:
    """Modules that the tables of the rooms name and that are not there."""
    return [
        f"{FILE}:{number}: there is no {name} in pushd/"
        for number, line in enumerate(text.splitlines(), 1)
        if line.startswith("| ")
        for name in re.findall(r"`([\w/]+(?:\.pyx?|/))`", line.split("|")[1])
        if not (ROOT / "pushd" / name).exists()
    ]


def unnamed_packages(text: str) -> list[str]:
    """Packages that the rooms say nothing about."""
    packages = {path.parent.relative_to(ROOT / "pushd") for path in (ROOT / "pushd").rglob("*/__init__.py")}
    return [f"{FILE}: the rooms lack {name}/" for name in sorted(map(str, packages)) if f"`{name}/" not in text]


def architecture() -> str:
    return (ROOT / FILE).read_text()


def test_the_drawing() -> None:
    found = drawing_faults(architecture(), imports_by_room())
    assert not found, "\n".join(found)


def test_the_table_of_imports() -> None:
    found = table_faults(architecture(), imports_by_room())
    assert not found, "\n".join(found)


def test_the_rooms() -> None:
    found = missing_files(architecture()) + unnamed_packages(architecture())
    assert not found, "\n".join(found)


# ---- it fails when the text is wrong

CODE = {"cli": {"http", "stores", "tools"}, "http": {"tools"}, "stores": {"tools"}, "tools": set[str]()}
TEXT = """# Architecture

```
┌───────────────────┐
│ cli   arguments   │
├─ edge ──┬─────────┤
│ http    │         │
├─────────┤ stores  │
├─────────┴─────────┤
│ tools  http, cli  │
└───────────────────┘
```

## Imports

| package | imports |
|---|---|
| `cli` | `stores` `http` `tools` |
| `http` | `tools` |
| `stores` | `tools` |
| `tools` |  |

## Threads
"""


def faults(text: str, code: Imports = CODE) -> list[str]:
    return drawing_faults(text, code) + table_faults(text, code)


def test_a_true_text() -> None:
    assert faults(TEXT) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("┤ stores  │", "┤         │", "ARCHITECTURE.md: the drawing lacks stores"),
        ("│ tools  http", "│ words  http", "ARCHITECTURE.md: the drawing lacks tools"),
        ("┤ stores  │", "┤ ledger  │", "ARCHITECTURE.md:8: draws ledger, which is no package"),
        ("│ http    │", "│ tools   │", "ARCHITECTURE.md:7: draws tools once more"),
        ("| `cli` | `stores` `http` `tools` |", "", "14: should be: | `cli` | `stores` `http` `tools` |"),
        ("| `cli` | `stores` ", "| `cli` | ", "ARCHITECTURE.md:18: should be: | `cli` | `stores` `http` `tools` |"),
        ("| `http` | `tools`", "| `http` | `stores` `tools`", "ARCHITECTURE.md:19: should be: | `http` | `tools` |"),
        ("| `tools` |  |", "| `tools` | |\n| `ledger` | |", "ARCHITECTURE.md:22: ledger is no package"),
    ],
)
def test_a_wrong_text(old: str, new: str, complaint: str) -> None:
    assert any(complaint in found for found in faults(TEXT.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("room", "name", "complaint"),
    [
        ("http", "cli", "ARCHITECTURE.md:7: draws http no higher than cli (line 5), which it imports"),
        ("stores", "http", "ARCHITECTURE.md:8: draws stores no higher than http (line 7)"),
        ("stores", "http", "ARCHITECTURE.md:20: should be: | `stores` | `http` `tools` |"),
    ],
)
def test_another_code(room: str, name: str, complaint: str) -> None:
    found = faults(TEXT, CODE | {room: CODE[room] | {name}})
    assert any(line.startswith(complaint) for line in found), found


def test_files_that_are_gone() -> None:
    text = "| `delivery/dispatch.py`, `delivery/gone.py` | `else.py` |\n| `presence/`, `past/` | |\n"
    assert missing_files(text) == [
        "ARCHITECTURE.md:1: there is no delivery/gone.py in pushd/",
        "ARCHITECTURE.md:2: there is no past/ in pushd/",
    ]
