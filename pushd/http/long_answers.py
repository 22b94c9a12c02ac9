"""Answers that are long: made in slices, sent in pieces as the peer takes them, and held within bounds until then."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from pushd.http.messages import Response
from pushd.turns import SLICE_S, sliced

Item = TypeVar("Item")

PIECE_BYTES = 64 * 1024
WHOLE_PIECES = 4  # of an answer that is written at once
UNSENT_BYTES = 256 * 1024 * 1024  # of long answers, all connections together
UNSENT_BYTES_OF_ONE = UNSENT_BYTES // 4
WITHIN_S, BYTES_PER_S = 10.0, 256 * 1024  # the time a peer has to take a long answer

_encode = msgspec.json.Encoder().encode


class Unsent:
    """Bytes of long answers that wait in memory for their peers to take them.

    There may be `max_bytes` of them, `max_bytes_of_one` of one owner; a peer has `within_s` and a second more for each
    `bytes_per_s` of an answer.
    """

    def __init__(
        self,
        *,
        max_bytes: int = UNSENT_BYTES,
        max_bytes_of_one: int = UNSENT_BYTES_OF_ONE,
        within_s: float = WITHIN_S,
        bytes_per_s: float = BYTES_PER_S,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_bytes_of_one = max_bytes_of_one
        self.within_s = within_s
        self.bytes_per_s = bytes_per_s
        self.total = 0
        self._of: Counter[Hashable] = Counter()

    def send(self, response: Response, now: float) -> Sending | None:
        """Hold what there is `more` of an answer until it is written; None where there is no room for it.

        One answer always has room where none of its owner's and less than `max_bytes` altogether wait.
        """
        size, mine = sum(map(len, response.more)), self._of[response.owner]
        if (self.total and self.total + size > self.max_bytes) or (mine and mine + size > self.max_bytes_of_one):
            return None
        self.total += size
        self._of[response.owner] = mine + size
        return Sending(self, response, now + self.within_s + size / self.bytes_per_s)

    def give_back(self, owner: Hashable, size: int) -> None:
        """Make room again: so many bytes of this owner are written, or nobody wants them any more."""
        self.total -= size
        self._of[owner] -= size
        if not self._of[owner]:
            del self._of[owner]


class Sending:
    """A long answer on its way; it must be taken before `until`, or its peer does without."""

    def __init__(self, unsent: Unsent, response: Response, until: float) -> None:
        self.until = until
        self._unsent = unsent
        self._owner = response.owner
        self._pieces = deque(response.more)

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def take(self) -> bytes:
        """The next piece, to be written."""
        piece = self._pieces.popleft()
        self._unsent.give_back(self._owner, len(piece))
        return piece

    def end(self) -> None:
        """Give the rest up: nobody wants it."""
        self._unsent.give_back(self._owner, sum(map(len, self._pieces)))
        self._pieces.clear()


class FairSemaphore:
    """Lets `most` long answers be made at a time, and one for each who asks: who asks often waits for himself."""

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)
        self._askers: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, asker: Hashable) -> AsyncIterator[None]:
        """Wait for a turn, which lasts as long as the block."""
        mine = self._askers.get(asker)
        if mine is None:
            mine = self._askers[asker] = asyncio.Lock()
        async with mine, self._free:
            yield


class Encoded:
    """JSON made in slices. As a field of what a `Long` says, it passes for the value it stands for."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._last = bytearray()

    def add(self, text: bytes) -> None:
        """Put a text behind what there is."""
        self._last += text
        if len(self._last) >= PIECE_BYTES:
            self._end_piece()

    def join(self, other: Encoded) -> None:
        """Put the text of another one behind what there is."""
        for piece in other.pieces():
            if len(piece) < PIECE_BYTES:
                self.add(piece)
            else:
                self._end_piece()
                self._pieces.append(piece)

    def _end_piece(self) -> None:
        if self._last:
            self._pieces.append(bytes(self._last))
            self._last.clear()

    def pieces(self) -> list[bytes]:
        """The whole, in pieces of about PIECE_BYTES."""
        self._end_piece()
        return self._pieces


async def encoded(
    items: list[Item],
    view: Callable[[Item], Any],
    before: bytes = b"[",
    after: bytes = b"]",
    slice_s: float = SLICE_S,
) -> Any:
    """The list of what `view` makes of each item: an `Encoded`. The loop does what else there is to do between slices.

    `items` is used up on the way, for to give back all at once what they hold takes long, too. `before` and `after`:
    the parentheses.
    """
    text = Encoded()
    text.add(before)
    separator = b""
    async for item in sliced(_used_up(items), slice_s):
        text.add(separator + _encode(view(item)))
        separator = b","
    text.add(after)
    return text


def _used_up(items: list[Item]) -> Iterator[Item]:
    items.reverse()
    while items:
        yield items.pop()


class Long:
    """The data of a long answer: a struct, fields of which are `Encoded`, or an `Encoded`."""

    def __init__(self, data: msgspec.Struct | Encoded) -> None:
        self._data = data

    def response(self) -> Response:
        """In the envelope of a 200."""
        text = Encoded()
        text.add(b'{"data":')
        if isinstance(self._data, Encoded):
            text.join(self._data)
        else:
            self._add_fields(text, self._data)
        text.add(b',"code":200,"message":"OK"}')
        pieces = text.pieces()
        if len(pieces) <= WHOLE_PIECES:
            return Response(200, b"".join(pieces))
        return Response(200, pieces[0], more=pieces[1:])

    def _add_fields(self, text: Encoded, data: msgspec.Struct) -> None:
        separator = b"{"
        for name in data.__struct_fields__:
            value = getattr(data, name)
            text.add(separator + _encode(name) + b":")
            separator = b","
            if isinstance(value, Encoded):
                text.join(value)
            else:
                text.add(_encode(value))
        text.add(b"}")
