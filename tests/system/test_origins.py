"""Where requests come from: host names, web origins, addresses behind proxies, and the limits per address."""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

import pytest
from prometheus_client.core import Metric

from tests import raw
from tests.daemon import PREFIX, Client, Probe, until
from tests.raw import Raw
from tests.tokens import API_KEY, JWT, token

STATS = f"{PREFIX}/websocket/stats"
PATHS = [STATS, f"{PREFIX}/system/notice", "/healthz", "/metrics", "/nothing", "/ws"]


async def _get(probe: Probe, path: str, host: str, *headers: str, method: str = "GET") -> tuple[int, str]:
    async with await Raw.connect(probe.port) as client:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]
        client.send("\r\n".join(lines).encode())
        status, body = await client.answer()
        return status, json.loads(body).get("error", "") if status >= 400 else ""


async def _upgrade(probe: Probe, host: str, *headers: str) -> int:
    async with await Raw.connect(probe.port) as client:
        client.send(raw.upgrade("/ws", *headers, host=host))
        return await client.head()


class TestHosts:
    FOREIGN = ("evil.example", "evil.example:8801", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1",
               "[2001:db8::1]", "0.0.0.0", "127.0.0.1@evil.example", "evillocalhost", "[::ffff:10.0.0.1]")  # fmt: skip
    LOOPBACK = ("localhost", "LOCALHOST:8801", "127.0.0.1", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:8801",
                "app.localhost:3000")  # fmt: skip

    @pytest.mark.parametrize("host", FOREIGN)
    async def test_without_credentials_other_names_are_refused(self, probe: Probe, host: str) -> None:
        for path in PATHS:
            status, error = await _get(probe, path, host)
            assert (status, error) in {(403, "FORBIDDEN"), (400, "INVALID_REQUEST")}, path
        assert await _upgrade(probe, host) in {403, 400}
        absolute = await _get(probe, f"http://evil.example{STATS}", "localhost")
        assert absolute == (403, "FORBIDDEN")

    @pytest.mark.parametrize("host", LOOPBACK)
    async def test_loopback_names_are_served(self, probe: Probe, host: str) -> None:
        assert await _get(probe, STATS, host) == (200, "")
        assert await _upgrade(probe, host) == 101

    async def test_with_credentials_any_name_is_served(self, start: Any) -> None:
        probe = await start(auth=JWT)
        assert await _get(probe, STATS, "push.example", f"Authorization: Bearer {token(1, 1)}") == (200, "")
        assert await _upgrade(probe, "push.example", f"Authorization: Bearer {token(7)}") == 101


class TestOrigins:
    @pytest.mark.parametrize(
        "origin",
        ["https://evil.example", "null", "http://localhost:9", "http://localhost", "file://", "localhost:8801", "",
         "http://localhost:8801.evil.example", "http://localhost:8801/"],
    )  # fmt: skip
    async def test_foreign_ones_are_refused(self, probe: Probe, origin: str) -> None:
        headers = (f"Origin: {origin}", "Content-Type: application/json")
        for path in PATHS:
            for method in ("GET", "POST", "OPTIONS"):
                refused = await _get(probe, path, "localhost:8801", *headers, method=method)
                assert refused == (403, "FORBIDDEN"), (path, method)
        async with await Raw.connect(probe.port) as client:
            head = raw.upgrade("/ws?user_id=7", host="localhost:8801").replace(b"\r\n\r\n", b"\r\n")
            client.send(head, f"Origin: {origin}\r\n\r\n".encode())
            status, body = await client.answer()
            assert (status, json.loads(body)["error"]) == (403, "FORBIDDEN")
        assert not probe.node.hub.connections_total

    async def test_the_same_host(self, probe: Probe) -> None:
        for host in ("localhost:8801", "127.0.0.1:8801", "LocalHost:8801", "[::1]:8801"):
            assert await _get(probe, STATS, host, f"Origin: http://{host.lower()}") == (200, "")
            assert await _upgrade(probe, host, f"Origin: http://{host}") == 101
            assert await _get(probe, STATS, host, f"Origin: https://{host}") == (403, "FORBIDDEN")
            assert await _upgrade(probe, host, f"Origin: https://{host}") == 403
        assert await _get(probe, STATS, "localhost:80", "Origin: http://localhost") == (200, "")
        assert await _upgrade(probe, "localhost", "Origin: http://localhost:80") == 101

    @pytest.mark.parametrize("is_trusted", [True, False])
    async def test_a_proxy_that_speaks_tls_says_so(self, start: Any, is_trusted: bool) -> None:
        probe = await start(**(PROXIED if is_trusted else {}))
        for scheme, said, expected in (
            ("https", "https", 200),
            ("https", "wss", 200),
            ("http", "https", 403),
            ("https", "http", 403),
            ("http", "http", 200),
        ):
            headers = (f"Origin: {scheme}://localhost", f"X-Forwarded-Proto: {said}")
            status = expected if is_trusted else 200 if scheme == "http" else 403
            assert (await _get(probe, STATS, "localhost", *headers))[0] == status

    async def test_allowed_ones(self, start: Any) -> None:
        probe = await start(auth={"allowed_origins": ["https://admin.example"]})
        headers = {"origin": "https://admin.example"}
        assert (await probe.http.get(STATS, headers=headers)).status_code == 200
        assert await _upgrade(probe, "localhost", "Origin: https://admin.example") == 101
        for origin in ("http://admin.example", "https://admin.example:8443", "https://x.admin.example"):
            assert (await probe.http.get(STATS, headers={"origin": origin})).status_code == 403
            assert await _upgrade(probe, "localhost", f"Origin: {origin}") == 403

    async def test_any(self, start: Any) -> None:
        probe = await start(auth={"allowed_origins": ["*"]})
        assert await _upgrade(probe, "localhost", "Origin: https://anything.example") == 101
        assert (await probe.http.get(STATS, headers={"origin": "null"})).status_code == 200


