"""requirements.lock fits pyproject.toml, and nothing is installed from it unchecked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {match[1]: match[2] for match in re.finditer(r"^([a-z0-9-]+)==([^ ]+)", LOCK, re.MULTILINE)}


def wanted() -> list[Requirement]:
    """What the project, its extras and its build ask for."""
    project = PROJECT["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    texts = [*project["dependencies"], *extras, *PROJECT["build-system"]["requires"]]
    return [Requirement(text) for text in texts if not text.startswith("pushd[")]


def test_everything_is_locked_as_it_is_allowed() -> None:
    for requirement in wanted():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in PINS, name
        assert requirement.specifier.contains(PINS[name]), f"{name} {PINS[name]}: run make lock"


def test_every_pin_has_hashes() -> None:
    for block in re.split(r"\n(?=\S)", LOCK):
        if not block.startswith("#"):
            assert re.match(r"[a-z0-9-]+==", block), block[:80]
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block[:80]


def test_it_says_nothing_of_where_it_came_from() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^--?(i|f|index|extra|find|trusted)", LOCK, re.MULTILINE)
