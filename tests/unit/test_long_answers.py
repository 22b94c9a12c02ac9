"""Long answers say what short ones say, take their turns, and are held within bounds until their peers take them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from pushd.api import answers
from pushd.http.long_answers import PIECE_BYTES, Encoded, FairSemaphore, Long, Unsent, encoded
from pushd.http.messages import Response


class Page(msgspec.Struct):
    """As answers have them."""

    total: int
    items: list[Any]
    last: str | None = None


def whole(response: Response) -> Any:
    assert response.status == 200
    return json.loads(b"".join([response.body, *response.more]))


@pytest.mark.parametrize("size", [0, 1, 100, PIECE_BYTES, PIECE_BYTES + 1, 10 * PIECE_BYTES])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
async def test_in_pieces_or_not_an_answer_says_the_same(count: int, size: int) -> None:
    items = ["x" * size] * count
    long = answers.success(Long(Page(count, await encoded(list(items), lambda item: [item]), "end")))
    assert whole(long) == whole(answers.success(Page(count, [[item] for item in items], "end")))
    assert max(map(len, [long.body, *long.more][:-1]), default=0) <= max(size, PIECE_BYTES) + PIECE_BYTES


async def test_an_encoded_value_may_be_all_there_is_and_made_of_others() -> None:
    text = Encoded()
    text.add(b"{")
    for number in range(100):
        before = b'%b"%d":[' % (b"," if number else b"", number)
        text.join(await encoded(["y" * 3000] * number, lambda item: item, before))
    text.add(b"}")
    answer = answers.success(Long(text))
    assert answer.more
    assert len(answer.more) < 2 * 100 * 50 * 3000 / PIECE_BYTES
    assert whole(answer)["data"] == {str(number): ["y" * 3000] * number for number in range(100)}


async def test_others_have_their_turn_while_an_answer_is_made() -> None:
    making = asyncio.create_task(encoded(list(range(20)), lambda item: item, slice_s=0.0))
    for _ in range(20):
        assert not making.done()
        await asyncio.sleep(0)
    assert (await making).pieces() == [json.dumps(list(range(20)), separators=(",", ":")).encode()]


async def test_what_items_hold_is_given_back_on_the_way() -> None:
    items = [[1], [2], [3]]
    left: list[int] = []
    await encoded(items, lambda item: left.append(len(items)))
    assert left == [2, 1, 0]


async def test_one_turn_for_each_who_asks_and_so_many_in_all() -> None:
    turns, running, ended = FairSemaphore(2), list[int](), list[int]()
    gate = asyncio.Event()

    async def ask(asker: int) -> None:
        async with turns.turn(asker):
            running.append(asker)
            await gate.wait()
        ended.append(asker)

    tasks = [asyncio.create_task(ask(asker)) for asker in (1, 1, 1, 1, 2, 3)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert running == [1, 2]
    tasks[2].cancel()
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(ended) == [1, 1, 1, 2, 3]
    assert running.index(3) < 4  # not behind all of those of 1


def response(size: int, owner: int) -> Response:
    return Response(200, more=[b"x" * size], owner=owner)


def test_what_waits_for_peers_is_bounded_for_each_and_in_all() -> None:
    unsent = Unsent(max_bytes=100, max_bytes_of_one=40)
    first = unsent.send(response(30, 1), now=5.0)
    assert first is not None
    assert first.until > 5.0
    assert unsent.send(response(11, 1), now=5.0) is None
    second = unsent.send(response(70, 2), now=5.0)  # more than his share, but all that he has
    assert second is not None
    assert unsent.send(response(1, 3), now=5.0) is None
    assert first.take() == b"x" * 30
    assert not first
    assert unsent.send(response(30, 3), now=5.0) is not None
    second.end()
    second.end()
    assert unsent.total == 30
    assert unsent.send(response(1000, 4), now=5.0) is None
    assert unsent.send(response(0, 4), now=5.0) is not None


def test_one_answer_has_room_however_long_it_is() -> None:
    assert Unsent(max_bytes=100).send(response(1000, 1), now=5.0) is not None


async def test_who_has_had_his_turn_is_forgotten() -> None:
    turns = FairSemaphore(1)
    for asker in range(100):
        async with turns.turn(asker):
            assert list(turns._askers) == [asker]
    assert not turns._askers
