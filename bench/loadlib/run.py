"""A run, phase by phase: ask, publish to absent users, connect, then publish or hold."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import sys
import time
from collections.abc import AsyncIterator
from typing import NoReturn

import jwt
import uvloop
from tqdm import tqdm

from bench.loadlib.figures import NS_PER_MS, Schedule, per_second, spread_of
from bench.loadlib.http import advice, fetch
from bench.loadlib.ledger import Ledger
from bench.loadlib.machine import (
    Stopwatch,
    Usage,
    allow_descriptors,
    check_ports,
    resolve,
    usage_from_metrics,
    usage_of,
)
from bench.loadlib.options import LoadError, Options
from bench.loadlib.publishers import OFFLINE_WAIT_MS, Publishers
from bench.loadlib.receivers import Receivers
from bench.loadlib.report import Deliveries, Memory, Report

LOOK_EVERY_S = 0.05
LINGER_S = 0.2  # for what comes twice or is still to be acknowledged
TOKEN_S = 3600


class Run:
    """One run against one daemon."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._report = Report()
        self._address = resolve(options)
        run_id = secrets.token_hex(4)
        live_notices = 0 if options.idle_s else options.notices
        self._live = self._ledger(run_id + "l", live_notices, is_broadcast=options.is_broadcast)
        self._replayed = self._ledger(run_id + "o", options.offline, is_broadcast=True)
        self._receivers = Receivers(options, self._address, self._live, self._replayed)
        self._expires_s = int(time.time() + options.max_s + TOKEN_S)

    def _ledger(self, tag: str, notices: int, *, is_broadcast: bool) -> Ledger:
        options = self._options
        return Ledger(
            tag,
            notices,
            options.connections,
            is_broadcast=is_broadcast,
            publishers=min(options.publishers, max(1, notices)),
            size=options.size,
        )

    async def measure(self) -> Report:
        """Do all phases. Raises LoadError."""
        options = self._options
        allow_descriptors(options.connections + options.publishers)
        check_ports(options.connections + options.publishers)
        try:
            async with asyncio.timeout(options.max_s):
                await self._ask()
                before = await self._usage()
                await self._publish_to_absent()
                async with self._connected():
                    if options.idle_s:
                        await self._hold(before)
                    else:
                        await self._publish()
        except TimeoutError:
            raise LoadError(f"not finished within {options.max_s:g} s (--max-time)") from None
        self._report.connections_lost = self._receivers.lost_total
        self._report.close_codes = self._receivers.close_codes
        return self._report

    # ---- who is asked

    def _token(self, user_id: int | str, role: int) -> str:
        if not self._options.secret:
            return ""
        return jwt.encode(self._options.claims(user_id, role, self._expires_s), self._options.secret, algorithm="HS256")

    def _credentials(self) -> str:
        return self._options.api_key or self._token(self._options.user_id(0), self._options.admin_role)

    def _user_token(self, connection: int) -> str:
        return self._token(self._options.user_id(connection), 0)

    async def _ask(self) -> None:
        """Fail early where the admin API is not there or not ours."""
        path = f"{self._options.api_prefix}/websocket/stats"
        answer = await fetch(self._options, self._address, path, self._credentials())
        if answer.status != 200:
            raise advice(answer, path)

    async def _usage(self) -> Usage:
        if self._options.pid:
            return usage_of(self._options.pid)
        answer = await fetch(self._options, self._address, "/metrics", self._credentials())
        return usage_from_metrics(answer.body.decode(errors="replace")) if answer.status == 200 else Usage()

    # ---- the phases

    @contextlib.asynccontextmanager
    async def _phase(self, name: str) -> AsyncIterator[None]:
        """Note how busy both sides are meanwhile."""
        before, watch = await self._usage(), Stopwatch()
        yield
        elapsed_s = watch.elapsed_s
        self._report.busy[f"load tool {name}"] = watch.busy_percent
        after = await self._usage()
        if after.cpu_s:
            self._report.busy[f"daemon {name}"] = 100 * (after.cpu_s - before.cpu_s) / elapsed_s

    async def _publish_to_absent(self) -> None:
        if self._options.offline:
            schedule = Schedule(0, self._options.offline, 0)
            self._report.replayed = Deliveries()
            await self._send(self._replayed, self._report.replayed, schedule, wait_ms=OFFLINE_WAIT_MS)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """With all connections, acknowledging if they are to."""
        acknowledging = asyncio.create_task(self._receivers.acknowledge()) if self._options.is_acking else None
        try:
            async with self._phase("connecting"):
                await self._connect()
            yield
            await asyncio.sleep(LINGER_S)
            while acknowledging is not None and self._receivers.has_unacknowledged:
                await asyncio.sleep(LINGER_S)
        finally:
            if acknowledging is not None:
                acknowledging.cancel()
            await self._receivers.close()

    async def _connect(self) -> None:
        receivers, report = self._receivers, self._report
        with self._bar("connect", self._options.connections) as bar:
            began_ns = time.monotonic_ns()
            await receivers.connect(self._user_token, bar.update)
            elapsed_ns = time.monotonic_ns() - began_ns
        report.connections = len(receivers.connects_ns)
        report.connects_per_s = per_second(report.connections, elapsed_ns)
        report.handshake, report.connect = spread_of(receivers.handshakes_ns), spread_of(receivers.connects_ns)
        if report.replayed is not None:
            report.replay = spread_of(receivers.replays_ns)
            _close_books(report.replayed, self._replayed, began_ns)

    async def _publish(self) -> None:
        options = self._options
        schedule = Schedule(options.rate, options.notices, time.monotonic_ns())
        book = self._report.live = Deliveries()
        async with self._phase("delivering"):
            await self._send(self._live, book, schedule)
        await asyncio.sleep(LINGER_S)
        _close_books(book, self._live, self._live.first_sent_ns)

    async def _send(self, ledger: Ledger, book: Deliveries, schedule: Schedule, *, wait_ms: int = 0) -> None:
        """Publish all notices of a ledger; without `wait_ms`, wait for their deliveries, too."""
        publishers = Publishers(self._options, ledger, self._credentials(), schedule, wait_ms=wait_ms)
        await publishers.connect(self._address)
        sending = asyncio.create_task(publishers.send_all())
        try:
            with self._bar("absent" if wait_ms else "deliver", ledger.expected_in_all) as bar:
                await self._watch(ledger, publishers, bar, awaits_deliveries=not wait_ms)
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            publishers.close()
        book.retries = publishers.retries
        book.late_ms = publishers.late_max_ns / NS_PER_MS
        book.publishes_per_s = per_second(ledger.published, publishers.last_answer_ns - ledger.first_sent_ns)

    async def _watch(
        self, ledger: Ledger, publishers: Publishers, bar: tqdm[NoReturn], *, awaits_deliveries: bool
    ) -> None:
        """Return when all is answered and there, or nothing has come for `timeout_s`. Raises LoadError."""
        seen, since = -1, time.monotonic()
        while True:
            if publishers.failure is not None:
                raise publishers.failure
            done = ledger.published + ledger.delivered
            bar.update((ledger.delivered if awaits_deliveries else ledger.expected) - bar.n)
            is_answered = ledger.published == ledger.notices
            if is_answered and (not awaits_deliveries or not ledger.lost):
                return
            if done != seen:
                seen, since = done, time.monotonic()
            elif time.monotonic() - since > self._options.timeout_s:
                if not is_answered:
                    raise LoadError(f"publishes went unanswered for {self._options.timeout_s:g} s")
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def _hold(self, before: Usage) -> None:
        """Only hold the connections, and look at the daemon's memory once a second."""
        memory = self._report.memory = Memory(before=before.rss_bytes, held_s=self._options.idle_s)
        async with self._phase("holding"):
            ends = time.monotonic() + self._options.idle_s
            with self._bar("hold", int(self._options.idle_s)) as bar:
                while (left := ends - time.monotonic()) > 0:
                    await asyncio.sleep(min(1.0, left))
                    memory.after = (await self._usage()).rss_bytes
                    memory.most = max(memory.most, memory.after)
                    bar.update(1)
        memory.per_connection = (memory.after - memory.before) / self._options.connections

    def _bar(self, name: str, total: int) -> tqdm[NoReturn]:
        is_off = self._options.is_quiet or not sys.stderr.isatty()
        return tqdm(total=total, desc=f"{name:<8}", disable=is_off, leave=False, file=sys.stderr, unit_scale=True)


def _close_books(book: Deliveries, ledger: Ledger, began_ns: int) -> None:
    book.published, book.expected = ledger.published, ledger.expected
    book.delivered, book.lost = ledger.delivered, ledger.lost
    book.duplicates, book.out_of_order = ledger.count.duplicates, ledger.count.out_of_order
    book.corrupt, book.foreign = ledger.count.corrupt, ledger.count.foreign
    book.deliveries_per_s = per_second(ledger.delivered, ledger.last_arrival_ns - began_ns)
    book.latency = ledger.latency.spread()


def measure(options: Options) -> Report:
    """The figures of one run. Raises LoadError, KeyboardInterrupt."""
    gc.disable()  # a pause of ours would look like the daemon's; what lives is bounded by the options
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Run(options).measure())