class TestCors:
    @pytest.fixture
    async def probe(self, start: Any) -> Probe:
        return await start(auth={**JWT, "allowed_origins": ["https://admin.example"]})

    async def test_preflight(self, probe: Probe) -> None:
        """Browsers send it without credentials."""
        headers = {
            "origin": "https://admin.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        response = await probe.http.options(f"{PREFIX}/system/notice", headers=headers)
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["access-control-allow-origin"] == "https://admin.example"
        assert {"GET", "POST", "DELETE"} <= set(response.headers["access-control-allow-methods"].split(", "))
        allowed = response.headers["access-control-allow-headers"].lower().split(", ")
        assert {"authorization", "content-type", "idempotency-key", "x-api-key"} <= set(allowed)
        assert "access-control-allow-credentials" not in response.headers
        refused = await probe.http.options(STATS, headers={**headers, "origin": "https://evil.example"})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers

    async def test_answers_can_be_read_by_the_page_errors_included(self, probe: Probe) -> None:
        origin = {"origin": "https://admin.example"}
        admin = {**origin, "authorization": f"Bearer {token(1, 1)}"}
        for response, status in (
            (await probe.http.get(STATS, headers=admin), 200),
            (await probe.post("/system/notice", {"content": "x"}, headers=admin), 200),
            (await probe.post("/system/notice", {}, headers=admin), 400),
            (await probe.http.get(STATS, headers=origin), 401),
            (await probe.http.get("/nothing", headers=origin), 404),
            (await probe.http.get(f"{PREFIX}/system/notice", headers=admin), 405),
        ):
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == "https://admin.example"
            assert "origin" in response.headers["vary"].lower()

    async def test_preflights_echo_what_is_asked_for(self, probe: Probe) -> None:
        headers = {
            "origin": "https://admin.example",
            "access-control-request-method": "PATCH",
            "access-control-request-headers": "x-request-id, content-type,X-Trace",
            "access-control-request-private-network": "true",
        }
        for path in (f"{PREFIX}/system/notice", "/nothing", "/healthz", "/ws"):
            response = await probe.http.options(path, headers=headers)
            assert response.status_code == 204
            assert "PATCH" in response.headers["access-control-allow-methods"].split(", ")
            assert {"x-request-id", "X-Trace"} <= set(response.headers["access-control-allow-headers"].split(", "))
            assert response.headers["access-control-allow-private-network"] == "true"
            assert response.headers["access-control-allow-origin"] == "https://admin.example"

    HEADS: ClassVar[list[tuple[str, int]]] = [
        ("GET /healthz HTTP/1.1\nHost: a b\n{}", 400),
        ("GET  /healthz HTTP/1.1\nHost: a\n{}", 400),
        ("GET /%zz HTTP/1.1\nHost: a\n{}", 400),
        ("GET /x HTTP/1.1\n{}", 400),
        ("GET /x HTTP/1.1\nHost: a\n{}\nX: y\nBad Name: x", 400),
        ("GET /x HTTP/2.0\nHost: a\n{}", 400),
        ("POST /x HTTP/1.1\nHost: a\n{}\nContent-Length: 5\nContent-Length: 6", 400),
        (
            f"POST {PREFIX}/system/notice HTTP/1.1\nHost: a\n{{}}\nX-API-Key: {API_KEY}\n"
            "Content-Type: application/json\n"
            "Transfer-Encoding: chunked\n\nnonsense",
            400,
        ),
        ("POST /x HTTP/1.1\nHost: a\n{}\nContent-Length: 99999999", 413),
        ("POST /x HTTP/1.1\nHost: a\n{}\nExpect: tea", 417),
        ("POST /x HTTP/1.1\nHost: a\n{}\nTransfer-Encoding: gzip, chunked", 501),
        ("GET /x HTTP/1.1\nHost: a\n{}\n" + "X: y\n" * 120, 431),
        ("GET /x HTTP/1.1\nHost: a\n{}\nX: " + "x" * 40_000, 431),
        ("GET /ws HTTP/1.1\nHost: a\n{}\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 8", 426),
        ("GET /ws HTTP/1.1\nHost: a\n{}\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13", 400),
        (raw.upgrade("/ws").decode().rstrip().replace("\r", "") + "\n{}", 401),
        (raw.upgrade("/no").decode().rstrip().replace("\r", "") + "\n{}", 404),
        ("GET /ws HTTP/1.1\nHost: a\n{}", 426),
        ("GET /readyz HTTP/1.1\nHost: a\n{}", 200),
        ("GET /metrics HTTP/1.0\n{}", 200),
    ]

    @pytest.mark.parametrize("index", range(len(HEADS)))
    async def test_what_the_http_server_says_by_itself_can_be_read_as_well(self, probe: Probe, index: int) -> None:
        head, expected = self.HEADS[index]
        for origin, allowed in (("https://admin.example", True), ("https://evil.example", False)):
            async with await Raw.connect(probe.port) as client:
                client.send((head.format(f"Origin: {origin}").replace("\n", "\r\n") + "\r\n\r\n").encode())
                status = await client.head()
                assert status == expected or (not allowed and status == 403)
                assert client.headers.get("access-control-allow-origin") == (origin if allowed else None)
                if allowed:
                    assert "retry-after" in client.headers["access-control-expose-headers"].lower()
                    assert client.headers["vary"] == "Origin"

    async def test_what_takes_too_long_or_fails_can_be_read_as_well(
        self, start: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probe = await start(auth={"allowed_origins": ["https://admin.example"]}, limits={"handshake_timeout_s": 0.1})
        origin = {"origin": "https://admin.example"}

        async def answer(sent: bytes) -> tuple[int, str]:
            async with await Raw.connect(probe.port) as client:
                client.send(sent)
                return await client.head(), client.headers.get("access-control-allow-origin", "")

        trickle = b"GET /x HTTP/1.1\r\nHost: localhost\r\nOrigin: https://admin.example\r\nX: y\r\nY:"
        assert await answer(trickle) == (408, "https://admin.example")
        assert await answer(b"GET /x HTT") == (408, "*")  # nobody knows who asks

        def fail() -> list[Metric]:
            raise ZeroDivisionError

        probe.node.metrics.read_at_scrape(fail)
        response = await probe.http.get("/metrics", headers=origin)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (500, "https://admin.example")
        probe.node.router.answer_within_s = 0.01
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(probe.node.stores.records, "push_stats", lambda _: never)
        response = await probe.http.get(f"{PREFIX}/notification/records", headers=origin)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (503, "https://admin.example")
        assert response.headers["retry-after"]

    async def test_a_full_server_can_be_read_as_well(self, start: Any) -> None:
        probe = await start(auth={"allowed_origins": ["https://admin.example"]}, limits={"max_connections": 1})
        client = await probe.client(7)
        response = await probe.http.get("/healthz", headers={"origin": "https://admin.example"})
        assert response.status_code == 503
        assert response.headers["access-control-allow-origin"] in {"*", "https://admin.example"}
        await client.ws.close()

    async def test_pages_out_of_files_may_be_named(self, start: Any) -> None:
        probe = await start(auth={"allowed_origins": ["null", "file://"]})
        for origin in ("null", "file://"):
            response = await probe.http.get("/healthz", headers={"origin": origin})
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, origin)
            assert await _upgrade(probe, "localhost", f"Origin: {origin}") == 101
        refused = await probe.http.get("/healthz", headers={"origin": "https://admin.example"})
        assert "access-control-allow-origin" not in refused.headers

    async def test_without_an_origin_nothing_is_said_about_it(self, probe: Probe) -> None:
        response = await probe.http.get("/healthz")
        assert "access-control-allow-origin" not in response.headers


PROXIED: dict[str, Any] = {"server": {"trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"]}}


