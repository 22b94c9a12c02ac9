"""The hub piece by piece: registry, writing, ending, sweeping, fan-out, and callbacks that act on the hub."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from pushd._fastpath import Connection, FanOut, Hub
from pushd.model import UserId
from pushd.protocol.frames import PING_FRAME, Opcode, close_frame, ws_frame
from tests.unit.hub_support import Workshop, connection_over
from tests.unit.test_frames import parse

MAX_PENDING = 20_000
SMALL_BUFFER = 4608  # the kernel's least
FOREVER = 1e9


class Told:
    """What the hub told, in order."""

    def __init__(self, hub: Hub) -> None:
        self.handed: list[tuple[Connection, list[str]]] = []
        self.gone: list[tuple[Connection, list[str]]] = []
        hub.on_handed = lambda connection, ids: self.handed.append((connection, ids))
        hub.on_gone = lambda connection, ids: self.gone.append((connection, ids))

    def handed_ids(self) -> list[str]:
        return [message_id for _, ids in self.handed for message_id in ids]

    def lost_ids(self) -> list[str]:
        return [message_id for _, ids in self.gone for message_id in ids]


@pytest.fixture
def hub() -> Hub:
    return Hub(MAX_PENDING)


@pytest.fixture
def told(hub: Hub) -> Told:
    return Told(hub)


@pytest.fixture
def shop(hub: Hub) -> Iterator[Workshop]:
    shop = Workshop(hub)
    yield shop
    shop.close()


def test_the_only_connection_of_a_user(hub: Hub, shop: Workshop) -> None:
    assert hub.only_connection(1) is None
    first = shop.join(1)
    assert hub.only_connection(1) is first
    shop.join(1)
    assert hub.only_connection(1) is None


def test_a_notice_for_one_connection(hub: Hub, shop: Workshop, told: Told) -> None:
    connection = shop.join(1)
    assert hub.deliver(connection, text("a"), ("a",)) is True
    assert shop.peers[connection].read() == text("a")
    assert hub.frames_sent == 1
    while (is_handed := hub.deliver(connection, text("b", 4000), ("b",))) is True:
        pass
    assert is_handed is False
    while is_handed is False:
        is_handed = hub.deliver(connection, text("c", 4000), ("c",))
    assert is_handed is None
    assert connection.close_code == 4008
    assert hub.deliver(connection, text("d"), ("d",)) is None
    ((gone, lost),) = told.gone
    assert gone is connection
    assert {"b", "c"} == set(lost)


def text(content: str | int, size: int = 0) -> bytes:
    return ws_frame(Opcode.TEXT, str(content).encode().ljust(size, b"."))


def fan_out(
    message_id: str = "m", users: list[int] | None = None, exclude: set[int] | None = None, size: int = 0
) -> FanOut:
    return FanOut(message_id, lambda dialect: text(f"{message_id}/{dialect}", size), users, exclude)


def run(hub: Hub, job: FanOut) -> FanOut:
    assert hub.advance(job, 60.0)
    return job


def fill(shop: Workshop, connection: Connection) -> int:
    """Write until the kernel takes no more; how many bytes that were, pending ones included."""
    total = 0
    while connection.pending_bytes == 0:
        frame = text("fill", 1000)
        assert shop.hub.send(connection, frame)
        total += len(frame)
    return total


# ---- registry


def test_a_new_hub_is_empty(hub: Hub) -> None:
    assert (hub.connections_total, hub.users_total, hub.guests_total) == (0, 0, 0)
    assert hub.snapshot() == hub.user_ids() == hub.connections_of(1) == []
    assert not hub.has_user(1)
    assert not hub.has_acking(1)
    assert hub.sweep(0.0, 0.0, 0.0, 100) == ([], [])
    assert hub.reap(FOREVER) == 0
    assert run(hub, fan_out()).handed == []
    assert run(hub, fan_out(users=[3, 1])).absent == [3, 1]


def test_a_users_connections_are_listed_oldest_first(hub: Hub, shop: Workshop) -> None:
    first, second, third = (shop.join(7) for _ in range(3))
    assert hub.connections_of(7) == [first, second, third]
    hub.close(second, 1000)
    assert hub.connections_of(7) == [first, third]
    hub.close(first, 1000)
    assert hub.connections_of(7) == [third]
    assert (hub.users_total, hub.connections_total) == (1, 1)
    hub.close(third, 1000)
    assert hub.connections_of(7) == []
    assert hub.users_total == 0


@pytest.mark.parametrize("user_id", [0, 1, 63, 64, 2**63 - 1, "a", "7", "x" * 64])
def test_any_user_id(hub: Hub, shop: Workshop, user_id: UserId) -> None:
    connection = shop.join(user_id)
    assert connection.user_id is user_id
    assert hub.connections_of(user_id) == [connection]
    assert (connection.is_guest, hub.users_total, hub.guests_total) == (False, 1, 0)
    assert hub.user_ids() == [user_id]


@pytest.mark.parametrize("user_id", [-1, -64, -(2**63), "guest:1"])
def test_a_guest_is_found_by_nobody(hub: Hub, shop: Workshop, user_id: UserId) -> None:
    """Nothing is for a guest alone."""
    connection = shop.join(user_id, is_guest=True)
    assert (connection.user_id, connection.is_guest, hub.users_total, hub.guests_total) == (user_id, True, 0, 1)
    assert hub.snapshot() == [connection]
    assert (hub.connections_of(user_id), hub.has_user(user_id), hub.user_ids()) == ([], False, [])
    hub.close(connection, 1000)
    assert hub.guests_total == 0


def test_who_acknowledges(hub: Hub, shop: Workshop) -> None:
    shop.join(7)
    assert not hub.has_acking(7)
    acking = shop.join(7, is_acking=True)
    assert hub.has_acking(7)
    hub.close(acking, 1000)
    assert not hub.has_acking(7)


def test_what_cannot_be_added(hub: Hub, shop: Workshop) -> None:
    open_one = shop.join()
    with pytest.raises(ValueError, match="registered"):
        hub.add(open_one)
    closed = shop.connect()
    hub.close(closed, 1000)
    with pytest.raises(ValueError, match="closed"):
        hub.add(closed)
    lost = shop.connect()
    lost.abort()
    shop.turn()
    with pytest.raises(ValueError, match="closed"):
        hub.add(lost)
    with pytest.raises(ValueError, match="another hub"):
        Hub(MAX_PENDING).add(shop.connect())
    for action in (hub.add, hub.close, hub.release, hub.send):
        with pytest.raises(TypeError):
            action(None, *((1000,) if action == hub.close else (b"",) if action == hub.send else ()))
    assert hub.snapshot() == [open_one]


def test_the_array_grows_and_shrinks(hub: Hub, shop: Workshop, told: Told) -> None:
    """More connections than there are descriptors for: they share one transport."""
    first = shop.connect(1)
    many = [connection_over(first.transport, hub, number // 2, conn_id=str(number)) for number in range(5000)]
    for connection in many:
        hub.add(connection)
    assert (hub.connections_total, hub.users_total) == (5000, 2500)
    walk = fan_out("first")
    assert not hub.advance(walk, 0.0)
    random.Random(1).shuffle(many)
    for number, connection in enumerate(many[:4000]):
        connection.connection_lost(None)
        if number == 2000:
            assert hub.advance(walk, 60.0)
    assert hub.connections_total == 1000
    assert set(hub.snapshot()) == set(many[4000:])
    assert sorted(hub.user_ids()) == sorted({connection.user_id for connection in many[4000:]})
    job = run(hub, fan_out("second"))
    assert job.sent_total == 1000
    assert sorted(job.waiting) == sorted(hub.user_ids())
    assert len(told.gone) == 4000
    for connection in many[4000:]:
        connection.connection_lost(None)
    assert hub.snapshot() == []


def test_hub_and_connections_are_collected(shop: Workshop) -> None:
    other = Hub(MAX_PENDING)
    for user_id in range(30):
        connection = shop.connect(user_id, hub=other)
        other.add(connection)
    job = fan_out("m")
    assert not other.advance(job, 0.0)
    del other, connection, job
    gc.collect()


# ---- writing to one


def test_notices_wait_for_release_and_control_frames_do_not(hub: Hub, shop: Workshop, told: Told) -> None:
    connection = shop.join(7, is_released=False)
    job = run(hub, fan_out("held"))
    assert (job.handed, job.waiting, job.sent_total) == ([], [7], 1)
    assert connection.pending_bytes == len(text("held/0"))
    assert hub.send(connection, text("hello"))
    assert hub.send(connection, text("replayed"), ("r1", "r2"))
    assert told.handed == [(connection, ["r1", "r2"])]
    assert shop.drain(connection) == text("hello") + text("replayed")
    hub.release(connection)
    assert told.handed[1:] == [(connection, ["held"])]
    assert shop.drain(connection) == text("hello") + text("replayed") + text("held/0")
    assert connection.pending_bytes == 0
    hub.release(connection)
    assert run(hub, fan_out("live")).handed == [7]
    assert told.lost_ids() == []


def test_the_answer_to_a_handshake_waits_for_the_first_frame(hub: Hub, shop: Workshop) -> None:
    connection = shop.connect(is_tcp=True)
    hub.add(connection)
    connection.begin(b"101")
    assert connection.pending_bytes == 0
    shop.turn()
    assert shop.peers[connection].unread == 0
    hub.send(connection, text("hello"))
    assert shop.drain(connection) == b"101" + text("hello")


def test_the_answer_to_a_handshake_does_not_wait_for_ever(hub: Hub, shop: Workshop) -> None:
    connection = shop.join(is_tcp=True)
    connection.begin(b"101")
    sock = shop.peers[connection].sock
    sock.settimeout(5)
    assert sock.recv(100) == b"101"
    sock.setblocking(False)


def test_the_answer_to_a_handshake_goes_behind_what_is_queued(hub: Hub, shop: Workshop) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)
    before, answer = text("before", MAX_PENDING - 1000), text("101", 100)
    hub.send(connection, before)
    assert connection.pending_bytes
    connection.begin(answer)
    hub.send(connection, text("hello"))
    assert shop.drain(connection) == before + answer + text("hello")


def test_the_answer_to_a_handshake_is_whole_where_the_kernel_takes_a_part(hub: Hub, shop: Workshop) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)
    answer = text("101", MAX_PENDING)
    connection.begin(answer)
    assert 0 < connection.pending_bytes < len(answer)
    assert shop.drain(connection) == answer


def test_an_answer_that_cannot_be_written_ends_the_connection(hub: Hub, shop: Workshop) -> None:
    connection = shop.join()
    shop.peers[connection].sock.close()
    connection.begin(b"101")
    shop.turn(5)
    assert connection.transport is None


def test_the_callback_comes_when_the_kernel_has_it(hub: Hub, shop: Workshop, told: Told) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)
    written = fill(shop, connection)
    for number in range(3):
        assert hub.send(connection, text(number, 1000), (f"m{number}",))
    assert told.handed == []
    shop.turn()
    assert told.handed == []
    assert len(shop.drain(connection)) == written + 3 * len(text(0, 1000))
    assert told.handed_ids() == ["m0", "m1", "m2"]
    assert connection.pending_bytes == 0
    assert run(hub, fan_out("direct again")).handed == [1]


def test_a_long_queue_is_looked_through_before_it_is_empty(shop: Workshop, hub: Hub, told: Told) -> None:
    """Ids are not kept for as long as the buffer never runs quite empty."""
    connection = shop.join(send_buffer=SMALL_BUFFER)
    hub.set_max_pending_bytes(10**6)
    fill(shop, connection)
    for number in range(127):
        hub.send(connection, text(number, 100), (f"m{number}",))
    shop.peers[connection].read()
    shop.turn()
    assert connection.pending_bytes > 0
    assert told.handed == []
    hub.send(connection, text("more"), ("m127",))
    found = told.handed_ids()
    assert 0 < len(found) < 128
    shop.drain(connection)
    assert told.handed_ids() == [f"m{number}" for number in range(128)]


def test_counters(hub: Hub, shop: Workshop) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)
    sizes = [len(text(number, 3000)) for number in range(4)]
    for number in range(4):
        assert hub.send(connection, text(number, 3000))
    assert (hub.frames_sent, hub.bytes_sent) == (4, sum(sizes))
    hub.close(connection, 1000)
    assert not hub.send(connection, text("late"))
    assert (hub.frames_sent, hub.bytes_sent) == (4, sum(sizes))


def test_drained(hub: Hub, shop: Workshop) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)

    async def drained() -> asyncio.Future[None]:
        return connection.drained(asyncio.get_running_loop())

    assert shop.run(drained()).done()
    fill(shop, connection)
    waiting = shop.run(drained())
    assert shop.run(drained()) is waiting
    assert not waiting.done()
    shop.drain(connection)
    assert waiting.done()
    fill(shop, connection)
    waiting = shop.run(drained())
    connection.abort()
    shop.turn()
    assert waiting.done()
    assert shop.run(drained()).done()


def test_a_drain_waiter_that_was_cancelled(hub: Hub, shop: Workshop) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)
    fill(shop, connection)

    async def give_up() -> None:
        connection.drained(asyncio.get_running_loop()).cancel()

    shop.run(give_up())
    shop.drain(connection)
    assert connection.pending_bytes == 0


# ---- ending


def test_close_goes_behind_what_is_queued(hub: Hub, shop: Workshop, told: Told) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)
    assert hub.send(connection, text("big", 9000))
    hub.close(connection, 4403, "revoked")
    assert not connection.is_registered
    assert connection.close_code == 4403
    assert run(hub, fan_out()).sent_total == 0
    hub.close(connection, 1011, "again")
    assert shop.drain(connection) == text("big", 9000) + close_frame(4403, "revoked")
    assert told.gone == [(connection, [])]


def test_what_is_in_the_kernel_at_the_close_is_not_lost(hub: Hub, shop: Workshop, told: Told) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)
    hub.set_max_pending_bytes(10**6)
    frames = [text(number, 1000) for number in range(60)]
    for number, frame in enumerate(frames):
        assert hub.send(connection, frame, (f"m{number}",))
    at_once = len(told.handed_ids())
    peer = shop.peers[connection]
    peer.read()
    shop.turn()
    assert connection.pending_bytes > 0
    assert len(told.handed_ids()) == at_once
    in_kernel = peer.arrived_total // len(frames[0])
    assert at_once < in_kernel < 60
    hub.close(connection, 1012)
    assert told.handed_ids() == [f"m{number}" for number in range(in_kernel)]
    assert told.gone == [(connection, [f"m{number}" for number in range(in_kernel, 60)])]
    assert shop.drain(connection) == b"".join(frames) + close_frame(1012)


def test_held_notices_of_a_closed_connection_are_lost(hub: Hub, shop: Workshop, told: Told) -> None:
    connection = shop.join(is_released=False)
    run(hub, fan_out("a"))
    run(hub, fan_out("b"))
    hub.close(connection, 4001)
    assert told.gone == [(connection, ["a", "b"])]
    assert connection.pending_bytes == 0
    assert shop.drain(connection) == close_frame(4001)


@pytest.mark.parametrize("is_released", [True, False])
def test_slow_consumer(hub: Hub, shop: Workshop, told: Told, is_released: bool) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER, is_released=is_released)
    jobs = []
    while connection.is_registered:
        jobs.append(run(hub, fan_out(f"m{len(jobs)}", size=3000)))
        assert connection.pending_bytes <= MAX_PENDING + 125
    assert connection.close_code == 4008
    assert hub.slow_consumers == 1
    ids = [f"m{number}" for number in range(len(jobs))]
    at_once = [message_id for message_id, job in zip(ids, jobs, strict=True) if job.handed]
    assert at_once == ids[: len(at_once)]
    assert at_once + told.handed_ids() + told.lost_ids() == ids
    assert jobs[-1].waiting == [1]
    received = shop.drain(connection)
    queued = [text(f"{message_id}/0", 3000) for message_id in ids[:-1]] if is_released else []
    assert received == b"".join(queued) + close_frame(4008, "slow consumer")


def test_the_limit_may_change(hub: Hub, shop: Workshop) -> None:
    connection = shop.join(is_released=False)
    run(hub, fan_out(size=10_000))
    assert connection.is_registered
    hub.set_max_pending_bytes(10_000)
    assert hub.max_pending_bytes == 10_000
    run(hub, fan_out(size=10))
    assert connection.close_code == 4008


def test_pongs_for_a_peer_that_does_not_read_are_bounded(hub: Hub, shop: Workshop) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)
    pong = ws_frame(Opcode.PONG, b"x" * 125)
    while hub.send(connection, pong):
        assert connection.cost <= MAX_PENDING
    assert connection.close_code == 4008


def test_what_waits_is_counted_by_what_it_takes(hub: Hub, shop: Workshop) -> None:
    """Many small frames, of which nobody reads any, take more memory than their bytes."""
    connection = shop.join(send_buffer=SMALL_BUFFER)
    per_write = hub.max_pending_bytes - hub.max_frame_bytes
    fill(shop, connection)
    pong, before = ws_frame(Opcode.PONG, b""), connection.cost
    for count in range(1, 20):
        assert hub.send(connection, pong)
        assert connection.cost == before + count * (per_write + len(pong))
    shop.drain(connection)
    assert connection.cost == connection.pending_bytes == 0
    shop.turn()
    fill(shop, connection)
    assert connection.cost <= connection.pending_bytes + per_write


def test_a_slow_reader_is_not_charged_for_what_it_has_read(hub: Hub, shop: Workshop) -> None:
    """One whose buffer never runs empty: what is counted shrinks with what waits."""
    hub.set_max_pending_bytes(100_000)
    connection = shop.join(send_buffer=SMALL_BUFFER)
    for _ in range(2000):
        assert hub.send(connection, ws_frame(Opcode.TEXT, b"x" * 100))
        shop.peers[connection].read(104)
        if connection.pending_bytes > 10_000:
            shop.peers[connection].read()
            shop.turn()
    assert connection.is_registered


@pytest.mark.parametrize("is_full", [False, True])
def test_a_broken_socket(hub: Hub, shop: Workshop, told: Told, is_full: bool) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)
    lost = ["m0"]
    if is_full:
        fill(shop, connection)
        assert hub.send(connection, text("queued"), ("queued",))
        lost = ["queued", "m0"]
    else:
        hub.send(connection, text("direct from here on"))
    shop.peers[connection].sock.close()
    if is_full:
        shop.turn()
        assert told.gone == [(connection, ["queued"])]
        assert not hub.send(connection, text("x"), ("m0",))
        return
    assert not hub.send(connection, text("x"), ("m0",))
    assert told.gone == [(connection, lost)]
    assert not connection.is_registered
    assert connection.transport is not None
    shop.turn()
    assert connection.transport is None
    assert len(told.gone) == 1


def test_a_peer_that_sent_eof_and_does_not_read_is_aborted(hub: Hub, shop: Workshop, told: Told) -> None:
    connection = shop.join(send_buffer=SMALL_BUFFER)
    fill(shop, connection)
    shop.peers[connection].sock.shutdown(1)
    shop.turn()
    assert connection.is_closing()
    assert connection.is_registered
    assert not hub.send(connection, PING_FRAME, ("m",))
    assert told.gone == [(connection, ["m"])]
    now = shop.loop.time()
    assert hub.reap(now) == 1
    shop.turn()
    assert connection.transport is not None
    assert hub.reap(now + 60.0) == 0
    shop.turn()
    assert connection.transport is None


def test_reap(hub: Hub, shop: Workshop) -> None:
    now = shop.loop.time()
    silent, polite = shop.join(), shop.join()
    for connection in (silent, polite):
        hub.close(connection, 1000)
    connection = shop.join()
    polite.finish()
    shop.turn()
    assert polite.transport is None
    assert hub.reap(now) == 1
    assert silent.transport is not None
    assert hub.reap(now + 10.0) == 0
    shop.turn()
    assert silent.transport is None
    assert connection.is_registered


def test_close_before_registration(hub: Hub, shop: Workshop, told: Told) -> None:
    connection = shop.connect()
    hub.close(connection, 1011)
    assert told.gone == []
    assert shop.drain(connection) == close_frame(1011)
    connection.abort()
    shop.turn()
    hub.close(connection, 1000)
    assert hub.reap(FOREVER) == 0


# ---- after the end


def test_what_is_asked_of_a_connection_after_its_end(hub: Hub, shop: Workshop) -> None:
    connection = shop.join()
    assert not connection.is_closing()
    connection.finish()
    assert connection.is_closing()
    shop.turn()
    assert connection.transport is None
    assert connection.owner is None
    for action in (connection.abort, connection.finish, connection.resume_writing, connection.pause_writing):
        action()
    connection.data_received(b"x")
    assert connection.eof_received() is False
    assert connection.is_closing()
    assert connection.pending_bytes == 0


# ---- sweeping


def test_heartbeats(hub: Hub, shop: Workshop) -> None:
    idle, lively = shop.join(1, now=0.0), shop.join(2, now=0.0)
    assert hub.sweep(24.9, 25.0, 10.0, 100) == ([], [])
    lively.last_seen = 24.0
    assert hub.sweep(25.0, 25.0, 10.0, 100) == ([], [])
    assert shop.drain(idle) == PING_FRAME
    assert shop.drain(lively) == b""
    assert hub.sweep(34.9, 25.0, 10.0, 100) == ([], [])
    assert hub.sweep(35.0, 25.0, 10.0, 100) == ([idle], [])
    idle.last_seen = 35.0
    assert hub.sweep(36.0, 25.0, 10.0, 100) == ([], [])
    assert shop.drain(idle) == PING_FRAME


def test_expired_tokens(hub: Hub, shop: Workshop) -> None:
    connection, other = shop.join(1), shop.join(2)
    connection.expires_at = 50.0
    assert hub.sweep(49.9, 1000.0, 10.0, 100) == ([], [])
    assert hub.sweep(50.0, 1000.0, 10.0, 100) == ([], [connection])
    assert other.expires_at == 0.0


def test_a_round_of_sweeps_sees_everybody_once(hub: Hub, shop: Workshop) -> None:
    connections = [shop.join(number) for number in range(10)]
    for _ in range(4):
        hub.sweep(100.0, 25.0, 10.0, 3)
    assert [shop.drain(connection) for connection in connections] == [PING_FRAME] * 10
    assert hub.sweep(0.0, 25.0, 10.0, 0) == ([], [])


def test_everybody_may_be_closed_during_a_sweep(hub: Hub, shop: Workshop) -> None:
    connections = [shop.join(number, is_released=False) for number in range(5)]
    run(hub, fan_out(size=1000))
    hub.set_max_pending_bytes(10)
    hub.on_gone = lambda connection, ids: [hub.close(other, 1012) for other in hub.snapshot()]
    assert hub.sweep(100.0, 25.0, 10.0, 100) == ([], [])
    assert hub.snapshot() == []
    assert {connection.close_code for connection in connections} == {4008, 1012}


# ---- fan-out


def test_encoded_once_for_each_dialect_in_use(hub: Hub, shop: Workshop) -> None:
    dialects: list[int] = []

    def encode(dialect: int) -> bytes:
        dialects.append(dialect)
        return ws_frame((Opcode.TEXT, Opcode.BINARY)[dialect & 1], b"xyz"[dialect >> 1 :])

    assert hub.advance(FanOut("m", encode, [99]), 1.0)
    assert dialects == []
    json = [shop.join(number) for number in range(3)]
    assert hub.advance(FanOut("m", encode), 1.0)
    assert dialects == [0]
    others = {dialect: [shop.join(number, dialect=dialect) for number in range(3)] for dialect in (1, 2, 3)}
    dialects.clear()
    assert hub.advance(FanOut("m", encode), 1.0)
    assert dialects == [0, 1, 2, 3]
    assert {shop.drain(connection) for connection in json} == {ws_frame(Opcode.TEXT, b"xyz") * 2}
    for dialect, frame in {1: b"\x82\x03xyz", 2: b"\x81\x02yz", 3: b"\x82\x02yz"}.items():
        assert {shop.drain(connection) for connection in others[dialect]} == {frame}


def test_a_dialect_the_hub_has_no_room_for(hub: Hub, shop: Workshop) -> None:
    shop.join(dialect=4)
    with pytest.raises(IndexError):
        hub.advance(FanOut("m", lambda dialect: b"x"), 1.0)


def test_what_a_fan_out_reports(hub: Hub, shop: Workshop, told: Told) -> None:
    for _ in range(2):
        shop.join(1)
    shop.join(2, is_acking=True)
    shop.join(3)
    shop.join(3, is_acking=True)
    shop.join(-1, is_guest=True)
    shop.join(4, is_released=False)
    shop.join(5)
    job = run(hub, fan_out(exclude={5}))
    assert job.is_walk
    assert job.handed == [1, 3]
    assert job.waiting == [2, 3, 4]
    assert job.absent == []
    assert (job.sent_total, job.guests_total) == (7, 1)
    job = run(hub, fan_out(users=[9, 3, 1, -2, 8]))
    assert not job.is_walk
    assert (job.handed, job.waiting, job.absent) == ([3, 1], [3], [9, -2, 8])
    assert job.sent_total == 4
    assert told.gone == []


def test_walks_that_go_together(hub: Hub, shop: Workshop, told: Told) -> None:
    shop.join(1)
    packed = shop.join(2, dialect=1, is_acking=True)
    held = shop.join(3, is_released=False)
    first, second = fan_out("first"), fan_out("second")
    assert first.absorb(second)
    before = hub.frames_sent
    run(hub, first)
    assert (second.handed, second.waiting, second.absent) == (first.handed, first.waiting, []) == ([1], [2, 3], [])
    assert shop.drain(packed) == text("first/1") + text("second/1")
    assert hub.frames_sent - before == 4
    hub.release(held)
    assert shop.drain(held) == text("first/0") + text("second/0")
    assert told.handed[-1] == (held, ["first", "second"])


def test_many_go_together_as_far_as_a_write_may_be_large(hub: Hub, shop: Workshop) -> None:
    client = shop.join(1)
    leader, others = fan_out("leader", size=1000), [fan_out(f"m{number}", size=1000) for number in range(40)]
    taken = [other for other in others if leader.absorb(other)]
    assert taken == others[: len(taken)]
    assert len(taken) == 31, "32 frames of 1,004 bytes"
    hub.set_max_pending_bytes(100_000)
    run(hub, leader)
    names = ["leader", *(f"m{number}" for number in range(31))]
    assert shop.drain(client) == b"".join(text(f"{name}/0", 1000) for name in names)
    assert all(job.handed == [1] and job.waiting == [] for job in (leader, *taken))


def test_those_to_the_same_users_go_together(hub: Hub, shop: Workshop) -> None:
    client, acking = shop.join(1), shop.join(2, is_acking=True)
    first, second = fan_out("first", users=[1, 2, 9]), fan_out("second", users=[1, 2, 9])
    assert first.absorb(second)
    assert not first.absorb(fan_out("third", users=[1, 2]))
    assert not first.absorb(fan_out("third"))
    run(hub, first)
    for job in (first, second):
        assert (job.handed, job.waiting, job.absent) == ([1], [2], [9])
    assert {shop.drain(client), shop.drain(acking)} == {text("first/0") + text("second/0")}


def test_walks_that_exclude_the_same_users_go_together(hub: Hub, shop: Workshop) -> None:
    client, excluded = shop.join(1), shop.join(2)
    first, second = fan_out("first", exclude={2}), fan_out("second", exclude={2})
    assert first.absorb(second)
    assert not first.absorb(fan_out("third", exclude={1}))
    run(hub, first)
    assert (first.handed, second.handed) == ([1], [1])
    assert (shop.drain(client), shop.drain(excluded)) == (text("first/0") + text("second/0"), b"")


@pytest.mark.parametrize("dialect", [0, 1])
def test_a_frame_that_cannot_be_encoded_is_not_taken_along(hub: Hub, shop: Workshop, dialect: int) -> None:
    def refuse(wanted: int) -> bytes:
        if wanted == dialect:
            raise ValueError("not encodable")
        return text("bad")

    client = shop.join(1, dialect=dialect)
    first, bad = fan_out("first"), FanOut("bad", refuse)
    with pytest.raises(ValueError, match="not encodable"):
        first.absorb(bad)
    with pytest.raises(ValueError, match="not encodable"):
        FanOut("bad", refuse).absorb(fan_out("other"))
    assert first.absorb(fan_out("second"))
    run(hub, first)
    assert shop.drain(client) == text(f"first/{dialect}") + text(f"second/{dialect}")


def test_who_has_taken_others_along_goes_with_nobody() -> None:
    first, second = fan_out("first"), fan_out("second")
    assert second.absorb(fan_out("third"))
    assert not first.absorb(second)


def test_a_slow_consumer_gets_none_of_those_that_go_together(hub: Hub, shop: Workshop, told: Told) -> None:
    slow, other = shop.join(1), shop.join(2)
    run(hub, fan_out("before", users=[2]))  # to whom is written directly from now on
    fill(shop, slow)
    first, second = fan_out("first", size=9000), fan_out("second", size=9000)
    assert first.absorb(second)
    hub.set_max_pending_bytes(slow.cost + 10_000)
    run(hub, first)
    assert (slow.close_code, other.close_code) == (4008, 0)
    assert told.gone == [(slow, ["first", "second"])]
    assert (first.handed, second.handed) == ([2], [2])
    assert (first.waiting, second.waiting) == ([1], [1])


def test_walks_that_go_alone(hub: Hub, shop: Workshop) -> None:
    for number in range(40):
        shop.join(number)
    begun = fan_out("begun")
    hub.advance(begun, 0.0)
    large = fan_out("large", size=20_000)
    for job in (begun, fan_out(users=[1]), fan_out(exclude={1}), large):
        assert not job.absorb(fan_out("other", size=20_000))
        assert not fan_out("other", size=20_000).absorb(job)


def test_a_walk_stops_in_time_and_goes_on_where_it_stopped(hub: Hub, shop: Workshop) -> None:
    connections = [shop.join(number) for number in range(40)]
    job = fan_out()
    slices = 1
    while not hub.advance(job, 0.0):
        slices += 1
    assert slices == 3
    assert job.sent_total == 40
    assert {shop.drain(connection) for connection in connections} == {text("m/0")}


def test_walks_and_churn(hub: Hub, shop: Workshop) -> None:
    """Slots are freed and filled while two walks are under way: nobody is skipped, nobody gets it twice."""
    members = [shop.join(number) for number in range(48)]
    first, second = fan_out("first"), fan_out("second")
    assert not hub.advance(first, 0.0)
    for connection in members[:8] + members[40:]:
        hub.close(connection, 1000)
    assert not hub.advance(second, 0.0)
    late = [shop.join(100 + number) for number in range(8)]
    for connection in members[8:12]:
        hub.close(connection, 1000)
    run(hub, first)
    for connection in members[12:16]:
        hub.close(connection, 1000)
    run(hub, second)
    for connection in (*members[16:40], *late):
        assert Counter(bytes(frame.data) for frame in parse(shop.drain(connection))) == {b"first/0": 1, b"second/0": 1}
    assert run(hub, fan_out("third")).sent_total == len(hub.snapshot()) == 32


def test_a_finished_fan_out_stays_finished(hub: Hub, shop: Workshop) -> None:
    connections = [shop.join(number) for number in range(40)]
    done = run(hub, fan_out("done"))
    for _ in range(3):
        assert hub.advance(done, 60.0)
    walk = fan_out("walk")
    assert not hub.advance(walk, 0.0)
    hub.close(connections[0], 1000)
    run(hub, walk)
    assert {shop.drain(connection) for connection in connections[1:]} == {text("done/0") + text("walk/0")}


@pytest.mark.parametrize("users", [None, list(range(40))])
def test_an_encoder_that_fails_ends_its_own_fan_out_only(hub: Hub, shop: Workshop, users: list[int] | None) -> None:
    connections = [shop.join(number, dialect=number // 20) for number in range(40)]

    def encode(dialect: int) -> bytes:
        if dialect == 1:
            raise OverflowError("cannot be said in this dialect")
        return text("half")

    job = FanOut("m", encode, users)
    with pytest.raises(OverflowError):
        hub.advance(job, 60.0)
    assert hub.advance(job, 60.0)
    for connection in connections[::2]:
        hub.close(connection, 1000)
    assert run(hub, fan_out("next")).sent_total == 20
    assert shop.drain(connections[1]) == text("half") + text("next/0")
    assert shop.drain(connections[39]) == text("next/1")


@pytest.mark.parametrize("result", [None, "text", bytearray(b"x")])
def test_an_encoder_must_give_bytes(hub: Hub, shop: Workshop, result: object) -> None:
    connection = shop.join(1)
    for users in (None, [1]):
        with pytest.raises(TypeError):
            hub.advance(FanOut("m", lambda dialect: result, users), 1.0)
    assert shop.drain(connection) == b""


# ---- callbacks that act on the hub


def test_an_encoder_may_move_the_array(hub: Hub, shop: Workshop) -> None:
    base = shop.join(1)
    added = [connection_over(base.transport, hub, 2 + number) for number in range(3000)]

    def encode(dialect: int) -> bytes:
        for connection in added:
            hub.add(connection)
        return text("moved")

    job = run(hub, FanOut("m", encode))
    assert job.sent_total == 3001
    assert job.handed == [1]
    assert len(job.waiting) == 3000
    for connection in added:
        connection.connection_lost(None)


def test_an_encoder_may_close_whom_it_is_for(hub: Hub, shop: Workshop, told: Told) -> None:
    for users in (None, [1]):
        connection = shop.join(1)

        def encode(dialect: int, connection: Connection = connection) -> bytes:
            hub.close(connection, 1012)
            return text("too late")

        job = run(hub, FanOut("m", encode, users))
        assert job.handed == []
        assert job.sent_total == 0
        assert shop.drain(connection) == close_frame(1012)


def test_on_gone_may_close_the_users_other_connections(hub: Hub, shop: Workshop) -> None:
    users = [shop.join(1 + number // 3, is_released=False) for number in range(30)]
    run(hub, fan_out(size=1000))
    hub.on_gone = lambda connection, ids: [hub.close(other, 4409) for other in hub.connections_of(connection.user_id)]
    hub.set_max_pending_bytes(1500)
    for job in (fan_out("walk", size=1000), fan_out("list", list(range(1, 11)), size=1000)):
        run(hub, job)
    assert hub.snapshot() == []
    assert Counter(connection.close_code for connection in users) == {4008: 10, 4409: 20}


def test_on_gone_may_add_and_send(hub: Hub, shop: Workshop) -> None:
    spare = [shop.connect(100 + number) for number in range(20)]
    witness = shop.join(50)
    slow = [shop.join(number, is_released=False) for number in range(20)]
    run(hub, fan_out(size=1000, exclude={50}))
    hub.set_max_pending_bytes(1500)

    def on_gone(connection: Connection, ids: list[str]) -> None:
        hub.send(witness, text(f"gone {connection.user_id}"))
        if spare:
            hub.add(spare[-1])
            hub.release(spare.pop())

    hub.on_gone = on_gone
    job = run(hub, fan_out("walk", size=1000))
    assert all(connection.close_code == 4008 for connection in slow)
    assert hub.connections_total == 21
    assert sorted(job.handed) == [50, *range(100, 120)]
    assert Counter(bytes(frame.data[:4]) for frame in parse(shop.drain(witness))) == {b"gone": 20, b"walk": 1}


def test_on_handed_may_send_and_close(hub: Hub, shop: Workshop) -> None:
    connection = shop.join(1, is_released=False)
    for number in range(3):
        run(hub, fan_out(f"m{number}"))
    seen: list[list[str]] = []

    def on_handed(which: Connection, ids: list[str]) -> None:
        seen.append(ids)
        if len(seen) == 1:
            assert hub.send(which, text("thanks"), ("thanks",))
        else:
            hub.close(which, 1000)

    hub.on_handed = on_handed
    hub.release(connection)
    assert seen == [["m0", "m1", "m2"], ["thanks"]]
    assert shop.drain(connection) == b"".join(text(f"m{number}/0") for number in range(3)) + text(
        "thanks"
    ) + close_frame(1000)


class Mischief:
    """Random acts on the hub, nested: callbacks act as well."""

    MOST_DEEP = 3

    def __init__(self, hub: Hub, shop: Workshop, seed: int) -> None:
        self.hub = hub
        self.rng = random.Random(seed)
        self.told: Counter[tuple[Connection, str]] = Counter()
        self.depth = 0
        self.made = 0
        self.jobs = [fan_out("job", size=500)]
        self.everybody = [
            shop.connect(number % 9, dialect=number % 2, send_buffer=SMALL_BUFFER) for number in range(120)
        ]
        self.spare = list(self.everybody)
        hub.on_handed = hub.on_gone = self.tell
        self.acts: dict[Callable[[], object], int] = {
            self.add: 5,
            self.send: 7,
            self.close: 2,
            self.release: 2,
            self.sweep: 2,
            self.advance: 2,
        }

    def tell(self, connection: Connection, ids: list[str]) -> None:
        self.told.update((connection, message_id) for message_id in ids)
        for _ in range(self.rng.randrange(3)):
            self.act()

    def act(self) -> None:
        if self.depth <= self.MOST_DEEP:
            self.depth += 1
            (act,) = self.rng.choices(list(self.acts), list(self.acts.values()))
            act()
            self.depth -= 1

    def someone(self) -> Connection:
        return self.rng.choice(self.hub.snapshot() or self.everybody)

    def add(self) -> None:
        if self.spare:
            self.hub.add(self.spare.pop())

    def send(self) -> None:
        self.made += 1
        frame = text(self.made, self.rng.choice((10, 900, 4000)))
        self.hub.send(self.someone(), frame, (f"s{self.made}",))

    def close(self) -> None:
        connection = self.someone()
        if connection not in self.spare:
            self.hub.close(connection, 1012)

    def release(self) -> None:
        self.hub.release(self.someone())

    def sweep(self) -> None:
        self.hub.sweep(1e6 + self.made, 0.0, 1e6, self.rng.randrange(20))

    def advance(self) -> None:
        self.hub.advance(self.rng.choice(self.jobs), 0.0)

    def begin(self, message_id: str) -> None:
        users = self.rng.choice((None, list(range(12))))
        self.jobs = [*self.jobs[-2:], fan_out(message_id, users, size=1500)]


@pytest.mark.parametrize("seed", range(12))
def test_callbacks_may_do_anything(hub: Hub, shop: Workshop, seed: int) -> None:
    """Whatever callbacks do in the middle of whatever else: no crash, streams stay whole, ids are told once."""
    mischief = Mischief(hub, shop, seed)
    for _ in range(30):
        mischief.add()
    for step in range(400):
        mischief.act()
        if step % 20 == 0:
            mischief.begin(f"job{step}")
        if step % 7 == 0:
            shop.turn(1)
            for connection in mischief.rng.sample(mischief.everybody, 20):
                shop.peers[connection].read(mischief.rng.choice((100, 5000)))
    assert hub.connections_total == len(hub.snapshot())
    assert max(mischief.told.values()) == 1
    for connection in mischief.everybody:
        frames = parse(shop.drain(connection))
        assert all(frame.opcode != Opcode.CLOSE for frame in frames[:-1])
        jobs_seen = Counter(bytes(frame.data) for frame in frames if frame.data.startswith(b"job"))
        assert max(jobs_seen.values(), default=1) == 1
