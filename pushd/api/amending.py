"""Notices changed after their acceptance: revoked, edited, brought to mind again."""

from __future__ import annotations

import msgspec

from pushd.api.endpoint import Call
from pushd.api.forms import Nothing
from pushd.api.publishing import sender_of
from pushd.delivery.amending import Amending
from pushd.delivery.edits import Edit
from pushd.model import Step


class RevokedNotice(msgspec.Struct):
    """A notice that nobody gets any more; `status` is `cancelled` where it had not gone out.

    `copies`: how many waited in mailboxes; `connections`: how many were told.
    """

    message_id: str
    copies: int
    connections: int
    status: str = "revoked"
    success: bool = True


class EditedNotice(msgspec.Struct):
    """A notice that says something else now. `connections`: how many were told."""

    message_id: str
    version: int
    connections: int
    success: bool = True


class RemindBody(msgspec.Struct):
    """Whom to remind: who has not got so far."""

    step: Step


class RemindedNotice(msgspec.Struct):
    """A notice that some were reminded of, the `n`th time. `recipients`: how many these are; of none nobody was."""

    message_id: str
    n: int
    recipients: int
    success: bool = True


class AmendingHandlers:
    """Has notices changed."""

    def __init__(self, amending: Amending) -> None:
        self._amending = amending

    async def revoke(self, call: Call[Nothing, None]) -> RevokedNotice:
        """POST /notification/records/{message_id}/revoke."""
        message_id = call.params["message_id"]
        revoked = await self._amending.revoke(message_id)
        status = "cancelled" if revoked.is_cancelled else "revoked"
        return RevokedNotice(message_id, revoked.copies, revoked.connections, status)

    async def edit(self, call: Call[Nothing, Edit]) -> EditedNotice:
        """PUT /notification/records/{message_id}."""
        edited = await self._amending.edit(call.params["message_id"], call.body, sender_of(call))
        return EditedNotice(edited.notice.message_id, edited.notice.version, edited.connections)

    async def remind(self, call: Call[Nothing, RemindBody]) -> RemindedNotice:
        """POST /notification/records/{message_id}/remind."""
        message_id = call.params["message_id"]
        reminded = await self._amending.remind(message_id, call.body.step)
        return RemindedNotice(message_id, reminded.n, reminded.recipients)
