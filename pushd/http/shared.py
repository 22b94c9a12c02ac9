"""What the connections of one server share: its application, its limits, and the room and time they take turns in.

It knows neither the server nor its connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

from pushd.config.schema import LimitsConfig
from pushd.http.admission import FirstReads, RequestTurns, UpgradeQueue
from pushd.http.application import Application, GuardedApplication
from pushd.http.bodies import Bodies
from pushd.http.deadlines import TIMES, Times
from pushd.http.long_answers import Unsent
from pushd.http.messages import Refusal, Response
from pushd.http.parser import KnownHeads

QUIET_S = 60.0  # after a line in the log about what was refused, per reason

T = TypeVar("T")

_CROWDED = Refusal(503, "too many request bodies are under way", (("Retry-After", "1"),))

_log = structlog.get_logger("pushd.front")


class Shared:
    """One for all connections of a server.

    `limits` may be replaced at any time: that of a body's size holds for connections made from then on.
    `is_draining`: every answer from now on is the last of its connection. `on_refused` hears why a connection was
    refused at the accept, or a body. `wall_s` is the time of day that answers are dated by.
    """

    def __init__(
        self,
        application: Application[Any],
        limits: LimitsConfig,
        *,
        on_refused: Callable[[str], None] = lambda _: None,
        times: Times = TIMES,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.application = GuardedApplication(application)
        self.limits = limits
        self.times = times
        self.wall_s = wall_s
        self.is_draining = False
        self.upgrades = UpgradeQueue()
        self.first_reads = FirstReads()
        self.turns = RequestTurns()
        self.known_heads = KnownHeads()  # what the application keeps of a head is its own
        self.bodies = Bodies()
        self.unsent = Unsent()
        self._on_refused = on_refused
        self._quiet_until: dict[str, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a task that `end_tasks` ends."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end_tasks(self) -> None:
        """Cancel all tasks and wait for their end."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def crowded(self) -> Response:
        """The answer to a body for which there is no room."""
        self.note_refused("bodies_full")
        return self.application.fail(_CROWDED)

    def note_refused(self, reason: str) -> None:
        """Tell that something was refused for want of room: the log hears it once in `QUIET_S`."""
        self._on_refused(reason)
        now = self.loop.time()
        if now >= self._quiet_until.get(reason, 0.0):
            self._quiet_until[reason] = now + QUIET_S
            _log.warning("refused for want of room", reason=reason)
