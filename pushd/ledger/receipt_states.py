"""Which states of a receipt match a filter of receive records; the steps and flags are those of _ledger.pxd."""

from __future__ import annotations

from pushd.model import Channel, DeliveryStatus
from pushd.records import ReceiptFilter

_NONE, _PENDING, _OFFLINE, _EXPIRED, _DELIVERED, _READ, _CONFIRMED, _AGAIN = range(8)
_STEPS, _ONLINE, _BY_MAILBOX = 0x0F, 0x40, 0x80
_STATUSES = {
    _PENDING: DeliveryStatus.PENDING,
    _OFFLINE: DeliveryStatus.OFFLINE,
    _EXPIRED: DeliveryStatus.EXPIRED,
}


def states_of(where: ReceiptFilter) -> bytes:
    """256 bytes: 1 for each state byte of a listed receipt that has what `where` asks of states, else 0."""
    return bytes(_matches(state, where) for state in range(256))


def status_of(state: int) -> DeliveryStatus:
    """How far the receipt with this state byte came."""
    return _STATUSES.get(state & _STEPS, DeliveryStatus.DELIVERED)


def channel_of(state: int) -> Channel:
    """How the notice went out, as the receipt with this state byte has it."""
    return Channel.OFFLINE if state & _BY_MAILBOX else Channel.WEBSOCKET


def _matches(state: int, where: ReceiptFilter) -> bool:
    step = state & _STEPS
    facts = (
        (where.is_online, bool(state & _ONLINE)),
        (where.is_received, step >= _DELIVERED),
        (where.is_read, step in (_READ, _CONFIRMED)),
        (where.is_confirmed, step == _CONFIRMED),
        (where.delivery_status, status_of(state)),
        (where.push_channel, channel_of(state)),
    )
    return _NONE < step <= _AGAIN and all(asked is None or asked == fact for asked, fact in facts)
