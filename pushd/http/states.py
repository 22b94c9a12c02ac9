"""What an HTTP connection is waiting for: one state at a time.

    READING ─────── bytes come, but the time of this turn of the loop is used up ──► QUEUED ── its turn ──► READING
    READING ─────── what may be an upgrade comes ──► UPGRADE_QUEUED ── its turn ──► READING, where it is asked about
    READING ─────── the application must think about an upgrade ──► DECIDING ── refused ──► READING
    READING ─────── the application must think about a request ──► WAITING ── answered ──► READING or SENDING
    READING ─────── one that was begun with it is not answered yet ──► WAITING
    READING ─────── a long answer is begun ──► SENDING ── all of it is written ──► READING
    READING, DECIDING ── an upgrade is allowed ──► HANDED_OVER
    any of these ── the last answer is written ──► LINGERING ◄── its turn ── LINGERING_QUEUED ◄── too much comes
    all states ──── the transport is lost ──► GONE

Three things stay apart, because they may be so in any of these states: whether the peer has ended its side, whether
it takes our answers, and whether its last request was served. How far the message that arrives has come is the
parser's `Phase`, and whether the last answer was given is known to the queue of answers.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """What a connection is waiting for.

    `is_at_work`: bytes that come are held, for an answer is awaited or on its way. `has_to_queue`: it reads no more
    before its turn. `is_admitting`: what is in work is an upgrade. `is_over`: no request is answered any more.
    """

    #                   is_at_work, has_to_queue, is_admitting, is_over
    READING = (1, False, False, False, False)  # for bytes of a request
    QUEUED = (2, False, True, False, False)  # for its turn; there are bytes to be looked at
    UPGRADE_QUEUED = (3, True, False, True, False)  # for its turn among the upgrades
    DECIDING = (4, True, False, True, False)  # for the application's word on an upgrade
    WAITING = (5, True, False, False, False)  # for the application's answer to a request, the oldest in work
    SENDING = (6, True, False, False, False)  # for the peer to take a long answer
    LINGERING = (7, False, False, False, True)  # for the peer's end; what it sends is discarded
    LINGERING_QUEUED = (8, False, True, False, True)  # for its turn to discard more
    HANDED_OVER = (9, False, False, False, True)  # for nothing: the application has the transport
    GONE = (10, False, False, False, True)  # for nothing: there is no transport any more

    def __init__(self, _: int, is_at_work: bool, has_to_queue: bool, is_admitting: bool, is_over: bool) -> None:
        self.is_at_work = is_at_work
        self.has_to_queue = has_to_queue
        self.is_admitting = is_admitting
        self.is_over = is_over
