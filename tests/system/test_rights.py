"""`auth.mode = "jwt"` from outside: who may call what, with which credentials, over HTTP and for the upgrade."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import raw
from tests.daemon import PREFIX, Probe
from tests.raw import Raw
from tests.tokens import API_KEY, JWT, PRIVATE_PEM, PUBLIC_PEM, SECRET, forged, hs256_with, token

# Method, path, body; what a user may do with his own data, and with that of others.
CALLS: list[tuple[str, str, dict[str, Any] | None, bool]] = [
    ("POST", "/system/notice", {"content": "x"}, False),
    ("POST", "/system/notices", {"notices": [{"content": "x"}]}, False),
    ("POST", "/notification/mark-read", {"message_id": "{id}"}, True),
    ("POST", "/notification/mark-confirmed", {"message_id": "{id}"}, True),
    ("POST", "/notification/batch-mark-read", {"message_ids": ["{id}"]}, True),
    ("GET", "/notification/messages/{id}/receive-status", None, False),
    ("GET", "/notification/offline-messages", None, True),
    ("DELETE", "/notification/offline-messages", None, False),
    ("GET", "/notification/records", None, False),
    ("GET", "/notification/records/{id}", None, False),
    ("POST", "/notification/records/{id}/resend", None, False),
    ("DELETE", "/notification/records/{id}", None, False),
    ("GET", "/notification/stats", None, False),
    ("GET", "/notification/admin-receive-records", None, False),
    ("POST", "/notification/receive-records/batch", {"user_ids": [7]}, False),
    ("GET", "/notification/online-users", None, False),
    ("GET", "/notification/admin-receive-stats", None, False),
    ("GET", "/notification/user-summary", None, True),
    ("GET", "/notification/inbox", None, True),
    ("GET", "/notification/unread-count", None, True),
    ("POST", "/notification/read-all", {}, True),
    ("POST", "/notification/archive", {"message_ids": ["{id}"]}, True),
    ("POST", "/notification/unarchive", {"message_ids": ["{id}"]}, True),
    ("POST", "/websocket/disconnect", {"conn_id": "nope"}, False),
    ("GET", "/websocket/stats", None, False),
    ("GET", "/ws/stats", None, False),
    ("GET", "/websocket/health", None, False),
    ("GET", "/ws/health", None, False),
]
IDS = [f"{method} {path}" for method, path, *_ in CALLS]
PER_USER = [call for call in CALLS if call[3] or call[0] == "DELETE"]


@pytest.fixture
async def probe(start: Any) -> Probe:
    return await start(auth=JWT)


@pytest.fixture
async def message_id(probe: Probe) -> str:
    """A notice that waits for users 7 and 8."""
    return await _waiting_notice(probe)


async def _waiting_notice(probe: Probe) -> str:
    body = {"content": "x", "target": "custom", "user_ids": [7, 8]}
    response = await probe.post("/system/notice?wait_ms=5000", body, headers={"X-API-Key": API_KEY})
    assert response.status_code == 200, response.text
    return response.json()["data"]["message_id"]


async def _call(probe: Probe, call: Any, message_id: str, headers: dict[str, str], user_id: Any = None) -> Any:
    method, path, body, _ = call
    params = {}
    if user_id is not None and body is None:
        params = {"user_id": user_id}
    if body is not None:
        body = json.loads(json.dumps(body).replace("{id}", message_id))
        body |= {} if user_id is None else {"user_id": user_id}
    path = PREFIX + path.replace("{id}", message_id)
    return await probe.http.request(method, path, json=body, params=params, headers=headers)


def _bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def _refusal(response: httpx.Response) -> tuple[int, str]:
    answer = response.json()
    assert answer["code"] == response.status_code
    assert ("www-authenticate" in response.headers) == (response.status_code == 401)
    return response.status_code, answer["error"]


@pytest.mark.parametrize("call", CALLS, ids=IDS)
class TestCalls:
    async def test_without_credentials(self, probe: Probe, message_id: str, call: Any) -> None:
        for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Basic {API_KEY}"},
                        {"X-API-Key": ""}, {"Cookie": f"token={token(1, 1)}"}):  # fmt: skip
            assert _refusal(await _call(probe, call, message_id, headers)) == (401, "UNAUTHORIZED")
        in_query = await probe.http.request(call[0], f"{PREFIX}{call[1]}?token={token(1, 1)}&user_id=7", json={})
        assert _refusal(in_query) == (401, "UNAUTHORIZED")

    async def test_a_users_own_token(self, probe: Probe, message_id: str, call: Any) -> None:
        response = await _call(probe, call, message_id, _bearer(token(7)))
        if call[3]:
            assert response.status_code == 200, response.text
        else:
            assert _refusal(response) == (403, "FORBIDDEN")

    async def test_a_users_token_for_another_user(self, probe: Probe, message_id: str, call: Any) -> None:
        response = await _call(probe, call, message_id, _bearer(token(7)), user_id=8)
        if call in PER_USER or not call[3]:
            assert _refusal(response) == (403, "FORBIDDEN")

    async def test_administrators(self, probe: Probe, call: Any) -> None:
        user_id = 8 if call in PER_USER else None
        lower_case = {"authorization": f"bearer {API_KEY}"}
        for headers in ({"X-API-Key": API_KEY}, _bearer(API_KEY), lower_case, _bearer(token(1, 1))):
            response = await _call(probe, call, await _waiting_notice(probe), headers, user_id)
            assert response.status_code == 200, response.text

    async def test_expired(self, probe: Probe, message_id: str, call: Any) -> None:
        response = await _call(probe, call, message_id, _bearer(token(1, 1, ttl_s=-1)))
        assert _refusal(response) == (401, "TOKEN_EXPIRED")


class TestForgeries:
    async def test_over_http(self, probe: Probe) -> None:
        for name, credential in forged().items():
            for headers in (_bearer(credential), {"X-API-Key": credential}):
                response = await probe.post("/system/notice", {"content": "x"}, headers=headers)
                assert _refusal(response) == (401, "UNAUTHORIZED"), name
                message = response.json()["message"]
                assert message == "the token is not valid" or message.startswith("claim "), name
                assert SECRET not in response.text
                assert API_KEY not in response.text

    async def test_for_the_upgrade(self, probe: Probe) -> None:
        for name, credential in forged().items():
            for path, header in ((f"/ws?token={credential}", ""), ("/ws", f"Authorization: Bearer {credential}")):
                if len(path) > 4096:
                    continue
                async with await Raw.connect(probe.port) as client:
                    client.send(raw.upgrade(path, header))
                    status, body = await client.answer()
                    assert (status, json.loads(body)["error"]) == (401, "UNAUTHORIZED"), name
        assert probe.node.hub.connections_total == 0

    async def test_issuer_and_audience(self, start: Any) -> None:
        probe = await start(auth={**JWT, "jwt_issuer": "https://id.example", "jwt_audience": "pushd"})
        good = {"iss": "https://id.example", "aud": "pushd"}
        for claims, status in (
            (good, 200),
            ({**good, "aud": ["other", "pushd"]}, 200),
            ({}, 401),
            ({"iss": good["iss"]}, 401),
            ({"aud": "pushd"}, 401),
            ({**good, "iss": "https://evil.example"}, 401),
            ({**good, "aud": "other"}, 401),
            ({**good, "aud": []}, 401),
            ({**good, "aud": 7}, 401),
        ):
            response = await probe.post("/system/notice", {"content": "x"}, headers=_bearer(token(1, 1, **claims)))
            assert response.status_code == status, claims

    async def test_public_keys(self, start: Any, tmp_path: Path) -> None:
        key_file = tmp_path / "public.pem"
        key_file.write_text(PUBLIC_PEM)
        auth = {"mode": "jwt", "jwt_public_key_file": str(key_file), "jwt_algorithms": ["RS256"]}
        probe = await start(auth=auth)
        good = token(1, 1, key=PRIVATE_PEM, algorithm="RS256")
        for credential, status in (
            (good, 200),
            (hs256_with(PUBLIC_PEM.encode()), 401),
            (hs256_with(PUBLIC_PEM.strip().encode()), 401),
            (token(1, 1, key=PRIVATE_PEM, algorithm="RS512"), 401),
            (good[:-4] + "AAAA", 401),
        ):
            response = await probe.post("/system/notice", {"content": "x"}, headers=_bearer(credential))
            assert response.status_code == status

    async def test_other_claims_and_roles(self, start: Any) -> None:
        probe = await start(auth={**JWT, "user_claim": "sub", "role_claim": "kind", "admin_roles": [5, 9]})
        for claims, status in (({"sub": "7", "kind": 9}, 200), ({"sub": "7", "kind": 1}, 403), ({"kind": 9}, 401)):
            response = await probe.post("/system/notice", {"content": "x"}, headers=_bearer(token(1, 1, **claims)))
            assert response.status_code == status

    async def test_a_token_past_its_end_within_the_leeway(self, start: Any) -> None:
        probe = await start(auth={**JWT, "leeway_s": 60})
        response = await probe.http.get(f"{PREFIX}/ws/stats", headers=_bearer(token(1, 1, ttl_s=-5)))
        assert response.status_code == 200


class TestUpgrade:
    async def test_by_query_and_by_header(self, probe: Probe) -> None:
        for options in (
            {"path": f"/ws?token={token(7)}"},
            {"path": f"/api/admin/ws?token={token(7)}"},
            {"path": "/ws", "additional_headers": _bearer(token(7))},
            {"path": "/ws?token=nonsense", "additional_headers": _bearer(token("7"))},
        ):
            ws = await probe.open(**options)
            assert json.loads(await ws.recv())["data"]["user_id"] == 7

    @pytest.mark.parametrize(
        ("path", "headers", "error"),
        [
            ("/ws", (), "UNAUTHORIZED"),
            ("/ws?user_id=7", (), "UNAUTHORIZED"),
            ("/ws?token=", (), "UNAUTHORIZED"),
            (f"/ws?token={API_KEY}", (), "UNAUTHORIZED"),
            ("/ws", (f"X-API-Key: {API_KEY}",), "UNAUTHORIZED"),
            ("/ws", (f"Authorization: Basic {API_KEY}",), "UNAUTHORIZED"),
            (f"/ws?token={token(7, ttl_s=-60)}", (), "TOKEN_EXPIRED"),
        ],
        ids=["none", "user_id", "empty", "key as token", "X-API-Key", "Basic", "expired"],
    )
    async def test_refusals(self, probe: Probe, path: str, headers: tuple[str, ...], error: str) -> None:
        async with await Raw.connect(probe.port) as client:
            client.send(raw.upgrade(path, *headers))
            status, body = await client.answer()
            assert (status, json.loads(body)["error"]) == (401, error)
        metrics = (await probe.http.get("/metrics")).text
        assert f'pushd_handshakes_rejected_total{{reason="{error.lower()}"}} 1.0' in metrics

    async def test_a_named_user_is_ignored(self, probe: Probe) -> None:
        client = await probe.client(8, query=f"token={token(7)}")
        assert client.hello["data"]["user_id"] == 7


async def test_probes_need_no_credentials(probe: Probe) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await probe.http.get(path)).status_code == 200


class TestWhileConnected:
    async def test_expiry(self, probe: Probe) -> None:
        client = await probe.client(query=f"token={token(7, ttl_s=2)}")
        other = await probe.client(query=f"token={token(8)}")
        assert await client.closed() == 4401
        await other.send({"type": "ping"})
        assert (await other.receive())["type"] == "pong"

    async def test_renewal(self, probe: Probe) -> None:
        renewed = await probe.client(query=f"token={token(7, ttl_s=2)}")
        forgetful = await probe.client(query=f"token={token(8, ttl_s=2.2)}")
        await renewed.send({"type": "auth", "token": token(7)})
        assert await forgetful.closed() == 4401  # later than the renewed one's first token
        await renewed.send({"type": "ping"})
        assert (await renewed.receive())["type"] == "pong"

    async def test_a_shorter_token_counts_as_well(self, probe: Probe) -> None:
        client = await probe.client(query=f"token={token(7)}")
        await client.send({"type": "auth", "token": token(7, ttl_s=1.6)})
        assert await client.closed() == 4401

    async def test_a_bad_token_ends_it(self, probe: Probe) -> None:
        bad = {**forged(), "another user's": token(8), "expired": token(7, ttl_s=-1), "an API key": API_KEY}
        for name, credential in bad.items():
            if len(credential) > 4000:
                continue
            client = await probe.client(query=f"token={token(7)}")
            await client.send({"type": "auth", "token": credential})
            assert await client.closed() == 4401, name
            assert SECRET not in client.ws.close_reason
