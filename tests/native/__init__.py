"""A disk below SQLite that ends the process at its n-th change, and keeps what a power cut would leave (disk.c).

`run` starts a Python that has it; in there, `ends_at` and `changes_of` use it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("disk.c")
ROOT = SOURCE.parent.parent.parent


def run(tmp_path: Path, function: str, *arguments: object, timeout_s: float = 60) -> str:
    """Calls `function` ("module:name") with texts, in a Python that has the disk; what it printed.

    Skips the test where there is no compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("a C compiler and Linux are needed to put a disk below SQLite")
    library = tmp_path / "disk.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True, timeout=60
    )
    module, name = function.split(":")
    preloaded = os.environ.get("LD_PRELOAD")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; from {module} import {name}; {name}(*sys.argv[1:])", *map(str, arguments)],
        env=os.environ | {"LD_PRELOAD": f"{preloaded}:{library}" if preloaded else str(library), "DISK": str(library)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def _disk() -> ctypes.CDLL:
    disk = ctypes.CDLL(os.environ["DISK"])
    disk.disk_changes.restype = ctypes.c_long
    disk.disk_end_at.argtypes = [ctypes.c_long]
    disk.disk_watch.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    return disk


def changes_of(directory: Path, work: Callable[[], object], twins: Path | None = None) -> int:
    """How many changes below `directory` it takes to do `work`, which is done in a child."""
    read, write = os.pipe()

    def told() -> None:
        work()
        os.write(write, str(_disk().disk_changes()).encode())

    assert not ends_at(0, directory, told, twins)
    os.close(write)
    with os.fdopen(read) as counted:
        return int(counted.read())


def ends_at(change: int, directory: Path, work: Callable[[], object], twins: Path | None = None) -> bool:
    """Does `work` in a child that is killed at its n-th change below `directory`; False when it needed fewer.

    The change does not happen, or only the first half of what should be written. `twins`: a directory that gets, for
    each file, what was last synced.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            _disk().disk_watch(bytes(directory), bytes(twins) if twins else None)
            _disk().disk_end_at(change)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the work failed"
    return False
