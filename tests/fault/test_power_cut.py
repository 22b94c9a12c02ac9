"""A power cut: of what was written since the last sync of a file, nothing, all or any part is left.

What a journal append returned for is there. What came after it, settled or acknowledged, may come back as it was
before; but what is found was so at one moment, and the work can go on.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests import native
from tests.fault import ledger_work

SECTOR = 512


@pytest.mark.timeout(120)
@pytest.mark.parametrize("left", ["synced", "any"])
def test_what_was_accepted_outlives_the_power(tmp_path: Path, left: str) -> None:
    told = native.run(tmp_path, "tests.fault.test_power_cut:cut_at_each", tmp_path, left, timeout_s=110)
    assert int(told.split()[-1]) > 30


def cut_at_each(directory: str, left: str) -> None:
    """Cuts the power at some of the writes; prints how often."""
    made, data, told, twins = (Path(directory) / name for name in ("made", "data", "told", "twins"))
    states = ledger_work.run(ledger_work.states(made))
    durable = [0] + [number for number, step in enumerate(ledger_work.steps(), 1) if step.is_durable]
    rng = random.Random(20261130)

    def work() -> None:
        ledger_work.run(ledger_work.work(data, told))

    twins.mkdir()
    changes = native.changes_of(data, work, twins)
    cuts = range(8, changes + 1, 17)
    for cut in cuts:
        shutil.rmtree(data)
        shutil.rmtree(twins)
        twins.mkdir()
        told.unlink(missing_ok=True)
        assert native.ends_at(cut, data, work, twins), cut
        done = len(told.read_bytes()) if told.exists() else 0
        lose(data, twins, rng if left == "any" else None)
        least = max(number for number in durable if number <= done)
        # One after the other again, from the last that is promised.
        first, last = ledger_work.run(ledger_work.resumed(data, least))
        assert first in states[least : done + 2], (cut, done)
        assert last == states[-1], (cut, done)
    print(len(cuts))


def lose(data: Path, twins: Path, rng: random.Random | None) -> None:
    """Leaves of each file in `data` what was synced, which `twins` has; with `rng` any of the sectors since, too."""
    for path in data.iterdir():
        twin = twins / path.name
        if path.name.endswith("-shm"):
            path.unlink()
            continue
        synced = twin.read_bytes() if twin.exists() else b""
        path.write_bytes(synced if rng is None else mixed(synced, path.read_bytes(), rng))


def mixed(synced: bytes, written: bytes, rng: random.Random) -> bytes:
    """Each sector as it was synced or as it was written; what grew may be as long as either."""
    size = rng.choice((len(synced), len(written)))
    sources = [source.ljust(size, b"\0")[:size] for source in (synced, written)]
    return b"".join(rng.choice(sources)[at : at + SECTOR] for at in range(0, size, SECTOR))
