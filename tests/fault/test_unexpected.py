"""Whatever fails in a way that nobody foresaw costs what it is about, and nothing else.

Every call of a store, every encoder and decoder, and every step of a writer raises something odd, once, in a node that
lives through a small life each time. The places are found by looking at the ports, at what the modules have at their
top, and at what their functions call: nobody has to list them.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import itertools
import sqlite3
import sys
import traceback
import types
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, NamedTuple, Protocol

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from pushd import app, ports
from pushd.config.schema import Config
from pushd.core import Pauses
from pushd.errors import StartError
from pushd.model import MailboxItem, Membership, Notice, Target, TargetKind, User
from pushd.stores import open_stores
from pushd.stores.sqlite import amendments, set_aside
from pushd.stores.sqlite.engine.schema import DATABASE_NAME
from pushd.stores.sqlite.groups import import_groups
from pushd.stores.sqlite.ledger_file import LedgerFile
from pushd.writing import write_behind
from tests.conftest import MakeConfig
from tests.daemon import Client, Probe, until

CODECS = ("msgspec", "orjson", "json")
CODEC_CALLS = ("encode", "decode", "dumps", "loads", "convert", "to_builtins", "astuple")
OWN_CODECS = ("encode", "decode", "encoded", "decoded")


# ---- the places


class Place(NamedTuple):
    """Something that is called under a name: `owner.name`."""

    owner: Any
    name: str
    label: str


def store_calls(stores: ports.Stores) -> Iterator[Place]:
    """Every method of every port, on the class of the store that implements it here, or on the store that has it of
    another object."""
    protocols = [
        port
        for port in vars(ports).values()
        if inspect.isclass(port) and issubclass(port, Protocol) and port is not Protocol  # type: ignore[arg-type]
    ]
    found = set[tuple[int, str]]()  # the ledger is the records
    for field in (name for name in stores.__dataclass_fields__ if name != "background"):
        for store in stores.remotes if field == "remotes" else [getattr(stores, field)]:
            for port in protocols:
                names = [name for name, member in vars(port).items() if inspect.isfunction(member) and name[0] != "_"]
                if names and all(hasattr(store, name) for name in names):
                    yield from (
                        Place(type(store) if hasattr(type(store), name) else store, name, f"{field}.{name}")
                        for name in names
                        if (id(store), name) not in found
                    )
                    found.update((id(store), name) for name in names)


def writer_steps(node: app.Node) -> Iterator[Place]:
    """Every method of Writes, of every writer."""
    for writer in node.writers.all():
        for name, member in vars(write_behind.Writes).items():
            if inspect.isfunction(member) and name[0] != "_":
                yield Place(type(writer._writes), name, f"{writer.name}: {name}")


def modules() -> list[types.ModuleType]:
    return [module for name, module in sorted(sys.modules.items()) if name.split(".")[0] == "pushd" and module]


def codecs() -> Iterator[Place]:
    """Encoders and decoders at the top of modules, and functions that are ones."""
    kinds = (msgspec.json.Decoder, msgspec.json.Encoder, msgspec.msgpack.Decoder, msgspec.msgpack.Encoder)
    for module in modules():
        for name, value in vars(module).items():
            is_codec = isinstance(value, kinds) or isinstance(getattr(value, "__self__", None), kinds)
            is_ours = inspect.isfunction(value) and value.__module__ == module.__name__
            if is_codec or (is_ours and (value.__annotations__.get("return") == "bytes" or name in OWN_CODECS)):
                yield Place(module, name, f"{module.__name__}.{name}")


def codec_calls() -> Iterator[Place]:
    """What functions call of the libraries that encode and decode: `msgspec.json.encode`, by module."""
    for module in modules():
        used = [name for name in CODECS if isinstance(vars(module).get(name), types.ModuleType)]
        if not used or not (module.__file__ or "").endswith(".py"):
            continue
        nodes = ast.walk(ast.parse(inspect.getsource(module)))
        calls = {ast.unparse(call.func) for call in nodes if isinstance(call, ast.Call)}
        for call in sorted(calls):
            first, last = call.partition(".")[0], call.rpartition(".")[2]
            if first in used and last in CODEC_CALLS and call.replace(".", "").isidentifier():
                yield Place(module, call, f"{module.__name__}: {call}")


class Attributes:
    """An object with one thing in it replaced."""

    def __init__(self, original: Any, path: list[str], make: Callable[[Any], Any]) -> None:
        self._original = original
        replaced = getattr(original, path[0])
        setattr(self, path[0], Attributes(replaced, path[1:], make) if path[1:] else make(replaced))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def replaced(place: Place, make: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everybody who calls what is at `place` call what `make` makes of it."""
    first, *path = place.name.split(".")
    original = getattr(place.owner, first)
    new: Any
    if path:
        new = Attributes(original, path, make)
    elif hasattr(original, "decode") and not callable(original):
        new = Attributes(original, ["decode"], make)
    elif hasattr(original, "encode") and not callable(original):
        new = Attributes(original, ["encode"], make)
    else:
        new = make(original)
    monkeypatch.setattr(place.owner, first, new)
    if inspect.isfunction(original) and inspect.ismodule(place.owner):  # imported elsewhere by its name
        for module in modules():
            for name, value in list(vars(module).items()):
                if value is original:
                    monkeypatch.setattr(module, name, new)


