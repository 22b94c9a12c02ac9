"""What each user may see of notices that are revoked, edited and reminded of while all else goes on, against a model.

Publishers, editors, users who come, leave, acknowledge and read, and restarts come in any order, several of them in the
midst of one another. Then everything is let come to rest, and what everybody has seen is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tomli_w
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pushd.config import toml
from pushd.core import read_past
from pushd.delivery.edits import Edit
from pushd.delivery.submission import Sender
from pushd.errors import RequestError
from pushd.model import Mark, Step
from pushd.records import InboxFilter, Part, ReceiptFilter, ReceiptSort
from pushd.stores.sqlite import open_stores
from pushd.telemetry.metrics import Metrics
from pushd.writing.set_aside import SetAsideData
from tests.daemon import until
from tests.unit.parts import Client, Clock, House

USERS = (1, 2, 3)
CHANGES = ("revoke", "update", "remind")
picks = st.integers(0, 1000)
users = st.sampled_from(USERS)


@dataclass
class Published:
    """The model of one notice: what it says, and whether it was taken back."""

    message_id: str
    recipients: tuple[int, ...]
    version: int = 1
    is_revoked: bool = False  # from the answer on
    reminders: int = 0


@dataclass
class Seen:
    """What one connection was sent, in order: of each notice its versions, and 0 for being told that it is revoked."""

    client: Client
    is_told: bool
    versions: dict[str, list[int]] = field(default_factory=dict)

    def look(self) -> None:
        for message in self.client.receive():
            kind = message["type"]
            if kind == "revoke":
                self.versions.setdefault(message["message_id"], []).append(0)
                continue
            notice = message["notice"] if kind in CHANGES else message
            if "message_id" in notice and "content" in notice:
                version = notice.get("version", 1)
                assert notice["content"] == f"v{version}", "a version is whole"
                self.versions.setdefault(notice["message_id"], []).append(version)
                assert self.is_told or kind not in CHANGES


def check_conflict(error: RequestError) -> None:
    """That of somebody who came too late."""
    assert error.code == "CONFLICT", error


class Amendments(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.directory = TemporaryDirectory()
        self.clock = Clock()
        self.notices: dict[str, Published] = {}
        self.seen: list[Seen] = []
        self.work: list[asyncio.Task[None]] = []
        self.names = 0
        self.run(self.open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    async def open(self) -> None:
        self.opened = AsyncExitStack()
        server = {"data_dir": str(Path(self.directory.name) / "data"), "port": 0}
        sections = {"server": server, "records": {"flush_ms": 1}, "limits": {"remind_every_s": 0}}
        config = toml.parse(tomli_w.dumps(sections), source="the model's", environ={})
        self.stores = await self.opened.enter_async_context(open_stores(config, clock=self.clock.wall_ms))
        past = await read_past(self.stores, SetAsideData(self.stores.set_aside, Metrics()), 0)
        self.house = House(config, self.stores, self.clock, past=past)
        self.house.start_all()
        self.house.restore(past)

    async def close(self) -> None:
        await self.house.stop()
        await self.opened.aclose()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """It goes on in the midst of what comes next."""

        async def start() -> None:
            self.work.append(asyncio.create_task(work))
            await asyncio.sleep(0)

        self.run(start())

    def pick(self, pick: int) -> Published:
        """One of those accepted by now. No precondition asks for them: their number differs from run to run."""
        known = list(self.notices.values())
        return known[pick % len(known)]

    # ---- publishers and editors

    @rule(recipients=st.sets(users, min_size=1), waits=st.booleans())
    def publish(self, recipients: set[int], waits: bool) -> None:
        self.names += 1
        notice = Published(f"m{self.names}", tuple(sorted(recipients)))

        async def work() -> None:
            await self.house.publish(
                "v1", message_id=notice.message_id, target="custom", user_ids=list(notice.recipients)
            )
            self.notices[notice.message_id] = notice

        self.run(work()) if waits else self.begin(work())

    @rule(pick=picks, is_reset=st.booleans(), waits=st.booleans())
    def edit(self, pick: int, is_reset: bool, waits: bool) -> None:
        if not self.notices:
            return
        notice = self.pick(pick)

        async def work() -> None:
            version = notice.version
            edit = Edit(content=f"v{version + 1}", version=version, reset=["read"] if is_reset else [])
            try:
                edited = await self.house.amending.edit(notice.message_id, edit, Sender())
            except RequestError as error:  # another editor was quicker, or it was revoked meanwhile
                check_conflict(error)
            else:
                assert edited.notice.version == version + 1
                notice.version = version + 1

        self.run(work()) if waits else self.begin(work())

    @rule(pick=picks, waits=st.booleans())
    def revoke(self, pick: int, waits: bool) -> None:
        if not self.notices:
            return
        notice = self.pick(pick)

        async def work() -> None:
            await self.house.amending.revoke(notice.message_id)
            notice.is_revoked = True

        self.run(work()) if waits else self.begin(work())

    @rule(pick=picks, step=st.sampled_from(Step))
    def remind(self, pick: int, step: Step) -> None:
        if not self.notices:
            return
        notice = self.pick(pick)

        async def work() -> None:
            try:
                await self.house.amending.remind(notice.message_id, step)
            except RequestError as error:
                check_conflict(error)

        self.begin(work())

    # ---- users

    @rule(user=users, is_told=st.booleans(), is_acking=st.booleans(), dialect=st.sampled_from([0, 1]))
    def come(self, user: int, is_told: bool, is_acking: bool, dialect: int) -> None:
        async def arrive() -> Client:
            return self.house.arrive(user, is_told_changes=is_told, is_acking=is_acking, dialect=dialect)

        self.seen.append(Seen(self.run(arrive()), is_told))

    @precondition(lambda self: self.seen)
    @rule(pick=picks)
    def leave(self, pick: int) -> None:
        one = self.seen.pop(pick % len(self.seen))
        one.look()

        async def leave() -> None:
            one.client.leave()

        self.run(leave())

    @precondition(lambda self: self.seen)
    @rule(pick=picks)
    def answer(self, pick: int) -> None:
        one = self.seen[pick % len(self.seen)]
        one.look()

        async def ack() -> None:
            one.client.ack(*one.versions)

        self.run(ack())

    @rule(pick=picks, user=users, mark=st.sampled_from(Mark))
    def mark(self, pick: int, user: int, mark: Mark) -> None:
        if not self.notices:
            return
        message_id = self.pick(pick).message_id

        async def work() -> None:
            await self.house.acknowledgements.mark(user, [message_id], mark)

        self.begin(work())

    @rule()
    def time_goes_by(self) -> None:
        async def expire() -> None:
            self.clock.move(31)
            self.house.acknowledgements.expire()

        self.run(expire())

    @rule(turns=st.integers(1, 5))
    def turn(self, turns: int) -> None:
        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(turn())

    # ---- what holds once all is at rest

    async def rest(self) -> None:
        await asyncio.gather(*self.work)
        self.work.clear()
        await self.house.amending.finished()
        await until(lambda: all(one.client.is_greeted for one in self.seen))
        await self.house.quiet()
        for one in self.seen:
            one.look()

    @rule()
    def all_is_as_it_should_be(self) -> None:
        self.run(self.look())

    @rule()
    def restart(self) -> None:
        async def restart() -> None:
            await self.rest()
            self.seen.clear()
            await self.close()
            await self.open()
            await self.look()

        self.run(restart())

    async def look(self) -> None:
        await self.rest()
        for one in self.seen:
            for message_id, versions in one.versions.items():
                self.look_at(one, self.notices[message_id], versions)
        waiting = await self.stores.mailbox.read(USERS)
        for items in waiting.values():
            for item in items:
                notice = self.notices[item.message_id]
                assert not notice.is_revoked
                assert (item.version, item.content) == (notice.version, f"v{notice.version}")
        for notice in self.notices.values():
            await self.look_at_records(notice)
        for user in USERS:
            await self.look_at_inbox(user)
        assert not self.errors, self.errors

    def look_at(self, one: Seen, notice: Published, versions: list[int]) -> None:
        shown = [version for version in versions if version]
        assert one.client.connection.user_id in notice.recipients
        assert 0 not in versions[:-1], "nothing comes after it was revoked"
        if one.is_told:
            assert shown == sorted(shown), "versions come in their order"
            if notice.is_revoked:
                assert versions[-1] == 0
            else:
                assert versions[-1] == notice.version
        else:
            assert 0 not in versions

    async def look_at_records(self, notice: Published) -> None:
        row = await self.stores.records.push_record(notice.message_id)
        assert row is not None
        assert (row.state == "revoked") == notice.is_revoked
        assert (row.content, row.version) == (f"v{notice.version}", notice.version)
        where = ReceiptFilter(message_id=notice.message_id, is_confirmed=True)
        rows = await self.stores.records.receive_records(where, ReceiptSort.USER_ID, Part(0, 10))
        assert all(1 <= row.confirmed_version <= notice.version for row in rows)

    async def look_at_inbox(self, user: int) -> None:
        page = await self.stores.inbox.page(user, InboxFilter(), 100, None)
        for item in page.items:
            notice = self.notices[item.notice.message_id]
            assert not notice.is_revoked
            assert (item.notice.content, item.notice.version) == (f"v{notice.version}", notice.version)
        unread = (await self.stores.records.unread_counts([user])).get(user, 0)
        assert unread == sum(not item.is_read for item in page.items)

    def teardown(self) -> None:
        try:
            self.run(self.look())
        finally:
            self.run(self.close())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            self.directory.cleanup()


TestAmendments = Amendments.TestCase
TestAmendments.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
