"""What load balancers, scrapers and tools ask without credentials: is it alive, is it ready, its metrics, its API."""

from __future__ import annotations

import time
from collections.abc import Callable

from pushd.http.messages import Request, Response
from pushd.limits import TokenBucket
from pushd.telemetry.health import Health
from pushd.telemetry.metrics import CONTENT_TYPE, Metrics

FRESH_EXPOSITIONS = 10  # of the metrics, at once; then one each second, and others get the last one


class Probes:
    """Answers what is asked without credentials. `description` is the OpenAPI document."""

    def __init__(self, health: Health, metrics: Metrics, description: bytes) -> None:
        self._health = health
        self._exposition = Exposition(metrics.text, time.monotonic)
        self._description = description

    def by_path(self) -> dict[str, Callable[[Request], Response]]:
        """What answers the requests to each path."""
        return {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/openapi.json": self._describe,
        }

    def _healthz(self, request: Request) -> Response:
        return Response(200, b'{"status":"ok"}')

    def _readyz(self, request: Request) -> Response:
        if self._health.can_publish:
            return Response(200, b'{"status":"ready"}')
        status = b'{"status":"draining"}' if self._health.is_draining else b'{"status":"unavailable"}'
        return Response(503, status, headers=(("Retry-After", "5"),))

    def _metrics(self, request: Request) -> Response:
        return Response(200, self._exposition.text(), CONTENT_TYPE)

    def _describe(self, request: Request) -> Response:
        return Response(200, self._description)


class Exposition:
    """A text that costs much to make: made anew for who asks now and then; a flood gets one that is a second old."""

    def __init__(self, make: Callable[[], bytes], now: Callable[[], float]) -> None:
        self._make = make
        self._now = now
        self._made = b""
        self._fresh = TokenBucket(1, FRESH_EXPOSITIONS, now())
        self._rests_until = 0.0  # making takes half of the time at most: others have their turn in between

    def text(self) -> bytes:
        """The text, at most a second older than the newest that could be made."""
        begun = self._now()
        if begun >= self._rests_until and self._fresh.take(begun):
            self._made = self._make()
            ended = self._now()
            self._rests_until = ended + (ended - begun)
        return self._made
