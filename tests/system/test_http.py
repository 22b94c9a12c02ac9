"""CONTRACT section 3 from outside: routing, bodies, probes, metrics. Fields and publishing have files of their own."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import raw
from tests.daemon import PREFIX, Probe
from tests.raw import Raw
from tests.tokens import JWT, token

NOTICE = {"content": "hello"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
READING = {"GET", "HEAD"}
ENDPOINTS: list[tuple[str, set[str]]] = [
    (f"{PREFIX}/system/notice", {"POST"}),
    (f"{PREFIX}/system/notices", {"POST"}),
    (f"{PREFIX}/notification/mark-read", {"POST"}),
    (f"{PREFIX}/notification/mark-confirmed", {"POST"}),
    (f"{PREFIX}/notification/batch-mark-read", {"POST"}),
    (f"{PREFIX}/notification/messages/some-id/receive-status", READING),
    (f"{PREFIX}/notification/offline-messages", {*READING, "DELETE"}),
    (f"{PREFIX}/websocket/stats", READING),
    (f"{PREFIX}/ws/stats", READING),
    (f"{PREFIX}/websocket/health", READING),
    (f"{PREFIX}/ws/health", READING),
    ("/healthz", READING),
    ("/readyz", READING),
    ("/metrics", READING),
]


class TestRouting:
    @pytest.mark.parametrize(("path", "allowed"), ENDPOINTS, ids=[path for path, _ in ENDPOINTS])
    async def test_other_methods(self, probe: Probe, path: str, allowed: set[str]) -> None:
        for method in METHODS:
            if method in allowed:
                continue
            response = await probe.http.request(method, path)
            assert response.status_code == 405, method
            assert {name.strip() for name in response.headers["allow"].split(",")} == allowed
            if method != "HEAD":
                answer = response.json()
                assert (answer["code"], answer["error"], answer["data"]) == (405, "METHOD_NOT_ALLOWED", {})

    @pytest.mark.parametrize(
        "path",
        [
            "/nothing",
            "/api/admin",
            "/api/admin/",
            "/api/admin/system/notice/",
            "/api/admin/system/Notice",
            "/api/admin//system/notice",
            "/api/admin/system/notice/../notices",
            "/api/admin/notification/messages//receive-status",
            "/api/admin/notification/messages/" + "x" * 600 + "/receive-status",
            "/api/admin/%2e%2e/%2e%2e/etc/passwd",
            "/system/notice",
            "/ws/echo",
            "/%00",
        ],
    )
    async def test_unknown_paths(self, probe: Probe, path: str) -> None:
        async with await Raw.connect(probe.port) as client:
            for method in ("GET", "POST"):
                client.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
                status, body = await client.answer()
                assert (status, json.loads(body)["error"]) == (404, "NOT_FOUND")

    async def test_another_prefix(self, start: Any) -> None:
        probe = await start(server={"api_prefix": "/push/v1"})
        assert (await probe.http.post("/push/v1/system/notice", json=NOTICE)).status_code == 200
        assert (await probe.http.post(f"{PREFIX}/system/notice", json=NOTICE)).status_code == 404
        ws = await probe.open("/push/v1/ws")
        assert json.loads(await ws.recv())["type"] == "hello"

    @pytest.mark.parametrize("path", ["/ws", f"{PREFIX}/ws"])
    async def test_a_plain_request_for_the_websocket(self, probe: Probe, path: str) -> None:
        response = await probe.http.get(path)
        assert (response.status_code, response.json()["error"]) == (426, "INVALID_REQUEST")
        assert response.headers["upgrade"].lower() == "websocket"
        assert (await probe.http.post(path, json=NOTICE)).status_code == 405

    @pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", f"{PREFIX}/websocket/stats"])
    async def test_head_is_get_without_the_body(self, probe: Probe, path: str) -> None:
        head, get = await probe.http.head(path), await probe.http.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        assert int(head.headers["content-length"]) > 0

    @pytest.mark.parametrize("message_id", ["orders/2024/7", "a+b=c", "a:b@c.d", "%E4%BD%A0", "a%2Fb%3F"])
    async def test_ids_in_paths_are_percent_decoded(self, probe: Probe, message_id: str) -> None:
        wanted = unquote(message_id)
        path = f"/notification/messages/{quote(wanted, safe='')}/receive-status"
        if wanted.isascii() and "?" not in wanted:
            await probe.publish(message_id=wanted)
            assert (await probe.get(path))["total_users"] == 0
            async with await Raw.connect(probe.port) as client:
                client.send(f"GET http://localhost{PREFIX}{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert (await client.answer())[0] == 200
        else:
            missing = await probe.http.get(PREFIX + path)
            assert (missing.status_code, missing.json()["data"]) == (404, {"field": "message_id"})


BODIES = [f"{PREFIX}{path}" for path in ("/system/notice", "/system/notices")] + [
    f"{PREFIX}/notification/{name}" for name in ("mark-read", "mark-confirmed", "batch-mark-read")
]
JSON = {"content-type": "application/json"}


class TestBodies:
    @pytest.mark.parametrize("path", BODIES)
    async def test_not_json(self, probe: Probe, path: str) -> None:
        for body in (
            b"", b" ", b"{", b"x", b"{'content':'x'}", b'{"content":"x"', b'{"content":"x"}}', b"\0", b"content=x",
            b'{"content":NaN}', b'{"content":Infinity}', b'{"content":"\xff"}', b'{"content":"\\ud800"}',
            b'{"content":"a\nb"}', b'\xef\xbb\xbf{"content":"x"}', '{"content":"x"}'.encode("utf-16"), b"[" * 100_000,
            b'{"content":' * 10_000, b'{"content":"x","data":' + b"[" * 5000 + b"]" * 5000 + b"}",
        ):  # fmt: skip
            response = await probe.http.post(path, content=body, headers=JSON)
            answer = response.json()
            assert response.status_code == answer["code"] == 400, body[:40]
            assert answer["error"] in ("INVALID_JSON", "INVALID_REQUEST")
            assert "Traceback" not in response.text
            assert "File " not in response.text

    @pytest.mark.parametrize("path", BODIES)
    async def test_json_that_is_no_object(self, probe: Probe, path: str) -> None:
        for body in (b"null", b"true", b"7", b"-1.5e3", b'"text"', b"[]", b'[{"content":"x"}]'):
            response = await probe.http.post(path, content=body, headers=JSON)
            assert (response.status_code, response.json()["error"]) == (400, "INVALID_REQUEST")
            assert response.json()["message"].startswith("body: ")

    @pytest.mark.parametrize("path", BODIES)
    async def test_other_media_types(self, probe: Probe, path: str) -> None:
        for media_type in (
            None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json",
            "application/jsonp", "application/json-patch+json", "text/json", "text/plain; application/json",
        ):  # fmt: skip
            headers = {} if media_type is None else {"content-type": media_type}
            response = await probe.http.post(path, content=b'{"content":"x"}', headers=headers)
            assert (response.status_code, response.json()["error"]) == (415, "UNSUPPORTED_MEDIA_TYPE"), media_type

    @pytest.mark.parametrize("media_type", ["application/json;charset=utf-8", "Application/JSON", " application/json "])
    async def test_json_by_other_spellings(self, probe: Probe, media_type: str) -> None:
        async with await Raw.connect(probe.port) as client:
            head = f"POST {PREFIX}/system/notice HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
            client.send(head.encode(), b'Content-Length: 15\r\n\r\n{"content":"x"}')
            assert (await client.answer())[0] == 200

    async def test_chunked(self, probe: Probe) -> None:
        async def pieces() -> Any:
            for byte in b'{"content":"in pieces"}':
                yield bytes([byte])

        response = await probe.http.post(f"{PREFIX}/system/notice", content=pieces(), headers=JSON)
        assert response.json()["data"]["message"] == "in pieces"

    async def test_too_large(self, start: Any) -> None:
        probe = await start(limits={"max_body_bytes": 2048, "max_content_chars": 100_000})
        exact = b'{"content":"' + b"x" * (2048 - 14) + b'"}'
        assert (await probe.http.post(f"{PREFIX}/system/notice", content=exact, headers=JSON)).status_code == 200
        response = await probe.http.post(f"{PREFIX}/system/notice", content=exact + b" ", headers=JSON)
        assert (response.status_code, response.json()["error"]) == (413, "BODY_TOO_LARGE")

    async def test_unknown_fields_are_ignored(self, probe: Probe) -> None:
        published = await probe.publish(content="x", unknown={"deep": [1]}, sender_id=9, seq=-1)
        assert published["success"] is True


class TestEncodings:
    @pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "x-gzip", "GZIP", "identity, gzip", "nonsense"])
    async def test_encoded_bodies_are_refused(self, probe: Probe, coding: str) -> None:
        body = gzip.compress(b'{"content":"x"}')
        for path in BODIES:
            for content in (body, b'{"content":"x"}', b""):
                response = await probe.http.post(path, content=content, headers={**JSON, "content-encoding": coding})
                assert (response.status_code, response.json()["error"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
                assert coding in response.json()["message"]
                assert response.headers["accept-encoding"] == "identity"

    @pytest.mark.parametrize("coding", ["identity", "Identity", "", "identity, identity"])
    async def test_no_encoding_is_one_too(self, probe: Probe, coding: str) -> None:
        headers = {**JSON, "content-encoding": coding}
        response = await probe.http.post(f"{PREFIX}/system/notice", content=b'{"content":"x"}', headers=headers)
        assert response.status_code == 200


async def _status(probe: Probe, head: str, *, body: str = "") -> tuple[int, bytes]:
    """Of a request of which every byte is given but those of the line's end."""
    async with await Raw.connect(probe.port) as client:
        client.send((head.replace("\n", "\r\n") + "\r\n\r\n" + body).encode())
        return await client.answer()


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        ["/%68ealthz", "/health%7a", "/health%7A", f"{PREFIX}/websocket/st%61ts", "/%61pi/admin/notification/%73tats",
         f"{PREFIX}/notification/%72ecords/m%31", "http://localhost/%68ealthz"],
    )  # fmt: skip
    async def test_unreserved_characters_may_be_escaped_anywhere(self, probe: Probe, path: str) -> None:
        await probe.publish(message_id="m1")
        assert (await _status(probe, f"GET {path} HTTP/1.1\nHost: localhost"))[0] == 200

    @pytest.mark.parametrize(
        "path",
        ["/api%2Fadmin/websocket/stats", "/api/admin%2fwebsocket/stats", f"{PREFIX}%2Fwebsocket%2Fstats", "//healthz",
         "/./healthz", "/x/../healthz", "/x/%2e%2e/healthz", "/healthz/", "/healthz;x=1", "/healthz%00", "/healthz%3Fx",
         "/%2Fhealthz", "/healthz%20", "/%2568ealthz", "/HEALTHZ", "/healthz%5C", f"{PREFIX}//websocket/stats",
         f"{PREFIX}/./websocket/stats", f"{PREFIX}/websocket/stats;v=2", f"{PREFIX}/websocket/stats/",
         f"{PREFIX}/notification/records/..", f"{PREFIX}/notification/records/%2E%2e",
         f"{PREFIX}/notification/records/.",
         f"{PREFIX}/notification/records/%2e", f"{PREFIX}/notification/records/../stats",
         f"{PREFIX}/notification/messages/%2e%2e/receive-status", f"{PREFIX}/notification/records//resend"],
    )  # fmt: skip
    async def test_what_is_not_canonical_is_nowhere(self, probe: Probe, path: str) -> None:
        """A proxy that guards a prefix may resolve such a path to another one than we would."""
        status, body = await _status(probe, f"GET {path} HTTP/1.1\nHost: localhost")
        assert (status, json.loads(body)["error"]) == (404, "NOT_FOUND")
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade(path.replace("/healthz", "/ws").replace("/websocket/stats", "/ws")))
            assert await client.head() in {400, 404}

    @pytest.mark.parametrize(
        "path", ["/%", "/%4", "/%zz", "/healthz%", "/%ff", "/%C3%28", f"{PREFIX}/notification/records/%e"]
    )
    async def test_a_malformed_escape_is_refused(self, probe: Probe, path: str) -> None:
        assert (await _status(probe, f"GET {path} HTTP/1.1\nHost: localhost"))[0] == 400


