# cython: cdivision=True
"""The ledger's stored form, and how changes are taken for it: one change row and a few whole parts per flush.

All numbers are little endian. A *blob* is a head of 28 bytes, a body, and the CRC-32 (zlib's) of both in 4 bytes:

    magic "pLdg" | version u8 = 1 | kind u8 | part u8 | columns u8 | number i64 | upto i64 | count u32

    table   key                        kind      number         body
    block   number << 5 | kind << 3    0 chunk   seq // 4096    base_ms i64, created_low u32[], created_high u8[],
            | part                                              labels u32[], states u8[]: of notices from
                                                                number * 4096 on
                                       1 dense   seq            part 0: states u8[]; position is the user's number
                                       2 page    of the page    part 0: notices u32[] (low bits of seq), users u32[],
                                                                states u8[]
    change  the flush                  3         the flush      entries

`count` is the length of each column; 0 in a change row. A notice was accepted at base_ms + (created_high << 32) +
created_low; state 0 is a gap. Parts 1-3 of a dense block or page are its times (received, read, confirmed), part 4 its
clients, each u32[] and perhaps shorter than part 0: what is missing is 0. `columns` of part 0 has bit n where there is
a part n (others are left over from an earlier block of that number); it is 0 in other parts. States, times and labels
are as in `_ledger.pxd`.

Of notices behind the last stored chunk the row in `notice` says acceptance and label, and the state is KNOWN until the
log says otherwise. All else is in the log: the change rows, in order of their flush. `upto` of part 0 is the flush that
stored the block last: what the log says of the block up to there is in its parts. `v` is an unsigned LEB128, `gap` how
many positions were left out since the one before. Entries:

    1 NOTICES   v chunk, v n, n x (v gap, state u8)
    2 ROWS      v page, v first, v n, columns u8, notices u32[n], users u32[n], states u8[n], u32[n] for each bit of
                columns: rows of a page, from position `first` on
    3 CHANGES   kind u8, v number, v n, n x (v gap, state u8, columns u8, v for each bit 1-4 of columns): positions as
                they are now; columns left out are 0. With bit 0 the block was cold: the earlier times and the greater
                client stay, of what there is and these
    4 DROPPED   kind u8, v number: the block is gone; the number of a page may be used again

Everything is an absolute value: a row may be replayed twice. What a flush stores and its change row are written in one
transaction; rows below the flush that `take_changes` returns say nothing that is not in parts as well.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, memset

from pushd.ledger._ledger cimport PAGE, Block, Chunk, Ledger
from pushd.ledger._cold cimport patched_part
from pushd.ledger._log cimport (
    CHUNK_BASE,
    CHUNK_ROW,
    ENTRY_CHANGES,
    ENTRY_DROPPED,
    ENTRY_NOTICES,
    ENTRY_ROWS,
    KIND_CHANGE,
    KIND_CHUNK,
    KIND_DENSE,
    KIND_PAGE,
    PAGE_ROW,
    PARTS,
    Head,
    Log,
    blob,
    block_of,
    column_of,
    is_blank,
    key_of,
    log_of,
    put_column,
    put_number,
    seal,
)
from pushd.ledger._notices cimport Patch
from pushd.ledger._patches cimport Ages, columns_size, is_at_rest, living, next_oldest, patch_at

from pushd.ledger._loading import load_part, renumber
from pushd.ledger._replay import ready, replay

LOG_BYTES = 16 * 1024 * 1024
TAKE_BYTES = 4 * 1024 * 1024

cdef enum:
    FEW = 64          # changed positions are no reason to write a block anew, however small it is
    KEPT_DIRTY = 256  # room of a list of dirty positions that is kept
    LATE = 8          # a full chunk that still changes is stored once so many chunks are behind it
    POSITION_BYTES = 5 + 1 + 1 + 4 * 5  # of one in a change row, at most


cdef class Taking:
    """One flush while it is taken."""

    cdef Ledger ledger
    cdef Log log
    cdef int64_t flush
    cdef size_t copied       # bytes, in parts and in the change row
    cdef size_t most         # after so many, what else has changed waits for the next flush
    cdef list parts
    cdef set active          # numbers of chunks with changes in this flush
    cdef uint8_t* data       # of the change row
    cdef size_t size, room

    def __dealloc__(self):
        free(self.data)

    cdef uint8_t* reserve(self, size_t size) except NULL:
        """Where the next entry goes, of at most `size` bytes."""
        cdef void* data
        if self.size + size > self.room:
            data = realloc(self.data, 2 * self.size + size)
            if data == NULL:
                raise MemoryError()
            self.data = <uint8_t*>data
            self.room = 2 * self.size + size
        return self.data + self.size

    cdef void add(self, uint8_t* end) noexcept:
        """The entry that was begun at `reserve` ends here."""
        self.copied += <size_t>(end - self.data) - self.size
        self.size = <size_t>(end - self.data)

    cdef int store(self, int64_t number, int kind, int part, bytes made) except -1:
        seal(made)
        self.parts.append((key_of(number, kind, part), made))
        self.copied += <size_t>len(made)
        return 0

    cdef int take_dropped(self) except -1:
        cdef int64_t key
        cdef uint8_t* at
        for key in self.ledger.dropped:
            self.parts.append((key, None))
            if key & 7:
                continue
            if (key >> 3 & 3) == KIND_CHUNK:
                self.log.full.pop(key >> 5, None)
                continue
            at = self.reserve(16)
            at[0] = ENTRY_DROPPED
            at[1] = key >> 3 & 3
            self.add(put_number(at + 2, key >> 5))
        self.ledger.dropped = []
        return 0

    cdef int take_chunks(self) except -1:
        cdef Chunk* chunk
        cdef int64_t key
        cdef list keys = self.ledger.touched_chunks
        self.ledger.touched_chunks = []
        for key in keys:
            chunk = self.ledger.chunk_of(key * PAGE)
            if chunk == NULL:
                continue
            chunk.is_touched = False
            self.log_chunk(chunk)
            if self.log.is_outdated(chunk) or (key in self.log.full and chunk.changed > PAGE // 4):
                self.store_chunk(chunk)
        return 0

    cdef int log_chunk(self, Chunk* chunk) except -1:
        cdef uint32_t index, place, next_place = 0
        cdef uint32_t count = self.log.distinct(chunk.dirty, chunk.dirty_count, chunk.count)
        cdef uint8_t* at
        if count == 0:
            chunk.dirty_count = 0
            return 0
        at = self.reserve(32 + 4 * <size_t>count)
        at[0] = ENTRY_NOTICES
        at = put_number(put_number(at + 1, chunk.key), count)
        for index in range(count):
            place = chunk.dirty[index]
            at = put_number(at, place - next_place)
            at[0] = chunk.states[place]
            at += 1
            next_place = place + 1
        self.add(at)
        self.active.add(chunk.key)
        chunk.changed += count
        chunk.dirty_count = 0
        if chunk.dirty_room > KEPT_DIRTY:
            self.ledger.release(chunk.dirty, chunk.dirty_room * sizeof(uint32_t))
            chunk.dirty = NULL
            chunk.dirty_room = 0
        if chunk.logged_since == 0:
            chunk.logged_since = self.flush
            self.log.pin(self.flush, key_of(chunk.key, KIND_CHUNK, 0))
        return 0

    cdef int store_chunk(self, Chunk* chunk) except -1:
        """All of a chunk, which the log has of it until now; what is dirty is taken before."""
        cdef Head head
        cdef uint8_t* at = NULL
        cdef size_t count = chunk.count
        cdef bytes made
        memset(&head, 0, sizeof(Head))
        head.kind = KIND_CHUNK
        head.number = chunk.key
        head.upto = self.flush
        head.count = chunk.count
        made = blob(CHUNK_BASE + CHUNK_ROW * count, &head, &at)
        at = put_column(at, &chunk.base_ms, CHUNK_BASE)
        at = put_column(at, chunk.created_low, 4 * count)
        at = put_column(at, chunk.created_high, count)
        at = put_column(at, chunk.labels, 4 * count)
        put_column(at, chunk.states, count)
        self.store(chunk.key, KIND_CHUNK, 0, made)
        chunk.upto = self.flush
        chunk.logged_since = 0
        chunk.changed = 0
        chunk.is_stale = False
        if chunk.count == PAGE or chunk.key < self.ledger.last_seq // PAGE:
            self.log.keep_full(chunk)
        return 0

    cdef int store_full_chunks(self, bint is_due, int64_t last) except -1:
        """Store the chunks that are full and at rest, in order; with `is_due` all up to number `last`.

        In order, because the rows of `notice` stand in for what comes after the last stored chunk, not before.
        """
        cdef Log log = self.log
        cdef int64_t number, end = self.ledger.last_seq // PAGE
        cdef Chunk* chunk
        number = max(log.next_chunk, self.ledger.base_seq // PAGE)
        while number <= end:
            chunk = self.ledger.chunk_of(number * PAGE)
            if chunk != NULL and number not in log.full:
                if not (is_due and number <= last):
                    if number == end and chunk.count < PAGE:
                        break
                    if number in self.active and number + LATE > end:
                        break
                self.store_chunk(chunk)
            if number == end and (chunk == NULL or chunk.count < PAGE):
                break
            number += 1
        log.next_chunk = number
        return 0

    cdef int take_blocks(self) except -1:
        """As many of the touched blocks as `most` allows, and one at least; the others stay touched."""
        cdef Ledger ledger = self.ledger
        cdef uint32_t index = 0, left
        cdef Block* block
        while index < ledger.touched_count:
            block = ledger.touched[index]
            if index > 0 and self.copied + upper_bound(block) > self.most:
                break
            self.take_block(block)
            block.is_touched = False
            index += 1
        left = ledger.touched_count - index
        if left:
            memmove(ledger.touched, ledger.touched + index, left * sizeof(Block*))
        ledger.touched_count = left
        return 0

    cdef int take_block(self, Block* block) except -1:
        """Log what has changed, or store the block where that is the better bargain."""
        cdef bint is_page = block.users != NULL
        cdef uint32_t size = PAGE if is_page else block.count
        cdef uint32_t known = block.logged if is_page else block.count
        cdef uint32_t rows = block.count - known
        cdef uint32_t count
        if (rows and block.count == PAGE) if is_page else block.upto == 0:
            return self.store_block(block)
        count = self.log.distinct(block.dirty, block.dirty_count, known)
        if block.upto and (count > max(size // 8, FEW) or block.changed + count + rows > max(size // 4, FEW)):
            return self.store_block(block)
        if count == 0 and rows == 0:
            return self.forget_dirty(block)
        if rows:
            self.log_rows(block, rows)
        if count:
            self.log_positions(block, count)
        block.changed += count + rows
        if block.logged_since == 0:
            block.logged_since = self.flush
            self.log.pin(self.flush, key_of(block.key, KIND_PAGE if is_page else KIND_DENSE, 0))
        return self.forget_dirty(block)

    cdef int forget_dirty(self, Block* block) except -1:
        block.dirty_count = 0
        if block.dirty_room > KEPT_DIRTY:
            self.ledger.release(block.dirty, block.dirty_room * sizeof(uint32_t))
            block.dirty = NULL
            block.dirty_room = 0
        return 0

    cdef int log_rows(self, Block* block, uint32_t rows) except -1:
        cdef uint32_t first = block.logged
        cdef size_t size = rows * sizeof(uint32_t)
        cdef uint32_t* column
        cdef int part
        cdef uint8_t* columns
        cdef uint8_t* at = self.reserve(40 + <size_t>rows * (PAGE_ROW + 16))
        at[0] = ENTRY_ROWS
        at = put_number(put_number(put_number(at + 1, block.key), first), rows)
        columns = at
        columns[0] = 0
        at = put_column(at + 1, block.notices + first, size)
        at = put_column(at, block.users + first, size)
        at = put_column(at, block.states + first, rows)
        for part in range(1, PARTS):
            column = column_of(block, part)[0]
            if column != NULL and not is_blank(column + first, rows):
                columns[0] |= 1 << part
                at = put_column(at, column + first, size)
        self.add(at)
        block.logged = block.count
        return 0

    cdef int log_positions(self, Block* block, uint32_t count) except -1:
        cdef uint32_t index, place, next_place = 0
        cdef uint32_t* values[PARTS]
        cdef uint32_t value
        cdef Patch* patch = NULL
        cdef uint8_t* columns
        cdef int part
        cdef uint8_t* at = self.reserve(32 + <size_t>count * POSITION_BYTES)
        at[0] = ENTRY_CHANGES
        at[1] = KIND_DENSE if block.users == NULL else KIND_PAGE
        at = put_number(put_number(at + 2, block.key), count)
        for part in range(1, PARTS):
            values[part] = column_of(block, part)[0]
        for index in range(count):
            place = block.dirty[index]
            at = put_number(at, place - next_place)
            next_place = place + 1
            at[0] = block.states[place]
            columns = at + 1
            if block.cold:
                patch = patch_at(block, place)
            columns[0] = block.cold and (patch == NULL or not patch.is_whole)
            at += 2
            for part in range(1, PARTS):
                if patch != NULL:
                    value = patch.values[part - 1]
                else:
                    value = values[part][place] if values[part] != NULL else 0
                if value:
                    columns[0] |= 1 << part
                    at = put_number(at, value)
        self.add(at)
        return 0

    cdef int store_block(self, Block* block) except -1:
        """Part 0 and the parts that are not as they are stored. Then the log is not needed for this block any more.

        A column is stale from its first change on, logged or not, so one that is not is stored as it is now.
        """
        cdef int kind = KIND_DENSE if block.users == NULL else KIND_PAGE
        cdef size_t count = block.count
        cdef uint32_t* column
        cdef uint8_t columns = 0
        cdef int part
        cdef Head head
        cdef uint8_t* at = NULL
        cdef bytes made
        memset(&head, 0, sizeof(Head))
        head.kind = kind
        head.number = block.key
        head.upto = self.flush
        head.count = block.count
        for part in range(1, PARTS):
            column = column_of(block, part)[0]
            if column == NULL:
                continue
            columns |= 1 << part
            if block.upto == 0 or block.stale & 1 << part:
                head.part = part
                made = blob(4 * count, &head, &at)
                put_column(at, column, 4 * count)
                self.store(block.key, kind, part, made)
        if block.cold:
            columns = block.cold
            self.store_patches(block, kind)
        head.part = 0
        head.columns = columns
        made = blob(count if kind == KIND_DENSE else PAGE_ROW * count, &head, &at)
        if kind == KIND_PAGE:
            at = put_column(at, block.notices, 4 * count)
            at = put_column(at, block.users, 4 * count)
        put_column(at, block.states, count)
        self.store(block.key, kind, 0, made)
        block.upto = self.flush
        block.logged_since = 0
        block.changed = 0
        block.logged = block.count
        block.stale = 0
        return self.forget_dirty(block)

    cdef int store_patches(self, Block* block, int kind) except -1:
        """What has changed of a cold block's columns; it is kept until they are written."""
        cdef int part
        cdef object made
        for part in range(1, PARTS):
            made = patched_part(block, part, self.flush)
            if made is not None:
                self.parts.append((key_of(block.key, kind, part), made))
                self.copied += 4 * <size_t>block.count
        if block.patches_taken == 0 and block.patch_count:
            self.ledger.patched.append(key_of(block.key, kind, 0))
        block.patches_taken = block.patch_count
        return 0

    cdef int store_oldest(self, size_t most) except -1:
        """Store what of the oldest blocks is in the log only: at rest they may become cold, until `most` are left."""
        cdef Ages ages = Ages(0, 0)
        cdef Block* block = next_oldest(self.ledger, &ages)
        cdef size_t left = living(self.ledger), end = self.copied + self.most
        while left > most and block != NULL and self.copied < end:
            if not block.is_touched:
                if not is_at_rest(block):
                    self.store_block(block)
                left -= columns_size(block)
            block = next_oldest(self.ledger, &ages)
        return 0

    cdef int64_t shorten(self, int64_t floor, size_t log_bytes) except -1:
        """Store what keeps the oldest rows, until the log is short enough or this flush has its share; the floor."""
        cdef Log log = self.log
        cdef int64_t key
        cdef size_t most = self.copied + self.most
        while log.dropped_below(floor) + self.size > log_bytes and floor <= self.flush and self.copied < most:
            key = log.pins[0][1]
            if (key >> 3 & 3) == KIND_CHUNK and ((key >> 5) in log.full or (key >> 5) < log.next_chunk):
                self.store_chunk(self.ledger.chunk_of((key >> 5) * PAGE))
            elif (key >> 3 & 3) == KIND_CHUNK:
                self.store_full_chunks(True, key >> 5)
            else:
                self.store_block(block_of(self.ledger, key))
            floor = log.floor(self.ledger, self.flush)
        return floor

    cdef bytes row(self):
        """The change row."""
        cdef Head head
        cdef uint8_t* at = NULL
        cdef bytes made
        memset(&head, 0, sizeof(Head))
        head.kind = KIND_CHANGE
        head.number = head.upto = self.flush
        made = blob(self.size, &head, &at)
        memcpy(at, self.data, self.size)
        seal(made)
        return made