class Odd:
    """What raises the first time it is called."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.has_fired = False

    def make(self, original: Any) -> Any:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.has_fired:
                self.has_fired = True
                raise self.error
            return original(*args, **kwargs)

        @functools.wraps(original)
        async def call_later(*args: Any, **kwargs: Any) -> Any:
            return await call(*args, **kwargs)

        return call_later if inspect.iscoroutinefunction(original) else call


class Calls:
    """Counts."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()

    def make(self, label: str) -> Callable[[Any], Any]:
        def make(original: Any) -> Any:
            @functools.wraps(original)
            def call(*args: Any, **kwargs: Any) -> Any:
                self.total[label] += 1
                return original(*args, **kwargs)

            return call

        return make


# ---- the life


class Listener:
    """A user's connection: takes what comes, and acknowledges it when it was opened to."""

    def __init__(self, client: Client, user_id: int, *, is_acking: bool) -> None:
        self.client = client
        self.user_id = user_id
        self.got: list[str] = []
        self.revoked: list[str] = []
        self.unread = client.hello["data"]["unread_count"]
        self.refused = 0
        self._is_acking = is_acking
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                message = await self.client.receive(600)
                self.refused += message["type"] == "error"
                self.unread = message.get("unread_count", self.unread)
                if message["type"] == "revoke":
                    self.revoked.append(message["message_id"])
                if message["type"] == "remind":
                    message = message["notice"]
                if "content" in message:
                    self.got.append(message["message_id"])
                    if self._is_acking:
                        await self.client.send({"type": "ack", "message_ids": [message["message_id"]]})

    @property
    def is_open(self) -> bool:
        return not self._task.done()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.client.ws.close()


class MsgpackClient(Client):
    """The same, in the other dialect."""

    async def receive(self, within_s: float = 10.0) -> dict[str, Any]:
        async with asyncio.timeout(within_s):
            return msgspec.msgpack.decode(await self.ws.recv())

    async def send(self, message: dict[str, Any]) -> None:
        await self.ws.send(msgspec.msgpack.encode(message))


async def connected(probe: Probe, user_id: int, *, msgpack: bool = False, is_acking: bool = True) -> Listener:
    options: dict[str, Any] = {"subprotocols": ["pushd.v1.msgpack"]} if msgpack else {}
    asked = "&ack=1&changes=1&unread=1" if is_acking else ""
    ws = await probe.open(f"/ws?user_id={user_id}{asked}", **options)
    client = MsgpackClient(ws) if msgpack else Client(ws)
    try:
        client.hello = await client.receive(1.0)
    except Exception:  # as clients do: come again
        await ws.close()
        raise
    return Listener(client, user_id, is_acking=is_acking)


