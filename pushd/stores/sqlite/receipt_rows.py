"""Rows of receive records: what the ledger, its users and its clients say of a receipt, put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pushd.ledger.clients import ClientFacts
from pushd.ledger.receipt_states import channel_of, status_of
from pushd.ledger.users import Users
from pushd.model import DeliveryStatus, UserId
from pushd.records import ReceiptRow
from pushd.stores.sqlite.ledger_file import LedgerFile
from pushd.turns import sliced
from pushd.values import MAX_MS

# Of ledger/_ledger.pxd.
STEPS, READ, CONFIRMED, ONLINE = 0x0F, 5, 6, 0x40

_NO_CLIENT = ClientFacts("", "", "", "", "", "")

# seq, user number, state, received_ms, read_ms, confirmed_ms, client
Found = tuple[int, int, int, int, int, int, int]


class _State(NamedTuple):
    """What a receipt's state byte says."""

    is_online: bool
    is_received: bool
    is_read: bool
    is_confirmed: bool
    status: str
    channel: str


class _Said(NamedTuple):
    """What a row says of its notice."""

    message_id: str
    message_type: str
    tags: tuple[str, ...]
    expires_ms: int


_STATES = [
    _State(
        is_online=bool(state & ONLINE),
        is_received=status_of(state) is DeliveryStatus.DELIVERED,
        is_read=state & STEPS in (READ, CONFIRMED),
        is_confirmed=state & STEPS == CONFIRMED,
        status=status_of(state).value,
        channel=channel_of(state).value,
    )
    for state in range(256)
]


async def receipt_rows(file: LedgerFile, found: Sequence[Found]) -> list[ReceiptRow]:
    """The rows of these receipts, in their order. Of a notice that was dropped since they were found there is none.

    Costs the loop a few microseconds a row, in slices. Raises StoreError.
    """
    seqs = _distinct(seq for seq, *_ in found)
    message_ids, expiries, tags = await file.message_ids(seqs), await file.expiries(seqs), await file.tags(seqs)
    confirmed = {message_ids[seq] for seq, _, state, *_ in found if _STATES[state].is_confirmed and seq in message_ids}
    replaced = await file.replaced(confirmed)
    clients = await file.clients.facts(_distinct(client for *_, client in found if client))
    rows: list[ReceiptRow] = []
    async for receipt in sliced(found):
        message_id = message_ids.get(receipt[0])
        if message_id is not None:
            client = clients.get(receipt[6], _NO_CLIENT)
            seq = receipt[0]
            label = file.labels.label(file.ledger.label(seq))
            said = _Said(message_id, label.type if label else "", tuple(tags.get(seq, ())), expiries.get(seq, 0))
            version = _version_at(receipt[5], replaced.get(message_id, ())) if _STATES[receipt[2]].is_confirmed else 0
            rows.append(_row(receipt, said, file.ledger.created_ms(seq), file.users, client, version))
    return rows


def who(users: Users, number: int, seq: int) -> tuple[UserId, str, int]:
    """Id, name and role of a user when the notice `seq` went out; for a number of nobody an id of no account."""
    if number >= len(users):
        return users.of.lost(number), "", 0
    return users.ids[number], *users.name_role(number, seq)


def _version_at(at_ms: int, replaced: Sequence[int]) -> int:
    """Which version was in force, if the former ones were replaced then."""
    return 1 + sum(replaced_ms <= at_ms for replaced_ms in replaced)


def _row(
    receipt: Found, said: _Said, created_ms: int, users: Users, client: ClientFacts, confirmed_version: int
) -> ReceiptRow:
    seq, number, state, received_ms, read_ms, confirmed_ms, _ = receipt
    user_id, username, role = who(users, number, seq)
    says = _STATES[state]
    return ReceiptRow(
        message_id=said.message_id,
        message_type=said.message_type,
        tags=said.tags,
        expires_ms=min(said.expires_ms, MAX_MS),
        user_id=user_id,
        username=username,
        user_role=role,
        is_online=says.is_online,
        is_received=says.is_received,
        received_ms=received_ms,
        is_read=says.is_read,
        read_ms=read_ms if says.is_read else 0,
        is_confirmed=says.is_confirmed,
        confirmed_ms=confirmed_ms if says.is_confirmed else 0,
        confirmed_version=confirmed_version,
        device_type=client.device_type,
        platform=client.platform,
        browser=client.browser,
        client_ip=client.client_ip,
        user_agent=client.user_agent,
        connection_id=client.connection_id,
        push_channel=says.channel,
        delivery_status=says.status,
        retry_count=0,
        error_message=None,
        created_ms=created_ms,
        updated_ms=max(created_ms, received_ms, read_ms, confirmed_ms),
    )


def _distinct(numbers: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(numbers))
