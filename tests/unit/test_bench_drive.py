"""The pure parts of the benchmarks that drive a daemon: what they ask for, and how they judge what they saw."""

from __future__ import annotations

import json
import shutil
import struct
from collections import Counter
from pathlib import Path

import jwt
import pytest

from bench.loadlib import drive_client, drive_cost, drive_log, drive_plan
from bench.loadlib.drive_log import CLOSED, OPEN, Answer, Connect, Delivery, Window
from bench.loadlib.drive_plan import Notice
from bench.loadlib.options import LoadError
from bench.loadlib.servers import cores
from bench.micro.__main__ import trimmed
from bench.mixed import drift, recipients

MS = 1_000_000


def body_of(request: bytes) -> dict[str, object]:
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    found: dict[str, object] = json.loads(body)
    return found


# ---- the plan


def test_tokens_name_their_users() -> None:
    claims = [jwt.decode(token, drive_plan.SECRET, ["HS256"]) for token in drive_plan.tokens([3, 4], role=7)]
    assert [(one["uid"], one["type"]) for one in claims] == [(3, 7), (4, 7)]
    assert len({one["jti"] for one in claims}) == 2


def test_upgrade_is_as_big_as_a_browsers() -> None:
    (token,) = drive_plan.tokens([9_999])
    request = drive_plan.upgrade(8801, token)
    assert request.startswith(b"GET /ws?token=" + token.encode() + b"&ack=1 HTTP/1.1\r\n")
    assert request.endswith(b"\r\n\r\n")
    assert 700 <= len(request) <= 1000
    assert b"ack=1" not in drive_plan.upgrade(8801, token, is_acking=False)


def test_one_each_goes_round() -> None:
    notices = drive_plan.one_each(5, range(1, 4))
    assert [notice.users for notice in notices] == [(1,), (2,), (3,), (1,), (2,)]
    assert [notice.number for notice in notices] == list(range(5))


def test_singles_carry_their_number_and_target() -> None:
    (due_ns, request), (_, other) = drive_plan.singles(
        80, [Notice(12, users=(7,), priority="urgent", due_ns=5), Notice(13, "role")]
    )
    body = body_of(request)
    assert due_ns == 5
    assert str(body["content"]).startswith("#12 ")
    assert (body["target"], body["user_ids"], body["priority"]) == ("custom", [7], "urgent")
    assert body_of(other)["roles"] == [drive_plan.SMALL_ROLE]


def test_batches_hold_everything_once() -> None:
    requests = drive_plan.batches(80, drive_plan.one_each(5, range(1, 3)), 2)
    items = [item for _, request in requests for item in body_of(request)["notices"]]  # type: ignore[attr-defined]
    assert len(requests) == 3
    assert [item["content"].split()[0] for item in items] == ["#0", "#1", "#2", "#3", "#4"]


def test_files_for_the_client() -> None:
    assert drive_plan.handshakes_file([b"ab", b"c"]) == struct.pack("<I", 2) + b"ab" + struct.pack("<I", 1) + b"c"
    assert drive_plan.requests_file([(7, b"ab")]) == struct.pack("<QI", 7, 2) + b"ab"


def test_mixture_is_what_it_says() -> None:
    notices = drive_plan.mixture(10, 1000)
    assert len(notices) == 10 * drive_plan.PER_S
    assert [notice.number for notice in notices] == list(range(len(notices)))
    assert [notice.due_ns for notice in notices] == sorted(notice.due_ns for notice in notices)
    kinds = Counter(notice.target for notice in notices)
    assert (kinds["all"], kinds["online"], kinds["role"]) == (8, 2, 20)
    urgent = [notice for notice in notices if notice.priority == "urgent"]
    assert len(urgent) == 480
    assert all(len(notice.users) == 1 for notice in urgent)
    assert {notice.priority for notice in notices} == {"low", "normal", "high", "urgent"}
    for notice in notices:
        assert len(set(notice.users)) == len(notice.users) <= 10
        assert all(1 <= user_id <= 1000 for user_id in notice.users)


