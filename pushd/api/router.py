"""From a request to a handler and back: source, route, rights, the decoded query and body, the encoded answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from pushd.api import answers
from pushd.api.endpoint import Call, Endpoint, Rights
from pushd.api.forms import with_ids
from pushd.api.probes import Probes
from pushd.api.routes import Route, Routes
from pushd.auth import origins
from pushd.auth.authenticator import Authenticator, Identity
from pushd.config.checks import quote
from pushd.config.current import CurrentConfig
from pushd.config.schema import AuthConfig
from pushd.errors import ErrorCode, RequestError, StoreError
from pushd.http.messages import Request, Response
from pushd.later import Later
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.ws.gateway import Gateway
from pushd.ws.upgrade import Upgrade

log = structlog.get_logger("pushd.routes")
ANSWER_WITHIN_S = 20.0
NOBODY = Identity()
JSON = "application/json"
_READING = ("GET", "HEAD")
# Of what the HTTP server answers by itself, these are about a call, not about HTTP or an upgrade.
_STATUSES_OF_THE_API = frozenset({413, 500})

Answer = Response | Later[Response] | Awaitable[Response]


class Access(msgspec.Struct, eq=False):
    """What a head asks for, and by what right. Requests with the same head share it while `auth` is in force and the
    credentials have not expired."""

    route: Route
    params: dict[str, str]
    identity: Identity
    auth: AuthConfig
    query: Any = None
    is_checked: bool = False  # the query is decoded, and the media type is right


class Router:
    """The application of the HTTP server: finds the route, checks source and rights, and makes an answer of what comes
    back."""

    def __init__(
        self,
        endpoints: tuple[Endpoint, ...],
        probes: Probes,
        gateway: Gateway,
        authenticator: Authenticator,
        current: CurrentConfig,
        metrics: Metrics,
        *,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        self.endpoints = endpoints
        self.answer_within_s = answer_within_s
        self._routes = Routes(current.config.server.api_prefix, endpoints)
        self._probes = probes.by_path()
        self._gateway = gateway
        self._authenticator = authenticator
        self._current = current
        self._ids = current.config.directory.ids
        self._metrics = metrics

    # ---- what the HTTP server asks

    def judge_head(self, request: Request) -> Response | bool:
        """The refusal of a request whatever its body is; else whether its body will be read."""
        try:
            access = self._access(request)
            if access is None or access.route.decode_body is None:
                return False
            if not access.is_checked:
                _check_media_type(request)
            return True
        except RequestError as error:
            return self._failed(error)

    def handle(self, request: Request) -> Answer:
        """Answer a request that is no upgrade."""
        try:
            access = self._access(request)
            return self._answer_anyone(request) if access is None else self._call(access, request)
        except RequestError as error:
            return self._failed(error)
        except Exception as error:
            return self._crashed(error)

    def too_late(self) -> Response:
        """The answer when what was begun takes longer than `answer_within_s`."""
        return self._storeless(TimeoutError())

    def failure(self, status: int, text: str) -> Response:
        """The answer to what the HTTP server refuses by itself."""
        if status == 500:
            self._metrics.errors.labels("request").inc()
        in_body = self._current.config.server.status_in_body and status in _STATUSES_OF_THE_API
        return answers.of_status(status, text, status_in_body=in_body)

    def share(self, request: Request | None, response: Response) -> Response:
        """Any answer as it leaves: the page of an allowed origin can read it.

        Without a request, nobody knows who is answered: then any page can, where any but our own is allowed at all.
        """
        page = None
        if request is None:
            page = "*" if self._current.config.auth.allowed_origins else None
        elif "origin" in request.headers and self._authenticator.is_allowed_origin(request):
            page = request.headers["origin"]
        return response if page is None else _extended(response, origins.sharing_headers(page))

    def admit(self, request: Request) -> Response | Upgrade | Awaitable[Response | Upgrade]:
        """Decide about an upgrade."""
        try:
            verdict = self._gateway.admit(request)
        except RequestError as error:
            return answers.failure(error)
        return verdict if isinstance(verdict, Upgrade) else self._admit_later(verdict)

    async def _admit_later(self, verdict: Awaitable[Upgrade]) -> Response | Upgrade:
        try:
            return await verdict
        except RequestError as error:
            return answers.failure(error)

    def attach(self, transport: asyncio.Transport, request: Request, upgrade: Upgrade, tail: bytes) -> None:
        """Take over the connection of an upgrade that was allowed."""
        try:
            self._gateway.attach(transport, request, upgrade, tail)
        except Exception:
            self._metrics.errors.labels("request").inc()
            raise

    # ---- routing

    def _access(self, request: Request) -> Access | None:
        """What is asked for, by whom; None for what anyone may ask. Raises RequestError for what is refused."""
        memo = request.memo
        if memo is not None and memo.value is not None:
            known: Access = memo.value
            if self._authenticator.is_in_force(known.identity, known.auth):
                return known
        auth = self._current.config.auth
        self._authenticator.check_source(request)
        if request.path in self._probes or _is_preflight(request):
            return None
        route, params = self._find(request)
        access = Access(route, params, self._identify(request, route.endpoint.rights), auth)
        if memo is not None and "origin" not in request.headers:  # whether a page is ours depends on its way to us, too
            memo.value = access
        return access

    def _answer_anyone(self, request: Request) -> Response:
        if _is_preflight(request):
            return Response(204, headers=origins.preflight_headers(request.headers))
        if request.method not in _READING:
            raise _MethodNotAllowed(_READING)
        return self._probes[request.path](request)

    def _call(self, access: Access, request: Request) -> Answer:
        identity = access.identity
        if identity.token_id and self._authenticator.revocations is not None:
            return self._finish(self._call_unrevoked(access, request), identity)
        result = self._handle(access, request)
        if isinstance(result, Later):
            return result.then(answers.success, self._answer_to)
        return self._finish(result, identity) if isinstance(result, Awaitable) else answers.success(result)

    async def _call_unrevoked(self, access: Access, request: Request) -> msgspec.Struct:
        await self._authenticator.check_revoked(access.identity)
        result = self._handle(access, request)
        data: msgspec.Struct = await result if isinstance(result, Awaitable) else result
        return data

    def _handle(self, access: Access, request: Request) -> Any:
        """Have the handler called. Raises RequestError for a query, a media type or a body that is not right."""
        route = access.route
        if not access.is_checked:
            query = _decoded_query(route, request) if request.query_string else route.empty_query
            access.query = with_ids(query, route.query_ids, self._ids) if route.query_ids else query
            if route.decode_body is not None:
                _check_media_type(request)
            access.is_checked = True
        body = None if route.decode_body is None else answers.decoded(route.decode_body, request.body)
        if route.body_ids:
            body = with_ids(body, route.body_ids, self._ids)
        return route.endpoint.handler(Call(request, access.identity, access.params, access.query, body, self._ids))

    def _find(self, request: Request) -> tuple[Route, dict[str, str]]:
        methods, params = self._routes.at(request.path)
        if methods is None:
            if request.path in self._gateway.paths():
                raise _NotAnUpgrade if request.method in _READING else _MethodNotAllowed(("GET",))
            raise RequestError(ErrorCode.NOT_FOUND, "no such endpoint")
        route = methods.get("GET" if request.method == "HEAD" else request.method)
        if route is None:
            raise _MethodNotAllowed((*methods, "HEAD") if "GET" in methods else methods)
        return route, params

    def _identify(self, request: Request, rights: Rights) -> Identity:
        if rights is Rights.PUBLIC:
            return NOBODY
        identity = self._authenticator.identify(request)
        if rights is Rights.ADMIN and not identity.is_admin:
            raise RequestError(ErrorCode.FORBIDDEN, "admin rights are required")
        return identity

    async def _finish(self, result: Awaitable[Any], identity: Identity) -> Response:
        try:
            async with asyncio.timeout(self.answer_within_s):
                answer = answers.success(await result)
            answer.owner = identity.user_id
            return answer
        except Exception as error:
            return self._answer_to(error)

    def _answer_to(self, error: Exception) -> Response:
        if isinstance(error, RequestError):
            return self._failed(error)
        if isinstance(error, StoreError | TimeoutError):
            return self._storeless(error)
        return self._crashed(error)

    def _storeless(self, error: StoreError | TimeoutError) -> Response:
        log.warning("request failed for want of a store", error=str(error), cause=repr(error.__cause__))
        return self._failed(RequestError(ErrorCode.STORE_UNAVAILABLE, "a store does not answer", retry_after_s=5))

    def _crashed(self, error: Exception) -> Response:
        """The answer to a failure that nobody foresaw: only the log says what it was."""
        faults.logged(self._metrics, "request", error)
        return self.failure(500, "internal error")

    def _failed(self, error: RequestError) -> Response:
        response = answers.failure(
            error, status_in_body=self._current.config.server.status_in_body, status=getattr(error, "status", None)
        )
        return response if not isinstance(error, _WithHeaders) else _extended(response, error.headers)


def _is_preflight(request: Request) -> bool:
    return request.method == "OPTIONS" and "origin" in request.headers


def _decoded_query(route: Route, request: Request) -> Any:
    """The query's fields; empty ones count as left out, unknown ones are ignored."""
    fields = {name: value for name, value in request.query.items() if value}
    query: Any = answers.decoded(lambda fields: msgspec.convert(fields, route.endpoint.query, strict=False), fields)
    for name in fields:
        if getattr(query, name, name) is None:  # msgspec takes the text "null" for one
            raise RequestError(ErrorCode.INVALID_REQUEST, f"{name}: null is no value", details={"field": name})
    return query