class Life:
    """What one round of users does on a node. What fails is repeated by its client, as clients do."""

    def __init__(self, probe: Probe, bystander: Listener, number: int) -> None:
        self.probe = probe
        self.node: app.Node = probe.node
        self.bystander = bystander
        self.here, self.there, self.absent, self.waiting, self.clumsy = range(10 * number, 10 * number + 5)
        self.everybody = [bystander.user_id, self.here, self.there, self.absent]
        self.sent: list[str] = []  # to everybody
        self.refused = 0  # requests
        self.repeated = 0  # steps, and what was set aside
        self.listeners = [bystander]

    async def again(self, step: Callable[[], Awaitable[Any]]) -> Any:
        for _ in range(4):
            try:
                async with asyncio.timeout(PATIENCE_S):
                    return await step()
            except Exception:
                self.repeated += 1
        return await step()

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        async def ask() -> Any:
            response = await self.probe.http.request(method, f"/api/admin{path}", json=body)
            self.refused += 400 <= response.status_code < 500
            assert response.status_code in (200, 404), response.text
            return response.json()["data"]

        return await self.again(ask)

    async def publish(self, **fields: Any) -> str:
        message_id = f"n{next(_numbers)}"
        fields = {"target": "custom", "user_ids": self.everybody} | fields
        body = {"content": "hi", "message_id": message_id, "data": {"n": 1}, **fields}
        await self.request("POST", "/system/notice", body)
        return message_id

    async def connect(self, user_id: int, **how: Any) -> Listener:
        listener: Listener = await self.again(lambda: connected(self.probe, user_id, **how))
        self.listeners.append(listener)
        return listener

    async def live(self) -> None:
        await self.connect(self.here)
        await self.connect(self.there, msgpack=True)
        await self.again(lambda: self.node.directory.learn([User(self.absent, "absent")]))
        self.sent += [await self.publish(), await self.publish(), await self.publish(target="all", user_ids=[])]
        read, confirmed, _ = self.sent
        group = f"group {self.here}"
        members = [Membership(line, group, user_id, "") for line, user_id in enumerate(self.everybody)]
        import_groups(data_dir(self.node), members, source="by hand")
        self.sent.append(await self.publish(target="group", groups=[group], user_ids=[]))
        await self.publish(target="role", roles=[0])
        await self.publish(target="online")
        await self.publish(user_ids=[self.here])
        await self.all_have_it(self.here, self.there)
        await self.say({"type": "ping"})
        await self.say({"type": "read", "message_ids": [read]})
        await self.request("POST", "/notification/mark-confirmed", {"message_id": confirmed, "user_id": self.there})
        await self.look_at_lists(read)
        await self.schedule()
        changed = await self.change_what_went_out()
        await self.connect(self.absent, msgpack=True)
        await self.request("POST", f"/notification/records/{read}/resend")
        await self.set_aside()
        await self.request("DELETE", f"/notification/offline-messages?user_id={self.waiting}")
        await self.node.retention.purge()
        await self.all_have_it(*self.everybody)
        assert all(changed not in listener.got for listener in self.listeners if listener.user_id == self.absent)
        await self.use_inbox(read)
        await self.request("DELETE", f"/notification/records/{confirmed}")
        await self.request("POST", "/websocket/disconnect", {"user_id": self.there})
        for listener in self.listeners[1:]:
            await listener.close()
        await until(lambda: not any(map(self.node.hub.has_user, (self.here, self.there, self.absent))), PATIENCE_S)
        await self.again(self.node.writers.flushed)
        set_aside.drop(data_dir(self.node), None)

    async def schedule(self) -> None:
        """One notice says something else, is cancelled and deleted; one goes out; a bad row is set aside."""
        later = await self.publish(delay_s=3000)
        path = f"/notification/records/{later}"
        await self.request("PUT", path, {"content": "new", "version": 1})
        await self.request("POST", f"{path}/cancel")
        await self.request("GET", path)
        await self.request("DELETE", path)
        self.sent.append(await self.publish(delay_s=0.01))
        with closing(sqlite3.connect(f"{data_dir(self.node)}/{DATABASE_NAME}", isolation_level=None)) as connection:
            junk = (f"junk{self.here}", 1, "junk")
            connection.execute("INSERT INTO scheduled (message_id, due_ms, body) VALUES (?, ?, ?)", junk)
        self.node.schedule.count += 1
        self.node.schedule._is_due_at(1)
        await until(lambda: not self.node.schedule.count, PATIENCE_S)

    async def change_what_went_out(self) -> str:
        """A notice says something else, is brought to mind, and is taken back before one of its users comes."""
        changed = await self.publish(user_ids=[self.here, self.absent])
        path = f"/notification/records/{changed}"
        await self.request("PUT", path, {"content": "new", "reset": ["read"]})
        await self.request("POST", f"{path}/remind", {"step": "confirmed"})
        await self.request("POST", f"{path}/revoke")
        record = (await self.request("GET", path))["record"]
        assert record["state"] == "revoked"
        assert record["content"] == "new"
        await until(lambda: self.has_followed(changed), PATIENCE_S)
        for listener in self.listeners:
            if listener.user_id == self.here and listener.is_open:
                await until(lambda listener=listener: changed in listener.revoked, PATIENCE_S)
        return changed

    def has_followed(self, message_id: str) -> bool:
        with closing(sqlite3.connect(f"{data_dir(self.node)}/{DATABASE_NAME}")) as connection:
            to_do = connection.execute("SELECT to_do FROM amended WHERE message_id = ?", (message_id,)).fetchone()
        return to_do == (0,)

    async def use_inbox(self, message_id: str) -> None:
        """In the end all is read, and who wants to know that is told."""
        mine = {"message_ids": [message_id], "user_id": self.here}
        await self.request("POST", "/notification/archive", mine)
        assert not await self.inbox_has(message_id)
        await self.request("POST", "/notification/unarchive", mine)
        assert await self.inbox_has(message_id)
        await self.request("POST", "/notification/read-all", {"user_id": self.here})
        count = await self.request("GET", f"/notification/unread-count?user_id={self.here}")
        assert count == {"unread_count": 0}
        told = [listener for listener in self.listeners if listener.user_id == self.here and listener.is_open]
        await until(lambda: not any(listener.unread for listener in told), PATIENCE_S)

    async def inbox_has(self, message_id: str) -> bool:
        page = await self.request("GET", f"/notification/inbox?user_id={self.here}&limit=100")
        return message_id in [item["message_id"] for item in page["items"]]

    async def say(self, message: dict[str, Any]) -> None:
        """What fails costs the connection that says it."""
        for listener in self.listeners:
            if listener.user_id == self.here and listener.is_open:
                with suppress(ConnectionClosed):
                    await listener.client.send(message)
                    return
        await (await self.connect(self.here)).client.send(message)

    async def look_at_lists(self, message_id: str) -> None:
        for path in (
            "/notification/records", "/notification/stats", f"/notification/records/{message_id}",
            "/notification/admin-receive-records", "/notification/admin-receive-records?username=a",
            f"/notification/messages/{message_id}/receive-status", "/notification/admin-receive-stats",
            "/notification/online-users", f"/notification/user-summary?user_id={self.here}",
            f"/notification/offline-messages?user_id={self.absent}", "/websocket/stats", "/websocket/health",
        ):  # fmt: skip
            await self.request("GET", path)
        await self.request("POST", "/notification/receive-records/batch", {"user_ids": [self.here, self.absent]})

    async def set_aside(self) -> None:
        """Of what is set aside, all is tried again, and one stays; a bad row of the outbox comes to it."""
        writer = self.node.writers.mailbox.writer
        item = msgspec.msgpack.encode(([(MailboxItem("t", "hi", "of old"), [self.waiting])], {}))
        old = Notice(2**40, "of old", "hi", Target(TargetKind.CUSTOM, user_ids=(self.clumsy,)), 1000)
        kept = [("mailbox", item), ("notice", msgspec.json.encode(old)), ("mailbox", b"junk")]
        with closing(sqlite3.connect(f"{data_dir(self.node)}/{DATABASE_NAME}", isolation_level=None)) as connection:
            for kind, body in kept:
                connection.execute(set_aside.KEEP, (kind, 0, "by hand", len(body), body))
        want_all(self.node)
        await until(lambda: not any(entry.cause == "by hand" for entry in entries(self.node)), PATIENCE_S)
        await self.again(lambda: writer._outbox.append("mailbox", [b"junk"]))  # type: ignore[union-attr]
        writer.on_disk += 1
        writer.wake()
        await until(lambda: not writer.on_disk, PATIENCE_S)

    async def all_have_it(self, *user_ids: int) -> None:
        """Some perhaps after connecting again, or after the operator's retry."""
        for _ in range(10):
            with suppress(TimeoutError):
                await until(lambda: not self.missing(user_ids), 0.3)
                return
            self.repeated += 1
            want_all(self.node)
            for user_id in self.missing(user_ids).difference([self.bystander.user_id]):
                await self.connect(user_id)
        assert not self.missing(user_ids)

    @property
    def has_noticed(self) -> bool:
        """Whether clients were told of a failure, or nothing failed for them in the end."""
        is_refused = self.refused or any(listener.refused for listener in self.listeners)
        return bool(is_refused) or not (self.repeated or self.listeners[4:])

    def missing(self, user_ids: Iterable[int]) -> set[int]:
        """Who of these has not got all that was sent to everybody."""
        got: dict[int, set[str]] = {}
        for listener in self.listeners:
            got.setdefault(listener.user_id, set()).update(listener.got)
        return {user_id for user_id in user_ids if not got.get(user_id, set()).issuperset(self.sent)}


