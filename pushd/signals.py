"""SIGTERM, SIGINT and SIGHUP, heard from the first moment on, whatever other threads do; and the last bound of a stop.

They are blocked in every thread, and one waits for them. So they count while modules are imported, while a database is
opened and while the event loop hangs; and process 1 of a container hears them, for whom the kernel ignores what has no
handler.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

STOPPING = (signal.SIGTERM, signal.SIGINT)
HEARD = (*STOPPING, signal.SIGHUP)
ONE_STROKE_S = 0.01  # timeout(1) sends it to the process, and to the group in which that is
WARN_S = 0.2  # before the end that nothing can put off


class Signals:
    """What the process is told from outside. Until `obey` a stop ends it at once, since it has promised nothing yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None
        self._reload: Callable[[], object] | None = None
        self._stops_within_s = 0.0
        self._cut_off: Callable[[], object] = _say_nothing
        self._is_listening = False
        self._is_reload_due = False
        self._is_stopping = False

    def hold(self) -> None:
        """Keep them waiting, for `listen` or `release`. On the main thread, before there are others."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)

    def release(self) -> None:
        """Have them do again what they do to any process."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)

    def listen(self) -> None:
        """Hear them from now on, on a thread of its own. Call it where and when `hold` may be called; twice is once."""
        if self._is_listening:
            return
        self._is_listening = True
        self.hold()
        for signum in HEARD:
            signal.signal(signum, signal.SIG_DFL)  # ignored by some parents
        threading.Thread(target=self._serve, name="pushd-signals", daemon=True).start()

    def obey(
        self,
        stop: Callable[[], object],
        reload: Callable[[], object],
        stops_within_s: float,
        cut_off: Callable[[], object],
    ) -> None:
        """From now on the first stop calls `stop`, and SIGHUP `reload`, on the listening thread.

        `stops_within_s` after the first stop the process ends, whatever hangs; shortly before that `cut_off` is called.
        At the second one it ends at once.
        """
        with self._lock:
            self._stop, self._reload = stop, reload
            self._stops_within_s, self._cut_off = stops_within_s, cut_off
            is_reload_due = self._is_reload_due
        if is_reload_due:
            reload()

    def _serve(self) -> None:
        while True:
            self._heard(signal.sigwait(HEARD))

    def _heard(self, signum: int) -> None:
        with self._lock:
            if signum == signal.SIGHUP:
                self._is_reload_due = self._reload is None
                act = self._reload or _say_nothing
            elif self._stop is None:
                os._exit(0)
            elif self._is_stopping:
                die_of(signum)
            else:
                self._is_stopping = True
                act = self._begin_to_stop
        with suppress(RuntimeError):  # the loop is closed already, or there is no room for a thread
            act()

    def _begin_to_stop(self) -> None:
        signal.sigtimedwait(STOPPING, ONE_STROKE_S)
        if self._stop is not None:
            self._stop()
        end_within(self._stops_within_s, 0, self._cut_off)


def _say_nothing() -> None:
    pass


def end_within(seconds: float, status: int, cut_off: Callable[[], object]) -> None:
    """End the process with `status` after `seconds`, unless it ends before; `cut_off` is called shortly before that."""
    for wait_s, act in ((seconds - WARN_S, cut_off), (seconds, lambda: os._exit(status))):
        timer = threading.Timer(wait_s, act)
        timer.daemon = True
        timer.start()


def die_of(signum: int) -> None:
    """End as if nobody had handled the signal. Process 1 may survive that: with the status that shells give for it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signum})
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)
