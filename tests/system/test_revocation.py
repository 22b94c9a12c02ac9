"""`auth.revocation_url` against a real Redis: revoked tokens at connect, over HTTP, on live connections; Redis gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from pushd import app
from pushd.ws.renewals import MAX_TOKENS
from pushd.ws.revocations import REVOKED_WITHIN_S, RevocationWatch, token_ids
from tests import raw
from tests.conftest import MakeConfig
from tests.daemon import PREFIX, Client, Probe, Process, until
from tests.raw import Raw
from tests.servers import RedisServer
from tests.tokens import API_KEY, JWT, SECRET, token

PROMISED_S = 5.0  # CONTRACT: how long a live connection may outlast its token
SHORT_S = 0.2
MINE = f"{PREFIX}/notification/user-summary"


@asynccontextmanager
async def serving(make_config: MakeConfig, redis_server: RedisServer, within_s: float) -> AsyncIterator[Probe]:
    """A daemon that closes connections within so many seconds of when their tokens were revoked."""
    config = make_config(auth={**JWT, "revocation_url": redis_server.url})
    async with app.running(config, revoked_within_s=within_s) as node, Probe(node.port, node) as probe:
        yield probe


@pytest.fixture
async def probe(make_config: MakeConfig, redis_server: RedisServer) -> AsyncIterator[Probe]:
    """A daemon that looks at live connections often."""
    async with serving(make_config, redis_server, SHORT_S) as probe:
        yield probe


@pytest.fixture
async def unwatching(make_config: MakeConfig, redis_server: RedisServer) -> AsyncIterator[Probe]:
    """A daemon that looks at live connections too seldom to see anything."""
    async with serving(make_config, redis_server, 600.0) as probe:
        yield probe


def _bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


async def _revoke(server: RedisServer, token_id: str) -> None:
    await server.set(f"jwt_blacklist:{token_id}")


async def _call(probe: Probe, credential: str) -> tuple[int, str]:
    response = await probe.http.get(MINE, headers=_bearer(credential), params={"user_id": 7})
    return response.status_code, response.json().get("error", "")


async def _upgrade(probe: Probe, credential: str) -> tuple[int, str]:
    """How an upgrade is answered; a connection is closed again."""
    async with await Raw.connect(probe.port) as client:
        client.send(raw.upgrade(f"/ws?token={credential}"))
        if await client.head() == 101:
            return 101, ""
        body = await client.reader.readexactly(int(client.headers["content-length"]))
        if client.status == 503:
            assert client.headers["retry-after"] == "5"
        return client.status, json.loads(body)["error"]


async def _connect(probe: Probe, credential: str) -> Client:
    return await probe.client(query=f"token={credential}")


async def _renew(client: Client, credential: str) -> None:
    """Return when the renewal is through: it is checked in turn, and nothing says so but a later one's refusal."""
    await client.send({"type": "auth", "token": credential})
    assert await _is_alive(client)


def _signed(**claims: Any) -> str:
    """As no library would sign it."""
    payload = {"uid": 7, "type": 0, "exp": int(time.time()) + 600, **claims}
    return jwt.PyJWS().encode(json.dumps(payload).encode(), SECRET, "HS256")


async def _is_alive(client: Client) -> bool:
    await client.send({"type": "ping"})
    return (await client.receive())["type"] == "pong"


async def _health(probe: Probe) -> dict[str, Any]:
    return await probe.get("/websocket/health", headers={"X-API-Key": API_KEY})


async def _has_status(probe: Probe, status: str) -> bool:
    return (await _health(probe))["status"] == status


