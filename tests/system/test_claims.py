"""What one token, row or document says never ends the daemon: it is refused or mended, and others are served."""

from __future__ import annotations

import base64
import hmac
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.daemon import PREFIX, Client, Probe, Process, until
from tests.mariadb import MariadbServer
from tests.mongo_server import MongoServer
from tests.raw import Raw, upgrade
from tests.servers import RedisServer
from tests.tokens import API_KEY, JWT, SECRET, token

KEY = {"X-API-Key": API_KEY}
TABLE = "CREATE TABLE user (id BIGINT UNSIGNED PRIMARY KEY, username LONGBLOB, user_type VARCHAR(80))"


def signed(**claims: Any) -> str:
    """Claims as no library would sign them."""
    head = {"alg": "HS256", "typ": "JWT"}
    payload = {"uid": 7, "type": 0, "exp": int(time.time()) + 600} | claims
    text = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (head, payload)
    )
    signature = base64.urlsafe_b64encode(hmac.digest(SECRET.encode(), text.encode(), "sha256")).rstrip(b"=")
    return f"{text}.{signature.decode()}"


# What `username` becomes, where the claims let somebody in.
MENDED: dict[str, tuple[dict[str, Any], str]] = {
    "half an emoji": ({"username": "bob\ud83d"}, "bob\ufffd"),
    "the other half": ({"username": "\ude00bob"}, "\ufffdbob"),
    "a NUL": ({"username": "bob\0admin"}, "bob\ufffdadmin"),
    "a line break": ({"username": "bob\n"}, "bob\ufffd"),
    "a long name": ({"username": "b" * 3000}, "b" * 255),
    "a number for a name": ({"username": 2**70}, ""),
    "lists for a name": ({"username": [[["bob"]]]}, ""),
    "null everywhere": (dict.fromkeys(("username", "type", "jti", "iat", "nbf", "sub", "iss", "aud")), ""),
    "a jti of halves": ({"jti": "\ud83d", "username": "bob"}, "bob"),
    "numbers for texts": ({"jti": 2**80, "sub": 7, "username": "bob"}, "bob"),
    "the least role": ({"type": -(2**31)}, ""),
    "the greatest role": ({"type": 2**31 - 1}, ""),
    "the greatest user": ({"uid": 2**63 - 1}, ""),
    "a very late end": ({"exp": 2**53}, ""),
    "an early beginning": ({"iat": -(2**53)}, ""),
}
REFUSED: dict[str, dict[str, Any]] = {
    "role 2^31": {"type": 2**31},
    "role 2^63": {"type": 2**63},
    "role 2^64": {"type": 2**64},
    "role -2^63-1": {"type": -(2**63) - 1},
    "role of 3000 digits": {"type": 10**3000},
    "role a fraction": {"type": 1.5},
    "role without end": {"type": float("inf")},
    "role no number": {"type": float("nan")},
    "role a text": {"type": "1"},
    "role true": {"type": True},
    "user 2^63": {"uid": 2**63},
    "user 2^64": {"uid": 2**64},
    "user of halves": {"uid": "\ud83d"},
    "user without end": {"uid": float("inf")},
    "end beyond floats": {"exp": 10**400},
    "end 1e308": {"exp": 1e308},
    "end a list": {"exp": [1]},
    "made an object": {"iat": {"at": 1}},
    "begins no number": {"nbf": float("nan")},
}


async def connect(probe: Probe, credential: str) -> Client:
    """By header: some tokens are longer than a target may be."""
    return await probe.client(additional_headers={"Authorization": f"Bearer {credential}"})


async def try_everything(probe: Probe) -> None:
    """Each token on each way in, in the midst of others."""
    bystander = await connect(probe, token(8, username="eve"))
    for name, claims in REFUSED.items():
        credential = signed(**claims)
        with pytest.raises(InvalidStatus) as refused:
            await connect(probe, credential)
        body = json.loads(refused.value.response.body or b"{}")
        assert (refused.value.response.status_code, body["error"]) == (401, "UNAUTHORIZED"), name
        assert body["message"].startswith("claim "), name
        response = await probe.http.get(f"{PREFIX}/notification/user-summary", headers={"X-API-Key": credential})
        assert response.status_code == 401, name
        client = await connect(probe, token(8))
        await client.send({"type": "auth", "token": credential})
        assert await client.closed() == 4401, name
    for name, (claims, username) in MENDED.items():
        user_id = claims.get("uid", 7)
        client = await connect(probe, signed(**claims))
        assert client.hello["data"]["user_id"] == user_id, name
        await client.send({"type": "auth", "token": signed(**claims)})
        await client.send({"type": "ping"})
        while (await client.receive())["type"] != "pong":
            pass
        await exchange(probe, client, user_id)
        users = (await probe.get("/notification/online-users", headers=KEY))["users"]
        names = {user["user_id"]: user["username"] for user in users}
        assert not username or names[user_id] == username, name
        assert names[8] == "eve"
        await client.ws.close()
    await exchange(probe, bystander, 8)


