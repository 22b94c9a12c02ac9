"""What a benchmark gives back: figures of alternating rounds, held against targets, as a table, JSON and a chart.

A benchmark is a module of `bench` with

    async def run(quick: bool) -> list[Result]

which raises LoadError when what was to be measured did not happen, and ends with

    if __name__ == "__main__":
        sys.exit(rounds.script("fanout", run))

so that `python -m bench.fanout [--quick]` runs it alone and `python -m bench` runs it among the others. `run` is called
on a uvloop of its own, with this process on the core for everything but the daemon (`servers.cores().others`).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvloop

from bench.loadlib.chart import Bar, draw
from bench.loadlib.machine import describe
from bench.loadlib.options import LoadError
from bench.loadlib.paired import Middle, middle
from bench.loadlib.servers import ROOT, cores, on_core

T = TypeVar("T")
Operator = Literal[">=", "<=", "<"]

RESULTS = ROOT / "bench" / "results"
FULL_ROUNDS, QUICK_ROUNDS = 5, 2
MOST_S = 900.0  # of one benchmark: something hangs that took so long


@dataclass(frozen=True)
class Target:
    """What is asked of the median of a figure."""

    operator: Operator
    bound: float

    def is_met(self, value: float) -> bool:
        """By this figure."""
        return {">=": value >= self.bound, "<=": value <= self.bound, "<": value < self.bound}[self.operator]

    def __str__(self) -> str:
        return f"{self.operator} {self.bound:,g}"


def at_least(bound: float) -> Target:
    """The figure is to be so much, or more."""
    return Target(">=", bound)


def at_most(bound: float) -> Target:
    """The figure is to be so much, or less."""
    return Target("<=", bound)


def below(bound: float) -> Target:
    """The figure is to be less."""
    return Target("<", bound)


@dataclass(frozen=True)
class Result:
    """One line of the table: a figure, once per round; without values, what was not measured and why.

    Results of one `group` stand in one panel of the chart, on one scale, and under one heading of the table where they
    follow one another; without a group a result is not drawn. `details`: whatever else the JSON file should tell.
    """

    what: str
    values: Sequence[float]
    unit: str = ""
    target: Target | None = None
    group: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figure(self) -> Middle:
        """Median and range; of values."""
        return middle(self.values)

    @property
    def verdict(self) -> str:
        """ "met" or "missed"; "" without a target."""
        if self.target is None:
            return ""
        return "met" if self.target.is_met(self.figure.median) else "missed"


Run = Callable[[bool], Awaitable[list[Result]]]


def rounds_for(quick: bool) -> int:
    """How many rounds count, beside the one to warm up."""
    return QUICK_ROUNDS if quick else FULL_ROUNDS


async def alternate(contenders: Mapping[str, Callable[[], Awaitable[T]]], rounds: int) -> dict[str, list[T]]:
    """One doing of each contender per round; who goes first changes. A round to warm up comes before, uncounted."""
    done: dict[str, list[T]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in contenders if number % 2 else reversed(tuple(contenders)):
            gc.collect()
            doing = await contenders[name]()
            if number:
                done[name].append(doing)
    return done


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours to theirs, round by round: both had the same machine then."""
    return [mine / other if other else 0.0 for mine, other in zip(ours, theirs, strict=True)]


# ---- the table


def number(value: float) -> str:
    """Three digits are enough."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def spread(result: Result) -> str:
    """The range, where there is one."""
    figure = result.figure
    return f"({number(figure.lowest)}-{number(figure.highest)})" if len(result.values) > 1 else ""


HEAD = ("", "median", "unit", "range", "target", "")


def table(results: Mapping[str, Sequence[Result]]) -> str:
    """All results of all benchmarks, in columns."""
    lines: list[tuple[str, ...]] = [HEAD]
    for name, found in results.items():
        lines.append((name,))
        group = ""
        for result in found:
            if result.group and result.group != group:
                lines.append((f"  {result.group}",))
            group = result.group
            lines.append(_line(result))
    cells = [line for line in lines if len(line) == len(HEAD)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    return "\n".join(_aligned(line, widths) for line in lines)


def _line(result: Result) -> tuple[str, ...]:
    indent = "    " if result.group else "  "
    if not result.values:
        return (f"{indent}not measured: {result.what}",)
    target = str(result.target or "")
    return (indent + result.what, number(result.figure.median), result.unit, spread(result), target, result.verdict)


def _aligned(line: tuple[str, ...], widths: Sequence[int]) -> str:
    if len(line) == 1:
        return line[0]
    cells = (cell.rjust(width) if column == 1 else cell.ljust(width) for column, (cell, width) in
             enumerate(zip(line, widths, strict=True)))  # fmt: skip
    return "  ".join(cells).rstrip()


def targets(results: Mapping[str, Sequence[Result]]) -> dict[str, list[Result]]:
    """Only what has a target, by benchmark."""
    held = {name: [result for result in found if result.target] for name, found in results.items()}
    return {name: found for name, found in held.items() if found}


# ---- files


def write(name: str, results: Sequence[Result], *, is_quick: bool, directory: Path = RESULTS) -> list[Path]:
    """`<name>.json` and `<name>.svg`; those of a quick run stand in a folder of their own. Returns what was written."""
    place = directory / "quick" if is_quick else directory
    place.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": describe(),
        "load": os.getloadavg()[0],
        "at": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "is_quick": is_quick,
        "results": [_as_json(result) for result in results],
    }
    written = [place / f"{name}.json"]
    written[0].write_text(json.dumps(document, indent=1) + "\n")
    panels = _panels(results)
    if panels:
        written.append(place / f"{name}.svg")
        written[1].write_text(draw(name, panels))
    return written


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "what": result.what,
        "group": result.group,
        "unit": result.unit,
        **(asdict(result.figure) if result.values else {}),
        "values": list(result.values),
        "target": str(result.target or ""),
        "verdict": result.verdict,
        "details": dict(result.details),
    }


def _panels(results: Sequence[Result]) -> dict[str, list[Bar]]:
    panels: dict[str, list[Bar]] = {}
    for result in results:
        if result.group:
            panels.setdefault(result.group, []).append(_bar(result))
    return panels


def _bar(result: Result) -> Bar:
    figure = result.figure
    text = f"{number(figure.median)} {result.unit}".rstrip() + (f", target {result.target}" if result.target else "")
    mark = result.target.bound if result.target else None
    return Bar(result.what, text, figure.median, figure.lowest, figure.highest, mark, result.verdict != "missed")


# ---- running


def measure(name: str, run: Run, quick: bool, most_s: float = MOST_S) -> list[Result]:
    """Run one benchmark, pinned, on a loop of its own, and write its files. Raises LoadError."""
    with on_core(cores().others), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(_timed(name, run, quick, most_s))
    write(name, results, is_quick=quick)
    return results


async def _timed(name: str, run: Run, quick: bool, most_s: float) -> list[Result]:
    try:
        async with asyncio.timeout(most_s):
            return await run(quick)
    except TimeoutError:
        raise LoadError(f"{name} is not done after {most_s:g} s") from None


def script(name: str, run: Run, argv: Sequence[str] | None = None, most_s: float = MOST_S) -> int:
    """A benchmark as a program. 0 measured; 1 not possible, or not done right. A missed target is no failure."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: does it work?")
    options = parser.parse_args(argv)
    cores()  # asked before this process is bound to one
    print(f"load before: {os.getloadavg()[0]:.2f}", flush=True)
    try:
        results = measure(name, run, options.quick, most_s)
    except LoadError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    print(table({name: results}))
    return 0
