"""All benchmarks, one after the other: their figures, their charts, and one table of all targets.

    python -m bench [--quick] [NAME...]

Nothing else should run on the machine meanwhile. Results go to bench/results, those of quick runs to a folder of their
own.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.loadlib.machine import describe
from bench.loadlib.options import LoadError
from bench.loadlib.rounds import MOST_S, Result, Target, at_least, below, measure, table, targets, write
from bench.loadlib.servers import ROOT, cores

MODULES = (
    "fanout",
    "broadcast",
    "receipts",
    "idle",
    "connect",
    "publish",
    "mixed",
    "growth",
    "amend",
    "inbox",
    "compression",
    "peers",
)
SCRIPTS = ("offline", "stores")
BY_DEFAULT = (
    "fanout",
    "broadcast",
    "receipts",
    "idle",
    "connect",
    "publish",
    "offline",
    "mixed",
    "compression",
    "peers",
)

OFFLINE_TARGETS: dict[tuple[str, str], Target] = {
    ("redis", "copies saved/s"): at_least(100_000),
    ("sqlite", "copies saved/s"): at_least(100_000),
    ("redis", "messages/s until all is acknowledged"): at_least(50_000),
    ("sqlite", "messages/s until all is acknowledged"): at_least(50_000),
    ("redis", "seconds until all is there"): below(5),
    ("redis", "live p99, ms"): below(50),
}


# ---- benchmarks that are scripts of their own


def by_script(name: str, quick: bool) -> list[Result]:
    """Run `bench/<name>.py` and read what it wrote. Raises LoadError."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "figures.json"
        command = [sys.executable, str(ROOT / "bench" / f"{name}.py"), "--json", str(file)]
        try:
            done = subprocess.run([*command, *(["--quick"] if quick else [])], cwd=ROOT, check=False, timeout=MOST_S)
        except subprocess.TimeoutExpired:
            raise LoadError(f"{name} is not done after {MOST_S:g} s") from None
        if done.returncode or not file.exists():
            raise LoadError(f"{name} ended with status {done.returncode}")
        results = READERS[name](json.loads(file.read_text()))
    write(name, results, is_quick=quick)
    return results


def offline_results(document: Mapping[str, Any]) -> list[Result]:
    """Of saving, replaying and the storm, on each mailbox."""
    found = []
    for part in document["parts"]:
        kind, details = part["mailbox"], {"runs": part["runs"]}
        for what, figure in part["figures"].items():
            target = OFFLINE_TARGETS.get((kind, what))
            label = f"{part['part']}, {kind}: {what.removeprefix('... ')}"
            found.append(Result(label, as_values(figure), target=target, details=details))
            details = {}
    return found


def stores_results(document: Mapping[str, Any]) -> list[Result]:
    """Ours against one command or query per recipient."""
    found = []
    for line in document["lines"]:
        task = line["task"]
        found.append(Result(f"{task}: ours", as_values(line["wall_ms"]), "ms", details=line))
        if line["speedup"]:
            found.append(Result(f"{task}: faster by", as_values(line["speedup"]), "x", at_least(5)))
        if line["trips"]:
            found.append(
                Result(f"{task}: fewer round trips by", [line["old_trips"] / line["trips"]], "x", at_least(10))
            )
    return found


READERS: dict[str, Callable[[Mapping[str, Any]], list[Result]]] = {
    "offline": offline_results,
    "stores": stores_results,
}


def as_values(figure: Mapping[str, float]) -> list[float]:
    """Three values with this median and range."""
    return [figure["lowest"], figure["median"], figure["highest"]]


# ---- all of them


def measured(name: str, quick: bool) -> list[Result]:
    """One benchmark. Raises LoadError."""
    if name in SCRIPTS:
        return by_script(name, quick)
    return measure(name, importlib.import_module(f"bench.{name}").run, quick)


def measure_all(names: list[str], quick: bool) -> tuple[dict[str, list[Result]], list[str]]:
    """Everything, each benchmark's table as soon as there is one; and what could not be done, which stops no other."""
    found: dict[str, list[Result]] = {}
    failed = []
    for name in names:
        began = time.monotonic()
        print(f"\n{name} ...", flush=True)
        try:
            found[name] = measured(name, quick)
        except LoadError as error:
            failed.append(f"{name}: {error}")
        except Exception:
            failed.append(f"{name}: {traceback.format_exc(limit=-3)}")
        else:
            print(table({name: found[name]}))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return found, failed


def gaps(found: Mapping[str, list[Result]]) -> list[str]:
    """What a benchmark could not measure of itself: not installed here, or not fit for it."""
    return [f"{name}: {result.what}" for name, results in found.items() for result in results if not result.values]


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=(__doc__ or "").splitlines()[0],
        epilog="peers measures the servers that are there; bench/install-peers.sh, or make bench, installs them.",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, about 3 minutes")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join((*MODULES, *SCRIPTS))}; else all but stores"
    )
    options = parser.parse_args(argv)
    there = [name for name in (*MODULES, *SCRIPTS) if importlib.util.find_spec(f"bench.{name}")]
    if unknown := set(options.names).difference(there):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    options.names = options.names or [name for name in BY_DEFAULT if name in there]
    return options


def main() -> int:
    """0 measured, whether targets are met or missed; 1 something could not be measured, or was not done right."""
    options = parse(sys.argv[1:])
    places = cores()  # before this process is bound to one
    machine = ", ".join(f"{name} {value}" for name, value in describe().items())
    print(f"{machine}; daemon on core {places.daemon}, everything else on core {places.others}")
    print(f"load before: {os.getloadavg()[0]:.2f}")
    found, failed = measure_all(options.names, options.quick)
    if held := targets(found):
        print(f"\n{table(held)}")
        verdicts = [result.verdict for results in held.values() for result in results]
        print(f"\n{verdicts.count('met')} of {len(verdicts)} targets met")
    for line in failed + gaps(found):
        print(f"not measured: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
