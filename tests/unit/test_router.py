"""What a head says is found out once, and again as soon as something else may be found."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import jwt
import msgspec
import orjson
import pytest

from pushd.api.endpoint import Call, Endpoint, Rights
from pushd.api.forms import Form, Nothing
from pushd.api.probes import Probes
from pushd.api.router import Router
from pushd.auth.authenticator import Authenticator
from pushd.config.current import CurrentConfig
from pushd.config.schema import Config
from pushd.http.messages import Request, Response
from pushd.http.parser import KnownHeads, RequestParser
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from pushd.ws.gateway import Gateway
from tests.unit.conftest import MakeConfig

SECRET, KEY = "s" * 32, "k" * 16
EXPIRES_S = 1_700_000_000


class Counting(Form, frozen=True):
    """A query."""

    number: int = 0


class Naming(Form, frozen=True):
    """A body."""

    name: str


class NoGateway:
    """No WebSocket endpoint is anywhere."""

    def paths(self) -> tuple[str, ...]:
        return ()


class Place:
    """A router with one endpoint, and a parser that knows heads that came before."""

    def __init__(self, config: Config) -> None:
        self.current = CurrentConfig(config)
        self.now_s = EXPIRES_S - 60.0
        self.calls: list[Call[Counting, Naming]] = []
        self.authenticator = Authenticator(self.current, wall_s=lambda: self.now_s)
        metrics = Metrics()
        endpoint = Endpoint("POST", "/things/{thing}", Rights.ADMIN, self._handle, Nothing, "", Counting, Naming)
        probes = Probes(Health(metrics, time.monotonic), metrics, b"{}")
        gateway = cast(Gateway, NoGateway())
        self.router = Router((endpoint,), probes, gateway, self.authenticator, self.current, metrics)
        self.parser = RequestParser(max_body_bytes=1000, peer="203.0.113.9", known=KnownHeads())

    def _handle(self, call: Call[Counting, Naming]) -> Nothing:
        self.calls.append(call)
        return Nothing()

    def request(
        self, *fields: str, target: str = "/api/admin/things/7?number=5", body: bytes = b'{"name":"a"}'
    ) -> Request:
        head = [f"POST {target} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *fields]
        self.parser.feed("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        request = self.parser.next()
        assert request is not None
        return request

    def ask(self, *fields: str, **options: Any) -> int:
        answer = self.router.handle(self.request(*fields, **options))
        assert isinstance(answer, Response)
        return answer.status


def token(**claims: Any) -> str:
    return jwt.encode({"uid": 7, "type": 1, "exp": EXPIRES_S, **claims}, SECRET, "HS256")


@pytest.fixture
def place(make_config: MakeConfig) -> Place:
    auth = {"mode": "jwt", "jwt_secret": SECRET, "api_keys": [KEY], "leeway_s": 0, "allowed_origins": ["https://a"]}
    return Place(make_config(auth=auth))


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    asked: list[Any] = []
    inner: Callable[..., Any] = getattr(Authenticator, name)

    def count(self: Authenticator, request: Request, **options: Any) -> Any:
        asked.append(request)
        return inner(self, request, **options)

    monkeypatch.setattr(Authenticator, name, count)
    return asked


@pytest.mark.parametrize("credentials", [f"X-API-Key: {KEY}", f"Authorization: Bearer {token()}"])
def test_the_same_head_is_looked_at_once(place: Place, monkeypatch: pytest.MonkeyPatch, credentials: str) -> None:
    identified, checked = counted(monkeypatch, "identify"), counted(monkeypatch, "check_source")
    for name in ("a", "b", "c"):
        assert place.ask(credentials, body=orjson.dumps({"name": name})) == 200
    assert (len(identified), len(checked)) == (1, 1)
    assert [(call.params, call.query.number, call.body.name) for call in place.calls] == [
        ({"thing": "7"}, 5, name) for name in ("a", "b", "c")
    ]


def test_a_body_is_looked_at_each_time(place: Place) -> None:
    answers = [
        place.ask(f"X-API-Key: {KEY}", body=body) for body in (b'{"name":"a"}', b'{"name":123}', b'{"name":"b"}')
    ]
    assert answers == [200, 400, 200]


def test_a_token_expires_whatever_was_found_before(place: Place) -> None:
    bearer = f"Authorization: Bearer {token()}"
    assert place.ask(bearer) == 200
    place.now_s = EXPIRES_S - 0.001
    assert place.ask(bearer) == 200
    place.now_s = EXPIRES_S
    assert (place.ask(bearer), place.ask(bearer)) == (401, 401)
    assert isinstance(place.router.judge_head(place.request(bearer)), Response)
    assert len(place.calls) == 2


def test_keys_hold_as_long_as_their_configuration(place: Place) -> None:
    key = f"X-API-Key: {KEY}"
    assert place.ask(key) == 200
    assert place.router.judge_head(place.request(key)) is True
    config = place.current.config
    other = msgspec.structs.replace(config.auth, api_keys=("o" * 16,))
    place.current.config = msgspec.structs.replace(config, auth=other)
    assert (place.ask(key), place.ask(key)) == (401, 401)
    assert isinstance(place.router.judge_head(place.request(key)), Response)
    place.current.config = config
    assert place.ask(key) == 200


def test_what_is_refused_is_refused_again(place: Place) -> None:
    key = f"X-API-Key: {KEY}"
    refused: list[tuple[int, tuple[str, ...], dict[str, Any]]] = [
        (401, (), {}),
        (403, (f"Authorization: Bearer {token(type=2)}",), {}),
        (404, (key,), {"target": "/api/admin/nothing"}),
        (405, (key,), {"target": "/healthz"}),
        (400, (key,), {"target": "/api/admin/things/7?number=x"}),
        (415, (key, "Content-Encoding: gzip"), {}),
    ]
    for status, fields, options in refused:
        assert [place.ask(*fields, **options) for _ in range(3)] == [status] * 3
    assert place.calls == []


def test_where_a_page_comes_from_is_asked_each_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = f"X-API-Key: {KEY}", "Origin: https://a"
    checked = counted(monkeypatch, "check_source")
    assert [place.ask(*fields), place.ask(*fields)] == [200, 200]
    assert len(checked) == 2


def test_a_body_that_comes_later_is_judged_by_what_was_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    identified = counted(monkeypatch, "identify")
    request = place.request(f"X-API-Key: {KEY}")
    assert place.router.judge_head(request) is True
    assert place.ask(f"X-API-Key: {KEY}") == 200
    assert len(identified) == 1
