"""Whom `admin` and `role` notices reach follows the newest token; API rights follow the one that is shown."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import PREFIX, Client, Probe, Process, until
from tests.mariadb import MariadbServer
from tests.tokens import API_KEY, JWT, token

KEY = {"X-API-Key": API_KEY}
NOW = int(time.time())


async def connect(probe: Probe, user_id: int, role: int, **claims: Any) -> Client:
    return await probe.client(query=f"token={token(user_id, role, **claims)}")


async def reached(probe: Probe, **target: Any) -> set[int]:
    """Whom a notice is for, connected or not."""
    body = {"content": "for some", "target": "admin", **target}
    response = await probe.post("/system/notice?wait_ms=5000", body, headers=KEY)
    message_id = response.json()["data"]["message_id"]
    path = f"/notification/admin-receive-records?message_id={message_id}&page_size=100"
    return {row["user_id"] for row in (await probe.get(path, headers=KEY))["items"]}


@pytest.fixture(params=["sqlite:", "none"])
async def probe(request: Any, start: Any) -> Probe:
    return await start(auth=JWT, directory={"url": request.param})


class TestDirectory:
    async def test_down_and_up(self, probe: Probe) -> None:
        first = await connect(probe, 7, 1, iat=NOW - 100)
        assert await reached(probe) == {7}
        await first.receive()
        await connect(probe, 7, 0, iat=NOW - 50)
        assert await reached(probe) == set()
        assert await reached(probe, target="role", roles=[0]) == {7}
        assert (await first.receive())["content"] == "for some"  # it was for role 0
        await connect(probe, 7, 1, iat=NOW - 10)
        assert await reached(probe) == {7}
        assert await reached(probe, target="role", roles=[0]) == set()

    async def test_an_older_token_changes_nothing(self, probe: Probe) -> None:
        await connect(probe, 7, 0, iat=NOW - 50)
        await connect(probe, 7, 1, iat=NOW - 100)
        assert await reached(probe) == set()

    async def test_without_a_time_the_later_use_counts(self, probe: Probe) -> None:
        for role in (1, 0, 1, 0):
            await connect(probe, 7, role)
            assert await reached(probe) == ({7} if role else set())
        await connect(probe, 7, 1)
        await probe.client(query=f"token={token(7, without='type')}")
        assert await reached(probe) == set()

    async def test_rights_are_the_tokens_own(self, probe: Probe) -> None:
        """The former administrator's token is as good as before; who may be reached is another matter."""
        admin = token(7, 1, iat=NOW - 100)
        await probe.client(query=f"token={admin}")
        await connect(probe, 7, 0, iat=NOW - 50)
        for credential, status in ((admin, 200), (token(7, 0, iat=NOW - 50), 403), (token(8, 1), 200)):
            headers = {"Authorization": f"Bearer {credential}"}
            response = await probe.http.get(f"{PREFIX}/websocket/stats", headers=headers)
            assert response.status_code == status
        assert await reached(probe) == set()  # calls make nobody known

    async def test_a_fresh_token_on_a_live_connection(self, probe: Probe) -> None:
        client = await connect(probe, 7, 1, iat=NOW - 100, username="ada")
        assert await reached(probe) == {7}
        await client.receive()
        await client.send({"type": "auth", "token": token(7, 0, iat=NOW - 50, username="ada l.")})
        await until(lambda: _is_reached(probe, set()))
        (user,) = (await probe.get("/notification/online-users", headers=KEY))["users"]
        assert user["username"] == "ada l."
        await client.send({"type": "auth", "token": token(7, 1, iat=NOW - 70)})  # it is older
        await client.send({"type": "ping"})
        while (await client.receive())["type"] != "pong":
            pass
        assert await reached(probe) == set()
        await client.send({"type": "auth", "token": token(7, 1, iat=NOW - 20)})
        await until(lambda: _is_reached(probe, {7}))


async def _is_reached(probe: Probe, user_ids: set[int]) -> bool:
    return await reached(probe) == user_ids


async def test_it_is_known_after_a_restart_and_imported_users_stay(tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    users.write_text("id,username,user_type\n9,ivy,1\n8,abe,0\n")
    async with Process(tmp_path, auth=JWT) as daemon:
        async with await daemon.start() as probe:
            command = [sys.executable, "-m", "pushd", "--config", str(daemon.config_file), "import-users", str(users)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            await connect(probe, 7, 1, iat=NOW - 100)
            await connect(probe, 7, 0, iat=NOW - 50)
            await connect(probe, 9, 0, iat=NOW - 50)
            await connect(probe, 8, 1)
            assert await reached(probe) == {9}
        await daemon.kill()
        async with await daemon.start() as probe:
            assert await reached(probe) == {9}
            await connect(probe, 7, 1, iat=NOW - 100)
            assert await reached(probe) == {9}
            await connect(probe, 7, 1, iat=NOW - 40)
            assert await reached(probe) == {7, 9}


async def test_a_table_of_others_is_not_followed_by_tokens(start: Any, mariadb_server: MariadbServer) -> None:
    mariadb_server.execute("CREATE TABLE user (id INT PRIMARY KEY, username TEXT, user_type INT)")
    mariadb_server.execute("INSERT INTO user VALUES (7, 'ada', 1), (8, 'abe', 0)")
    probe = await start(auth=JWT, directory={"url": mariadb_server.url})
    await connect(probe, 7, 0)
    await connect(probe, 8, 1)
    assert await reached(probe) == {7}