async def exchange(probe: Probe, client: Client, user_id: int) -> None:
    """A notice to this user and one to all reach the client, and the records have them."""
    for target in ({"target": "custom", "user_ids": [user_id]}, {"target": "all"}):
        response = await probe.post("/system/notice?wait_ms=5000", {"content": "x", **target}, headers=KEY)
        message_id = response.json()["data"]["message_id"]
        assert response.status_code == 200
        while (await client.receive())["message_id"] != message_id:
            pass
        status = await probe.get(f"/notification/messages/{message_id}/receive-status", headers=KEY)
        assert status["received_users"] >= 1


async def survives(daemon: Process) -> None:
    """It runs, says so, and starts again on what was left."""
    async with await daemon.start() as probe:
        await try_everything(probe)
        health = await probe.get("/websocket/health", headers=KEY)
        assert health["status"] == "healthy"
        assert 'kind="' not in (await probe.http.get("/metrics")).text.replace('pushd_errors_total{kind=""', "")
    await daemon.kill()
    async with await daemon.start() as probe:
        for user_id in (7, 8, 2**63 - 1):
            client = await connect(probe, token(user_id))
            await exchange(probe, client, user_id)
        assert (await probe.get("/websocket/health", headers=KEY))["status"] == "healthy"


class TestTokens:
    async def test_with_the_embedded_stores(self, tmp_path: Path) -> None:
        async with Process(tmp_path, auth=JWT) as daemon:
            await survives(daemon)

    async def test_with_stores_outside(
        self, tmp_path: Path, redis_server: RedisServer, mongo_server: MongoServer, mariadb_server: MariadbServer
    ) -> None:
        mariadb_server.execute(TABLE)
        users = [(7, b"seven", "0"), (8, b"eve", "0"), (2**63 - 1, b"last", "0")]
        odd = [
            (11, b"\xff\xfe\0\n" + b"x" * 100_000, str(2**31)),
            (12, None, str(2**63)),
            (13, "bob\ud83d".encode("utf-8", "surrogatepass"), "9" * 80),
            (14, b"", f"-{2**31 + 1}"),
            (15, b"x", "1e5"),
            (2**63, b"beyond", "0"),
            (2**64 - 1, b"last of all", "1"),
        ]
        mariadb_server.insert("INSERT INTO user VALUES (%s, %s, %s)", users + odd)
        sections = {
            "auth": JWT,
            "mailbox": {"url": redis_server.url},
            "records": {"url": mongo_server.url},
            "directory": {"url": mariadb_server.url},
        }
        async with Process(tmp_path, **sections) as daemon:
            await survives(daemon)
            async with Probe(daemon.port) as probe:
                records = await probe.get("/notification/admin-receive-records?user_id=11", headers=KEY)
                assert {(row["username"], row["user_role"]) for row in records["items"]} == {
                    ("\ufffd" * 4 + "x" * 251, 0)
                }


