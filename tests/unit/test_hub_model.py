"""The hub against a simple model, whatever happens in whatever order.

What a connection was given is seen from outside: bytes its peer received, bytes in the kernel, and bytes the hub says
are pending. Their sum grows by one frame when a frame is written to it, and by nothing otherwise.
"""

from __future__ import annotations

import os
import random
import socket
from collections import Counter
from collections.abc import Callable
from itertools import accumulate

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pushd._fastpath import Connection, FanOut, Hub
from pushd.model import UserId
from pushd.protocol.frames import PING_FRAME, Opcode, close_frame, ws_frame
from tests.unit.hub_support import Peer, Workshop
from tests.unit.test_frames import parse

MAX_PENDING = 12_000
SMALL_BUFFER = 4608  # the kernel's least
USERS = range(1, 7)
NAMES = [str, lambda number: f"u{number % 2}:{number}"]
SIZES = (4, 125, 600, 3000, 5000, 9000)
FOREVER = 1e9

user_ids = st.sampled_from(USERS)
sizes = st.sampled_from(SIZES)
picks = st.integers(0, 1000)


class Written:
    """One frame a connection was given, and the message id it carries, if any."""

    def __init__(self, frame: bytes, message_id: str | None, *, is_reported: bool = False) -> None:
        self.frame = frame
        self.message_id = message_id
        self.is_reported = is_reported  # the caller was told that the kernel has it: no callback follows


class Client:
    """The model of one connection."""

    def __init__(self, connection: Connection, peer: Peer) -> None:
        self.connection = connection
        self.peer = peer
        self.user_id = connection.user_id
        self.is_registered = True
        self.is_held = True
        self.is_exact = True  # False once the peer or the transport is going: then bytes are not counted any more
        self.written: list[Written] = []
        self.held: list[Written] = []
        self.told: Counter[str] = Counter()  # ids reported, as handed or as lost

    @property
    def given_total(self) -> int:
        return sum(len(item.frame) for item in (*self.written, *self.held))

    @property
    def accepted_total(self) -> int:
        return self.peer.arrived_total + self.connection.pending_bytes

    def take(self, item: Written) -> None:
        (self.held if self.is_held else self.written).append(item)

    def ended(self, code: int, reason: str) -> None:
        self.held.clear()
        self.written.append(Written(close_frame(code, reason), None))
        self.is_registered = False


class Job:
    """The model of one fan-out."""

    def __init__(self, number: int, users: list[UserId] | None, exclude: set[UserId], size: int) -> None:
        self.message_id = f"job{number}"
        self.frames = tuple(
            ws_frame(opcode, f"{self.message_id}.{opcode}.".encode().ljust(size, b"j"))
            for opcode in (Opcode.TEXT, Opcode.BINARY)
        )
        self.encodings: list[int] = []
        self.users = users
        self.exclude = exclude
        self.fan_out = FanOut(self.message_id, self._encode, users, exclude)
        self.visits: Counter[Client] = Counter()
        self.throughout: set[Client] = set()  # registered since it began
        self.is_begun = False
        self.visited_users: set[UserId] = set()
        self.handed: set[UserId] = set()
        self.waiting: set[UserId] = set()
        self.either: set[UserId] = set()  # by a connection that was going: one of the two

    def _encode(self, dialect: int) -> bytes:
        self.encodings.append(dialect)
        return self.frames[dialect]