class TestRevoked:
    async def test_at_connect_and_over_http(self, probe: Probe, redis_server: RedisServer) -> None:
        await _revoke(redis_server, "bad")
        revoked, good, other = token(7, jti="bad"), token(7, jti="good"), token(7, jti="other")
        assert await _call(probe, revoked) == (401, "UNAUTHORIZED")
        assert await _upgrade(probe, revoked) == (401, "UNAUTHORIZED")
        assert await _call(probe, token(1, 1, jti="bad")) == (401, "UNAUTHORIZED")
        for credential in (good, other, API_KEY):
            assert await _call(probe, credential) == (200, "")
        for credential in (good, other):
            assert await _upgrade(probe, credential) == (101, "")
        scrape = (await probe.http.get("/metrics")).text
        assert 'pushd_handshakes_rejected_total{reason="unauthorized"} 1.0' in scrape

    async def test_nothing_is_published_with_one(self, probe: Probe, redis_server: RedisServer) -> None:
        await _revoke(redis_server, "bad")
        response = await probe.post("/system/notice", {"content": "x"}, headers=_bearer(token(1, 1, jti="bad")))
        assert response.status_code == 401
        stats = await probe.get("/notification/stats", headers={"X-API-Key": API_KEY})
        assert stats["total_records"] == 0

    async def test_a_publisher_is_heard_until_then(self, probe: Probe, redis_server: RedisServer) -> None:
        headers = _bearer(token(1, 1, jti="soon"))
        for content, status in (("x", 200), ("", 400), ("y", 200)):
            assert (await probe.post("/system/notice", {"content": content}, headers=headers)).status_code == status
        await _revoke(redis_server, "soon")
        assert (await probe.post("/system/notice", {"content": "z"}, headers=headers)).status_code == 401

    async def test_live_connections(self, probe: Probe, redis_server: RedisServer) -> None:
        first = await _connect(probe, token(7, jti="bad"))
        second = await _connect(probe, token(7, jti="bad"))
        others = [await _connect(probe, token(7, jti="good")), await _connect(probe, token(8, jti="other"))]
        await _revoke(redis_server, "bad")
        assert (await first.closed(), await second.closed()) == (4403, 4403)
        for other in others:
            assert await _is_alive(other)
        assert await _has_status(probe, "healthy")

    async def test_a_connection_answers_for_all_its_tokens(self, probe: Probe, redis_server: RedisServer) -> None:
        """Whichever of them is revoked; and for no other connection's."""
        for revoked in ("first", "second", "third"):
            renewed = await _connect(probe, token(7, jti=f"first-{revoked}"))
            for name in ("second", "third", "third"):
                await _renew(renewed, token(7, jti=f"{name}-{revoked}"))
            other = await _connect(probe, token(7, jti=f"other-{revoked}"))
            assert await _is_alive(renewed)
            await _revoke(redis_server, f"{revoked}-{revoked}")
            assert await renewed.closed() == 4403
            assert await _is_alive(other)

    async def test_a_former_token_that_has_expired_is_forgotten(self, probe: Probe, redis_server: RedisServer) -> None:
        client = await _connect(probe, token(7, jti="first"))
        (connection,) = probe.node.hub.connections_of(7)
        connection.details.token_id = ""
        connection.details.tokens = (("gone", time.time() - 1), ("here", time.time() + 60))
        await _renew(client, token(7, jti="second"))
        assert token_ids(connection.details) == ["here", "second"]

    async def test_so_many_tokens_and_no_more(self, probe: Probe) -> None:
        client = await _connect(probe, token(7, jti="first"))
        for number in range(1, MAX_TOKENS):
            await _renew(client, token(7, jti=f"t{number}"))
        await client.send({"type": "auth", "token": token(7, jti="one more")})
        assert await client.closed() == 4401

    async def test_renewal_saves_nobody_before_it_is_noticed(
        self, unwatching: Probe, redis_server: RedisServer
    ) -> None:
        client = await _connect(unwatching, token(7, jti="bad"))
        await _revoke(redis_server, "bad")
        assert await _is_alive(client)
        await client.send({"type": "auth", "token": token(7, jti="fresh")})
        assert await client.closed() == 4403

    async def test_renewal_with_a_revoked_token(self, unwatching: Probe, redis_server: RedisServer) -> None:
        await _revoke(redis_server, "bad")
        client = await _connect(unwatching, token(7, jti="good"))
        await client.send({"type": "auth", "token": token(7, jti="bad")})
        assert await client.closed() == 4403

    async def test_tokens_without_an_id(self, probe: Probe) -> None:
        """Nobody could revoke them."""
        for claims in ({}, {"jti": None}, {"jti": ""}, {"jti": [7]}, {"jti": "x" * 256}, {"jti": "a\nb"}):
            credential = _signed(**claims)
            assert await _call(probe, credential) == (401, "UNAUTHORIZED")
            assert await _upgrade(probe, credential) == (401, "UNAUTHORIZED")
            client = await _connect(probe, token(7, jti="good"))
            await client.send({"type": "auth", "token": credential})
            assert await client.closed() == 4401
        response = await probe.http.get(MINE, headers=_bearer(token(7)))
        assert "claim jti: found none, expected" in response.json()["message"]
        assert await _call(probe, API_KEY) == (200, "")

    async def test_many_tokens(self, probe: Probe, redis_server: RedisServer) -> None:
        count = 1201  # several questions' worth
        revocations = probe.node.authenticator.revocations
        await _revoke(redis_server, "t0")
        await _revoke(redis_server, f"t{count - 1}")
        assert await revocations.revoked([f"t{index}" for index in range(count)]) == {"t0", f"t{count - 1}"}
        assert await revocations.revoked([]) == set()