class TestRequests:
    async def test_queries_bodies_and_headers(self, probe: Probe) -> None:
        """Nothing of this is a 500, and nothing of it keeps a notice from anybody."""
        client = await probe.client(7)
        lists = (
            "/notification/records?keyword=%00", "/notification/records?message_type=a%00b",
            "/notification/admin-receive-records?username=%ED%A0%BD",
            "/notification/admin-receive-records?username=%00x",
            "/notification/records?sender_id=18446744073709551616", "/notification/stats?start_date=9999-12-31",
            "/notification/records?start_date=0001-01-01&end_date=9999-12-30T00:00:00%2B14:00",
            "/notification/records/%00%ED%A0%BD", "/notification/user-summary?user_id=9223372036854775808",
        )  # fmt: skip
        for path in lists:
            response = await probe.http.get(PREFIX + path)
            assert response.status_code in (200, 400, 404), path
        assert (await probe.http.get(f"{PREFIX}/notification/records?keyword=a%00")).status_code == 400
        bodies = (
            b'{"content":"a\\ud83d"}', b'{"content":"x","data":1e400}',
            b'{"content":"x","data":[123456789012345678901]}',
            b'{"content":"x","data":NaN}', b'{"content":"\xed\xa0\xbd"}', b'{"content":"x","type":"a\\u0000"}',
            b'{"content":"x","target":"role","roles":[2147483648]}', b'{"content":"x","expires_in_s":1e308}',
            b'{"content":"x","target":"custom","user_ids":[9223372036854775808]}',
            b'{"content":"x","message_id":"\\u0000"}',
        )  # fmt: skip
        json_type = {"Content-Type": "application/json"}
        for body in bodies:
            response = await probe.http.post(f"{PREFIX}/system/notice", content=body, headers=json_type)
            assert response.status_code == 400, (body, response.text)
        odd = {"content": "a\0b", "data": {"$set": 1, "a.b": "\0", "": [2**63, -(2**63), 1e308], "\0": None}}
        published = await probe.post("/system/notice?wait_ms=5000", odd)
        assert published.status_code == 200
        received = await client.receive()
        assert (received["content"], received["data"]) == (odd["content"], odd["data"])
        record = await probe.get(f"/notification/records/{received['message_id']}")
        assert record["record"]["extra_data"] == odd["data"]

    @pytest.mark.parametrize("agent", [b"\xff\xfe" * 300, b"\xed\xa0\xbd", b"x" * 8000, b"\x80", "Zoë".encode()])
    async def test_user_agents(self, probe: Probe, agent: bytes) -> None:
        async with await Raw.connect(probe.port) as raw:
            raw.send(upgrade("/ws?user_id=7").replace(b"\r\n\r\n", b"\r\nUser-Agent: " + agent + b"\r\n\r\n"))
            assert await raw.head() == 101
            assert b"hello" in (await raw.frame()).payload
            message_id = (await probe.publish(target="all"))["message_id"]
            await until(lambda: _is_received(probe, message_id))
            assert [user["user_id"] for user in (await probe.get("/notification/online-users"))["users"]] == [7]


async def _is_received(probe: Probe, message_id: str) -> bool:
    return bool((await probe.receive_status(message_id))["received_users"] == 1)


class TestWhatWasLeftBehind:
    async def test_rows_that_no_daemon_of_today_would_write(self, tmp_path: Path) -> None:
        async with Process(tmp_path, auth=JWT) as daemon:
            async with await daemon.start() as probe:
                await connect(probe, token(7, username="ada"))
            await daemon.kill()
            with closing(sqlite3.connect(tmp_path / "data" / "pushd.db")) as database:
                insert = "INSERT INTO user (id, username, user_type) VALUES (?, CAST(? AS TEXT), ?)"
                rows = [
                    (11, b"ann", 2.0**63),
                    (12, "bob\ud83d".encode("utf-8", "surrogatepass"), "admin"),
                    (13, b"\xff\0\n", b"\xff"),
                    (14, b"x" * 100_000, 2**62),
                    (15, b'\\ud83d"', -1e300),
                    (-5, b"guest", 1),
                ]
                database.executemany(insert, rows)
                database.execute("UPDATE user SET username = x'ff00' WHERE id = 11")  # a blob
                database.execute(
                    "UPDATE admin_user_online_status SET online_time = NULL, is_online = 1, username = x'ff00',"
                    " user_agent = 1e999, total_online_time = 'long', total_online_count = 1e999, client_ip = x''"
                )
                database.commit()
            async with await daemon.start() as probe:
                clients = {user_id: await connect(probe, token(user_id)) for user_id in (7, 11, 12, 13, 14, 15)}
                for user_id, client in clients.items():
                    await exchange(probe, client, user_id)
                assert (await probe.get("/websocket/health", headers=KEY))["status"] == "healthy"
                assert (await probe.get("/notification/stats", headers=KEY))["total_records"] == 12
                status = await probe.get("/notification/online-users", headers=KEY)
                assert status["total_online"] == len(clients)
