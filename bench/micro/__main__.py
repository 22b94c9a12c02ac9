"""The micro level: run, store and compare.

python -m bench.micro              run, and compare with the stored baseline
python -m bench.micro store        run, and make that the baseline

The baseline keeps what a comparison needs, not every round. Compare on the machine it was stored on only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PLACE = Path(__file__).resolve().parent
ROOT = PLACE.parent.parent
BASELINE = PLACE / "baseline.json"
KEPT = (
    *("median", "iqr", "min", "max", "mean", "stddev", "rounds", "iterations", "ops", "total", "outliers"),
    *("q1", "q3", "iqr_outliers", "stddev_outliers", "ld15iqr", "hd15iqr"),
)
COLUMNS = "--benchmark-columns=median,iqr,rounds"
# The baseline does not say everything of its machine, and a comparison would fail for that.
QUIET = "-Wignore::pytest_benchmark.logger.PytestBenchmarkWarning"


def trimmed(document: dict[str, Any]) -> dict[str, Any]:
    """A result file without what is of no use to others: rounds, and the machine's name."""
    machine = {key: value for key, value in document["machine_info"].items() if key not in ("node", "cpu")}
    cpu = document["machine_info"].get("cpu", {})
    machine["cpu"] = {key: cpu[key] for key in ("brand_raw", "count") if key in cpu}
    benchmarks = [
        {
            **{key: one[key] for key in ("group", "name", "fullname", "params", "param", "extra_info")},
            "options": {},
            "stats": {key: one["stats"][key] for key in KEPT if key in one["stats"]},
        }
        for one in document["benchmarks"]
    ]
    kept = {key: document[key] for key in ("datetime", "version")}
    return {"machine_info": machine, "commit_info": {}, "benchmarks": benchmarks, **kept}


def run(*options: str) -> int:
    """All of them, without the machinery of the tests."""
    command = [sys.executable, "-m", "pytest", str(PLACE / "test_micro.py"), "-q", "-p", "no:cacheprovider", QUIET,
               "--benchmark-sort=fullname", "--benchmark-disable-gc", COLUMNS, *options]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def store() -> int:
    """Run, and keep the result as the baseline."""
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "found.json"
        status = run(f"--benchmark-json={found}")
        if not status:
            BASELINE.write_text(json.dumps(trimmed(json.loads(found.read_text())), indent=1) + "\n")
        return status


def main() -> int:
    """See the module."""
    if sys.argv[1:] == ["store"]:
        return store()
    if sys.argv[1:]:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    return run(f"--benchmark-compare={BASELINE}") if BASELINE.exists() else run()


if __name__ == "__main__":
    sys.exit(main())