class TestHeads:
    @pytest.mark.parametrize(
        "line",
        ["GET  /healthz HTTP/1.1", "GET /healthz  HTTP/1.1", "GET\t/healthz HTTP/1.1", "GET /healthz\tHTTP/1.1",
         "GET /healthz HTTP/1.1 ", "GET /healthz HTTP/1.1\t", "GET /healthz x HTTP/1.1", " GET /healthz HTTP/1.1"],
    )  # fmt: skip
    async def test_a_request_line_has_one_space_twice(self, probe: Probe, line: str) -> None:
        status, body = await _status(probe, f"{line}\nHost: localhost")
        assert (status, json.loads(body)["error"]) == (400, "INVALID_REQUEST")

    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    @pytest.mark.parametrize("mode", ["none", "jwt"])
    async def test_health_checks_need_no_host(self, start: Any, mode: str, version: str) -> None:
        probe = await start(auth={"mode": mode, "jwt_secret": "s" * 32})
        for path in ("/healthz", "/readyz", "/metrics"):
            for method in ("GET", "HEAD"):
                assert (await _head_of(probe, f"{method} {path} HTTP/{version}"))[0] == 200
        named = await _head_of(probe, f"GET /healthz HTTP/{version}\nHost: evil.example")
        assert named[0] == (403 if mode == "none" else 200)
        for path in (f"{PREFIX}/websocket/stats", "/nothing", "/ws"):
            status, _ = await _head_of(probe, f"GET {path} HTTP/{version}")
            if version == "1.1":
                assert status == 400
            elif mode == "none":
                assert status == 403

    async def test_http_1_0_may_keep_the_connection(self, probe: Probe) -> None:
        async with await Raw.connect(probe.port) as client:
            for _ in range(2):
                client.send(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                assert (await client.answer())[0] == 200
                assert client.headers["connection"] == "keep-alive"
            client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert (await client.answer())[0] == 200
            assert client.headers["connection"] == "close"
            assert await client.end() == b""

    async def test_every_answer_has_a_date(self, probe: Probe) -> None:
        before = datetime.now(UTC).replace(microsecond=0)
        heads = [
            "GET /healthz HTTP/1.1\nHost: localhost",
            f"GET {PREFIX}/websocket/stats HTTP/1.1\nHost: localhost",
            f"OPTIONS {PREFIX}/websocket/stats HTTP/1.1\nHost: localhost:1\nOrigin: http://localhost:1",
            "GET /nothing HTTP/1.1\nHost: localhost",
            "GET /healthz HTTP/1.1\nHost: evil.example",
            "GET  / HTTP/1.1",
            "nonsense",
            "GET /ws HTTP/1.1\nHost: localhost\nUpgrade: websocket\nConnection: Upgrade",
        ]
        for head in heads:
            status, headers = await _head_of(probe, head)
            date = parsedate_to_datetime(headers["date"])
            assert headers["date"].endswith(" GMT"), (status, head)
            assert before <= date <= datetime.now(UTC), head

    async def test_the_date_is_that_of_the_answer(self, probe: Probe) -> None:
        seen = []
        for at_s in (784_111_777.9, 784_111_778.0):
            probe.node.server.shared.wall_s = lambda at_s=at_s: at_s
            seen.append((await probe.http.get("/healthz")).headers["date"])
        assert seen == ["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"]

    async def test_tokens_of_8_kb(self, start: Any) -> None:
        probe = await start(auth=JWT)
        long = token(7, padding="x" * 6000)
        assert 8000 < len(long) < 8200
        headers = {"authorization": f"Bearer {long}"}
        assert (await probe.http.get(f"{PREFIX}/notification/user-summary", headers=headers)).status_code == 200
        client = await probe.client(query=f"token={long}")
        assert client.hello["data"]["user_id"] == 7
        by_header = await probe.client(additional_headers=headers)
        assert by_header.hello["data"]["user_id"] == 7

    async def test_a_hundred_headers_are_fine(self, probe: Probe) -> None:
        for count, expected in ((100, 200), (101, 431)):
            more = "".join(f"\nX-{number}: y" for number in range(count - 1))
            assert (await _head_of(probe, f"GET /healthz HTTP/1.1\nHost: localhost{more}"))[0] == expected


async def _head_of(probe: Probe, head: str) -> tuple[int, dict[str, str]]:
    async with await Raw.connect(probe.port) as client:
        client.send((head.replace("\n", "\r\n") + "\r\n\r\n").encode())
        return await client.head(), client.headers


class TestStatusInBody:
    async def test_http_says_200_always(self, start: Any) -> None:
        probe = await start(server={"status_in_body": True}, limits={"max_body_bytes": 2048})
        good = await probe.post("/system/notice", NOTICE)
        assert (good.status_code, good.json()["code"]) == (200, 200)
        for response, error in (
            (await probe.post("/system/notice", {}), "CONTENT_EMPTY"),
            (await probe.post("/nothing", {}), "NOT_FOUND"),
            (await probe.http.get(f"{PREFIX}/system/notice"), "METHOD_NOT_ALLOWED"),
            (await probe.http.post(f"{PREFIX}/system/notice", content=b"x"), "UNSUPPORTED_MEDIA_TYPE"),
            (await probe.http.post(f"{PREFIX}/system/notice", content=b"x" * 2049, headers=JSON), "BODY_TOO_LARGE"),
            (await probe.post("/notification/mark-read", {"message_id": "no", "user_id": 7}), "NOT_FOUND"),
        ):
            assert (response.status_code, response.json()["code"], response.json()["error"]) == (200, 20001, error)

    async def test_credentials(self, start: Any) -> None:
        probe = await start(server={"status_in_body": True}, auth={"mode": "jwt", "jwt_secret": "s" * 32})
        for headers in ({}, {"authorization": "Bearer nonsense"}):
            response = await probe.post("/system/notice", NOTICE, headers=headers)
            assert (response.status_code, response.json()["code"]) == (200, 20002)
            assert response.json()["error"] == "UNAUTHORIZED"

    async def test_a_refused_upgrade_keeps_its_status(self, start: Any) -> None:
        probe = await start(server={"status_in_body": True}, auth={"mode": "jwt", "jwt_secret": "s" * 32})
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade())
            assert (await client.answer())[0] == 401


