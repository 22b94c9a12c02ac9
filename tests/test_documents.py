"""What the documents name is there: files and headings they link to, and source files in their text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.imports import ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
LINK_TEXT = re.compile(r"\[([^\]]*)\]\([^)]*\)")
SOURCE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:pyx?|pxd|c|sh|md|toml|yml|json))`")
UNDER = (ROOT, ROOT / "pushd")  # where the documents' names of source files begin


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of a document without its fenced blocks."""
    is_inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            is_inside = not is_inside
        elif not is_inside:
            yield number, line


def anchors(text: str) -> set[str]:
    """What headings are linked by, as GitHub makes it: lower case, without punctuation, hyphens for spaces."""
    found: set[str] = set()
    for _, line in prose(text):
        if match := re.match(r"#+\s+(.*)", line):
            name = re.sub(r"[^\w\- ]", "", LINK_TEXT.sub(r"\1", match[1]).lower()).strip().replace(" ", "-")
            again = 0
            while (anchor := f"{name}-{again}" if again else name) in found:
                again += 1
            found.add(anchor)
    return found


def dead_links(path: Path, text: str) -> list[str]:
    """Relative links of a document to files or headings that are not there, a line each."""
    found: list[str] = []
    for number, line in prose(text):
        for link in LINK.findall(line):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists():
                found.append(f"{path.name}:{number}: links to {name}, which is not there")
            elif anchor and anchor not in anchors(text if target == path else target.read_text()):
                found.append(f"{path.name}:{number}: links to #{anchor}, which is no heading of {target.name}")
    return found


def missing_sources(path: Path, text: str) -> list[str]:
    """Source files that a document names with their folder and that are not there, a line each."""
    return [
        f"{path.name}:{number}: names {name}, which is not there"
        for number, line in prose(text)
        for name in SOURCE.findall(line)
        if not any((start / name).exists() for start in UNDER)
    ]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document(path: Path) -> None:
    text = path.read_text()
    found = dead_links(path, text) + missing_sources(path, text)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("[a](SECURITY.md), [b](docs/stores.md#redis), [c](https://example.com/x#y), [d](#what-is-it)", []),
        ("see [a](docs/gone.md)", ["README.md:3: links to docs/gone.md, which is not there"]),
        ("\n[a](docs/stores.md#gone)", ["README.md:4: links to #gone, which is no heading of stores.md"]),
        ("[a](#gone) [b](docs)", ["README.md:3: links to #gone, which is no heading of README.md"]),
        ("```\n[a](gone.md) `pushd/gone.py`\n```\n", []),
        ("`pushd/delivery/dispatch.py`, `delivery/dispatch.py`, `bench/load.py`, `gone.py`, `/dev/null`", []),
        ("`delivery/gone.py`", ["README.md:3: names delivery/gone.py, which is not there"]),
    ],
)
def test_what_is_found(text: str, complaints: list[str]) -> None:
    text = "# What `is` it?\n\n" + text
    path = ROOT / "README.md"
    assert dead_links(path, text) + missing_sources(path, text) == complaints


def test_anchors() -> None:
    assert anchors("# A `b_c`: d!\n## A\n```\n# no\n```\n## A\n## [1.](x.md) Über – x\n") == {
        "a-b_c-d",
        "a",
        "a-1",
        "1-über--x",
    }