class TestAddresses:
    async def _ip(self, probe: Probe, *headers: str) -> str:
        client = await Raw.websocket(probe.port, "/ws?user_id=7", *headers)
        (connection,) = probe.node.hub.connections_of(7)
        ip: str = connection.details.client_ip
        client.reset()
        await until(lambda: not probe.node.gateway.open_sockets)
        return ip

    @pytest.mark.parametrize(
        ("forwarded", "ip"),
        [
            ("203.0.113.9", "203.0.113.9"),
            ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
            ("203.0.113.9, 10.1.2.3", "203.0.113.9"),
            ("203.0.113.9 ,10.1.2.3 , 127.0.0.1", "203.0.113.9"),
            ("2001:db8::7", "2001:db8::7"),
            ("10.1.2.3", "10.1.2.3"),
            ("nonsense", "127.0.0.1"),
            ("203.0.113.9, nonsense", "127.0.0.1"),
            ("203.0.113.9, nonsense, 10.1.2.3", "10.1.2.3"),
            (",,,", "127.0.0.1"),
            ("203.0.113.7:51234", "203.0.113.7"),
            ('"[2001:db8::7]:51234", 10.1.2.3:80', "2001:db8::7"),
            ("::ffff:203.0.113.7, ::ffff:10.1.2.3", "203.0.113.7"),
            ("203.0.113.7:51234\r\nX-Forwarded-For: 10.1.2.3:80\r\nX-Forwarded-For:", "203.0.113.7"),
        ],
    )
    async def test_behind_trusted_proxies(self, start: Any, forwarded: str, ip: str) -> None:
        probe = await start(**PROXIED)
        assert await self._ip(probe, f"X-Forwarded-For: {forwarded}") == ip

    async def test_nobody_else_is_believed(self, start: Any) -> None:
        probe = await start(server={"trusted_proxies": ["10.0.0.0/8"]})
        assert await self._ip(probe, "X-Forwarded-For: 203.0.113.9") == "127.0.0.1"


