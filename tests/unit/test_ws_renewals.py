"""Fresh tokens: what a connection answers for after each, and until when it lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from pushd.auth.authenticator import Authenticator, Identity
from pushd.errors import CloseCode
from pushd.ws.renewals import MAX_TOKENS, Renewals, expires_at
from pushd.ws.revocations import token_ids
from pushd.ws.tasks import Tasks
from tests.tokens import JWT, token
from tests.unit.parts import Client, Clock, House


class Desk:
    """Renewals of one house."""

    def __init__(self, house: House, clock: Clock) -> None:
        self.house = house
        self.clock = clock
        self.tasks = Tasks(house.metrics)
        authenticator = Authenticator(house.current, wall_s=lambda: clock.wall_ms() / 1000)
        self.renewals = Renewals(house.hub, house.directory, authenticator, self.tasks, house.metrics, house.clock)

    async def renew(self, client: Client, user_id: int = 7, *, lives_s: float = 60, **claims: Any) -> int:
        """The code that the connection is closed with, 0 while it is open."""
        fresh = token(user_id, exp=self.clock.wall_ms() / 1000 + lives_s, **claims)
        self.renewals.renew(client.connection, fresh)
        await self.tasks.finished()
        client.receive()
        return client.close_code


@pytest.fixture
async def desk(make_house: Callable[..., House], clock: Clock) -> Desk:
    return Desk(make_house(auth=JWT), clock)


async def test_a_fresh_token_says_until_when_and_as_whom(desk: Desk) -> None:
    client = desk.house.connect(7)
    assert await desk.renew(client, username="Ada", type=3) == 0
    connection = client.connection
    assert connection.expires_at == pytest.approx(desk.clock.now() + 60)
    assert (connection.details.username, connection.details.role) == ("Ada", 3)
    known = await desk.house.directory.users([7])
    assert (known[7].username, known[7].role) == ("Ada", 3)


async def test_a_token_without_a_name_leaves_the_name(desk: Desk) -> None:
    client = desk.house.connect(7)
    await desk.renew(client)
    assert client.connection.details.username == "user 7"


async def test_another_user_s_token_ends_the_connection(desk: Desk) -> None:
    assert await desk.renew(desk.house.connect(7), 8) == CloseCode.TOKEN_INVALID


async def test_an_expired_token_ends_the_connection(desk: Desk) -> None:
    assert await desk.renew(desk.house.connect(7), lives_s=-1) == CloseCode.TOKEN_INVALID


async def test_a_connection_answers_for_its_tokens_until_they_expire(desk: Desk) -> None:
    client = desk.house.connect(7)
    client.connection.details.token_id = "first"
    client.connection.expires_at = desk.clock.now() + 10
    for name, lives_s in (("second", 30), ("third", 60), ("third", 60)):
        await desk.renew(client, lives_s=lives_s, jti=name)
    assert token_ids(client.connection.details) == ["first", "second", "third"]
    desk.clock.move(20)
    await desk.renew(client, jti="fourth")
    assert token_ids(client.connection.details) == ["second", "third", "fourth"]


async def test_so_many_tokens_and_no_more(desk: Desk) -> None:
    client = desk.house.connect(7)
    for number in range(MAX_TOKENS):
        assert await desk.renew(client, jti=f"t{number}") == 0
    assert await desk.renew(client, jti="one more") == CloseCode.TOKEN_INVALID


def test_when_a_token_s_connections_end(clock: Clock) -> None:
    clock.move(5)
    in_a_minute = Identity(user_id=7, expires_s=clock.wall_ms() / 1000 + 60)
    assert expires_at(in_a_minute, cast(Any, clock)) == pytest.approx(clock.now() + 60)
    assert expires_at(Identity(user_id=7), cast(Any, clock)) == 0.0
