"""One daemon's admin API and metrics, as benchmarks use them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from bench.loadlib.http import Answer, AnswerParser
from bench.loadlib.options import LoadError

PREFIX = "/api/admin"
ANSWER_WITHIN_S = 60.0
LAG = "pushd_loop_lag_seconds_bucket"


class Admin:
    """One kept-alive connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Admin:
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._streams is not None:
            self._streams[1].close()

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """One request. Raises LoadError without an answer."""
        assert self._streams is not None, "not entered"
        reader, writer = self._streams
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}"]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        parser = AnswerParser()
        async with asyncio.timeout(ANSWER_WITHIN_S):
            while data := await reader.read(1 << 20):
                if answers := parser.feed(data):
                    return answers[0]
        raise LoadError(f"{path}: the daemon closed the connection instead of answering")

    async def publish(self, body: bytes, wait_ms: int = 0) -> dict[str, Any]:
        """One notice; its `data`. Raises LoadError for anything but a 200."""
        query = f"?wait_ms={wait_ms}" if wait_ms else ""
        answer = await self.ask("POST", f"{PREFIX}/system/notice{query}", body)
        if answer.status != 200:
            raise LoadError(f"publish: {answer.status} {answer.body[:300]!r}")
        return dict(json.loads(answer.body)["data"])

    async def saved_total(self) -> int:
        """Mailbox copies written so far: the cheapest place to read it from."""
        answer = await self.ask("GET", f"{PREFIX}/websocket/stats")
        return int(json.loads(answer.body)["data"]["offline_saved"])

    async def metrics(self) -> Metrics:
        """Everything the daemon counts."""
        return Metrics(parse_metrics((await self.ask("GET", "/metrics")).body.decode()))


def notice(content: str, message_id: str, **fields: Any) -> bytes:
    """The body of a publish."""
    return json.dumps({"type": "bench", "content": content, "message_id": message_id, **fields}).encode()


def parse_metrics(text: str) -> dict[str, float]:
    """Samples by name with labels, as they are written."""
    values = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    return values


@dataclass(frozen=True)
class Lag:
    """How late the daemon's loop was with its timer: readings, and bounds of buckets in ms (inf: over the last)."""

    readings: int
    p99_below_ms: float
    max_below_ms: float
    over_5_ms: int
    over_50_ms: int


@dataclass(frozen=True)
class Metrics:
    """One scrape."""

    values: dict[str, float]

    def total(self, name: str) -> float:
        """A metric summed over its labels."""
        return sum(value for key, value in self.values.items() if key == name or key.startswith(name + "{"))

    def buckets(self) -> list[tuple[float, float]]:
        """The loop's lag: bound in s, readings at or below, ascending."""
        found = [(key.split('"')[1], value) for key, value in self.values.items() if key.startswith(LAG)]
        return sorted((float(bound.replace("+Inf", "inf")), value) for bound, value in found)


def lag_between(before: Metrics, after: Metrics) -> Lag:
    """The loop's lag in between."""
    earlier = dict(before.buckets())
    counts = [(bound, value - earlier.get(bound, 0.0)) for bound, value in after.buckets()]
    if not counts or not counts[-1][1]:
        return Lag(0, 0.0, 0.0, 0, 0)
    readings = counts[-1][1]
    p99 = next(bound for bound, value in counts if value >= 0.99 * readings)
    most = next(bound for bound, value in counts if value >= readings)
    below = dict(counts)
    return Lag(int(readings), p99 * 1000, most * 1000, int(readings - below[0.005]), int(readings - below[0.05]))
