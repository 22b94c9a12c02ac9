"""Descriptors 0 to 2, on a process of its own: ours are the test runner's."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest


def run(code: str, *, shell: str = "", **options: object) -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, "-c", "from pushd import streams\n" + textwrap.dedent(code)]
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", *program]
    return subprocess.run(command, capture_output=True, timeout=20, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_what_is_closed_is_opened(closed: str) -> None:
    code = """
        import os, sys
        streams.prepare()
        other = os.open("/dev/null", os.O_RDONLY)
        print("out"), sys.stdout.flush(), sys.stdin.read(), sys.stderr.write("err")
        os._exit(other)
    """
    assert run(code, shell=closed, stdin=subprocess.DEVNULL).returncode == 3


def test_texts_are_utf8() -> None:
    code = """
        import sys
        streams.prepare()
        print("\\u6570\\udcff"), print("\\u6570\\ud83d", file=sys.stderr)
    """
    done = run(code, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "数".encode() + b"\xff\n", "数\\ud83d\n".encode())


def test_it_begins_anew_where_texts_are_not_utf8() -> None:
    code = """
        import sys
        streams.insist_on_utf8()
        print(sys.flags.utf8_mode, sys.argv)
    """
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run(code, env=os.environ | locale).stdout == b"1 ['-c']\n"
    assert run(code, env=os.environ | {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}).stdout == b"0 ['-c']\n"


STUFF = """
    import os, sys
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    streams.stop_waiting_for_stderr()
"""


def test_a_pipe_that_nobody_reads_holds_up_nothing() -> None:
    code = (
        STUFF
        + """
    for number in range(1000):
        print("x" * 1000, number, file=sys.stderr)
    taken = os.read(reading, 1 << 20)
    print("again", file=sys.stderr)
    print(len(taken) > 10_000, taken.count(b"\\n") < 900, os.read(reading, 1 << 20).decode())
    """
    )
    assert run(code).stdout == b"True True \n(lines are missing here: they were not taken in time)\nagain\n\n"


def test_what_is_longer_than_a_pipe_takes_at_once_arrives_whole() -> None:
    code = (
        STUFF
        + """
    print("x" * 20_000, file=sys.stderr)
    print(len(os.read(reading, 1 << 20)))
    """
    )
    assert run(code).stdout == b"20001\n"


@pytest.mark.parametrize("end", ["os.close(reading)", "os.close(2)", "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)"])
def test_one_that_takes_nothing_raises_nothing(end: str) -> None:
    done = run(STUFF + f"    {end}; os.close(writing); print('lost', file=sys.stderr); print('goes on')")
    assert (done.returncode, done.stdout) == (0, b"goes on\n")
