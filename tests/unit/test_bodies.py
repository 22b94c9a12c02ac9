"""Room for bodies: who gets it, and who gives way."""

from __future__ import annotations

from pushd.http.bodies import PATIENCE_S, WHOLE_SHARE, Bodies

MAX = 1000


class Upload:
    def __init__(self, bodies: Bodies, count: int) -> None:
        self.bodies = bodies
        self.count = count
        bodies.held_bytes += count

    def give_way(self) -> None:
        self.bodies.held_bytes -= self.count
        self.count = 0
        self.bodies.ends(self)


def test_the_one_that_would_exceed_it_is_refused() -> None:
    bodies = Bodies()
    assert bodies.arrives(Upload(bodies, MAX), MAX, 0.0)
    late = Upload(bodies, 1)
    assert not bodies.arrives(late, MAX, 1.0)
    late.give_way()
    assert bodies.held_bytes == MAX


def test_a_growing_body_is_refused_itself() -> None:
    bodies = Bodies()
    upload = Upload(bodies, MAX)
    assert bodies.arrives(upload, MAX, 0.0)
    bodies.held_bytes += 1
    assert not bodies.arrives(upload, MAX, 2 * PATIENCE_S), "it is the oldest"


def test_the_oldest_slow_ones_give_way_until_there_is_room() -> None:
    bodies = Bodies()
    slow = [Upload(bodies, 400) for _ in range(2)]
    for upload in slow:
        assert bodies.arrives(upload, MAX, 0.0)
    quick = Upload(bodies, 300)
    assert not bodies.arrives(quick, MAX, PATIENCE_S - 0.1)
    assert bodies.arrives(quick, MAX, PATIENCE_S)
    assert [upload.count for upload in slow] == [0, 400]
    assert bodies.held_bytes == 700


def test_one_that_has_come_does_not_give_way() -> None:
    bodies = Bodies()
    whole = Upload(bodies, MAX)
    assert bodies.arrives(whole, MAX, 0.0)
    bodies.ends(whole)
    bodies.ends(whole)
    assert not bodies.arrives(Upload(bodies, 1), MAX, 2 * PATIENCE_S)
    assert whole.count == MAX


def test_what_comes_whole_has_room_beside_slow_ones() -> None:
    bodies = Bodies()
    assert bodies.arrives(Upload(bodies, MAX), MAX, 0.0)
    assert bodies.has_room(int(MAX * (WHOLE_SHARE - 1)), MAX)
    assert not bodies.has_room(int(MAX * (WHOLE_SHARE - 1)) + 1, MAX)
