"""An HTTP connection without a socket, and the router of the API behind it, with one handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, cast

import uvloop

from bench.loadlib.drive_plan import API_KEY, SECRET
from pushd.api.endpoint import Call, Endpoint, Rights
from pushd.api.forms import Nothing
from pushd.api.probes import Probes
from pushd.api.router import Router
from pushd.auth.authenticator import Authenticator
from pushd.config.current import CurrentConfig
from pushd.config.schema import AuthConfig, Config, LimitsConfig
from pushd.delivery.submission import Submission
from pushd.http.admission import RequestTurns
from pushd.http.connection import HttpConnection
from pushd.http.shared import Shared
from pushd.later import Later
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import Metrics
from pushd.ws.gateway import Gateway


class _Decided:
    """A future that tells the one who waits at once: what the loop does in between is not measured."""

    def __init__(self) -> None:
        self._told: Callable[[Any], None] | None = None

    def add_done_callback(self, told: Callable[[Any], None]) -> None:
        self._told = told

    def result(self) -> Nothing:
        return Nothing()

    def decide(self) -> None:
        told, self._told = self._told, None
        assert told is not None
        told(self)


class _Transport(asyncio.Transport):
    """Keeps what was written last."""

    written = b""

    def write(self, data: Any) -> None:
        self.written = data

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever left over."""


class _Server:
    """Makes no other connection."""

    def forget(self, connection: HttpConnection) -> None:
        """There is nothing to forget."""


class Exchange:
    """A kept-alive connection of a publisher with an API key; `close` leaves nothing behind."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._decided = _Decided()
        self._transport = _Transport()
        self._shared = self._loop.run_until_complete(self._share())
        self._connection = HttpConnection(self._shared, _Server(), "127.0.0.1", is_secure=False)
        self._connection.connection_made(self._transport)

    async def _share(self) -> Shared:
        auth = AuthConfig(mode="jwt", jwt_secret=SECRET, api_keys=(API_KEY,))
        current, metrics = CurrentConfig(Config(auth=auth)), Metrics()
        endpoint = Endpoint("POST", "/system/notice", Rights.ADMIN, self._handle, Nothing, "", body=Submission)
        probes = Probes(Health(metrics, monotonic), metrics, b"{}")
        nowhere = cast(Gateway, None)  # asked for other paths only
        shared = Shared(Router((endpoint,), probes, nowhere, Authenticator(current), current, metrics), LimitsConfig())
        shared.turns = RequestTurns(now=lambda: 0.0)  # a turn that is never used up
        return shared

    def _handle(self, call: Call[Nothing, Submission]) -> Later[Nothing]:
        return Later(cast("asyncio.Future[Any]", self._decided))

    def ask(self, request: bytes) -> bytes:
        """The answer to a request, which the handler gives later."""
        self._connection.data_received(request)
        self._decided.decide()
        return self._transport.written

    def close(self) -> None:
        """Everything at once."""
        self._connection.connection_lost(None)
        self._shared.first_reads.close()
        self._loop.close()