_numbers = itertools.count()
PATIENCE_S = 2.0
SHORT_PAUSES = Pauses(
    look_aside_every_s=0.01, status_delay_s=0.01, alive_every_s=0.01, follow_again_s=0.05, unread_every_s=0.02
)
# What nothing asks of the stores of this process.
NEVER_ASKED = {
    "directory.groups": "no part of a node lists the groups",
    "records.write": "their ledger is written instead",
    "schedule.recorded": "they show by themselves what is scheduled",
    "schedule.unrecorded": "they show by themselves what is scheduled",
}


def data_dir(node: app.Node) -> str:
    return node.current.config.server.data_dir


def entries(node: app.Node) -> list[set_aside.Entry]:
    return list(set_aside.entries(data_dir(node)))


def want_all(node: app.Node) -> None:
    set_aside.want(data_dir(node), None)


def seen(node: app.Node) -> float:
    """What the counters say of failures."""
    return sum(counters.value for counters in (node.metrics.errors, node.metrics.set_aside, node.metrics.store_errors))


# ---- the tests

SHARES = 4  # of the places: each share has a node of its own
ERRORS: list[Callable[[], BaseException]] = [
    lambda: RuntimeError("odd"),
    lambda: TypeError("odd"),
    lambda: ValueError("odd \ud83d"),
    lambda: RecursionError("odd"),
    lambda: MemoryError(),
    lambda: KeyError("odd"),
    lambda: OverflowError("odd"),
]


