"""Connected clients that time live notices, and the publisher of these."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from bench.loadlib.admin import Admin, notice
from bench.loadlib.canned import CONTENT
from bench.loadlib.figures import NS_PER_S, Histogram
from bench.loadlib.lean import HELLO, Client, upgrade_request
from bench.loadlib.machine import allow_descriptors
from bench.loadlib.options import LoadError

LIVE = b'{"type":"live"'
SENT = b'"sent_ns":'
PATIENCE_S = 15.0
PUBLISHERS = 64


def sent_ns(payload: bytes) -> int:
    """When a live notice was written to its POST, by the monotonic clock."""
    start = payload.index(SENT) + len(SENT)
    return int(payload[start : payload.index(b"}", start)])


class Watcher(Client):
    """One of them."""

    def __init__(self, crew: Watchers, user_id: int) -> None:
        super().__init__(upgrade_request(crew.port, user_id))
        self._crew = crew

    def take(self, payloads: list[bytes], now_ns: int) -> None:
        for payload in payloads:
            if payload.startswith(LIVE):
                self._crew.arrived(sent_ns(payload), now_ns)
            elif payload.startswith(HELLO):
                self._crew.greeted += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed(LoadError("the daemon ended a watching connection"))

    def failed(self, error: LoadError) -> None:
        self._crew.failure = self._crew.failure or error


class Watchers:
    """All of them. Latency: from just before a POST is written to the arrival of a frame, journal included."""

    def __init__(self, port: int, users: range, rate: float, target: str) -> None:
        self.port = port
        self.greeted = 0
        self.failure: LoadError | None = None
        self._users = users
        self._rate = rate
        self._is_stopping = False
        online: dict[str, Any] = {"target": "online"}
        self._fields = online if target == "online" else {"target": "custom", "user_ids": [*users]}
        self._members: list[Watcher] = []
        self._book = Histogram()
        self.answers = Histogram()  # from a POST to its 200
        self._published = 0
        self._arrived = 0
        self._publishing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watchers:
        allow_descriptors(len(self._users))
        loop = asyncio.get_running_loop()
        for user_id in self._users:
            member = Watcher(self, user_id)
            self._members.append(member)
            await loop.create_connection(lambda member=member: member, "127.0.0.1", self.port)  # type: ignore[misc]
        await self._until(lambda: self.greeted == len(self._users))
        self._publishing = asyncio.create_task(self._publish())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        for member in self._members:
            member.close()

    def arrived(self, sent_at_ns: int, now_ns: int) -> None:
        """One delivery."""
        self._arrived += 1
        self._book.add(now_ns - sent_at_ns)

    def new_book(self) -> Histogram:
        """What arrived since the last call."""
        book, self._book = self._book, Histogram()
        return book

    async def stop(self) -> None:
        """Publish no more; return when everything has come. Raises LoadError when something has not."""
        assert self._publishing is not None, "not entered"
        self._is_stopping = True
        await self._publishing
        await self._until(lambda: self._arrived >= self._published * len(self._users))

    async def _publish(self) -> None:
        """At `rate`, whatever the answers take: each on a connection of its own while another is unanswered."""
        # opened before the storm: a new one would wait in the backlog behind all who come back
        idle = [await Admin(self.port).__aenter__() for _ in range(PUBLISHERS)]
        began_ns, number = time.monotonic_ns(), 0
        try:
            async with asyncio.TaskGroup() as group:
                while not self._is_stopping:
                    group.create_task(self._post(number, idle))
                    number += 1
                    due_ns = began_ns + int(number * NS_PER_S / self._rate)
                    await asyncio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / NS_PER_S))
        finally:
            for admin in idle:
                await admin.__aexit__()

    async def _post(self, number: int, idle: list[Admin]) -> None:
        admin = idle.pop() if idle else await Admin(self.port).__aenter__()
        data = {"number": number, "sent_ns": time.monotonic_ns()}
        await admin.publish(notice(CONTENT.decode(), f"l{number:06d}", type="live", data=data, **self._fields))
        self._published += 1
        self.answers.add(time.monotonic_ns() - data["sent_ns"])
        idle.append(admin)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        ends = time.monotonic() + PATIENCE_S
        while not is_so():
            if self.failure is not None:
                raise self.failure
            if time.monotonic() > ends:
                raise LoadError(f"watchers: {self._arrived} arrived, {self._published} notices published")
            await asyncio.sleep(0.01)
