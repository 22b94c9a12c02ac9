"""Fresh tokens of live connections: the `auth` frames by which they go on when their first token expires."""

from __future__ import annotations

import structlog

from pushd._fastpath import Connection, Hub
from pushd.auth.authenticator import Authenticator, Identity
from pushd.clock import Clock
from pushd.errors import CloseCode, ErrorCode, RequestError, StoreError
from pushd.model import User
from pushd.protocol import frames
from pushd.telemetry.metrics import Metrics
from pushd.users.directory import CachedDirectory
from pushd.ws.revocations import REVOKED, token_ids
from pushd.ws.tasks import Tasks

log = structlog.get_logger("pushd.renewals")

MAX_TOKENS = 16  # that one connection answers for


def expires_at(identity: Identity, clock: Clock) -> float:
    """When a token's connections end because it expires, on the loop's clock (s); 0: never."""
    return clock.now() + identity.expires_s - clock.wall_ms() / 1000 if identity.expires_s else 0.0


class Renewals:
    """Takes the fresh tokens that clients send, and has their connections go on by them."""

    def __init__(
        self,
        hub: Hub,
        directory: CachedDirectory,
        authenticator: Authenticator,
        tasks: Tasks,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._hub = hub
        self._directory = directory
        self._authenticator = authenticator
        self._tasks = tasks
        self._metrics = metrics
        self._clock = clock
        self._asked: dict[Connection, Identity] = {}  # the last token of each about which Redis is being asked

    def renew(self, connection: Connection, token: str) -> None:
        """Let a connection go on by a fresh token, at once or when it is known not to be revoked.

        The token then says until when, as whom, and by which id the connection can be ended. Closes the connection when
        the token is not valid, is another user's or was revoked.
        """
        try:
            identity = self._authenticator.verify(token)
            self._answer_for(connection, identity)
        except RequestError as error:
            self._hub.close(connection, CloseCode.TOKEN_INVALID, error.text)
            return
        if self._authenticator.can_be_revoked(identity):
            self._asked[connection] = identity
            self._tasks.spawn(self._renew_unrevoked(connection, identity))
        else:
            self._renewed(connection, identity)

    def _answer_for(self, connection: Connection, identity: Identity) -> None:
        """Add the token to those of its connection. Raises RequestError."""
        if identity.user_id != connection.user_id:
            raise RequestError(ErrorCode.UNAUTHORIZED, "the token names another user")
        client = connection.details
        now_s = self._clock.wall_ms() / 1000
        former = client.tokens or ((client.token_id, connection.expires_at - self._clock.now() + now_s),)
        tokens = {token_id: ends_s for token_id, ends_s in former if token_id and ends_s > now_s}
        if identity.token_id:
            tokens[identity.token_id] = identity.expires_s
        if len(tokens) > MAX_TOKENS:
            raise RequestError(ErrorCode.UNAUTHORIZED, f"more than {MAX_TOKENS} tokens on one connection")
        client.token_id, client.tokens = "", tuple(tokens.items())

    async def _renew_unrevoked(self, connection: Connection, identity: Identity) -> None:
        try:
            is_revoked = bool(await self._authenticator.revoked(token_ids(connection.details)))
        except StoreError:
            self._refuse(connection)
            return
        finally:
            is_last = self._asked.get(connection) is identity
            if is_last:
                del self._asked[connection]
        if is_revoked:
            self._hub.close(connection, CloseCode.REVOKED, REVOKED)
        elif is_last:  # else a later one counts
            self._renewed(connection, identity)

    def _refuse(self, connection: Connection) -> None:
        text = "it cannot be checked whether the token was revoked; the former one counts, try again"
        error = frames.ErrorFrame(error=ErrorCode.STORE_UNAVAILABLE, message=text)
        self._hub.send(connection, frames.frame(error, connection.dialect))

    def _renewed(self, connection: Connection, identity: Identity) -> None:
        connection.expires_at = expires_at(identity, self._clock)
        client = connection.details
        client.username = identity.username or client.username
        client.role = identity.role
        claims = User(identity.user_id, identity.username, identity.role, identity.issued_ms)
        self._tasks.spawn(self._learn(claims))

    async def _learn(self, claims: User) -> None:
        try:
            await self._directory.learn([claims])
        except StoreError as error:
            log.warning("what a fresh token says is not noted", error=str(error), cause=repr(error.__cause__))
            self._metrics.errors.labels("directory").inc()