class TestWithoutRedis:
    async def test_stopped_and_back(self, probe: Probe, redis_server: RedisServer) -> None:
        client = await _connect(probe, token(7, jti="good"))
        user, admin = token(7, jti="good"), token(1, 1, jti="admin")
        await redis_server.stop()
        for credential in (user, admin):
            assert await _call(probe, credential) == (503, "STORE_UNAVAILABLE")
            assert await _upgrade(probe, credential) == (503, "STORE_UNAVAILABLE")
        response = await probe.http.get(MINE, headers=_bearer(user))
        assert response.headers["retry-after"] == "5"
        assert await _call(probe, API_KEY) == (200, "")
        health = await _health(probe)
        assert health["status"] == "degraded"
        assert "revocations" in health["last_error"]
        assert 'pushd_store_up{store="revocations"} 0.0' in (await probe.http.get("/metrics")).text
        assert (await probe.http.get("/readyz")).status_code == 200
        await asyncio.sleep(3 * SHORT_S)  # for what must not happen: the watch closes nobody
        assert await _is_alive(client)

        await redis_server.start()
        assert await _call(probe, user) == (200, "")
        assert await _upgrade(probe, admin) == (101, "")
        await until(lambda: _has_status(probe, "healthy"))
        await _revoke(redis_server, "good")
        assert await client.closed() == 4403

    async def test_renewal_waits_for_it(self, probe: Probe, redis_server: RedisServer) -> None:
        """Nothing is believed that cannot be checked; the former token counts, and the client can try again."""
        client = await _connect(probe, token(7, jti="good", exp=int(time.time()) + 600))
        (connection,) = probe.node.hub.connections_of(7)
        expires_at = connection.expires_at
        await redis_server.stop()
        await client.send({"type": "auth", "token": token(7, jti="fresh")})
        refusal = await client.receive()
        assert (refusal["type"], refusal["error"]) == ("error", "STORE_UNAVAILABLE")
        assert connection.expires_at == expires_at
        await redis_server.start()
        await client.send({"type": "auth", "token": token(7, jti="fresh")})
        await until(lambda: connection.expires_at > expires_at)
        assert await _is_alive(client)

    async def test_health_notices_without_being_asked(self, probe: Probe, redis_server: RedisServer) -> None:
        await redis_server.stop()
        await until(lambda: _has_status(probe, "degraded"))
        await redis_server.start()
        await until(lambda: _has_status(probe, "healthy"))

    async def test_frozen(self, probe: Probe, redis_server: RedisServer) -> None:
        client = await _connect(probe, token(7, jti="good"))
        redis_server.freeze()
        try:
            began = time.monotonic()
            answers = await asyncio.gather(*(_call(probe, token(7, jti=f"t{index}")) for index in range(12)))
            assert set(answers) == {(503, "STORE_UNAVAILABLE")}
            assert await _upgrade(probe, token(7, jti="good")) == (503, "STORE_UNAVAILABLE")
            assert time.monotonic() - began < 5.0
            assert await _call(probe, API_KEY) == (200, "")
            assert await _is_alive(client)
        finally:
            redis_server.thaw()
        await until(lambda: _has_status(probe, "healthy"))
        assert await _call(probe, token(7, jti="good")) == (200, "")

    async def test_absent_at_the_start(self, start: Any, redis_server: RedisServer) -> None:
        await redis_server.stop()
        probe = await start(auth={**JWT, "revocation_url": redis_server.url})
        assert await _call(probe, token(7, jti="good")) == (503, "STORE_UNAVAILABLE")
        await redis_server.start()
        assert await _call(probe, token(7, jti="good")) == (200, "")


class TestPromise:
    async def test_the_watch_keeps_it(self, unwatching: Probe, redis_server: RedisServer) -> None:
        """A round begins every half of REVOKED_WITHIN_S and takes at most the other half."""
        assert REVOKED_WITHIN_S <= PROMISED_S - 0.5
        node = unwatching.node
        client = await _connect(unwatching, token(7, jti="bad"))
        sleeps: list[float] = []

        async def sleep(seconds: float) -> None:
            sleeps.append(seconds)
            if len(sleeps) > 1:
                raise asyncio.CancelledError

        await _revoke(redis_server, "bad")
        with pytest.raises(asyncio.CancelledError):
            await RevocationWatch(node.hub, node.authenticator.revocations, node.metrics, sleep=sleep).run()
        assert sleeps == [REVOKED_WITHIN_S / 2] * 2
        assert await client.closed() == 4403


class TestConfiguration:
    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1",
            "127.0.0.1",
            "redis://:very-secret-word@127.0.0.1:port/0",
            "redis://:very-secret-word@127.0.0.1:99999999/0",
        ],
    )
    async def test_a_bad_url(self, tmp_path: Path, url: str) -> None:
        async with Process(tmp_path, auth={**JWT, "revocation_url": url}) as daemon:
            with pytest.raises(AssertionError):
                await daemon.start()
            assert await daemon.ended() in (1, 2)
        (line,) = [line for line in daemon.log_file.read_text().splitlines() if not line.startswith("{")]
        assert "revocation_url" in line
        assert "very-secret-word" not in daemon.log_file.read_text()


async def test_a_look_that_fails_in_a_way_nobody_foresaw_is_repeated(
    probe: Probe, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await probe.client(7, query=f"token={token(7, jti='t7')}")
    revocations = probe.node.authenticator.revocations
    looks: list[object] = []

    async def fail(token_ids: object) -> set[str]:
        looks.append(token_ids)
        raise TypeError("odd")

    with monkeypatch.context() as patched:
        patched.setattr(revocations, "revoked", fail)
        await until(lambda: len(looks) >= 2)
    await _revoke(redis_server, "t7")
    assert await client.closed() == 4403
    assert probe.node.metrics.errors.labels("revocations").value >= 2