def _check_media_type(request: Request) -> None:
    """Raises RequestError UNSUPPORTED_MEDIA_TYPE."""
    if "content-encoding" in request.headers and _is_encoded(request.headers["content-encoding"]):
        raise _Encoded(request.headers["content-encoding"])
    media_type = request.headers.get("content-type", "")
    if media_type != JSON and media_type.partition(";")[0].strip().lower() != JSON:
        raise RequestError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "Content-Type: application/json is required")


def _is_encoded(codings: str) -> bool:
    return not {coding.strip() for coding in codings.lower().split(",")} <= {"", "identity"}


class _WithHeaders(RequestError):
    status: int
    headers: tuple[tuple[str, str], ...] = ()


class _MethodNotAllowed(_WithHeaders):
    def __init__(self, methods: Iterable[str]) -> None:
        allowed = ", ".join(sorted(methods))
        super().__init__(ErrorCode.METHOD_NOT_ALLOWED, f"expected {allowed}")
        self.status = 405
        self.headers = (("Allow", allowed),)


class _Encoded(_WithHeaders):
    """RFC 9110 section 15.5.16."""

    def __init__(self, found: str) -> None:
        text = f"Content-Encoding: found {quote(found, limit=40)}, expected none or identity"
        super().__init__(ErrorCode.UNSUPPORTED_MEDIA_TYPE, text)
        self.status = 415
        self.headers = (("Accept-Encoding", "identity"),)


class _NotAnUpgrade(_WithHeaders):
    """RFC 9110 section 15.5.22."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, "a WebSocket upgrade is expected here")
        self.status = 426
        self.headers = (("Upgrade", "websocket"), ("Connection", "Upgrade"))


def _extended(response: Response, headers: tuple[tuple[str, str], ...]) -> Response:
    return replace(response, headers=(*response.headers, *headers))
