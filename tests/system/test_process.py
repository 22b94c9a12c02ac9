"""The daemon as a process: starting, refusing to start, signals, drain (CONTRACT section 1)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.daemon import Process, until
from tests.tokens import PRIVATE_PEM, PUBLIC_PEM, token


def pushd(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pushd", *arguments], capture_output=True, text=True, timeout=30, check=False, **options
    )


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Process]:
    async with Process(tmp_path) as process:
        yield process


def assert_one_line(result: subprocess.CompletedProcess[str], status: int, *parts: str) -> None:
    assert result.returncode == status, result
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def test_check_opens_nothing(tmp_path: Path) -> None:
    config = tmp_path / "pushd.toml"
    config.write_text(f'[server]\ndata_dir = "{tmp_path}/data"\n')
    result = pushd("--config", str(config), "--check")
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", "")
    assert not (tmp_path / "data").exists()


def test_port_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = tmp_path / "pushd.toml"
        config.write_text(f'[server]\nport = {port}\ndata_dir = "{tmp_path}/data"\n[log]\nlevel = "error"\n')
        assert_one_line(pushd("--config", str(config)), 1, f"127.0.0.1:{port}")


def test_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = tmp_path / "pushd.toml"
    config.write_text(f'[server]\nport = 0\ndata_dir = "{tmp_path}/file/data"\n[log]\nlevel = "error"\n')
    assert_one_line(pushd("--config", str(config)), 1, f"{tmp_path}/file/data")


def test_unreadable_public_key(tmp_path: Path) -> None:
    config = tmp_path / "pushd.toml"
    config.write_text(
        f'[server]\nport = 0\ndata_dir = "{tmp_path}/data"\n[log]\nlevel = "error"\n'
        f'[auth]\nmode = "jwt"\njwt_algorithms = ["RS256"]\njwt_public_key_file = "{tmp_path}/none.pem"\n'
    )
    assert_one_line(pushd("--config", str(config)), 1, f"{tmp_path}/none.pem")


def test_a_public_key_that_does_not_fit(tmp_path: Path) -> None:
    """`--check` opens nothing, so it says nothing of it."""
    config, key = tmp_path / "pushd.toml", tmp_path / "key.pem"
    for content, algorithm in (("garbage", "RS256"), ("", "EdDSA"), (PUBLIC_PEM, "ES256"), (PRIVATE_PEM, "RS256")):
        key.write_text(content)
        config.write_text(
            f'[server]\nport = 0\ndata_dir = "{tmp_path}/data"\n[log]\nlevel = "error"\n'
            f'[auth]\nmode = "jwt"\njwt_algorithms = ["{algorithm}"]\njwt_public_key_file = "{key}"\n'
        )
        assert_one_line(pushd("--config", str(config)), 2, f"auth.jwt_public_key_file: {key}: found ")
        assert pushd("--config", str(config), "--check").returncode == 0


async def test_a_reload_keeps_a_key_that_fits(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text(PUBLIC_PEM)
    auth = {"mode": "jwt", "jwt_algorithms": ["RS256"], "jwt_public_key_file": str(key)}
    good = token(7, key=PRIVATE_PEM, algorithm="RS256")
    async with Process(tmp_path, auth=auth) as daemon, await daemon.start() as probe:
        for content in ("garbage", PRIVATE_PEM, None):
            offset = daemon.log_file.stat().st_size
            if content is None:
                key.unlink()
            else:
                key.write_text(content)
            await daemon.signal(signal.SIGHUP)
            await until(lambda offset=offset: any("not reloaded" in str(one) for one in daemon.events(offset)))
            await probe.client(query=f"token={good}")
        assert PRIVATE_PEM.splitlines()[1] not in daemon.log_file.read_text()


async def test_two_daemons_cannot_share_a_data_directory(daemon: Process) -> None:
    await daemon.start()
    result = await asyncio.to_thread(
        pushd, "--config", str(daemon.config_file), env={**os.environ, "PUSHD_LOG_LEVEL": "error"}
    )
    assert_one_line(result, 1, "data")


async def test_sigterm_drains(daemon: Process) -> None:
    async with await daemon.start() as probe:
        clients = [await probe.client(user_id, ack=True) for user_id in range(1, 6)]
        await probe.publish(target="all")
        for client in clients:
            await client.receive()
        await daemon.signal(signal.SIGTERM)
        assert [await client.closed() for client in clients] == [1012] * 5
    assert await daemon.ended() == 0
    async with await daemon.start() as probe:
        assert all([len(await probe.mailbox(user_id)) == 1 for user_id in range(1, 6)])


async def test_while_draining_publishes_are_refused(tmp_path: Path) -> None:
    async with Process(tmp_path, server={"drain_s": 5}) as daemon, await daemon.start() as probe:
        clients = [await probe.client() for _ in range(200)]  # closed over about a second
        await daemon.signal(signal.SIGTERM)
        ready = await until(lambda: _refusal(probe))
        assert ready.headers["Retry-After"]
        refused = await probe.post("/system/notice", {"content": "x"})
        assert (refused.status_code, refused.json()["error"]) == (503, "DRAINING")
        assert refused.headers["Retry-After"]
        assert [await client.closed() for client in clients] == [1012] * 200
        assert await daemon.ended() == 0


async def _refusal(probe: Any) -> Any:
    response = await probe.http.get("/readyz")
    return response if response.status_code == 503 else None


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with Process(tmp_path, server={"drain_s": 30}) as daemon, await daemon.start() as probe:
        for _ in range(300):
            await probe.client()
        await daemon.signal(signal.SIGTERM)
        await until(lambda: any(event.get("event") == "draining" for event in daemon.events()))
        await daemon.signal(signal.SIGTERM)
        assert await daemon.ended(1.0) == -signal.SIGTERM


async def test_sighup_takes_over_limits_and_keys(tmp_path: Path) -> None:
    key, new_key = "k" * 20, "n" * 20
    auth = {"mode": "jwt", "jwt_secret": "s" * 32, "api_keys": [key]}
    async with Process(tmp_path, auth=auth) as daemon, await daemon.start() as probe:
        probe.http.headers["X-API-Key"] = key
        await probe.publish("x" * 500)
        claims = {"uid": 7, "type": 1, "exp": int(time.time()) + 600}
        bearers = [{"Authorization": f"Bearer {jwt.encode(claims, char * 32)}"} for char in "st"]
        del probe.http.headers["X-API-Key"]
        answers = [await probe.post("/system/notice", {"content": "x"}, headers=bearer) for bearer in bearers]
        assert [answer.status_code for answer in answers] == [200, 401]
        probe.http.headers["X-API-Key"] = key
        text = daemon.config_file.read_text().replace("s" * 32, "t" * 32)
        daemon.config_file.write_text(text.replace(key, new_key) + "\n[limits]\nmax_content_chars = 10\n")
        await daemon.signal(signal.SIGHUP)
        await until(lambda: any(event.get("event") == "configuration reloaded" for event in daemon.events()))
        assert (await probe.post("/system/notice", {"content": "x"})).status_code == 401
        del probe.http.headers["X-API-Key"]
        answers = [await probe.post("/system/notice", {"content": "x"}, headers=bearer) for bearer in bearers]
        assert [answer.status_code for answer in answers] == [401, 200]
        probe.http.headers["X-API-Key"] = new_key
        assert (await probe.post("/system/notice", {"content": "x" * 11})).json()["error"] == "CONTENT_TOO_LONG"

        daemon.config_file.write_text("not toml")
        await daemon.signal(signal.SIGHUP)
        await until(lambda: any("not reloaded" in event.get("event", "") for event in daemon.events()))
        assert (await probe.post("/system/notice", {"content": "x"})).status_code == 200


async def test_it_tells_the_service_manager(daemon: Process, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(10)
        await daemon.start(environ={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert await asyncio.to_thread(channel.recv, 100) == b"READY=1"
        await daemon.signal(signal.SIGINT)
        assert await asyncio.to_thread(channel.recv, 100) == b"STOPPING=1"
    assert await daemon.ended() == 0


async def test_imported_users_are_addressed(daemon: Process, tmp_path: Path) -> None:
    users = tmp_path / "users.json"
    users.write_text(
        json.dumps([{"id": 7, "username": "ann", "user_type": 1}, {"id": 8, "username": "b", "user_type": 2}])
    )
    result = await asyncio.to_thread(pushd, "import-users", str(users), "--config", str(daemon.config_file))
    assert result.returncode == 0, result
    async with await daemon.start() as probe:
        published = await probe.publish(target="admin")
        assert published["total_count"] == 1
        assert await probe.mailbox(7) == [published["message_id"]]
        assert (await probe.publish(target="all"))["total_count"] == 2


async def test_a_token_from_the_command_line_connects(tmp_path: Path) -> None:
    auth = {"mode": "jwt", "jwt_secret": "s" * 32}
    async with Process(tmp_path, auth=auth) as daemon, await daemon.start() as probe:
        result = await asyncio.to_thread(
            pushd, "token", "--user", "7", "--role", "1", "--ttl", "60", "--config", str(daemon.config_file)
        )
        client = await probe.client(query=f"token={result.stdout.strip()}")
        assert client.hello["data"]["user_id"] == 7