cdef size_t upper_bound(Block* block) noexcept nogil:
    """Bytes that taking the block may copy, about."""
    if block.upto == 0 and block.users == NULL or block.count == PAGE and block.logged < PAGE:
        return 17 * <size_t>block.count
    return POSITION_BYTES * (<size_t>block.dirty_count + (block.count - block.logged if block.users != NULL else 0))


def has_changes(Ledger ledger not None):
    """Whether there is something that no flush has taken yet."""
    return bool(ledger.touched_count or ledger.touched_chunks or ledger.dropped)


def take_changes(
    Ledger ledger not None, size_t log_bytes=LOG_BYTES, size_t take_bytes=TAKE_BYTES, size_t memory=<size_t>-1
):
    """Take what has changed since the last flush, as (flush number, change row, parts, floor).

    The row is b"" where all is in the parts; a part is (key, blob), (key, PatchedPart) to be made of what is stored, or
    (key, None) for one to delete: deletions come first. Call `forget_patches` when all that was taken is written. Change rows whose flush is below `floor` may be deleted in the same transaction. Where nothing has changed:
    (0, b"", [], 0). It counts as written from here on: if that fails, these same bytes are to be written before others.

    Copies about `take_bytes`, as much again to keep the log below `log_bytes`, and as much of the oldest blocks where the
    ledger has more than `memory` bytes, so that these can become cold (_patches.cool); what is over waits for the next call
    (`has_changes`), whole blocks at a time. Costs about 50 ns for a changed position, a millisecond for two megabytes
    of parts.
    """
    cdef Taking taking
    cdef Log log = log_of(ledger)
    cdef int64_t floor
    cdef bytes row
    if not has_changes(ledger):
        return 0, b"", [], 0
    taking = Taking()
    taking.ledger, taking.log, taking.most = ledger, log, take_bytes
    taking.parts, taking.active = [], set()
    taking.flush = ledger.flush + 1
    taking.take_dropped()
    taking.take_chunks()
    taking.take_blocks()
    taking.store_full_chunks(False, 0)
    if taking.size == 0 and not taking.parts:
        return 0, b"", [], 0
    ledger.flush = taking.flush
    taking.store_oldest(memory)
    floor = taking.shorten(log.floor(ledger, taking.flush), log_bytes)
    log.dropped_below(floor)
    row = taking.row() if taking.size and floor <= taking.flush else b""
    if row:
        log.rows.append((taking.flush, len(row)))
        log.total_bytes += len(row)
    return taking.flush, row, taking.parts, floor
