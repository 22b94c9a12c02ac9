"""What `drive.c` saw, and whether it is what had to happen. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.loadlib.options import LoadError

OPEN, CLOSED = 3, 5  # states of a client, as drive.c numbers them
SHOWN = 5


class Connect(NamedTuple):
    """A client's way in; times in ns, 0 = never."""

    began_ns: int
    upgraded_ns: int
    hello_ns: int
    state: int
    pings: int


class Answer(NamedTuple):
    """A request's; `accepted` of its notices were."""

    due_ns: int
    sent_ns: int
    answered_ns: int
    status: int
    accepted: int


class Delivery(NamedTuple):
    """A notice came to a client."""

    at_ns: int
    number: int
    client: int


def connects(data: bytes) -> list[Connect]:
    """File `connects`."""
    return [Connect._make(row) for row in struct.iter_unpack("<QQQII", data)]


def answers(data: bytes) -> list[Answer]:
    """File `answers`."""
    return [Answer._make(row) for row in struct.iter_unpack("<QQQII", data)]


def deliveries(data: bytes) -> list[Delivery]:
    """File `deliveries`."""
    return [Delivery._make(row) for row in struct.iter_unpack("<QII", data)]


# ---- was it done?


def check_connects(found: Sequence[Connect], wanted: int) -> None:
    """All of the first `wanted` clients were greeted and are there still. Raises LoadError."""
    missing = [number for number, one in enumerate(found[:wanted]) if not one.hello_ns or one.state != OPEN]
    if missing or len(found) < wanted:
        raise LoadError(f"{len(missing)} of {wanted} clients are not connected, the first: {missing[:SHOWN]}")


def check_visits(found: Sequence[Connect], least: int) -> None:
    """At least so many visitors came, and all who came were greeted. Raises LoadError."""
    came = [one for one in found if one.began_ns]
    lost = sum(1 for one in came if one.upgraded_ns and not one.hello_ns and one.state == CLOSED)
    if len(came) < least or lost:
        raise LoadError(f"{len(came)} visitors came instead of {least}, {lost} without a hello")


def check_accepted(found: Sequence[Answer], notices: int) -> None:
    """Every request was answered with 200, and every notice accepted. Raises LoadError."""
    refused = [one for one in found if one.status != 200]
    accepted = sum(one.accepted for one in found)
    if refused or accepted != notices:
        status = refused[0].status if refused else 200
        raise LoadError(f"{accepted} of {notices} notices accepted, {len(refused)} requests refused (first: {status})")


def check_delivered(
    found: Iterable[Delivery], total: int, recipients: Callable[[int], Collection[int]], members: int
) -> None:
    """Each of `total` notices came exactly once to each member it is for, and to no other; at most once to a visitor.

    `recipients`: clients by a notice's number. Raises LoadError.
    """
    seen: list[set[int]] = [set() for _ in range(total)]
    for delivery in found:
        if delivery.number >= total:
            raise LoadError(f"notice {delivery.number} was never published")
        clients = seen[delivery.number]
        if delivery.client in clients:
            raise LoadError(f"notice {delivery.number} came to client {delivery.client} twice")
        clients.add(delivery.client)
    for number, clients in enumerate(seen):
        wanted = recipients(number)
        here = {client for client in clients if client < members}
        if here != set(wanted):
            lost, strange = len(set(wanted) - here), len(here - set(wanted))
            raise LoadError(f"notice {number}: {lost} of {len(wanted)} recipients lack it, {strange} others have it")


# ---- how long did it take?


def hello_ns(found: Iterable[Connect]) -> list[int]:
    """From the start of the TCP connect to hello."""
    return [one.hello_ns - one.began_ns for one in found if one.hello_ns]


def accept_ns(found: Iterable[Answer]) -> list[int]:
    """From the first byte of the request to the answer."""
    return [one.answered_ns - one.sent_ns for one in found]


@dataclass(frozen=True)
class Window:
    """From a broadcast's request until its last client has it."""

    from_ns: int
    to_ns: int


def windows(found: Iterable[Delivery], sent: Sequence[Answer], broadcasts: Collection[int]) -> list[Window]:
    """Of these notices, one request each."""
    last = dict.fromkeys(broadcasts, 0)
    for delivery in found:
        if delivery.number in last:
            last[delivery.number] = max(last[delivery.number], delivery.at_ns)
    return [Window(sent[number].sent_ns, until) for number, until in last.items()]


def delivery_ns(
    found: Iterable[Delivery], sent: Sequence[Answer], numbers: Collection[int], within: Sequence[Window] = ()
) -> list[int]:
    """From the request to each client, of these notices; with `within`, only of those sent while one was under way."""
    wanted = {
        number
        for number in numbers
        if not within or any(window.from_ns <= sent[number].sent_ns <= window.to_ns for window in within)
    }
    return [one.at_ns - sent[one.number].sent_ns for one in found if one.number in wanted]