class HubMachine(RuleBasedStateMachine):
    named: Callable[[int], UserId] = int

    def __init__(self) -> None:
        super().__init__()
        self.hub = Hub(MAX_PENDING, linger_s=FOREVER)
        self.hub.on_handed = self._on_handed
        self.hub.on_gone = self._on_gone
        self.shop = Workshop(self.hub)
        self.clients: list[Client] = []
        self.by_connection: dict[Connection, Client] = {}
        self.jobs: list[Job] = []
        self.handed: list[tuple[Connection, list[str]]] = []
        self.gone: list[tuple[Connection, list[str]]] = []
        self.frames = 0
        self.guests = 0
        self.clock = 0.0

    # ---- what the hub tells

    def _on_handed(self, connection: Connection, message_ids: list[str]) -> None:
        assert message_ids
        self.handed.append((connection, message_ids))

    def _on_gone(self, connection: Connection, message_ids: list[str]) -> None:
        assert not connection.is_registered
        self.gone.append((connection, message_ids))

    def _settle(self) -> None:
        """Book what was told since the last step."""
        for connection, message_ids in self.handed:
            client = self.by_connection[connection]
            client.told.update(message_ids)
            if client.is_exact:
                assert set(message_ids) <= self._kernel_has(client), "handed, but not in the kernel"
        for connection, message_ids in self.gone:
            client = self.by_connection[connection]
            assert not client.is_registered or not client.is_exact
            client.is_registered = False
            for job in self.jobs:
                job.throughout.discard(client)
            client.told.update(message_ids)
            if client.is_exact:
                assert not set(message_ids) & self._kernel_has(client), "lost, but in the kernel"
        self.handed.clear()
        self.gone.clear()

    def _kernel_has(self, client: Client) -> set[str]:
        arrived = client.peer.arrived_total
        ends = accumulate(len(item.frame) for item in client.written)
        return {
            item.message_id
            for item, end in zip(client.written, ends, strict=True)
            if end <= arrived and item.message_id is not None
        }

    # ---- helpers

    def _pick(self, number: int, condition: Callable[[Client], bool] = lambda client: client.is_registered) -> Client:
        fitting = [client for client in self.clients if condition(client)]
        return fitting[number % len(fitting)]

    def _has(self, condition: Callable[[Client], bool]) -> bool:
        return any(condition(client) for client in self.clients)

    def _is_over(self, cost: int, frame: bytes) -> bool:
        return cost + len(frame) > self.hub.max_frame_bytes

    def _frame(self, size: int) -> bytes:
        self.frames += 1
        return ws_frame(Opcode.TEXT, f"{self.frames}.".encode().ljust(size, b"s"))

    def _check_cost(self, client: Client) -> None:
        """Something for every write that waits, whose number is known only about."""
        pending, per_write = client.connection.pending_bytes, MAX_PENDING - self.hub.max_frame_bytes
        writes = (client.connection.cost - pending) // per_write
        held = len(client.held)
        assert held <= writes <= held + (len(client.written) if client.connection.unsent_bytes else 0)

    def _gone_now(self) -> set[Connection]:
        return {connection for connection, _ in self.gone}

    def _check_slow(self, client: Client, cost: int, frame: bytes) -> bool:
        """Whether the hub closed an exact client just now: only for too many pending bytes, and then always.

        `cost` is that of the pending ones before.
        """
        is_closed = client.connection in self._gone_now()
        assert is_closed == self._is_over(cost, frame)
        if is_closed:
            assert client.connection.close_code == 4008
            client.ended(4008, "slow consumer")
        return is_closed

    # ---- connections

    @initialize(seed=st.integers(0, 2**32))
    def populate(self, seed: int) -> None:
        """More than one slice of a walk visits."""
        rng = random.Random(seed)
        for _ in range(24):
            self._add(rng.choice((0, *USERS)), rng.choice((0, 1)), rng.choice((False, True)), rng.random() < 0.6)
        for client in self.clients[4:]:
            self._release(client)

    @precondition(lambda self: len(self.clients) < 60)
    @rule(
        who=st.lists(st.integers(0, len(USERS)), min_size=1, max_size=6),
        dialect=st.integers(0, 1),
        is_acking=st.booleans(),
        is_slow=st.booleans(),
        is_released=st.booleans(),
    )
    def add(self, who: list[int], dialect: int, is_acking: bool, is_slow: bool, is_released: bool) -> None:
        for number in who:
            client = self._add(number, dialect, is_acking, is_slow)
            if is_released:
                self._release(client)

    def _add(self, number: int, dialect: int, is_acking: bool, is_slow: bool) -> Client:
        is_guest = number == 0
        self.guests += is_guest
        connection = self.shop.connect(
            f"guest:{self.guests}" if is_guest else self.named(number),
            is_guest=is_guest,
            dialect=dialect,
            is_acking=is_acking,
            send_buffer=SMALL_BUFFER if is_slow else 0,
            now=self.clock,
        )
        client = Client(connection, self.shop.peers[connection])
        self.clients.append(client)
        self.by_connection[connection] = client
        self.hub.add(connection)
        return client

    @precondition(lambda self: self._has(lambda client: client.is_registered and client.is_held))
    @rule(number=picks)
    def release(self, number: int) -> None:
        self._release(self._pick(number, lambda client: client.is_registered and client.is_held))

    def _release(self, client: Client) -> None:
        self.hub.release(client.connection)
        client.is_held = False
        client.written += client.held
        client.held = []
        assert not client.is_exact or client.connection not in self._gone_now()

    @precondition(lambda self: self._has(lambda client: client.is_registered))
    @rule(number=picks, code=st.sampled_from([1000, 4001, 4403, 4409]))
    def close(self, number: int, code: int) -> None:
        client = self._pick(number)
        was_open = client.connection.close_code == 0
        self.hub.close(client.connection, code, "because")
        assert client.connection in self._gone_now()
        if was_open:
            client.ended(code, "because")
        client.is_registered = False
        self.hub.close(client.connection, 1011, "once is enough")

    @precondition(lambda self: self._has(lambda client: not client.is_registered))
    @rule(number=picks, size=sizes)
    def use_after_the_end(self, number: int, size: int) -> None:
        client = self._pick(number, lambda client: not client.is_registered)
        told = len(self.handed), len(self.gone)
        assert self.hub.send(client.connection, self._frame(size), ("never",)) is False
        self.hub.release(client.connection)
        assert (len(self.handed), len(self.gone)) == told

    @precondition(lambda self: self._has(lambda client: client.is_exact))
    @rule(number=picks, how=st.sampled_from(["peer vanishes", "peer half-closes", "transport fails"]))
    def lose(self, number: int, how: str) -> None:
        client = self._pick(number, lambda client: client.is_exact)
        client.is_exact = False
        if how == "peer vanishes":
            client.peer.sock.close()
        elif how == "peer half-closes":
            client.peer.sock.shutdown(socket.SHUT_WR)
        else:
            client.connection.abort()

    # ---- writing to one

    @precondition(lambda self: self._has(lambda client: client.is_registered))
    @rule(numbers=st.lists(picks, min_size=1, max_size=5), size=sizes, has_ids=st.booleans(), times=st.integers(1, 5))
    def send(self, numbers: list[int], size: int, has_ids: bool, times: int) -> None:
        clients = [self._pick(number) for number in numbers]
        for _ in range(times):
            for client in clients:
                if client.is_registered and client.connection not in self._gone_now():
                    frame = self._frame(size)
                    self._send(client, frame, f"send{self.frames}" if has_ids else None)

    def _send(self, client: Client, frame: bytes, message_id: str | None) -> None:
        cost = client.connection.cost
        is_sent = self.hub.send(client.connection, frame, None if message_id is None else (message_id,))
        if not client.is_exact:
            client.written.append(Written(frame, message_id))
            return
        if self._check_slow(client, cost, frame):
            assert not is_sent
            return
        assert is_sent
        client.written.append(Written(frame, message_id))
        if message_id is not None and client.connection.pending_bytes == 0:
            assert (client.connection, [message_id]) in self.handed, "handed to the kernel at once and not said"

    @precondition(lambda self: self._has(lambda client: client.is_registered))
    @rule(limit=st.integers(1, 40), seconds=st.integers(0, 3))
    def sweep(self, limit: int, seconds: int) -> None:
        """Pings those who said nothing for 2 s, reports those who did not answer for 1 s."""
        self.clock += seconds
        before = {client: client.connection.cost for client in self.clients if client.is_registered}
        silent, expired = self.hub.sweep(self.clock, 2.0, 1.0, limit)
        assert not expired
        assert set(silent) <= {client.connection for client in before}
        for client, cost in before.items():
            is_pinged = client.is_exact and self._was_given(client, PING_FRAME)
            if is_pinged and not self._check_slow(client, cost, PING_FRAME):
                client.written.append(Written(PING_FRAME, None))

    # ---- fan-outs

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(size=sizes, exclude=st.sets(user_ids, max_size=2))
    def broadcast(self, size: int, exclude: set[int]) -> None:
        self._begin(None, exclude, size)

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(size=sizes, users=st.lists(st.integers(1, 24), unique=True, max_size=24))
    def fan_out(self, size: int, users: list[int]) -> None:
        self._begin(users, set(), size)

    def _begin(self, users: list[int] | None, exclude: set[int], size: int) -> None:
        self.frames += 1
        named = None if users is None else [*map(self.named, users)]
        self.jobs.append(Job(self.frames, named, {*map(self.named, exclude)}, size))

    @precondition(lambda self: self.jobs)
    @rule(number=picks)
    def advance_a_slice(self, number: int) -> None:
        self._advance(number, is_slice=True)

    @precondition(lambda self: self.jobs)
    @rule(number=picks)
    def advance_to_the_end(self, number: int) -> None:
        self._advance(number, is_slice=False)

    def _advance(self, number: int, *, is_slice: bool) -> None:
        job = self.jobs[number % len(self.jobs)]
        registered = [client for client in self.clients if client.is_registered]
        if not job.is_begun:
            job.is_begun = True
            job.throughout = set(registered)
        before = {client: client.connection.cost for client in registered}
        absent_before = len(job.fan_out.absent)
        is_finished = self.hub.advance(job.fan_out, 0.0 if is_slice else 60.0)
        self._book_visits(job, before)
        newly_absent = job.fan_out.absent[absent_before:]
        assert not {client.user_id for client in registered}.intersection(newly_absent)
        if is_finished:
            self._check_finished(job)
            self.jobs.remove(job)
            assert self.hub.advance(job.fan_out, 60.0), "a finished fan-out stays finished"
        else:
            assert is_slice

    def _book_visits(self, job: Job, before: dict[Client, int]) -> None:
        for client, cost in before.items():
            frame = job.frames[client.connection.dialect]
            if not client.is_exact:
                self._book_unsure_visit(job, client)
            elif self._was_given(client, frame):
                job.visits[client] += 1
                job.visited_users.add(client.user_id)
                outcome = self._booked(client, frame, job.message_id, cost)
                self._book_outcome(job, client, outcome)

    def _book_unsure_visit(self, job: Job, client: Client) -> None:
        """What a connection that is going was given cannot be seen; its user is somewhere in the result."""
        if not client.connection.is_guest:
            job.either.add(client.user_id)
        if job.visits[client] == 0 and client.user_id not in job.exclude:
            client.written.append(Written(job.frames[client.connection.dialect], job.message_id))

    def _was_given(self, client: Client, frame: bytes) -> bool:
        if client.connection in self._gone_now():
            return True
        growth = client.accepted_total - client.given_total
        assert growth in (0, len(frame)), "neither nothing nor one whole frame"
        return growth > 0

    def _booked(self, client: Client, frame: bytes, message_id: str | None, cost: int) -> str:
        if self._check_slow(client, cost, frame):
            return "gone"
        is_handed = client.connection.pending_bytes == 0
        client.take(Written(frame, message_id, is_reported=is_handed))
        return "handed" if is_handed else "queued"

    def _book_outcome(self, job: Job, client: Client, outcome: str) -> None:
        assert client.user_id not in job.exclude
        if client.connection.is_guest:
            return
        if outcome == "handed" and not client.connection.is_acking:
            job.handed.add(client.user_id)
        else:
            job.waiting.add(client.user_id)

    def _check_finished(self, job: Job) -> None:
        fan_out = job.fan_out
        assert set(job.encodings) <= {0, 1}
        assert len(job.encodings) == len(set(job.encodings)), "encoded once per dialect"
        for client in self.clients:
            if not client.is_exact:
                continue
            is_due = (job.users is None and client.user_id not in job.exclude) or client.user_id in (job.users or ())
            assert job.visits[client] <= is_due
            if client in job.throughout and client.is_registered:
                assert job.visits[client] == is_due, "skipped"
        for found, expected in ((fan_out.handed, job.handed), (fan_out.waiting, job.waiting)):
            assert len(found) == len(set(found))
            assert expected <= set(found) <= expected | job.either
        guests = {client.user_id for client in self.clients if client.connection.is_guest}
        assert not guests.intersection((*fan_out.handed, *fan_out.waiting)), "a guest among the users"
        if job.users is None:
            assert not fan_out.absent
        else:
            found = {*fan_out.handed, *fan_out.waiting}
            assert {*found, *fan_out.absent} == {*job.users}
            assert not found.intersection(fan_out.absent)
            assert len(fan_out.absent) == len(set(fan_out.absent))

    # ---- the other side

    @precondition(lambda self: self.clients)
    @rule(readers=st.lists(picks, min_size=1, max_size=20), most=st.sampled_from([1, 50, 1000, 5000, 1 << 20]))
    def read(self, readers: list[int], most: int) -> None:
        for number in readers:
            client = self.clients[number % len(self.clients)]
            if client.is_exact:
                client.peer.read(most)

    @rule(times=st.integers(1, 4))
    def turn(self, times: int) -> None:
        self.shop.turn(times)

    # ---- after every step

    @invariant()
    def books_agree(self) -> None:
        self._settle()
        registered = [client for client in self.clients if client.is_registered]
        users = [client.user_id for client in registered if not client.connection.is_guest]
        hub = self.hub
        assert hub.connections_total == len(registered)
        assert hub.guests_total == len(registered) - len(users)
        assert hub.users_total == len(set(users))
        assert sorted(hub.user_ids(), key=str) == sorted(set(users), key=str)
        assert set(hub.snapshot()) == {client.connection for client in registered}
        assert len(hub.snapshot()) == len(registered)
        for user_id in (*map(self.named, USERS), "guest:1", 99):
            mine = [one.connection for one in registered if one.user_id == user_id and not one.connection.is_guest]
            assert hub.connections_of(user_id) == mine
            assert hub.has_user(user_id) is bool(mine)
            assert hub.has_acking(user_id) is any(connection.is_acking for connection in mine)

    @invariant()
    def bytes_agree(self) -> None:
        for client in self.clients:
            assert client.connection.is_registered is client.is_registered
            stream = b"".join(item.frame for item in client.written)
            if client.is_exact:
                assert client.accepted_total == client.given_total
                assert stream.startswith(client.peer.received)
                assert client.connection.pending_bytes <= MAX_PENDING + 125
                self._check_cost(client)
            assert max(client.told.values(), default=0) <= 1, "an id reported twice"

    def teardown(self) -> None:
        """Everybody reads on until nothing more comes: then all ids are accounted for and all bytes have arrived."""
        try:
            self._finish()
        finally:
            self.shop.close()

    def _finish(self) -> None:
        for client in self.clients:
            if client.is_exact:
                self.shop.drain(client.connection)
        self._settle()
        for client in self.clients:
            if client.is_exact:
                sent = list(client.written)
                assert bytes(client.peer.received) == b"".join(item.frame for item in sent)
                parse(bytes(client.peer.received))
                if client.is_registered:
                    assert client.connection.pending_bytes == sum(len(item.frame) for item in client.held)
        for client in self.clients:
            self.hub.close(client.connection, 1012, "the end")
            client.is_registered = False
        assert self.hub.connections_total == 0
        self._settle()
        assert self.hub.reap(2 * FOREVER) == 0
        self.shop.turn(5)
        self._settle()
        for client in self.clients:
            assert client.connection.transport is None, "a connection survived"
            if client.is_exact:
                owed = Counter(item.message_id for item in client.written if item.message_id and not item.is_reported)
                assert not owed - client.told, "an id was forgotten"
        assert (self.hub.connections_total, self.hub.users_total, self.hub.guests_total) == (0, 0, 0)
        for job in self.jobs:
            assert self.hub.advance(job.fan_out, 60.0)


class TextMachine(HubMachine):
    named = staticmethod("user:{}".format)


TestHub = HubMachine.TestCase
TestHubOfTexts = TextMachine.TestCase
TestHub.settings = TestHubOfTexts.settings = settings(
    max_examples=int(os.environ.get("HUB_EXAMPLES", "60")),  # more of them are chosen at random
    derandomize="HUB_EXAMPLES" not in os.environ,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