def test_mixture_has_urgent_ones_close_behind_each_broadcast() -> None:
    notices = drive_plan.mixture(2, 1000)
    for broadcast in (notice for notice in notices if notice.target == "all"):
        behind = [one for one in notices if 0 < one.due_ns - broadcast.due_ns <= 60 * MS and one.priority == "urgent"]
        assert len(behind) >= 8


def test_recipients_of_the_mixture() -> None:
    assert len(recipients(Notice(0, "all"))) == len(recipients(Notice(0, "online"))) == 10_000
    assert recipients(Notice(0, "role")) == range(500)
    assert recipients(Notice(0, users=(1, 5))) == {0, 4}


# ---- the log


def test_rows_are_read_back() -> None:
    assert drive_log.connects(struct.pack("<QQQII", 1, 2, 3, OPEN, 4)) == [Connect(1, 2, 3, OPEN, 4)]
    assert drive_log.answers(struct.pack("<QQQII", 1, 2, 3, 200, 5)) == [Answer(1, 2, 3, 200, 5)]
    assert drive_log.deliveries(struct.pack("<QII", 1, 2, 3)) == [Delivery(1, 2, 3)]


def test_check_connects() -> None:
    good = Connect(1, 2, 3, OPEN, 0)
    drive_log.check_connects([good, good, Connect(0, 0, 0, 0, 0)], 2)
    for bad in (Connect(1, 2, 0, OPEN, 0), Connect(1, 2, 3, CLOSED, 0)):
        with pytest.raises(LoadError, match=r"1 of 2 clients .* \[1\]"):
            drive_log.check_connects([good, bad], 2)
    with pytest.raises(LoadError):
        drive_log.check_connects([good], 2)


def test_check_visits() -> None:
    gone, unknown = Connect(1, 2, 3, CLOSED, 0), Connect(0, 0, 0, 0, 0)
    drive_log.check_visits([gone, gone, unknown], 2)
    with pytest.raises(LoadError, match="2 visitors came instead of 3"):
        drive_log.check_visits([gone, gone, unknown], 3)
    with pytest.raises(LoadError, match="1 without a hello"):
        drive_log.check_visits([gone, Connect(1, 2, 0, CLOSED, 0)], 2)


def test_check_accepted() -> None:
    drive_log.check_accepted([Answer(0, 1, 2, 200, 3), Answer(0, 1, 2, 200, 1)], 4)
    with pytest.raises(LoadError, match="3 of 4"):
        drive_log.check_accepted([Answer(0, 1, 2, 200, 3)], 4)
    with pytest.raises(LoadError, match="first: 503"):
        drive_log.check_accepted([Answer(0, 1, 2, 200, 4), Answer(0, 1, 2, 503, 0)], 4)


def arrivals(*pairs: tuple[int, int]) -> list[Delivery]:
    return [Delivery(1, number, client) for number, client in pairs]


def to_both(number: int) -> list[int]:
    return [0, 1]


def test_everything_came_once() -> None:
    drive_log.check_delivered(arrivals((0, 0), (0, 1), (1, 1), (1, 0), (0, 2)), 2, to_both, 2)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (arrivals((0, 0)), "1 of 2 recipients lack it"),
        (arrivals((0, 0), (0, 1), (0, 1)), "came to client 1 twice"),
        (arrivals((0, 0), (0, 1), (1, 0)), "never published"),
        (arrivals((0, 0), (0, 1), (0, 7), (0, 7)), "came to client 7 twice"),
    ],
)
def test_what_is_not_right_is_found(found: list[Delivery], said: str) -> None:
    with pytest.raises(LoadError, match=said):
        drive_log.check_delivered(found, 1, to_both, 2)


def test_a_stranger_is_found() -> None:
    with pytest.raises(LoadError, match="1 others have it"):
        drive_log.check_delivered(arrivals((0, 0), (0, 1)), 1, lambda number: [0], 2)