class FollowedAmendments(amendments.SqliteAmendments):
    """Has the stores of this process follow as those outside do."""

    def __init__(self, file: LedgerFile, *, followers: frozenset[str]) -> None:
        super().__init__(file, followers=frozenset(amendments.FOLLOWERS))


@pytest.fixture(autouse=True)
def _followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amendments, "SqliteAmendments", FollowedAmendments)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Probe]:
    async with app.running(config, SHORT_PAUSES) as node, Probe(node.port, node) as probe:
        yield probe


@pytest.mark.parametrize("share", range(SHARES))
async def test_what_fails_once_costs_what_it_is_about_and_nothing_else(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, loop_errors: list[Any], share: int
) -> None:
    calls, problems = Calls(), []
    config = make_config(records={"flush_ms": 1}, limits={"remind_every_s": 0})
    with monkeypatch.context() as counting:
        async with open_stores(config, lambda *_: None) as stores:
            at_ports = list(store_calls(stores))
        for place in at_ports:
            replaced(place, calls.make(place.label), counting)
        async with running(config):
            pass
    at_start = {label for label, total in calls.total.items() if total}
    async with running(config) as probe:
        node: app.Node = probe.node
        bystander = await connected(probe, 5, is_acking=False)
        at_ports = list(store_calls(node.stores))
        places = [*at_ports, *writer_steps(node), *codecs(), *codec_calls()]
        with monkeypatch.context() as counting:
            for place in places:
                replaced(place, calls.make(place.label), counting)
            calls.total.clear()
            before = seen(node)
            await Life(probe, bystander, 1).live()
            usual = seen(node) - before  # the junk that each life sets aside
        reached = [place for place in places if calls.total[place.label]]
        unreached = {place.label for place in at_ports if not calls.total[place.label]}
        assert unreached - at_start == NEVER_ASKED.keys()
        here = list(zip(reached, itertools.cycle(ERRORS), strict=False))[share::SHARES]
        for number, (place, error) in enumerate(here, 2):
            odd, before, ended = Odd(error()), seen(node), node.metrics.errors.labels("background").value
            life = Life(probe, bystander, number)
            with monkeypatch.context() as failing:
                replaced(place, odd.make, failing)
                try:
                    await life.live()
                except Exception as problem:
                    where = [
                        step.lineno for step in traceback.extract_tb(problem.__traceback__) if step.name in vars(Life)
                    ]
                    problems.append(f"{place.label}: {odd.error!r}: {problem!r} in lines {where}")
            if not odd.has_fired:
                problems.append(f"{place.label}: was not reached this time")
            elif seen(node) - before <= usual and not loop_errors and not life.has_noticed:
                problems.append(f"{place.label}: {odd.error!r}: nothing shows it")
            if node.metrics.errors.labels("background").value > ended:
                problems.append(f"{place.label}: {odd.error!r}: {node.health.last_error}")
            if not bystander.is_open:
                problems.append(f"{place.label}: {odd.error!r}: the bystander was closed")
                bystander = await connected(probe, 5, is_acking=False)
            loop_errors.clear()
    assert not problems, "\n".join([f"{len(problems)} of {len(reached)}", *problems])


