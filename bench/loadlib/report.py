"""What was measured, as a table for people and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.loadlib.figures import Spread
from bench.loadlib.machine import BUSY_PERCENT, describe
from bench.loadlib.options import LoadError, Options

BEHIND_MS = 50.0


@dataclass
class Deliveries:
    """The books of a phase, closed. `late_ms`: the most that a publish was written behind its schedule."""

    expected: int = 0
    delivered: int = 0
    lost: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    corrupt: int = 0
    foreign: int = 0
    published: int = 0
    retries: int = 0
    late_ms: float = 0.0
    publishes_per_s: float = 0.0
    deliveries_per_s: float = 0.0
    latency: Spread = field(default_factory=Spread)


@dataclass
class Memory:
    """The daemon's resident memory, bytes, without and with the connections."""

    before: int = 0
    after: int = 0
    most: int = 0
    held_s: float = 0.0
    per_connection: float = 0.0


@dataclass
class Report:
    """Everything a run found. `busy`: share of a core by phase and process, in %."""

    connections: int = 0
    connects_per_s: float = 0.0
    handshake: Spread = field(default_factory=Spread)
    connect: Spread = field(default_factory=Spread)
    connections_lost: int = 0
    close_codes: dict[int, int] = field(default_factory=dict)
    live: Deliveries | None = None
    replayed: Deliveries | None = None
    replay: Spread = field(default_factory=Spread)
    memory: Memory | None = None
    busy: dict[str, float] = field(default_factory=dict)

    @property
    def has_losses(self) -> bool:
        """Something that was promised did not arrive, or not as it was sent."""
        books = [book for book in (self.live, self.replayed) if book is not None]
        return self.connections_lost > 0 or any(book.lost or book.corrupt for book in books)


def table(options: Options, report: Report) -> str:
    """For people."""
    lines = [
        f"connect     {report.connections} connections, {report.connects_per_s:,.0f}/s, "
        f"{min(options.concurrency, options.connections)} at a time",
        _times("  upgrade", report.handshake),
        _times("  to hello", report.connect),
    ]
    if report.replayed is not None:
        lines += _books("replay", report.replayed)
        lines.append(_times("  mailbox", report.replay))
    if report.live is not None:
        lines += _books("deliver", report.live)
        lines.append(_times("  latency", report.live.latency))
    if report.memory is not None:
        lines += _memory(report.memory)
    busy = ", ".join(f"{name} {share:.0f} %" for name, share in report.busy.items())
    return "\n".join([*lines, f"CPU         {busy}", *_remarks(report)])


def _times(name: str, spread: Spread) -> str:
    return f"{name:<12}p50 {spread.p50_ms:9.2f} ms   p99 {spread.p99_ms:9.2f} ms   max {spread.max_ms:9.2f} ms"


def _books(name: str, book: Deliveries) -> list[str]:
    return [
        f"{name:<12}{book.published:,} notices, {book.delivered:,} of {book.expected:,} deliveries",
        f"{'  rate':<12}{book.publishes_per_s:,.0f} publishes/s, {book.deliveries_per_s:,.0f} deliveries/s",
        f"{'  losses':<12}{book.lost}   duplicates {book.duplicates}   out of order {book.out_of_order}   "
        f"corrupt {book.corrupt}   foreign {book.foreign}   retries {book.retries}",
    ]


def _memory(memory: Memory) -> list[str]:
    if not memory.after:
        return ["memory      not known: give --pid"]
    return [
        f"memory      {_mb(memory.before)} before, {_mb(memory.after)} after {memory.held_s:g} s, "
        f"{_mb(memory.most)} at most; {memory.per_connection:,.0f} B per connection"
    ]


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _remarks(report: Report) -> list[str]:
    remarks = []
    if report.connections_lost:
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(report.close_codes.items()))
        remarks.append(f"LOST        {report.connections_lost} connections ended early ({codes or 'without a code'})")
    for name, share in report.busy.items():
        if name.startswith("load tool") and share > BUSY_PERCENT:
            remarks.append(f"CAUTION     the {name} was {share:.0f} % busy: these figures are its limit as well")
    if report.live is not None and report.live.late_ms > BEHIND_MS:
        remarks.append(
            f"CAUTION     publishes were written up to {report.live.late_ms:.0f} ms behind the --rate: the daemon "
            "answered too slowly for it, and the wait is not part of the latency"
        )
    return remarks


def document(options: Options, report: Report) -> dict[str, Any]:
    """For programs. No secrets."""
    secret = ("secret", "api_key", "query", "json_file")
    given = {name: value for name, value in asdict(options).items() if name not in secret}
    return {
        "tool": "pushd load",
        "machine": describe(),
        "options": given,
        "figures": {**asdict(report), "has_losses": report.has_losses},
    }


def write_json(options: Options, report: Report) -> None:
    """The document into `--json`. Raises LoadError."""
    try:
        Path(options.json_file).write_text(json.dumps(document(options, report), indent=2) + "\n")
    except OSError as error:
        raise LoadError(f"--json: cannot write {options.json_file}: {error.strerror or error}") from None
