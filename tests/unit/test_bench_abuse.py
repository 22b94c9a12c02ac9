"""bench/abuse.py and its floods: what does not need a daemon."""

from __future__ import annotations

from itertools import islice

from bench.abuse import Row, table
from bench.loadlib.figures import Spread
from bench.loadlib.floods import FLOODS, evil_user_agents, ids_frames, usual_user_agents


def test_each_flood_says_what_it_does() -> None:
    assert all(flood.__doc__ for flood in FLOODS.values())


def test_a_line_of_the_table() -> None:
    row = Row("reads", Spread(9, 1.0, 2.0, 3.0), Spread(9, 4.0, 5.0, 6.25), 60.2e0, 80.4, 25.0, 0, {"frames": 51_785})
    assert (
        table([row]).splitlines()[-1] == "| reads | 51,785 frames | 60 → 80 | 1.0 / 2.0 / 3.0 | 4.0 / 5.0 / 6.2 | 25 |"
    )


def test_no_two_user_agents_are_alike() -> None:
    for texts in (evil_user_agents(), usual_user_agents()):
        some = [*islice(texts, 100)]
        assert len(set(some)) == 100
        assert all(len(text) < 8192 for text in some)


def test_frames_of_ids_name_other_ones_each() -> None:
    first, second = islice(ids_frames("ack", 3), 2)
    assert b'"x0-2"' in first
    assert b'"x1-0"' in second
