"""Rows as bound parameters: any number of them, in few statements and one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest

from pushd.stores.sqlite.engine.statements import EXACT_ROWS, MOST_ROWS, TURN_ROWS, Rows, Value

PAIRS = Rows(("number", "word"), "INSERT INTO pair (number, word) SELECT number, word FROM given")
NUMBERS = [1, 2, EXACT_ROWS, EXACT_ROWS + 1, 500, MOST_ROWS, 2 * MOST_ROWS + 77]


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        opened.execute("CREATE TABLE pair (number INTEGER UNIQUE, word TEXT)")
        yield opened


def pairs(count: int) -> list[Value]:
    return [value for number in range(count) for value in (number, f"word {number}")]


@pytest.mark.parametrize("count", [0, *NUMBERS])
def test_every_row_is_written_once(connection: sqlite3.Connection, count: int) -> None:
    PAIRS.write(connection, pairs(count))
    written = connection.execute("SELECT number, word FROM pair ORDER BY number").fetchall()
    assert written == [(number, f"word {number}") for number in range(count)]


@pytest.mark.parametrize("count", NUMBERS)
def test_all_or_nothing(connection: sqlite3.Connection, count: int) -> None:
    connection.execute("INSERT INTO pair VALUES (?, 'taken')", (count - 1,))
    with pytest.raises(sqlite3.IntegrityError):
        PAIRS.write(connection, pairs(count))
    assert connection.execute("SELECT word FROM pair").fetchall() == [("taken",)]
    assert not connection.in_transaction


def test_few_statements_for_all_sizes(connection: sqlite3.Connection) -> None:
    sizes: set[int] = set()
    connection.set_trace_callback(lambda text: sizes.add(text.count("'word ")) if "given" in text else None)
    for count in range(1, 3 * MOST_ROWS, 7):
        connection.execute("DELETE FROM pair")
        PAIRS.write(connection, pairs(count))
    assert len(sizes) <= EXACT_ROWS + 4


@pytest.mark.parametrize("count", NUMBERS)
def test_in_turns_each_part_is_a_transaction(connection: sqlite3.Connection, count: int) -> None:
    totals = [0]

    def pause() -> None:
        assert not connection.in_transaction
        totals.append(connection.execute("SELECT count(*) FROM pair").fetchone()[0])

    PAIRS.write_in_turns(connection, pairs(count), pause)
    assert totals[-1] == count
    assert max(later - earlier for earlier, later in pairwise(totals)) <= TURN_ROWS
