"""What is damaged in a stored ledger is refused, whatever it is, and all else is loaded."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushd.ledger._changes import load_part, replay
from pushd.ledger._ledger import Ledger
from tests.unit.ledger_file import (
    CHUNK_KIND,
    CONFIRMED,
    DAYS_MS,
    DELIVERED,
    DENSE_KIND,
    MAX_WAITING,
    OFFLINE,
    ONLINE,
    PAGE_KIND,
    READ,
    SETTLED,
    START_MS,
    SUCCESS,
    File,
    facts,
)


def full_file() -> tuple[File, list[int]]:
    """A file with every kind of part and entry in it, and the notices that are in it."""
    ledger, file = Ledger(MAX_WAITING), File()
    ledger.add_users(1500)
    everybody = list(range(1500))
    seqs = [*range(1, 40), *range(4090, 4100), 9000]
    for index, seq in enumerate(seqs):
        file.notices[seq] = START_MS + 1000 * index, index
        ledger.add_notice(seq, *file.notices[seq])
        if index % 3 == 0:
            ledger.begin_dense(seq)
        ledger.note(seq, everybody[index :: 3 if index % 3 else 5], OFFLINE, 0)
        ledger.note(seq, everybody[index::17], DELIVERED | ONLINE, START_MS + 1100 * index, everybody[index::17])
        if index % 4 == 0:
            file.take(ledger)
        ledger.mark(seq, index, CONFIRMED, START_MS + 2000 * index)
        ledger.wait(seq, [1, 2, index])
        if index % 2 == 0:
            ledger.set_notice(seq, SETTLED | SUCCESS)
    file.take_all(ledger)
    ledger.hide(seqs[0])
    for seq in seqs[::3]:
        ledger.mark(seq, 77, READ, START_MS + DAYS_MS)
    file.take_all(ledger)
    ledger.drop_waiting(seqs[0], 100)
    ledger.forget_before(2)
    ledger.note(4098, everybody[:3], DELIVERED, START_MS + 40 * DAYS_MS)
    file.take_all(ledger)
    return file, seqs


FULL, FULL_SEQS = full_file()
BLOBS = [("parts", key) for key in sorted(FULL.parts)] + [("changes", flush) for flush in sorted(FULL.changes)]


def test_the_full_file_has_everything() -> None:
    kinds = {(key >> 3 & 3, key & 7) for key in FULL.parts}
    assert kinds >= {
        (CHUNK_KIND, 0),
        *((DENSE_KIND, part) for part in (0, 1, 4)),
        *((PAGE_KIND, part) for part in (0, 1, 4)),
    }
    assert len(FULL.changes) > 5
    assert facts(FULL.load(), FULL_SEQS)["unread"] != [0] * 1500


def sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def damaged_file(table: str, key: int, blob: bytes) -> File:
    file = FULL.copy()
    getattr(file, table)[key] = blob
    return file


def loads_the_rest(file: File, table: str, key: int, is_refused: bool | None) -> None:
    """It is refused (None: or not), parts that need it are, all else is loaded, and the ledger can be used."""
    damaged: list[int] = []
    ledger = file.load(damaged)
    needing = {key} if table == "changes" or key & 7 else {key + part for part in range(5)}
    assert set(damaged) <= needing
    if is_refused is not None:
        assert (key in damaged) == is_refused
    facts(ledger, FULL_SEQS)
    for seq in FULL_SEQS[:12]:
        ledger.note(seq, list(range(0, 1500, 50)), DELIVERED | ONLINE, START_MS + 5, [3] * 30)
        ledger.mark(seq, 50, READ, START_MS + 6)
        ledger.wait(seq, [1, 2, 3])
    ledger.hide(FULL_SEQS[5])
    file.take_all(ledger)
    again = file.load([])
    assert again.flush >= ledger.flush
    facts(again, FULL_SEQS)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(BLOBS), st.data())
def test_what_is_damaged_is_refused_and_all_else_is_loaded(place: tuple[str, int], data: st.DataObject) -> None:
    blob = bytearray(getattr(FULL, place[0])[place[1]])
    match data.draw(st.sampled_from(["flip", "cut", "longer", "empty", "other"])):
        case "flip":
            blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del blob[data.draw(st.integers(0, len(blob) - 1)) :]
        case "longer":
            blob += b"\0" * data.draw(st.integers(1, 9))
        case "empty":
            blob.clear()
        case "other":
            other = data.draw(st.sampled_from([other for other in BLOBS if other != place]))
            blob = bytearray(getattr(FULL, other[0])[other[1]])
    loads_the_rest(damaged_file(*place, bytes(blob)), *place, True)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BLOBS), st.data())
def test_what_is_damaged_and_has_the_right_checksum_does_no_harm(place: tuple[str, int], data: st.DataObject) -> None:
    body = bytearray(getattr(FULL, place[0])[place[1]][:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        near = data.draw(st.integers(0, min(60, len(body) - 1)))
        at = data.draw(st.sampled_from([near, len(body) - 1 - near]) | st.integers(0, len(body) - 1))
        body[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    file = damaged_file(*place, sealed(bytes(body)))
    loads_the_rest(file, *place, None)


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (0, 0x50, "begins with b'PLdg', expected b'pLdg'"),
        (4, 2, "format 2, expected 1"),
        (5, 3, "kind 3, part 0, number"),
        (16, 0x7F, "flush|checksum"),
    ],
)
def test_errors_say_what_was_found_and_what_was_expected(at: int, value: int, told: str) -> None:
    key = next(key for key in FULL.parts if key >> 3 & 3 == DENSE_KIND and not key & 7)
    body = bytearray(FULL.parts[key][:-4])
    body[at] = value
    if at == 16:
        body[16:24] = (0).to_bytes(8, "little")
    ledger = Ledger(MAX_WAITING)
    ledger.add_users(1500)
    with pytest.raises(ValueError, match=told):
        load_part(ledger, key, sealed(bytes(body)))
    with pytest.raises(ValueError, match=r"checksum [0-9a-f]{8}, expected [0-9a-f]{8}"):
        load_part(ledger, key, FULL.parts[key][:-4] + b"abcd")
    with pytest.raises(ValueError, match=r"5 bytes, expected 32 at least"):
        load_part(ledger, key, b"pLdg\1")
    assert ledger.flush == 0


def test_a_part_needs_the_first_one_and_comes_once() -> None:
    first, second = sorted(key for key in FULL.parts if key >> 3 & 3 == DENSE_KIND and key >> 5 == FULL_SEQS[3])[:2]
    ledger = Ledger(MAX_WAITING)
    ledger.add_users(1500)
    with pytest.raises(ValueError, match="without part 0"):
        load_part(ledger, second, FULL.parts[second])
    load_part(ledger, first, FULL.parts[first])
    load_part(ledger, second, FULL.parts[second])
    with pytest.raises(ValueError, match="is there already"):
        load_part(ledger, first, FULL.parts[first])
    with pytest.raises(ValueError, match="beside part 0"):
        load_part(ledger, second, FULL.parts[second])


@pytest.mark.parametrize("key", [-1, -(2**63), 2**63 - 1, 3 << 3, 1 << 3 | 5, 1, 2**70])
def test_keys_that_are_none_are_refused(key: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        load_part(Ledger(MAX_WAITING), key, next(iter(FULL.parts.values())))


@pytest.mark.parametrize("flush", [-1, 0, 2**62, 2**70])
def test_flushes_that_are_none_are_refused(flush: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        replay(Ledger(MAX_WAITING), flush, next(iter(FULL.changes.values())))


def test_users_that_are_not_there_are_refused() -> None:
    ledger = Ledger(MAX_WAITING)
    ledger.add_users(10)
    for key in sorted(FULL.parts):
        if key >> 3 & 3 != CHUNK_KIND and not key & 7:
            with pytest.raises(ValueError, match=r"user|positions"):
                load_part(ledger, key, FULL.parts[key])


@pytest.mark.parametrize("body", [None, 5, "x", bytearray(b"x" * 40)])
def test_bodies_that_are_no_bytes_are_refused(body: Any) -> None:
    with pytest.raises(TypeError):
        load_part(Ledger(MAX_WAITING), 8, body)
    with pytest.raises(TypeError):
        replay(Ledger(MAX_WAITING), 1, body)
