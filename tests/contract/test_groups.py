"""The contract of ports.Directory where it is about groups."""

from __future__ import annotations

import pytest

from pushd.model import Group

from .conftest import Node

IMPLEMENTATIONS = ("sqlite", "mysql")


async def test_a_new_directory_has_none(node: Node) -> None:
    directory = node.stores.directory
    assert await directory.groups(10) == []
    assert await directory.ids_by_group(["dept:12"]) == []
    assert await directory.ids_by_group([]) == []


async def test_who_is_in_a_group(node: Node) -> None:
    node.fill_groups({"dept:12": ("Sales", [3, 1, 2**40]), "dept:7": ("Support", [3, 9]), "dept:12:a": ("", [5])})
    directory = node.stores.directory
    assert sorted(await directory.ids_by_group(["dept:12"])) == [1, 3, 2**40]
    assert sorted(await directory.ids_by_group(["dept:7", "dept:12", "unknown"])) == [1, 3, 9, 2**40]
    assert await directory.ids_by_group(["unknown"]) == []
    assert await directory.groups(10) == [
        Group("dept:12", "Sales", 3),
        Group("dept:12:a", "", 1),
        Group("dept:7", "Support", 2),
    ]
    assert [group.name for group in await directory.groups(2)] == ["dept:12", "dept:12:a"]


async def test_a_group_is_who_is_in_it_now(node: Node) -> None:
    node.fill_groups({"a": ("A", [1, 2]), "b": ("B", [2, 3])})
    node.fill_groups({"a": ("The a", [2, 4])})
    directory = node.stores.directory
    assert sorted(await directory.ids_by_group(["a"])) == [2, 4]
    assert sorted(await directory.ids_by_group(["b"])) == [2, 3]
    assert await directory.groups(10) == [Group("a", "The a", 2), Group("b", "B", 2)]
    node.fill_groups({"a": ("", [])})
    assert await directory.ids_by_group(["a"]) == []
    assert await directory.groups(10) == [Group("b", "B", 2)]


NAMES = [
    "x", "销售部", "it's 100%s", "a\\b", '"', "%", "a" * 64, "\U0001f600" * 64, "é", "0", "a b", "--", "/*", "`", "{}",
    "?",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
async def test_names_are_compared_byte_for_byte(node: Node, name: str) -> None:
    others = {other[:64] for other in (name + "x", name[:-1] or "y", name.swapcase() + "'", "é", "E", "X", "00")}
    others.discard(name)
    node.fill_groups({name: ("t", [7]), **{other: ("t", [8]) for other in others}})
    directory = node.stores.directory
    assert await directory.ids_by_group([name]) == [7]
    for other in {"X", "É", "e", name.swapcase(), name + " ", "0.0"} - others - {name}:
        assert await directory.ids_by_group([other]) == []


async def test_many_users_and_many_groups(node: Node) -> None:
    """Over several pages, each of them once."""
    node.fill_groups({f"g{number}": ("", list(range(1 + number * 10, 700 + number * 10))) for number in range(5)})
    node.fill_groups({"all": ("", list(range(1, 25_001)))})
    node.fill_groups({f"h{number}": ("", [number]) for number in range(1, 100)})
    directory = node.stores.directory
    assert sorted(await directory.ids_by_group(["all"])) == list(range(1, 25_001))
    assert sorted(await directory.ids_by_group([f"g{number}" for number in range(5)])) == list(range(1, 740))
    assert sorted(await directory.ids_by_group([f"h{number}" for number in range(100)])) == list(range(1, 100))
