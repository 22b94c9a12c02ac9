"""Fresh tokens of live connections (`auth` frames), and by which revoked tokens connections end.

A connection answers for every token that it was opened or renewed with, until that one has expired: when one of them is
revoked, the connection ends. So a renewal saves nobody whose former token was revoked, noticed or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from pushd._fastpath import Connection
from pushd.auth.authenticator import Identity
from pushd.errors import CloseCode, ErrorCode, RequestError, StoreError
from pushd.model import Client, User
from pushd.protocol import frames

if TYPE_CHECKING:
    from pushd.ws.gateway import Gateway

log = structlog.get_logger("pushd.renewals")

MAX_TOKENS = 16  # that one connection answers for
REVOKED = "the token was revoked"


class Renewals:
    """Takes the tokens by which connections go on."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._asked: dict[Connection, Identity] = {}  # the last token of each about which Redis is being asked

    def renew(self, connection: Connection, token: str) -> None:
        """From now on, or once it is known not to be revoked, this token says until when, as whom and by which id.

        Closes the connection when the token is not valid, is another user's or was revoked.
        """
        try:
            identity = self._gateway.authenticator.verify(token)
            self._answer_for(connection, identity)
        except RequestError as error:
            self._gateway.hub.close(connection, CloseCode.TOKEN_INVALID, error.text)
            return
        if self._gateway.authenticator.can_be_revoked(identity):
            self._asked[connection] = identity
            self._gateway.spawn(self._renew_unrevoked(connection, identity))
        else:
            self._renewed(connection, identity)

    def _answer_for(self, connection: Connection, identity: Identity) -> None:
        """Raises RequestError."""
        if identity.user_id != connection.user_id:
            raise RequestError(ErrorCode.UNAUTHORIZED, "the token names another user")
        client: Client = connection.details
        now_s = self._gateway.wall_ms() / 1000
        former = client.tokens or ((client.token_id, connection.expires_at - self._gateway.now() + now_s),)
        tokens = {token_id: ends_s for token_id, ends_s in former if token_id and ends_s > now_s}
        if identity.token_id:
            tokens[identity.token_id] = identity.expires_s
        if len(tokens) > MAX_TOKENS:
            raise RequestError(ErrorCode.UNAUTHORIZED, f"more than {MAX_TOKENS} tokens on one connection")
        client.token_id, client.tokens = "", tuple(tokens.items())

    async def _renew_unrevoked(self, connection: Connection, identity: Identity) -> None:
        try:
            is_revoked = bool(await self._gateway.authenticator.revoked(token_ids(connection.details)))
        except StoreError:
            self._refuse(connection)
            return
        finally:
            is_last = self._asked.get(connection) is identity
            if is_last:
                del self._asked[connection]
        if is_revoked:
            self._gateway.hub.close(connection, CloseCode.REVOKED, REVOKED)
        elif is_last:  # else a later one counts
            self._renewed(connection, identity)

    def _refuse(self, connection: Connection) -> None:
        text = "it cannot be checked whether the token was revoked; the former one counts, try again"
        error = frames.ErrorFrame(error=ErrorCode.STORE_UNAVAILABLE, message=text)
        self._gateway.hub.send(connection, frames.frame(error, connection.dialect))

    def _renewed(self, connection: Connection, identity: Identity) -> None:
        self._gateway.set_expiry(connection, identity)
        client: Client = connection.details
        client.username = identity.username or client.username
        client.role = identity.role
        claims = User(identity.user_id, identity.username, identity.role, identity.issued_ms)
        self._gateway.spawn(self._learn(claims))

    async def _learn(self, claims: User) -> None:
        try:
            await self._gateway.directory.learn([claims])
        except StoreError as error:
            log.warning("what a fresh token says is not noted", error=str(error), cause=repr(error.__cause__))
            self._gateway.metrics.errors.labels("directory").inc()


def token_ids(client: Client) -> list[str]:
    """By which revoked tokens a connection ends."""
    return [client.token_id] if client.token_id else [token_id for token_id, _ in client.tokens]
