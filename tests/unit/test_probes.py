"""How often the metrics are written out."""

from __future__ import annotations

import itertools

import pytest

from pushd.api.probes import FRESH_EXPOSITIONS, Exposition
from tests.unit.parts import Clock


def test_a_flood_gets_what_was_made_a_second_ago() -> None:
    clock, numbers = Clock(), itertools.count(1)
    exposition = Exposition(lambda: str(next(numbers)).encode(), clock)
    assert [int(exposition.text()) for _ in range(FRESH_EXPOSITIONS)] == [*range(1, FRESH_EXPOSITIONS + 1)]
    assert {int(exposition.text()) for _ in range(50)} == {FRESH_EXPOSITIONS}
    clock.move(1.01)
    assert [int(exposition.text()) for _ in range(3)] == [FRESH_EXPOSITIONS + 1] * 3


def test_making_takes_half_of_the_time_at_most() -> None:
    clock, numbers = Clock(), itertools.count(1)

    def make() -> bytes:
        clock.move(0.25)
        return str(next(numbers)).encode()

    exposition = Exposition(make, clock)
    assert [int(exposition.text()) for _ in range(3)] == [1, 1, 1]
    clock.move(0.125)
    assert int(exposition.text()) == 1
    clock.move(0.125)
    assert int(exposition.text()) == 2


def test_a_text_that_cannot_be_made_is_tried_again() -> None:
    text = b""
    exposition = Exposition(lambda: text or bytes(1 // 0), Clock())
    with pytest.raises(ZeroDivisionError):
        exposition.text()
    text = b"made"
    assert exposition.text() == b"made"
