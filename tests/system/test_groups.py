"""Notices to groups: from outside, with users who are there and users who are not, on both directories."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Probe, Process, until
from tests.mariadb import MariadbServer

HERE, THERE, ABSENT, BOTH, STRANGER = 1, 2, 3, 4, 5
RECORDS = "/notification/records"
MEMBERS = {"dept:12": [HERE, ABSENT, BOTH], "dept:7": [THERE, BOTH]}
CSV = "group,user_id\n" + "".join(f"{name},{user}\n" for name, users in MEMBERS.items() for user in users)
GROUPS = {"target": "group", "groups": ["dept:12", "dept:7", "unknown"]}
TABLE = "CREATE TABLE staff (id INT, dept VARCHAR(64), KEY (dept, id))"
QUERY = """
SELECT CONCAT('dept:', dept) AS `group`,  -- 100 % of them
       id AS user_id
  FROM staff
"""


def pushd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pushd", *arguments], capture_output=True, text=True, check=False)


async def imported(daemon: Process, text: str) -> subprocess.CompletedProcess[str]:
    file = daemon.config_file.with_name("groups.csv")
    file.write_text(text)
    return await asyncio.to_thread(pushd, "import-groups", str(file), "--config", str(daemon.config_file))


@pytest.fixture(params=["sqlite:", "mysql"])
async def daemon(request: Any, tmp_path: Path) -> Any:
    """With those groups, not started yet."""
    directory: dict[str, Any] = {"url": "sqlite:", "cache_ttl_s": 0.1}
    if request.param == "mysql":
        server: MariadbServer = request.getfixturevalue("mariadb_server")
        server.execute("CREATE TABLE user (id INT PRIMARY KEY, username TEXT, user_type INT)")
        server.execute(TABLE)
        staff = [(HERE, 12), (ABSENT, 12), (BOTH, 12), (THERE, 7), (BOTH, 7)]
        server.insert("INSERT INTO staff VALUES (%s, %s)", staff)
        directory |= {"url": server.url, "groups_query": QUERY}
    async with Process(tmp_path, directory=directory) as process:
        if request.param == "sqlite:":
            result = await imported(process, CSV)
            assert (result.returncode, result.stdout) == (0, "2 groups replaced, with 5 members\n"), result.stderr
        yield process


async def test_two_groups_with_users_here_and_absent(daemon: Process) -> None:
    """Each gets one copy; after a crash, too."""
    async with await daemon.start() as probe:
        clients = {user_id: await probe.client(user_id) for user_id in (HERE, THERE, BOTH, STRANGER)}
        published = await probe.publish("to both", **GROUPS)
        message_id = published["message_id"]
        assert (published["target"], published["recipients_count"]) == ("group", "group_users")
        assert (published["total_count"], published["online_count"], published["offline_count"]) == (4, 3, 1)
        excluding = await probe.publish("but one", **GROUPS, exclude_ids=[BOTH])
        assert excluding["total_count"] == 3
        marker = await probe.publish("marker", target="online")
        expected = [message_id, excluding["message_id"], marker["message_id"]]
        assert await clients[HERE].receive_ids(3) == await clients[THERE].receive_ids(3) == expected
        assert await clients[BOTH].receive_ids(2) == [message_id, marker["message_id"]]
        assert await clients[STRANGER].receive_ids(1) == [marker["message_id"]]
        assert await probe.mailbox(ABSENT) == [message_id, excluding["message_id"]]
        nobody = await probe.publish("nobody", target="group", groups=["unknown", "Dept:12"])
        assert (nobody["status"], nobody["total_count"]) == ("delivered", 0)

        record = (await probe.get(f"{RECORDS}/{message_id}"))["record"]
        assert record["target_groups"] == ["dept:12", "dept:7", "unknown"]
        assert (record["target"], record["recipients_count"], record["total_count"]) == ("group", "group_users", 4)
        listed = await probe.get(f"{RECORDS}?target=group")
        assert [item["message_id"] for item in listed["items"]][-1] == message_id
        assert listed["total"] == 3
        assert "target_groups" not in (await probe.get(f"{RECORDS}/{marker['message_id']}"))["record"]
    await daemon.kill()
    async with await daemon.start() as probe:
        client = await probe.client(ABSENT, ack=True)
        assert await client.receive_ids(2) == [message_id, excluding["message_id"]]
        response = await probe.post(f"{RECORDS}/{message_id}/resend?wait_ms=5000", None)
        again = response.json()["data"]
        assert (again["target"], again["recipients_count"], again["total_count"]) == ("group", "group_users", 1)
        assert await client.receive_ids(1) == [message_id]
        await client.ack(message_id)
        await until(lambda: _received(probe, message_id, 4))
        record = (await probe.get(f"{RECORDS}/{message_id}"))["record"]
        assert record["target_groups"] == ["dept:12", "dept:7", "unknown"]


async def _received(probe: Probe, message_id: str, count: int) -> bool:
    return (await probe.receive_status(message_id))["received_users"] == count


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"target": "group"}, "groups"),
        ({"target": "group", "groups": []}, "groups"),
        ({"target": "group", "groups": ["a"] * 101}, "groups"),
        ({"target": "group", "groups": ["a", "b\u0000"]}, "groups[1]"),
        ({"target": "group", "groups": "a"}, "groups"),
        ({"target": "groups", "groups": ["a"]}, "target"),
        ({"target": "all", "groups": ["a", ""]}, "groups[1]"),
        ({"target": "all", "groups": [7]}, "groups[0]"),
    ],
)
async def test_what_is_refused(probe: Probe, fields: dict[str, Any], field: str) -> None:
    response = await probe.post("/system/notice", {"content": "x", **fields})
    assert response.status_code == 400
    assert response.json()["data"]["field"] == field
    assert response.json()["message"].startswith(field.partition("[")[0])
    assert (await probe.get(RECORDS))["total"] == 0


async def test_importing_while_the_daemon_runs(tmp_path: Path) -> None:
    """What is imported counts when what is remembered is out of date; a bad file changes nothing."""
    async with Process(tmp_path, directory={"cache_ttl_s": 0.1}) as daemon, await daemon.start() as probe:
        publish = {"target": "group", "groups": ["night"]}
        assert (await probe.publish(**publish))["total_count"] == 0
        result = await imported(daemon, "group,user_id\nnight,1\nnight,2\n")
        assert (result.returncode, result.stdout) == (0, "1 groups replaced, with 2 members\n"), result.stderr

        async def reaches(count: int) -> bool:
            return (await probe.publish(**publish))["total_count"] == count

        await until(lambda: reaches(2))
        result = await imported(daemon, "group,user_id\nnight,3\nnight,x\n")
        assert (result.returncode, result.stdout) == (2, "")
        assert 'groups.csv: line 3: user_id: found "x", expected a whole number' in result.stderr
        result = await imported(daemon, "group,user_id\nnight,3\nnight,3\n")
        assert (result.returncode, result.stdout) == (2, "")
        assert 'line 3: user_id: found 3 again, expected it only once in group "night"' in result.stderr
        await asyncio.sleep(0.15)
        assert await reaches(2)
        result = await imported(daemon, "group,user_id\nnight,\n")
        assert result.returncode == 0
        await until(lambda: reaches(0))
        result = await asyncio.to_thread(pushd, "--check", "import-groups", "x.csv")
        assert (result.returncode, "do not go with import-groups" in result.stderr) == (2, True)


async def test_without_a_directory_nobody_is_in_a_group(start: Any) -> None:
    probe: Probe = await start(directory={"url": "none"})
    await probe.client(HERE)
    assert (await probe.publish(**GROUPS))["total_count"] == 0


async def test_while_mysql_is_away_what_is_remembered_serves(start: Any, mariadb_server: MariadbServer) -> None:
    """And a group that is not yet known waits, without holding up others, and is reached when MySQL is back."""
    server = mariadb_server
    server.execute("CREATE TABLE user (id INT PRIMARY KEY, username TEXT, user_type INT)")
    server.execute(TABLE)
    server.insert("INSERT INTO staff VALUES (%s, %s)", [(HERE, 12), (ABSENT, 12), (THERE, 7)])
    directory = {"url": server.url, "groups_query": QUERY, "cache_ttl_s": 0.1}
    probe: Probe = await start(directory=directory)
    clients = {user_id: await probe.client(user_id) for user_id in (HERE, THERE)}
    known = {"target": "group", "groups": ["dept:12"]}
    ids = [(await probe.publish("before", **known))["message_id"]]
    server.stop()
    await asyncio.sleep(0.15)  # what is remembered is out of date
    stale = await probe.publish("while it is away", **known)
    assert (stale["status"], stale["total_count"]) == ("delivered", 2)
    waiting = await probe.publish("waits", wait_ms=0, target="group", groups=["dept:7"])
    assert waiting["status"] == "accepted"
    ids += [stale["message_id"], (await probe.publish("overtakes", **known))["message_id"]]
    assert await clients[HERE].receive_ids(3) == ids
    assert await probe.mailbox(ABSENT) == ids
    assert await clients[THERE].is_quiet()
    server.start()
    assert await clients[THERE].receive_ids(1) == [waiting["message_id"]]


async def test_a_query_that_cannot_be_used_ends_the_start(tmp_path: Path, mariadb_server: MariadbServer) -> None:
    mariadb_server.execute("CREATE TABLE user (id INT PRIMARY KEY, username TEXT, user_type INT)")
    directory = {"url": mariadb_server.url, "groups_query": "SELECT dept, id FROM staff"}
    daemon = Process(tmp_path, directory=directory)
    result = await asyncio.to_thread(pushd, "--config", str(daemon.config_file))
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("pushd: directory.groups_query: Table '")
    assert "expected a SELECT that returns group, user_id[, title]" in line
    daemon = Process(tmp_path, directory=directory | {"groups_query": "DELETE FROM staff"})
    result = await asyncio.to_thread(pushd, "--config", str(daemon.config_file), "--check")
    assert (result.returncode, result.stdout) == (2, "")
    assert 'directory.groups_query: found "DELETE FROM staff", expected a SELECT without ";"' in result.stderr
