"""Who may have a WebSocket connection, and what all of them share.

`Gateway.admit` decides about an upgrade, `Gateway.attach` hands the transport over, and connections report back here.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Coroutine
from typing import Any, cast

import msgspec
import structlog

from pushd._fastpath import Connection, Hub
from pushd.auth.authenticator import Authenticator, Identity
from pushd.clock import Clock
from pushd.config.current import CurrentConfig
from pushd.delivery.acknowledgements import Receipts
from pushd.errors import CloseCode, ErrorCode, RequestError, StoreError
from pushd.http.addresses import TOO_MANY_CONNECTIONS, Addresses, canonical
from pushd.http.messages import Request
from pushd.model import Client
from pushd.ports import Revocations
from pushd.presence.arrivals import Arrivals
from pushd.protocol import deflate, frames
from pushd.protocol.frames import Dialect
from pushd.protocol.session import Session
from pushd.telemetry import faults
from pushd.telemetry.metrics import Metrics
from pushd.users.directory import CachedDirectory
from pushd.values import MAX_USER_ID
from pushd.ws._reader import Reader
from pushd.ws.client import Listener, switching_protocols
from pushd.ws.renewals import REVOKED, Renewals, token_ids

log = structlog.get_logger("pushd.gateway")

REVOKED_WITHIN_S = 4.0
NO_TOKEN = ""
ABNORMAL_CLOSURE = 1006


class Admission(msgspec.Struct, frozen=True):
    """An upgrade that was allowed."""

    identity: Identity
    client_ip: str
    subprotocol: str
    dialect: Dialect
    is_acking: bool
    is_echo: bool
    extensions: str = ""  # the answer to what was offered; when there is one, permessage-deflate is on

    def answer_headers(self) -> dict[str, str]:
        """What the 101 says beyond the handshake itself."""
        headers = {"Sec-WebSocket-Protocol": self.subprotocol, "Sec-WebSocket-Extensions": self.extensions}
        return {name: value for name, value in headers.items() if value}


class Gateway:
    """Lets WebSocket clients in and holds what their connections share."""

    def __init__(
        self,
        hub: Hub,
        reader: Reader,
        arrivals: Arrivals,
        directory: CachedDirectory,
        receipts: Receipts,
        authenticator: Authenticator,
        current: CurrentConfig,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self.hub = hub
        self.reader = reader
        self.arrivals = arrivals
        self.directory = directory
        self.receipts = receipts
        self.authenticator = authenticator
        self.current = current
        self.metrics = metrics
        self.now = clock.now
        self.wall_ms = clock.wall_ms
        self.is_draining = False
        self.renewals = Renewals(self)
        self._guests = itertools.count(-1, -1)
        self._conn_ids = itertools.count(1)
        self._conn_prefix = secrets.token_hex(4)
        self.addresses = Addresses(current.config.server.trusted_proxies, now=clock.now)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0

    # ---- before the upgrade

    @property
    def open_sockets(self) -> int:
        """WebSocket connections whose socket is still there, closing ones included."""
        return self._open

    def paths(self) -> tuple[str, ...]:
        """Where WebSocket clients connect."""
        return ("/ws", f"{self.current.config.server.api_prefix}/ws")

    def admit(self, request: Request) -> Admission | Awaitable[Admission]:
        """Decide about an upgrade. Raises RequestError; asks no store but that of revoked tokens, if there is one."""
        try:
            admission = self._admit(request)
        except RequestError as error:
            raise self._rejected(error) from None
        if not self.authenticator.can_be_revoked(admission.identity):
            return admission
        return self._unrevoked(request.peer, admission)

    async def _unrevoked(self, peer: str, admission: Admission) -> Admission:
        try:
            await self._check_revoked(admission.identity)
            self._check_room_still(peer, admission.client_ip)
        except RequestError as error:
            raise self._rejected(error) from None
        return admission

    def _rejected(self, error: RequestError) -> RequestError:
        self.metrics.rejected.labels(error.code.value.lower()).inc()
        return error

    async def _check_revoked(self, identity: Identity) -> None:
        try:
            await self.authenticator.check_revoked(identity)
        except StoreError as error:
            log.warning("revoked tokens cannot be asked for", error=str(error))
            text = "it cannot be checked whether the token was revoked"
            raise RequestError(ErrorCode.STORE_UNAVAILABLE, text, retry_after_s=5) from None

    def _admit(self, request: Request) -> Admission:
        if self.is_draining:
            raise RequestError(ErrorCode.DRAINING, "the server is shutting down", retry_after_s=5)
        is_echo = request.path == "/ws/echo" and self.current.config.debug.echo
        if not is_echo and request.path not in self.paths():
            raise RequestError(ErrorCode.NOT_FOUND, "no WebSocket endpoint here")
        self.authenticator.check_source(request)
        client_ip = canonical(self.authenticator.client_ip(request))
        self._check_limits(request.peer, client_ip)
        subprotocol, dialect = _negotiate(request.headers.get("sec-websocket-protocol", ""))
        return Admission(
            identity=self._identity(request),
            client_ip=client_ip,
            subprotocol=subprotocol,
            dialect=dialect,
            is_acking=request.query.get("ack") == "1",
            is_echo=is_echo,
            extensions=self._negotiate_extensions(request),
        )

    def _negotiate_extensions(self, request: Request) -> str:
        if self.current.config.server.compression == "off":
            return ""
        return deflate.negotiate(request.headers.get("sec-websocket-extensions", ""))

    def _identity(self, request: Request) -> Identity:
        if self.current.config.auth.mode == "none":
            return _named_user(request.query.get("user_id"))
        identity = self.authenticator.identify(request, query_token=True)
        if identity.user_id == 0:
            raise RequestError(ErrorCode.UNAUTHORIZED, "a WebSocket connection needs a user's token, not an API key")
        return identity

    def _check_limits(self, peer: str, client_ip: str) -> None:
        limits = self.current.config.limits
        if self._open >= limits.max_connections:
            raise RequestError(ErrorCode.QUEUE_FULL, "the server has no room for more connections", retry_after_s=5)
        if self.addresses.is_counted_at_accept(peer):
            return
        fault = self.addresses.find_fault(client_ip, limits)
        if fault:
            raise RequestError(ErrorCode.RATE_LIMITED, fault, retry_after_s=60)

    def _check_room_still(self, peer: str, client_ip: str) -> None:
        """Others behind the same proxy may have come while the store was asked."""
        is_by_head = not self.addresses.is_counted_at_accept(peer)
        if is_by_head and self.addresses.is_full(client_ip, self.current.config.limits):
            raise RequestError(ErrorCode.RATE_LIMITED, TOO_MANY_CONNECTIONS, retry_after_s=60)

    # ---- the hand-over

    def attach(self, transport: asyncio.Transport, request: Request, admission: Admission, tail: bytes) -> None:
        """Take over a transport whose reading is paused; `tail` is what came behind the request."""
        connection = self._connection(transport, request, admission)
        session = Session(admission.dialect, is_echo=admission.is_echo, can_inflate=bool(admission.extensions))
        connection.owner = Listener(self, connection, session)
        transport.set_protocol(cast(asyncio.Protocol, connection))
        answer = switching_protocols(request, admission.answer_headers())
        if admission.is_echo:  # no hello
            transport.write(answer)
        else:
            connection.begin(answer)
        self._opened(connection, is_echo=admission.is_echo)
        self.reader.feed(connection, tail)
        if connection.is_closing() or connection.is_paused:
            return
        if connection.is_secure:
            transport.resume_reading()
        else:
            self.reader.watch(connection)

    def _connection(self, transport: asyncio.Transport, request: Request, admission: Admission) -> Connection:
        identity = admission.identity
        connection = Connection(
            self.hub,
            transport,
            user_id=identity.user_id or next(self._guests),
            conn_id=f"{self._conn_prefix}{next(self._conn_ids):x}",
            dialect=admission.dialect | (frames.DEFLATED if admission.extensions else 0),
            is_acking=admission.is_acking,
            now=self.now(),
            details=Client(
                username=identity.username,
                role=identity.role,
                client_ip=admission.client_ip,
                user_agent=request.headers.get("user-agent", "")[:512],
                connected_ms=self.wall_ms(),
                token_id=identity.token_id,
                issued_ms=identity.issued_ms,
            ),
        )
        self.set_expiry(connection, identity)
        return connection

    def set_expiry(self, connection: Connection, identity: Identity) -> None:
        """The connection ends when the token does."""
        connection.expires_at = self.now() + identity.expires_s - self.wall_ms() / 1000 if identity.expires_s else 0.0

    # ---- what connections report

    def _opened(self, connection: Connection, *, is_echo: bool) -> None:
        self._open += 1
        self.addresses.enter(connection.details.client_ip)
        if is_echo:
            self.hub.add(connection)
            self.hub.release(connection)
        else:
            self.arrivals.arrive(connection)

    def lost(self, connection: Connection) -> None:
        """The socket is gone."""
        self.reader.forget(connection)
        self._open -= 1
        self.addresses.leave(connection.details.client_ip)
        self.metrics.count_disconnect(connection.close_code or ABNORMAL_CLOSURE)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what a client asked for and a store must answer; awaited at the end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            faults.noted(self.metrics, "session", error)

    async def watch_revocations(self) -> None:
        """Until cancelled: close live connections whose token was revoked, within REVOKED_WITHIN_S."""
        revocations = self.authenticator.revocations
        while revocations is not None:
            await asyncio.sleep(REVOKED_WITHIN_S / 2)
            try:
                async with asyncio.timeout(REVOKED_WITHIN_S / 2):
                    await faults.unless_cancelled(self._close_revoked(revocations))
            except (StoreError, TimeoutError) as error:
                log.warning("revoked tokens cannot be asked for", error=str(error))
            except Exception as error:
                faults.noted(self.metrics, "revocations", error)

    async def _close_revoked(self, revocations: Revocations) -> None:
        by_token: dict[str, list[Connection]] = {}
        for connection in self.hub.snapshot():
            for token_id in token_ids(connection.details):
                by_token.setdefault(token_id, []).append(connection)
        # Asked also when there is nothing to ask for: so health knows whether new tokens could be checked.
        for token_id in await revocations.revoked(by_token or [NO_TOKEN]):
            for connection in by_token.get(token_id, ()):
                self.hub.close(connection, CloseCode.REVOKED, REVOKED)

    async def finished(self) -> None:
        """Return when everything clients asked for is done."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Give up what clients asked for and is not done."""
        for task in self._tasks:
            task.cancel()
        await self.finished()


def _named_user(user_id: str | None) -> Identity:
    """The user a query names where no credentials are asked for; nobody is a guest."""
    if user_id is None:
        return Identity()
    if not (user_id.isascii() and user_id.isdigit() and len(user_id) < 20 and 1 <= int(user_id) <= MAX_USER_ID):
        text = "user_id: expected a whole number from 1"
        raise RequestError(ErrorCode.INVALID_REQUEST, text, details={"field": "user_id"})
    return Identity(user_id=int(user_id))


def _negotiate(offered: str) -> tuple[str, Dialect]:
    """The first subprotocol we speak (RFC 6455 section 4.2.2), or none and JSON."""
    for name in (name.strip() for name in offered.split(",")):
        if name in frames.SUBPROTOCOLS:
            return name, frames.SUBPROTOCOLS[name]
    return "", Dialect.JSON
