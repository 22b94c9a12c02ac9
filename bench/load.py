#!/usr/bin/env python3
"""Load tool: opens connections, publishes notices, accounts for every delivery and tells the times.

    python bench/load.py -c 1000 -n 10000 ws://localhost:8801/ws

Any Python will do: one that lacks what is needed hands over to the checkout's `.venv`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"
NEEDED = ("uvloop", "picows", "tqdm", "jwt")
OLDEST_PYTHON = (3, 11)


def main() -> int:
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if tuple(sys.version_info) < OLDEST_PYTHON:
        lacking.insert(0, "Python 3.11")
    if lacking:
        return _hand_over(lacking)
    sys.path[0] = str(CHECKOUT)  # a script's own folder comes first otherwise
    from bench.loadlib.app import run

    return run(sys.argv[1:])


def _hand_over(lacking: list[str]) -> int:
    """Run the same command with the checkout's interpreter; returns only when that is not possible."""
    python = VENV / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [str(python), str(Path(__file__).resolve()), *sys.argv[1:]])
    print(f"load: {', '.join(lacking)} is missing here; run `make setup` in the checkout first", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
