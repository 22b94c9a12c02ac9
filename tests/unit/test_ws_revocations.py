"""The watch over live connections: whom it asks about, whom it closes, and that nothing ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest
from msgspec.structs import replace

from pushd.errors import CloseCode, StoreError
from pushd.ws.revocations import NO_TOKEN, REVOKED_WITHIN_S, RevocationWatch, token_ids
from tests.unit.hub_support import SOMEBODY
from tests.unit.parts import Client, House


class Revocations:
    """A store of revoked tokens; each answer may be an error instead."""

    def __init__(self, *answers: set[str] | BaseException) -> None:
        self.answers = list(answers)
        self.asked: list[list[str]] = []

    async def revoked(self, token_ids: Collection[str]) -> set[str]:
        self.asked.append(list(token_ids))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer & set(token_ids)


def holding(house: House, user_id: int, *tokens: str) -> Client:
    """A connection that answers for these tokens: the one that it came with, or those of its renewals."""
    client = house.connect(user_id)
    if len(tokens) == 1:
        client.connection.details.token_id = tokens[0]
    else:
        client.connection.details.tokens = tuple((token, 0.0) for token in tokens)
    return client


async def watch(house: House, *answers: set[str] | BaseException) -> tuple[Revocations, list[float]]:
    """A round of the watch for each answer; what it asked, and how long it slept before each."""
    revocations, sleeps = Revocations(*answers), []

    async def sleep(seconds: float) -> None:
        if not revocations.answers:
            raise asyncio.CancelledError
        sleeps.append(seconds)

    with pytest.raises(asyncio.CancelledError):
        await RevocationWatch(house.hub, revocations, house.metrics, sleep=sleep).run()
    return revocations, sleeps


async def test_connections_end_by_any_of_their_tokens(house: House) -> None:
    first, second = holding(house, 1, "a"), holding(house, 2, "a")
    renewed, other, nobody = holding(house, 3, "b", "c"), holding(house, 4, "d"), holding(house, 5)
    revocations, _ = await watch(house, {"a", "c", "z"})
    assert sorted(revocations.asked[0]) == ["a", "b", "c", "d"]
    for client in (first, second, renewed, other, nobody):
        client.receive()
    assert [one.close_code for one in (first, second, renewed)] == [CloseCode.REVOKED] * 3
    assert (other.close_code, nobody.close_code) == (0, 0)


async def test_it_asks_when_there_is_nothing_to_ask_for(house: House) -> None:
    revocations, sleeps = await watch(house, set(), {NO_TOKEN})
    assert revocations.asked == [[NO_TOKEN]] * 2
    assert sleeps == [REVOKED_WITHIN_S / 2] * 2


@pytest.mark.parametrize(
    ("failure", "unforeseen_total"),
    [(StoreError("revocations", "away"), 0), (TimeoutError(), 0), (TypeError("odd"), 1), (asyncio.CancelledError(), 1)],
)
async def test_a_round_that_fails_is_followed_by_another(
    house: House, failure: BaseException, unforeseen_total: int
) -> None:
    client = holding(house, 1, "a")
    await watch(house, failure, {"a"})
    client.receive()
    assert client.close_code == CloseCode.REVOKED
    assert house.metrics.errors.labels("revocations").value == unforeseen_total


async def test_a_round_takes_half_of_the_time_at_most(house: House) -> None:
    asked = asyncio.Event()

    class Frozen:
        async def revoked(self, token_ids: Collection[str]) -> set[str]:
            asked.set()
            return await asyncio.get_running_loop().create_future()

    rounds = 0

    async def sleep(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await RevocationWatch(house.hub, Frozen(), house.metrics, within_s=0.002, sleep=sleep).run()
    assert asked.is_set()


def test_the_tokens_of_a_client() -> None:
    assert token_ids(SOMEBODY) == []
    assert token_ids(replace(SOMEBODY, token_id="a")) == ["a"]
    assert token_ids(replace(SOMEBODY, tokens=(("b", 1.0), ("c", 2.0)))) == ["b", "c"]
