"""Descriptors 0 to 2: open whoever starts us, in UTF-8 whatever the locale, and never waiting for who reads them."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any

LOST = b"\n(lines are missing here: they were not taken in time)\n"


def insist_on_utf8() -> None:
    """Begin anew in Python's UTF-8 mode if arguments, environment and paths are taken for something else."""
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - the same program


def prepare() -> None:
    """Open what is closed of 0 to 2, and have texts written as UTF-8. To be called before anything else is opened.

    Else a socket or the database would get such a number, and what is meant for stderr would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    sys.stdout = _in_utf8(sys.stdout, 1, "surrogateescape")
    sys.stderr = _in_utf8(sys.stderr, 2, "backslashreplace")


def _in_utf8(stream: Any, descriptor: int, errors: str) -> Any:
    if stream is None:
        return open(descriptor, "w", encoding="utf-8", errors=errors, closefd=False)
    stream.reconfigure(encoding="utf-8", errors=errors)
    return stream


def stop_waiting_for_stderr() -> None:
    """From now on nobody is held up, and nothing raised, by a stderr that is full, closed or not read."""
    sys.stderr = io.TextIOWrapper(_Unwaiting(), encoding="utf-8", errors="backslashreplace", write_through=True)


class _Unwaiting(io.RawIOBase):
    """Descriptor 2. What it does not take at once is dropped; where something is missing, a line says so."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._poll.register(2, select.POLLOUT)
        self._has_lost = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return os.isatty(2)

    def write(self, data: Any) -> int:
        text = bytes(data)
        self._has_lost = not self._take(LOST + text if self._has_lost else text)
        return len(text)

    def _take(self, text: bytes) -> bool:
        """Whether all of it was taken. A pipe that is ready takes PIPE_BUF bytes without waiting (pipe(7))."""
        try:
            for start in range(0, len(text), select.PIPE_BUF):
                if not self._poll.poll(0):
                    return False
                os.write(2, text[start : start + select.PIPE_BUF])
        except OSError:
            return False
        return True
