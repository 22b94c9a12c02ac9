"""From a request to a handler and back: source, route, rights, the decoded query and body, the encoded answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
import structlog

from pushd import metrics
from pushd.edge import answers, openapi
from pushd.edge.api import Api
from pushd.edge.auth import Identity
from pushd.edge.endpoint import Call, Endpoint, Later, Rights
from pushd.edge.endpoints import ENDPOINTS
from pushd.edge.gateway import Admission, Gateway
from pushd.edge.http1 import Pending, Request, Response
from pushd.errors import ErrorCode, RequestError, StoreError

log = structlog.get_logger("pushd.routes")
ANSWER_WITHIN_S = 20.0
NOBODY = Identity()
JSON = "application/json"
PREFLIGHT_MAX_AGE_S = "600"
_READING = ("GET", "HEAD")
_STATUSES_OF_THE_API = frozenset({413, 500})  # the front's that are about a call, not about HTTP or the upgrade


Answer = Response | Pending | Awaitable[Response]


class Route(NamedTuple):
    """An endpoint with its decoders made."""

    endpoint: Endpoint
    empty_query: Any
    decode_body: Callable[[bytes], Any] | None


def _route(endpoint: Endpoint) -> Route:
    decoder: Any = None if endpoint.body is None else msgspec.json.Decoder(endpoint.body)
    return Route(endpoint, endpoint.query(), None if decoder is None else decoder.decode)


class Router:
    """The front's application: finds the route, checks source and rights, and turns what comes back into an answer."""

    def __init__(self, api: Api, gateway: Gateway) -> None:
        self._api = api
        self._gateway = gateway
        self._live = api.live
        self._authenticator = api.authenticator
        prefix = api.live.config.server.api_prefix
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        for endpoint in ENDPOINTS:
            self._methods(prefix + endpoint.path)[endpoint.method] = _route(endpoint)
        self._openapi = msgspec.json.encode(openapi.document(ENDPOINTS, api.live.config))
        self._probes = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/openapi.json": self._describe,
        }

    def _methods(self, path: str) -> dict[str, Route]:
        if "{" not in path:
            return self._exact.setdefault(path, {})
        pattern = re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]{1,512})", re.escape(path)))
        for known, methods in self._patterns:
            if known == pattern:
                return methods
        methods = {}
        self._patterns.append((pattern, methods))
        return methods

    # ---- what the front asks

    def handle(self, request: Request) -> Answer:
        """Answer a request that is no upgrade."""
        try:
            self._authenticator.check_source(request)
            if request.method == "OPTIONS" and "origin" in request.headers:
                return self._preflight(request)
            answer = self._call(request)
        except RequestError as error:
            answer = self._failed(error)
        return self._with_cors(request, answer) if "origin" in request.headers else answer

    def failure(self, status: int, text: str) -> Response:
        """The answer to what the front refuses by itself."""
        in_body = self._live.config.server.status_in_body and status in _STATUSES_OF_THE_API
        return answers.of_status(status, text, status_in_body=in_body)

    def admit(self, request: Request) -> Response | Admission | Awaitable[Response | Admission]:
        """Decide about an upgrade."""
        try:
            verdict = self._gateway.admit(request)
        except RequestError as error:
            return answers.failure(error)
        return verdict if isinstance(verdict, Admission) else self._admit_later(verdict)

    async def _admit_later(self, verdict: Awaitable[Admission]) -> Response | Admission:
        try:
            return await verdict
        except RequestError as error:
            return answers.failure(error)

    def attach(self, transport: asyncio.Transport, request: Request, admission: Admission, tail: bytes) -> None:
        """Take an admitted connection over."""
        self._gateway.attach(transport, request, admission, tail)

    # ---- routing

    def _call(self, request: Request) -> Answer:
        probe = self._probes.get(request.path)
        if probe is not None:
            if request.method not in _READING:
                raise _MethodNotAllowed(_READING)
            return probe(request)
        route, params = self._find(request)
        rights = route.endpoint.rights
        identity = self._identify(request, rights)
        if identity.token_id and self._authenticator.revocations is not None:
            return self._finish(self._call_unrevoked(route, request, identity, params), identity)
        result = self._handle(route, request, identity, params)
        if isinstance(result, Later):
            return Pending(result.done, partial(self._told, result.tell), self._too_late, ANSWER_WITHIN_S)
        return self._finish(result, identity) if isinstance(result, Awaitable) else answers.success(result)

    async def _call_unrevoked(
        self, route: Route, request: Request, identity: Identity, params: dict[str, str]
    ) -> msgspec.Struct:
        await self._authenticator.check_revoked(identity)
        result = self._handle(route, request, identity, params)
        if isinstance(result, Later):
            await asyncio.wait([result.done])
            result = result.tell()
        data: msgspec.Struct = await result if isinstance(result, Awaitable) else result
        return data

    def _handle(self, route: Route, request: Request, identity: Identity, params: dict[str, str]) -> Any:
        query = _decoded_query(route, request) if request.query_string else route.empty_query
        body = None if route.decode_body is None else _decoded_body(route.decode_body, request)
        return route.endpoint.handler(self._api, Call(request, identity, params, query, body))

    def _find(self, request: Request) -> tuple[Route, dict[str, str]]:
        params: dict[str, str] = {}
        methods = self._exact.get(request.path)
        if methods is None:
            methods, params = self._match(request)
        if methods is None:
            if request.path in self._gateway.paths():
                raise _NotAnUpgrade if request.method in _READING else _MethodNotAllowed(("GET",))
            raise RequestError(ErrorCode.NOT_FOUND, "no such endpoint")
        route = methods.get("GET" if request.method == "HEAD" else request.method)
        if route is None:
            raise _MethodNotAllowed((*methods, "HEAD") if "GET" in methods else methods)
        return route, params

    def _match(self, request: Request) -> tuple[dict[str, Route] | None, dict[str, str]]:
        path = _undecoded_path(request)
        for pattern, candidates in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return candidates, {name: unquote(value) for name, value in match.groupdict().items()}
        return None, {}

    def _identify(self, request: Request, rights: Rights) -> Identity:
        if rights is Rights.PUBLIC:
            return NOBODY
        identity = self._authenticator.identify(request)
        if rights is Rights.ADMIN and not identity.is_admin:
            raise RequestError(ErrorCode.FORBIDDEN, "admin rights are required")
        return identity

    def _told(self, tell: Callable[[], Any]) -> Response:
        try:
            return answers.success(tell())
        except RequestError as error:
            return self._failed(error)

    async def _finish(self, result: Awaitable[Any], identity: Identity) -> Response:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                answer = answers.success(await result)
            answer.owner = identity.user_id
            return answer
        except RequestError as error:
            return self._failed(error)
        except (StoreError, TimeoutError) as error:
            return self._storeless(error)

    def _too_late(self) -> Response:
        return self._storeless(TimeoutError())

    def _storeless(self, error: StoreError | TimeoutError) -> Response:
        log.warning("request failed for want of a store", error=str(error), cause=repr(error.__cause__))
        return self._failed(RequestError(ErrorCode.STORE_UNAVAILABLE, "a store does not answer", retry_after_s=5))

    def _failed(self, error: RequestError) -> Response:
        response = answers.failure(
            error, status_in_body=self._live.config.server.status_in_body, status=getattr(error, "status", None)
        )
        return response if not isinstance(error, _WithHeaders) else _extended(response, error.headers)

    # ---- browsers of other origins (the Fetch standard's CORS protocol)

    def _preflight(self, request: Request) -> Response:
        headers = (
            ("Access-Control-Allow-Origin", request.headers["origin"]),
            ("Access-Control-Allow-Methods", "GET, POST, DELETE"),
            ("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key, X-API-Key"),
            ("Access-Control-Max-Age", PREFLIGHT_MAX_AGE_S),
            ("Vary", "Origin"),
        )
        return Response(204, headers=headers)

    def _with_cors(self, request: Request, response: Answer) -> Answer:
        origin = request.headers["origin"]
        if not self._authenticator.is_allowed_origin(origin, request.headers.get("host", "")):
            return response
        headers = (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"))
        if isinstance(response, Response):
            return _extended(response, headers)
        if isinstance(response, Pending):
            respond, give_up = response.respond, response.give_up
            return msgspec.structs.replace(
                response,
                respond=lambda: _extended(respond(), headers),
                give_up=lambda: _extended(give_up(), headers),
            )
        return _extended_later(response, headers)

    # ---- probes

    def _healthz(self, request: Request) -> Response:
        return Response(200, b'{"status":"ok"}')

    def _readyz(self, request: Request) -> Response:
        if self._api.health.can_publish:
            return Response(200, b'{"status":"ready"}')
        status = b'{"status":"draining"}' if self._api.health.is_draining else b'{"status":"unavailable"}'
        return Response(503, status, headers=(("Retry-After", "5"),))

    def _metrics(self, request: Request) -> Response:
        return Response(200, self._api.metrics.text(), metrics.CONTENT_TYPE)

    def _describe(self, request: Request) -> Response:
        return Response(200, self._openapi)


def _decoded_query(route: Route, request: Request) -> Any:
    """The query's fields; empty ones count as left out, unknown ones are ignored."""
    fields = {name: value for name, value in request.query.items() if value}
    query: Any = answers.decoded(lambda fields: msgspec.convert(fields, route.endpoint.query, strict=False), fields)
    for name in fields:
        if getattr(query, name, name) is None:  # msgspec takes the text "null" for one
            raise RequestError(ErrorCode.INVALID_REQUEST, f"{name}: null is no value", details={"field": name})
    return query


def _decoded_body(decode: Callable[[bytes], Any], request: Request) -> Any:
    """The body. Raises RequestError UNSUPPORTED_MEDIA_TYPE, INVALID_JSON or INVALID_REQUEST."""
    media_type = request.headers.get("content-type", "")
    if media_type != JSON and media_type.partition(";")[0].strip().lower() != JSON:
        raise RequestError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "Content-Type: application/json is required")
    return answers.decoded(decode, request.body)


class _WithHeaders(RequestError):
    status: int
    headers: tuple[tuple[str, str], ...] = ()


class _MethodNotAllowed(_WithHeaders):
    def __init__(self, methods: Iterable[str]) -> None:
        allowed = ", ".join(sorted(methods))
        super().__init__(ErrorCode.METHOD_NOT_ALLOWED, f"expected {allowed}")
        self.status = 405
        self.headers = (("Allow", allowed),)


class _NotAnUpgrade(_WithHeaders):
    """RFC 9110 section 15.5.22."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, "a WebSocket upgrade is expected here")
        self.status = 426
        self.headers = (("Upgrade", "websocket"), ("Connection", "Upgrade"))


def _undecoded_path(request: Request) -> str:
    """The path as it came: a `%2F` in it belongs to a segment."""
    target = request.target.partition(b"?")[0].decode("latin-1")
    return target if target.startswith("/") else "/" + target.partition("://")[2].partition("/")[2]


def _extended(response: Response, headers: tuple[tuple[str, str], ...]) -> Response:
    return replace(response, headers=(*response.headers, *headers))


async def _extended_later(response: Awaitable[Response], headers: tuple[tuple[str, str], ...]) -> Response:
    return _extended(await response, headers)