async def test_a_start_at_which_something_fails_once_comes_up_or_says_so_and_the_next_one_does(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, loop_errors: list[Any]
) -> None:
    config, calls = make_config(records={"flush_ms": 1}), Calls()
    async with running(config) as probe:
        publisher = await connected(probe, 5, is_acking=False)
        kept = await Life(probe, publisher, 1).publish(user_ids=[77])
        places = [*codecs(), *codec_calls()]
        await publisher.close()  # and nobody is left as online: only the very next start would tell of it
        await until(lambda: not probe.node.hub.users_total)
        await probe.node.writers.statuses_written()
        await until(lambda: not probe.node.intake.unsettled_total)
        await probe.node.writers.flushed()  # the next start finds nothing to do that the one after it would not find
    async with open_stores(config, lambda *_: None) as stores:
        places += store_calls(stores)
    with monkeypatch.context() as counting:
        for place in places:
            replaced(place, calls.make(place.label), counting)
        async with running(config):
            pass
    reached = [place for place in places if calls.total[place.label]]
    assert {"journal.unsettled", "outbox.counts"} <= {place.label for place in reached}
    for place, error in zip(reached, itertools.cycle(ERRORS), strict=False):
        odd = Odd(error())
        with monkeypatch.context() as failing:
            replaced(place, odd.make, failing)
            try:
                async with running(config) as probe:
                    assert (await probe.http.get("/readyz")).status_code == 200
                    with suppress(TimeoutError):  # what is only called while it stops does not come here
                        await until(lambda odd=odd: odd.has_fired, within_s=1.0)
            except Exception as failure:
                said = failure is odd.error or isinstance(failure, StartError)
            else:
                said = True
        assert said, place.label
        assert odd.has_fired, place.label
    async with running(config) as probe:
        waiting = await connected(probe, 77)
        await until(lambda: kept in waiting.got)
        await waiting.close()
    loop_errors.clear()