class TestProbesAndNumbers:
    async def test_probes(self, probe: Probe) -> None:
        assert (await probe.http.get("/healthz")).json() == {"status": "ok"}
        assert (await probe.http.get("/readyz")).json() == {"status": "ready"}

    @pytest.mark.parametrize("path", ["/websocket/health", "/ws/health"])
    async def test_health(self, probe: Probe, path: str) -> None:
        client = await probe.client(7)
        health = await probe.get(path)
        assert health.pop("uptime") > 0
        assert health.pop("worker_count") >= 2
        assert health == {
            "status": "healthy",
            "active_connections": 1,
            "queue_size": 0,
            "last_error": "",
            "stores": {"mailbox": "up", "records": "up", "directory": "up"},
            "set_aside": 0,
        }
        await client.ws.close()

    @pytest.mark.parametrize("path", ["/websocket/stats", "/ws/stats"])
    async def test_stats(self, probe: Probe, path: str) -> None:
        await probe.publish(target="custom", user_ids=[7], message_id="one")
        client, guest = await probe.client(7), await probe.client()
        await client.receive()
        for _ in range(2):
            await probe.publish(message_id="two")
        await asyncio.gather(client.receive(), guest.receive())
        stats = await probe.get(path)
        assert 0 < stats["message_latency_ms"]["p50"] <= stats["message_latency_ms"]["p99"] < 10_000
        assert 0 <= stats["worker_utilization"] <= 1
        assert stats["uptime_s"] > 0
        assert stats["queue_size"] == {"urgent": 0, "high": 0, "normal": 0, "low": 0}
        assert stats["total_messages"] >= 5  # two hellos, one replayed, two live
        names = ("active_connections", "unique_users", "total_connections", "dedup_hits", "offline_saved")
        assert [stats[name] for name in names] == [2, 1, 2, 1, 1]
        assert (stats["offline_delivered"], stats["error_rate"]) == (1, 0)
        assert 2 <= stats["worker_count"] <= 16