def test_times() -> None:
    sent = [Answer(0, 100, 150, 200, 1), Answer(0, 300, 320, 200, 1), Answer(0, 900, 910, 200, 1)]
    found = [Delivery(120, 0, 0), Delivery(500, 0, 1), Delivery(340, 1, 0), Delivery(905, 2, 1)]
    windows = drive_log.windows(found, sent, {0})
    assert windows == [Window(100, 500)]
    assert drive_log.delivery_ns(found, sent, {1, 2}) == [40, 5]
    assert drive_log.delivery_ns(found, sent, {1, 2}, windows) == [40]
    assert drive_log.accept_ns(sent) == [50, 20, 10]
    assert drive_log.hello_ns([Connect(10, 20, 35, OPEN, 0), Connect(10, 20, 0, OPEN, 0)]) == [25]


# ---- costs


def test_memory_lines() -> None:
    text = "Name:\tpython\nVmRSS:\t   1024 kB\nVmRSSfoo:\t 1 kB\n"
    assert drive_cost.kilobytes(text, "VmRSS") == 1 << 20
    assert drive_cost.kilobytes(text, "Pss") == 0


def test_cpu_of_a_stat_line() -> None:
    fields = ["S", *"0" * 10, "150", "50", *"0" * 20]
    assert drive_cost.seconds(f"12 (a name) with) {' '.join(fields)}") == 200 / drive_cost.TICKS_PER_S
    assert drive_cost.Cpu(3, 2) - drive_cost.Cpu(1, 1) == drive_cost.Cpu(2, 1)
    assert drive_cost.Cpu(3, 2).total_s == 5


def test_drift_looks_at_what_is_behind_the_warm_up() -> None:
    assert drift([1, 50, 100, 100, 100, 100, 100, 100]) == 0
    assert drift([0, 0, 100, 100, 110, 110, 120, 120]) == 20


def test_a_baseline_keeps_no_names_and_no_rounds() -> None:
    benchmark = {
        "group": None, "name": "a", "fullname": "f::a", "params": None, "param": None, "extra_info": {},
        "options": {"x": 1}, "stats": {"median": 1.0, "data": [1.0, 1.0], "rounds": 2},
    }  # fmt: skip
    found = trimmed(
        {
            "machine_info": {"node": "secret", "system": "Linux", "cpu": {"count": 2, "flags": ["a"]}},
            "commit_info": {"id": "x"}, "benchmarks": [benchmark], "datetime": "now", "version": "5",
        }
    )  # fmt: skip
    assert found["machine_info"] == {"system": "Linux", "cpu": {"count": 2}}
    assert found["benchmarks"][0]["stats"] == {"median": 1.0, "rounds": 2}


# ---- the client itself, at the least of servers


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
async def test_client_connects_publishes_and_writes_its_log(tmp_path: Path) -> None:
    core = cores().others
    with drive_client.bare_server(tmp_path, core) as server:
        handshakes = [drive_plan.upgrade(server.port, token) for token in drive_plan.tokens(range(1, 21))]
        requests = drive_plan.singles(server.port, drive_plan.one_each(30, range(1, 6)))
        plan = drive_client.Plan(server.port, handshakes, 20, requests, publishers=3, at_once=4, within_s=10)
        async with drive_client.driving(plan, tmp_path / "drive") as drive:
            assert (drive.connected.opened, drive.connected.failed) == (20, 0)
            done = await drive.go()
            assert (done.answered, done.deliveries, done.closed, done.stray) == (30, 0, 0, 0)
            assert all(0 < one.began_ns < one.upgraded_ns <= one.hello_ns for one in drive.connects())
            answers = drive.answers()
            assert [(one.status, one.accepted) for one in answers] == [(200, 1)] * 30
            assert all(one.sent_ns < one.answered_ns for one in answers)
            assert drive.deliveries() == []
