"""kill -9 between any two writes of the embedded stores: what a call returned for is there, and nothing is doubled."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import native
from tests.fault import ledger_work


@pytest.mark.timeout(120)
def test_what_returned_is_there_whenever_it_is_killed(tmp_path: Path) -> None:
    told = native.run(tmp_path, "tests.fault.test_ledger_kill:killed_at_each", tmp_path, timeout_s=110)
    assert int(told.split()[-1]) > 60


def killed_at_each(directory: str) -> None:
    """Kills the work at one write after the other; prints how often.

    All writes of some flushes, among them such that write blocks anew, and every thirteenth of the others.
    """
    made, data, told = (Path(directory) / name for name in ("made", "data", "told"))
    states = ledger_work.run(ledger_work.states(made))

    def work() -> None:
        ledger_work.run(ledger_work.work(data, told))

    changes = native.changes_of(data, work)
    kills = sorted({*range(120, 150), *range(1, changes + 1, 13)})
    for kill in kills:
        shutil.rmtree(data)
        assert native.ends_at(kill, data, work), kill
        done = len(told.read_bytes()) if told.exists() else 0
        first, last = ledger_work.run(ledger_work.resumed(data, done))
        assert first in states[done : done + 2], (kill, done)
        assert last == states[-1], (kill, done)
        told.unlink(missing_ok=True)
    print(len(kills))