METRICS = [
    "pushd_connections",
    "pushd_users_online",
    "pushd_connects",
    "pushd_disconnects",
    "pushd_handshakes_rejected",
    "pushd_notices",
    "pushd_frames_sent",
    "pushd_bytes_sent",
    "pushd_frames_received",
    "pushd_delivery_latency_seconds",
    "pushd_fanout_seconds",
    "pushd_queue_depth",
    "pushd_workers",
    "pushd_worker_utilization",
    "pushd_dedup_hits",
    "pushd_mailbox_saved",
    "pushd_mailbox_delivered",
    "pushd_acks",
    "pushd_slow_consumers",
    "pushd_store_up",
    "pushd_store_seconds",
    "pushd_store_errors",
    "pushd_journal_pending",
    "pushd_loop_lag_seconds",
    "pushd_errors",
    "process_cpu_seconds",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_start_time_seconds",
]
LABELS = {
    "pushd_disconnects": {"code"},
    "pushd_handshakes_rejected": {"reason"},
    "pushd_notices": {"target", "priority", "result"},
    "pushd_frames_received": {"type"},
    "pushd_queue_depth": {"priority"},
    "pushd_store_up": {"store"},
    "pushd_store_seconds": {"store", "op"},
}


async def _metrics(probe: Probe) -> dict[str, Any]:
    response = await probe.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def _value(families: dict[str, Any], name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_metrics_of_the_contract_exist_and_move(probe: Probe) -> None:
    before = await _metrics(probe)
    assert set(METRICS) <= set(before)
    await probe.publish(target="custom", user_ids=[7], message_id="one")
    client = await probe.client(7, ack=True)
    await client.ack(*(await client.receive_ids(1)))
    for _ in range(2):
        await probe.publish(target="all", priority="urgent", message_id="two")
    await client.receive()
    async with await Raw.connect(probe.port) as refused:
        refused.send(raw.upgrade("/ws?user_id=x"))
        assert (await refused.answer())[0] == 400
    after = await _metrics(probe)
    for name, labels in LABELS.items():
        samples = [sample for sample in after[name].samples if not sample.name.endswith("_bucket")]
        assert all(set(sample.labels) == labels for sample in samples), name
    for name, labels, grown in (
        ("pushd_connections", {}, 1),
        ("pushd_users_online", {}, 1),
        ("pushd_connects_total", {}, 1),
        ("pushd_notices_total", {"target": "custom", "priority": "normal", "result": "accepted"}, 1),
        ("pushd_notices_total", {"target": "all", "priority": "urgent", "result": "accepted"}, 1),
        ("pushd_notices_total", {"target": "all", "priority": "urgent", "result": "duplicate"}, 1),
        ("pushd_dedup_hits_total", {}, 1),
        ("pushd_mailbox_saved_total", {}, 1),
        ("pushd_mailbox_delivered_total", {}, 1),
        ("pushd_acks_total", {}, 1),
        ("pushd_frames_received_total", {"type": "ack"}, 1),
        ("pushd_handshakes_rejected_total", {"reason": "invalid_request"}, 1),
        ("pushd_delivery_latency_seconds_count", {}, 2),
        ("pushd_fanout_seconds_count", {}, 2),
        ("pushd_slow_consumers_total", {}, 0),
    ):
        assert _value(after, name, **labels) - _value(before, name, **labels) == grown, (name, labels)
    assert _value(after, "pushd_frames_sent_total") - _value(before, "pushd_frames_sent_total") == 3
    assert _value(after, "pushd_bytes_sent_total") > 0
    assert _value(after, "pushd_store_up") == len(after["pushd_store_up"].samples) > 0
    assert _value(after, "pushd_store_seconds_count") > _value(before, "pushd_store_seconds_count")
