"""Notices changed after their acceptance: revoked."""

from __future__ import annotations

import msgspec

from pushd.api.endpoint import Call
from pushd.api.forms import Nothing
from pushd.delivery.amending import Amending


class RevokedNotice(msgspec.Struct):
    """A notice that nobody gets any more. `copies`: how many waited in mailboxes; `connections`: how many were told."""

    message_id: str
    copies: int
    connections: int
    status: str = "revoked"
    success: bool = True


class AmendingHandlers:
    """Has notices changed."""

    def __init__(self, amending: Amending) -> None:
        self._amending = amending

    async def revoke(self, call: Call[Nothing, None]) -> RevokedNotice:
        """POST /notification/records/{message_id}/revoke."""
        message_id = call.params["message_id"]
        revoked = await self._amending.revoke(message_id)
        return RevokedNotice(message_id, revoked.copies, revoked.connections)