class TestPerAddress:
    async def test_connections(self, start: Any) -> None:
        probe = await start(limits={"max_connections_per_ip": 2}, **PROXIED)

        async def open_from(address: str, user_id: int) -> Client:
            headers = {"X-Forwarded-For": f"198.51.100.1, {address}"}
            return await probe.client(user_id, additional_headers=headers)

        first, _ = await open_from("203.0.113.9", 1), await open_from("203.0.113.9", 2)
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade("/ws", "X-Forwarded-For: 203.0.113.9"))
            status, body = await client.answer()
            assert (status, json.loads(body)["error"]) == (429, "RATE_LIMITED")
            assert int(client.headers["retry-after"]) > 0
        await open_from("203.0.113.10", 3)
        await first.ws.close()
        await until(lambda: probe.node.gateway.open_sockets == 2)
        await open_from("203.0.113.9", 4)

    async def test_connects(self, start: Any) -> None:
        probe = await start(limits={"connects_per_ip_per_min": 3}, **PROXIED)
        address = "X-Forwarded-For: 203.0.113.9"
        assert [await _upgrade(probe, "localhost", address) for _ in range(5)] == [101, 101, 101, 429, 429]
        assert await _upgrade(probe, "localhost", "X-Forwarded-For: 203.0.113.10") == 101
        assert await _upgrade(probe, "localhost") == 101

    async def test_all_together(self, start: Any) -> None:
        probe = await start(limits={"max_connections": 3})
        clients = [await probe.client(user_id) for user_id in (1, 2)]
        await probe.http.get("/healthz")  # the third
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade())
            assert await client.head() == 503
            assert int(client.headers["retry-after"]) > 0
        assert len(clients) == 2
