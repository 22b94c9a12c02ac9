"""Users' ids where no endpoint is: in queries of upgrades, tokens, frames, files, on disk and in the log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus

from tests.daemon import PREFIX, Probe, Process, until
from tests.system.test_user_ids import KEY, KINDS, Kind
from tests.tokens import JWT, token


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def directory(kind: Kind) -> dict[str, Any]:
    return {"user_ids": kind.name}


async def test_named_without_credentials(start: Any, kind: Kind) -> None:
    """By a query; whoever names nobody is a guest, and has an id that no user has."""
    probe: Probe = await start(directory=directory(kind))
    client = await probe.client(kind.ann)
    assert client.hello["data"]["user_id"] == kind.ann
    await client.send({"type": "ping"})
    assert (await client.receive())["data"]["user_id"] == kind.ann
    guests = {(await probe.client()).hello["data"]["user_id"] for _ in range(3)}
    assert len(guests) == 3
    assert all(map(kind.guest, guests))
    stats = await probe.get("/websocket/stats")
    assert (stats["active_connections"], stats["unique_users"]) == (4, 1)
    assert [user["user_id"] for user in (await probe.get("/notification/online-users"))["users"]] == [kind.ann]
    for name, value in kind.wrong.items():
        with pytest.raises(InvalidStatus) as refused:
            await probe.open(f"/ws?user_id={quote(value)}")
        answer = json.loads(refused.value.response.body or b"")
        assert (refused.value.response.status_code, answer["data"]) == (400, {"field": "user_id"}), name


@pytest.mark.parametrize("spelling", [0, 1])
async def test_claims(start: Any, kind: Kind, spelling: int) -> None:
    """A token names a user in any spelling, over HTTP, for an upgrade and in a frame."""
    probe: Probe = await start(auth=JWT, directory=directory(kind))
    claim = [*kind.spellings.values()][spelling]
    client = await probe.client(query=f"token={token(claim)}")
    assert client.hello["data"]["user_id"] == kind.ann
    await client.send({"type": "auth", "token": token([*kind.spellings.values()][1 - spelling])})
    await client.send({"type": "ping"})
    assert (await client.receive())["type"] == "pong"
    headers = {"Authorization": f"Bearer {token(claim)}"}
    response = await probe.http.get(f"{PREFIX}/notification/user-summary", headers=headers)
    assert response.json()["data"]["user_id"] == kind.ann
    for name, value in kind.wrong.items():
        headers = {"Authorization": f"Bearer {token(value)}"}
        response = await probe.http.get(f"{PREFIX}/notification/user-summary", headers=headers)
        assert response.status_code == 401, name
        assert response.json()["message"].startswith("claim uid: found "), name


async def test_whom_targets_mean(start: Any, kind: Kind) -> None:
    """All, a role, admins and whoever is online."""
    probe: Probe = await start(auth=JWT, directory=directory(kind))
    ann = await probe.client(query=f"token={token(kind.ann, 1, username='Ann')}")
    bob = await probe.client(query=f"token={token(kind.bob, 2)}")
    for message_id, fields, to_ann, to_bob in (
        ("all", {}, True, True),
        ("role", {"target": "role", "roles": [2]}, False, True),
        ("admin", {"target": "admin"}, True, False),
        ("online", {"target": "online"}, True, True),
        ("but", {"exclude_ids": [kind.ann]}, False, True),
        ("both", {"target": "custom", "user_ids": [kind.ann, kind.bob, kind.ann]}, True, True),
    ):
        body = {"content": "x", "message_id": message_id, **fields}
        answer = await probe.post("/system/notice?wait_ms=5000", body, headers=KEY)
        assert answer.json()["data"]["total_count"] == to_ann + to_bob, message_id
        for client, is_meant in ((ann, to_ann), (bob, to_bob)):
            if is_meant:
                assert (await client.receive())["message_id"] == message_id
    assert await ann.is_quiet()
    assert await bob.is_quiet()
    await ann.send({"type": "read", "message_ids": ["all"]})
    summary = f"{PREFIX}/notification/user-summary"
    ask = {"params": {"user_id": kind.ann}, "headers": KEY}
    await until(lambda: unread(probe, summary, ask, 3))
    record = (await probe.http.get(f"{PREFIX}/notification/records/both", headers=KEY)).json()["data"]["record"]
    nobody = "" if kind.name == "string" else 0
    assert (record["target_user_ids"], record["sender_id"]) == ([kind.ann, kind.bob], nobody)


async def unread(probe: Probe, path: str, ask: dict[str, Any], count: int) -> bool:
    return (await probe.http.get(path, **ask)).json()["data"]["unread_count"] == count


async def test_texts_are_sorted_by_bytes(start: Any) -> None:
    probe: Probe = await start(directory={"user_ids": "string"})
    ids = ["b", "B", "10", "9", "_", "a:1", "a.1", "a", "-", "@"]
    await probe.publish(target="custom", user_ids=ids)
    for order in ("asc", "desc"):
        params = {"sort_by": "user_id", "sort_order": order}
        items = (await probe.get("/notification/admin-receive-records", params=params))["items"]
        assert [item["user_id"] for item in items] == sorted(ids, key=str.encode, reverse=order == "desc")


# ---- commands, and what stays on disk


def run(config_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pushd", *arguments, "--config", str(config_file)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture
def node(tmp_path: Path, kind: Kind) -> Process:
    return Process(tmp_path, auth=JWT, directory=directory(kind))


async def test_commands(node: Process, kind: Kind, tmp_path: Path) -> None:
    """`token`, `import-users` and `import-groups` take ids as the configuration says."""
    made = run(node.config_file, "token", "--user", str(kind.ann), "--role", "1")
    assert made.returncode == 0, made.stderr
    users, groups = tmp_path / "users.csv", tmp_path / "groups.csv"
    users.write_text(f"id,username,user_type\n{kind.ann},Ann,1\n{kind.bob},Bob,2\n")
    groups.write_text(f"group,user_id\ndept,{kind.bob}\n")
    assert run(node.config_file, "import-users", str(users)).returncode == 0
    assert run(node.config_file, "import-groups", str(groups)).returncode == 0
    async with await node.start() as probe:
        client = await probe.client(query=f"token={made.stdout.strip()}")
        assert client.hello["data"]["user_id"] == kind.ann
        for target, count in (({"target": "all"}, 2), ({"target": "role", "roles": [2]}, 1),
                              ({"target": "group", "groups": ["dept"]}, 1)):  # fmt: skip
            answer = await probe.post("/system/notice?wait_ms=5000", {"content": "x", **target}, headers=KEY)
            assert answer.json()["data"]["total_count"] == count, target
        records = await probe.http.get(f"{PREFIX}/notification/admin-receive-records?sort_by=username", headers=KEY)
        assert {item["username"]: item["user_id"] for item in records.json()["data"]["items"]} == {
            "Ann": kind.ann,
            "Bob": kind.bob,
        }
    await node.kill()
    for name, value in kind.wrong.items():
        if "\n" not in value:
            made = run(node.config_file, "token", f"--user={value}")
            assert (made.returncode, made.stdout) == (2, ""), name
            assert f"--user: found {json.dumps(value[:64])}" in made.stderr
    for command, file, line in (("import-users", users, "b ob,Bob,2"), ("import-groups", groups, "dept,b ob")):
        with file.open("a") as rows:
            rows.write(f"{line}\n")
        refused = run(node.config_file, command, str(file))
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert 'found "b ob", expected ' in refused.stderr


async def test_what_is_on_disk_lives_on(node: Process, kind: Kind) -> None:
    """After `kill -9` the same users have the same notices; with the other kind of ids the start ends with one line."""
    async with await node.start() as probe:
        body = {"content": "x", "message_id": "n", "target": "custom", "user_ids": [kind.ann, kind.bob]}
        admin = {"Authorization": f"Bearer {token(kind.bob, 1, username='Bob')}"}
        assert (await probe.post("/system/notice?wait_ms=5000", body, headers=admin)).status_code == 200
        await probe.client(query=f"token={token(kind.ann)}&ack=1")
    await node.kill()
    other = "integer" if kind.name == "string" else "string"
    text = node.config_file.read_text()
    node.config_file.write_text(text.replace(f'user_ids = "{kind.name}"', f'user_ids = "{other}"'))
    for command in ((), ("import-users", str(node.config_file.with_name("none.csv"))), ("set-aside", "list")):
        if command[:1] == ("import-users",):
            Path(command[1]).write_text("id,username,user_type\n")
        ended = run(node.config_file, *command)
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
        assert f"found {kind.name} user ids, expected {other} ones" in ended.stderr
    node.config_file.write_text(text)
    async with await node.start() as probe:
        client = await probe.client(query=f"token={token(kind.ann)}&ack=1")
        assert client.hello["data"]["unread_count"] == 1
        assert (await client.receive())["message_id"] == "n"
        await client.ack("n")
        record = (await probe.http.get(f"{PREFIX}/notification/records/n", headers=KEY)).json()["data"]["record"]
        assert (record["sender_id"], record["target_user_ids"]) == (kind.bob, [kind.ann, kind.bob])
        by_sender = await probe.http.get(f"{PREFIX}/notification/stats", params={"sender_id": kind.bob}, headers=KEY)
        assert by_sender.json()["data"]["total_records"] == 1
    await node.kill()


async def test_the_document_says_which_kind(start: Any, kind: Kind) -> None:
    probe: Probe = await start(directory=directory(kind))
    schemas = (await probe.http.get("/openapi.json")).json()["components"]["schemas"]
    shown = schemas["ReceiptView"]["properties"]["user_id"]
    given = json.dumps(schemas["Submission"]["properties"]["user_ids"]["items"])
    assert shown == {"type": kind.name}
    assert ("integer" in given) == (kind.name == "integer")
    assert "x-user-id" not in json.dumps(schemas)
    assert "x-given-user-id" not in json.dumps(schemas)
