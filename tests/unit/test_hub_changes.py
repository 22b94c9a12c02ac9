"""The hub where notices are changed while they go out: fan-outs that stop, and frames for some connections only."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from pushd._fastpath import Connection, FanOut, Hub
from pushd.protocol.frames import TOLD_CHANGES, Opcode, ws_frame
from tests.unit.hub_support import Workshop

MAX_PENDING = 20_000


@pytest.fixture
def hub() -> Hub:
    return Hub(MAX_PENDING)


@pytest.fixture
def handed(hub: Hub) -> list[str]:
    """Ids of notices that the kernel has, as the hub tells."""
    ids: list[str] = []
    hub.on_handed = lambda _, message_ids: ids.extend(message_ids)
    return ids


@pytest.fixture
def shop(hub: Hub) -> Iterator[Workshop]:
    shop = Workshop(hub)
    yield shop
    shop.close()


def text(content: str) -> bytes:
    return ws_frame(Opcode.TEXT, content.encode())


def fan_out(message_id: str = "m", users: list[int] | None = None) -> FanOut:
    return FanOut(message_id, lambda dialect: text(message_id), users)


def reached(shop: Workshop, connections: list[Connection]) -> list[int]:
    return [connection.user_id for connection in connections if shop.drain(connection)]


@pytest.mark.parametrize("is_walk", [True, False], ids=["walk", "users"])
def test_a_stopped_one_reaches_nobody_else(hub: Hub, shop: Workshop, is_walk: bool) -> None:
    connections = [shop.join(user_id) for user_id in range(1, 40)]
    job = fan_out(users=None if is_walk else [*range(1, 41)])
    assert not hub.advance(job, 0.0)
    so_far = job.handed
    assert 0 < len(so_far) < 39
    job.stop()
    assert hub.advance(job, 60.0)
    assert (job.handed, job.waiting, job.absent) == (so_far, [], [])
    assert reached(shop, connections) == so_far
    for connection in connections[:5]:
        connection.abort()
    shop.turn(5)
    assert len(hub.snapshot()) == 34, "the walk is over: the array closes its gaps"


def test_one_that_has_not_begun(hub: Hub, shop: Workshop) -> None:
    client, job = shop.join(1), fan_out()
    job.stop()
    job.stop()
    assert hub.advance(job, 60.0)
    assert (job.handed, shop.drain(client)) == ([], b"")
    assert not job.absorb(fan_out("other"))
    assert not fan_out("other").absorb(job)


def test_one_that_is_over_stays_as_it_is(hub: Hub, shop: Workshop) -> None:
    client, job = shop.join(1), fan_out()
    assert hub.advance(job, 60.0)
    job.stop()
    assert (job.handed, shop.drain(client)) == ([1], text("m"))


@pytest.mark.parametrize("stopped", [0, 1, 2], ids=["leader", "first", "second"])
def test_those_it_goes_with_go_on(hub: Hub, shop: Workshop, handed: list[str], stopped: int) -> None:
    connections = [shop.join(user_id) for user_id in range(1, 40)]
    held = shop.join(40, is_released=False)
    names = ["leader", "first", "second"]
    jobs = [fan_out(name) for name in names]
    assert all(jobs[0].absorb(job) for job in jobs[1:])
    assert not hub.advance(jobs[0], 0.0)
    so_far = jobs[0].handed
    jobs[stopped].stop()
    assert jobs[stopped].handed == so_far
    assert hub.advance(jobs[0], 60.0)
    left = [name for number, name in enumerate(names) if number != stopped]
    for number, job in enumerate(jobs):
        assert job.handed == (so_far if number == stopped else [*range(1, 40)])
    for connection in connections:
        whole = names if connection.user_id in so_far else left
        assert shop.drain(connection) == b"".join(text(name) for name in whole)
    hub.release(held)
    assert shop.drain(held) == b"".join(text(name) for name in left)
    assert handed[-2:] == left


def test_all_of_those_that_go_together(hub: Hub, shop: Workshop) -> None:
    connections = [shop.join(user_id) for user_id in range(1, 40)]
    first, second = fan_out("first"), fan_out("second")
    assert first.absorb(second)
    assert not hub.advance(first, 0.0)
    so_far = first.handed
    second.stop()
    first.stop()
    assert hub.advance(first, 60.0)
    assert first.handed == second.handed == so_far
    assert reached(shop, connections) == so_far


class TestApart:
    def test_who_gets_what(self, hub: Hub, shop: Workshop, handed: list[str]) -> None:
        plain, told = shop.join(1), shop.join(1, is_told_changes=True)
        packed = shop.join(2, dialect=1, is_told_changes=True)
        asked: list[int] = []

        def encode(kind: int) -> bytes | None:
            asked.append(kind)
            return text(f"told {kind - TOLD_CHANGES}") if kind >= TOLD_CHANGES else None

        job = FanOut(None, encode, [1, 2, 3], tells_apart=True)
        assert hub.advance(job, 60.0)
        assert (shop.drain(plain), shop.drain(told), shop.drain(packed)) == (b"", text("told 0"), text("told 1"))
        assert (job.sent_total, handed, job.absent) == (2, [], [3])
        assert sorted(asked) == [0, TOLD_CHANGES, TOLD_CHANGES + 1]
        assert not job.absorb(fan_out(users=[1, 2, 3]))

    def test_it_comes_behind_what_is_held(self, hub: Hub, shop: Workshop, handed: list[str]) -> None:
        client = shop.join(1, is_released=False, is_told_changes=True)
        assert hub.advance(fan_out("notice"), 60.0)
        assert hub.advance(FanOut(None, lambda _: text("told"), [1], tells_apart=True), 60.0)
        hub.release(client)
        assert shop.drain(client) == text("notice") + text("told")
        assert handed == ["notice"]

    def test_it_is_no_notice_for_whoever_loses_it(self, hub: Hub, shop: Workshop) -> None:
        lost: list[str] = []
        hub.on_gone = lambda _, message_ids: lost.extend(message_ids)
        client = shop.join(1, is_released=False, is_told_changes=True)
        assert hub.advance(fan_out("notice"), 60.0)
        assert hub.advance(FanOut(None, lambda _: text("told"), [1], tells_apart=True), 60.0)
        client.abort()
        shop.turn(5)
        assert lost == ["notice"]

    def test_how_many_want_to_be_told(self, hub: Hub, shop: Workshop) -> None:
        shop.join(1)
        told = [shop.join(user_id, is_told_changes=True) for user_id in (1, 2)]
        assert hub.told_total == 2
        told[0].abort()
        shop.turn(5)
        assert hub.told_total == 1


def test_what_is_held_can_be_dropped(hub: Hub, shop: Workshop, handed: list[str]) -> None:
    client, direct = shop.join(1, is_released=False), shop.join(2)
    for name in ("first", "second", "first"):
        assert hub.advance(fan_out(name), 60.0)
    hub.drop_held("first")
    hub.drop_held("unknown")
    assert client.pending_bytes == len(text("second"))
    hub.release(client)
    assert shop.drain(client) == text("second")
    assert shop.drain(direct) == text("first") + text("second") + text("first")


@pytest.mark.parametrize("length", [1, 126])
def test_what_is_held_with_others_can_be_dropped(hub: Hub, shop: Workshop, handed: list[str], length: int) -> None:
    client = shop.join(1, is_released=False)
    frames = {name: text(name * length) for name in "abc"}
    first, *others = [FanOut(name, partial(lambda name, dialect: frames[name], name)) for name in "abc"]
    assert all(first.absorb(other) for other in others)
    assert hub.advance(first, 60.0)
    hub.drop_held("b")
    assert client.pending_bytes == len(frames["a"] + frames["c"])
    hub.release(client)
    assert shop.drain(client) == frames["a"] + frames["c"]
    assert handed == ["a", "c"]
