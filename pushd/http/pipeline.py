"""Requests of one connection that are in work together, for they ask for the same: they share what one takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable

from pushd.http.messages import Request, Response
from pushd.http.parser import RequestParser
from pushd.http.reading import HELD_BYTES, Reading
from pushd.http.shared import Shared
from pushd.later import Later

BEGUN_MOST = 64  # in work together

Begun = tuple[Request, Later[Response] | Response, float]  # until when its answer is waited for


def begin_alike(
    shared: Shared,
    parser: RequestParser,
    reading: Reading,
    pending: tuple[Request, Later[Response]],
    behind: deque[Begun],
) -> None:
    """Begin requests that are here, whole, and ask for what `pending` does; put them behind those that were begun.

    None is begun behind an answer that is there: it may be a failure that the next request depends on.
    """
    first, answer = pending
    is_open = not _is_there(answer) and not any(_is_there(begun[1]) for begun in behind)
    until = shared.loop.time() + shared.application.answer_within_s
    while is_open and len(behind) < BEGUN_MOST - 1 and reading.worked_bytes < HELD_BYTES:
        request = parser.next_like(first) if shared.turns.has_share_left() else None
        if request is None:
            return
        said = shared.application.handle(request) if reading.has_room_for(request) else shared.crowded()
        if not isinstance(said, (Later, Response)):
            said = Later[Response](shared.spawn(_result(said)))
        behind.append((request, said, until))
        reading.worked_bytes += len(request.body)
        is_open = not _is_there(said)


def _is_there(answer: Later[Response] | Response) -> bool:
    return isinstance(answer, Response) or answer.decided.done()


async def _result(answer: Awaitable[Response]) -> Response:
    return await answer
