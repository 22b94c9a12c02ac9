"""When a connection has been waited for long enough. Pure: the time is an argument.

Deadlines are compared with the clock by the server's sweep, every `Times.sweep_s`, so a request sets no timer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from pushd.http.parser import BODY, IDLE, Phase

MIN_BODY_BYTES_PER_S = 8 * 1024


@dataclass(frozen=True, slots=True)
class Times:
    """How long a peer is waited for, s. Its first head, and a decision on an upgrade, have a limit of their own."""

    idle_s: float = 75.0  # between two requests of a connection
    body_s: float = 10.0  # for a body, and one second more for each MIN_BODY_BYTES_PER_S that arrived
    answer_s: float = 10.0  # for the peer to take an answer
    linger_s: float = 1.0  # after our last byte and the peer's, so that it reads the answer rather than a reset
    sweep_s: float = 0.5  # so late a deadline may strike


TIMES = Times()


class Deadline:
    """Two deadlines of one connection: one for what it waits for, and one for the peer to take what was written."""

    __slots__ = ("_at", "_body_since", "_phase", "_times", "_unsent_until")

    def __init__(self, times: Times, first_head_at: float) -> None:
        self._times = times
        self._at = first_head_at
        self._phase: Phase | None = IDLE  # that `_at` is for; None: for no message that arrives
        self._body_since = 0.0
        self._unsent_until = inf

    def await_answer(self, until: float) -> None:
        """Wait for an answer of the application."""
        self._phase = None
        self._at = until

    def await_message(self, phase: Phase, body_bytes: int, head_s: float, now: float) -> None:
        """Wait for more of the message that arrives: the time for a phase begins once, not anew with each byte."""
        is_new = phase is not self._phase
        self._phase = phase
        if phase is BODY:
            self._body_since = now if is_new else self._body_since
            self._at = self._body_since + self._times.body_s + body_bytes / MIN_BODY_BYTES_PER_S
        elif is_new:
            self._at = now + (self._times.idle_s if phase is IDLE else head_s)

    def answered(self) -> None:
        """A message was answered: the next one has time of its own, whatever phase it is in."""
        self._phase = None

    def linger(self, now: float) -> None:
        """Our last byte is written: wait for the peer's."""
        self._body_since = now
        self._at = now + self._times.linger_s

    def linger_on(self, now: float) -> None:
        """The peer still sends, which it may for the time of a body."""
        self._at = min(now + self._times.linger_s, self._body_since + self._times.body_s)

    def taken(self) -> None:
        """The peer took all that was written."""
        self._unsent_until = inf

    def is_unsent_too_long(self, unsent_bytes: int, now: float) -> bool:
        """Whether the peer has left unsent bytes for too long. The time begins when they are first noticed."""
        if not unsent_bytes:
            self._unsent_until = inf
        elif self._unsent_until == inf:
            self._unsent_until = now + self._times.answer_s
        return now >= self._unsent_until

    @property
    def has_unsent(self) -> bool:
        """Whether unsent bytes were noticed."""
        return self._unsent_until != inf

    def is_over(self, now: float) -> bool:
        """Whether what is waited for should have come."""
        return now >= self._at
