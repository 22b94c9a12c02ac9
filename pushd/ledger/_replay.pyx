# cython: cdivision=True
"""How the log of the stored ledger (head of `_changes.pyx`) is replayed once parts are loaded, and the rest made."""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset

from pushd.ledger._ledger cimport (
    DENSE,
    KINDS,
    KNOWN,
    NOWHERE,
    PAGE,
    WAITING,
    Block,
    Chunk,
    Ledger,
    Vector,
    is_counting,
    is_unread,
)
from pushd.ledger._loading cimport MOST_PAGES, expect_states, expect_users, head_of, is_number, page_numbered
from pushd.ledger._log cimport (
    ENTRY_CHANGES,
    ENTRY_DROPPED,
    ENTRY_NOTICES,
    ENTRY_ROWS,
    HEAD,
    KIND_CHANGE,
    KIND_CHUNK,
    KIND_DENSE,
    KIND_PAGE,
    PARTS,
    TAIL,
    Head,
    Log,
    column_of,
    key_of,
    log_of,
)
from pushd.ledger._notices cimport Patch
from pushd.ledger._patches cimport bound_times, joined, new_patch, patch_state, patch_value


cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end
    bint is_short


cdef inline uint64_t number_at(Cursor* cursor) noexcept nogil:
    cdef uint64_t value = 0
    cdef int shift = 0
    while cursor.at < cursor.end and shift < 63:
        value |= <uint64_t>(cursor.at[0] & 0x7f) << shift
        cursor.at += 1
        if not cursor.at[-1] & 0x80:
            return value
        shift += 7
    cursor.is_short = True
    return 0


cdef inline uint8_t byte_at(Cursor* cursor) noexcept nogil:
    if cursor.at == cursor.end:
        cursor.is_short = True
        return 0
    cursor.at += 1
    return cursor.at[-1]


cdef inline const uint8_t* bytes_at(Cursor* cursor, size_t size) noexcept nogil:
    """The next `size` bytes; NULL where there are not so many."""
    if <size_t>(cursor.end - cursor.at) < size:
        cursor.is_short = True
        return NULL
    cursor.at += size
    return cursor.at - size


def replay(Ledger ledger not None, int64_t flush, bytes body not None, set there=None):
    """Take in one row of `change`, in ascending order of `flush`, after all parts and the tail of the notices.

    Leaves out what the parts have already, and what is about blocks, positions and notices that are not there. `there`:
    notices that have a row, whatever the log says. It may know of an append that failed, when its number was used again
    and nothing was flushed since.
    """
    cdef Head head
    cdef Log log = log_of(ledger)
    if flush == 0 or not is_number(flush):
        raise ValueError(f"flush {flush}, expected one from 1 on")
    ledger.flush = max(ledger.flush, flush)  # damaged or not, the number is taken
    head = head_of(body, KIND_CHANGE, 0, flush)
    if head.upto != flush:
        raise ValueError(f"flush {head.upto}, expected {flush}")
    walk(ledger, log, flush, body, False, there)
    walk(ledger, log, flush, body, True, there)
    log.rows.append((flush, len(body)))
    log.total_bytes += len(body)


cdef int walk(Ledger ledger, Log log, int64_t flush, bytes body, bint is_real, set there) except -1:
    """Go through the entries: first to see whether they are sound, then in earnest."""
    cdef Cursor cursor
    cdef int entry
    cdef const uint8_t* begin = <const uint8_t*>PyBytes_AS_STRING(body) + HEAD
    cursor.at = begin
    cursor.end = begin + len(body) - HEAD - TAIL
    cursor.is_short = False
    while cursor.at < cursor.end:
        entry = byte_at(&cursor)
        if entry == ENTRY_NOTICES:
            walk_notices(ledger, log, flush, &cursor, is_real, there)
        elif entry == ENTRY_ROWS:
            walk_rows(ledger, log, flush, &cursor, is_real)
        elif entry == ENTRY_CHANGES:
            walk_changes(ledger, log, flush, &cursor, is_real)
        elif entry == ENTRY_DROPPED:
            walk_dropped(ledger, flush, &cursor, is_real)
        else:
            raise ValueError(f"entry {entry} at byte {cursor.at - begin - 1}, expected 1 to 4")
        if cursor.is_short:
            raise ValueError(f"an entry {entry} that ends at byte {cursor.end - begin}, expected more of it")
    return 0


cdef int walk_notices(Ledger ledger, Log log, int64_t flush, Cursor* cursor, bint is_real, set there) except -1:
    cdef uint64_t number = number_at(cursor), count = number_at(cursor), place = 0, index
    cdef uint8_t state
    cdef Chunk* chunk = NULL
    cdef uint32_t changed = 0
    if number < <uint64_t>1 << 46:
        chunk = ledger.chunk_of(<int64_t>number * PAGE)
    for index in range(count):
        place += number_at(cursor) + (index > 0)
        state = byte_at(cursor)
        if cursor.is_short:
            return 0
        if place >= PAGE:
            raise ValueError(f"notice {place} of a chunk, expected one below {PAGE}")
        if state and not state & KNOWN:
            raise ValueError(f"state {state:#x} of a notice, expected 0 or bit 0 set")
        if state == 0 and there is not None and <int64_t>(number * PAGE + place) in there:
            continue
        if is_real and chunk != NULL and chunk.upto < flush and place < chunk.count and chunk.states[place]:
            chunk.states[place] = state
            changed += 1
    if changed:
        chunk.changed += changed
        chunk.is_stale = True
        if chunk.logged_since == 0:
            chunk.logged_since = flush
            log.pin(flush, key_of(chunk.key, KIND_CHUNK, 0))
    return 0


cdef int pin_block(Log log, int64_t flush, Block* block, uint32_t changed) except -1:
    block.changed += changed
    if block.logged_since == 0:
        block.logged_since = flush
        log.pin(flush, key_of(block.key, KIND_DENSE if block.users == NULL else KIND_PAGE, 0))
    return 0


cdef int walk_rows(Ledger ledger, Log log, int64_t flush, Cursor* cursor, bint is_real) except -1:
    cdef uint64_t number = number_at(cursor), first = number_at(cursor), count = number_at(cursor)
    cdef uint8_t columns = byte_at(cursor)
    cdef const uint8_t* notices
    cdef const uint8_t* users
    cdef const uint8_t* states
    cdef const uint8_t* column
    cdef Block* block = NULL
    cdef int part
    if cursor.is_short:
        return 0
    if number >= MOST_PAGES or first >= PAGE or count > PAGE - first or columns & ~0x1e:
        raise ValueError(f"{count} rows of page {number} from {first} on, columns {columns:#x}, expected such as exist")
    notices = bytes_at(cursor, 4 * count)
    users = bytes_at(cursor, 4 * count)
    states = bytes_at(cursor, count)
    if cursor.is_short:
        return 0
    expect_users(users, <uint32_t>count, ledger.user_count)
    expect_states(states, <uint32_t>count)
    if is_real:
        block = block_for_rows(ledger, flush, number, first)
    if block != NULL:
        memcpy(block.notices + first, notices, 4 * count)
        memcpy(block.users + first, users, 4 * count)
        memcpy(block.states + first, states, count)
        block.count = block.logged = max(block.count, <uint32_t>(first + count))
        block.stale |= 1
        pin_block(log, flush, block, <uint32_t>count)
    for part in range(1, PARTS):
        column = bytes_at(cursor, 4 * count) if columns & 1 << part else NULL
        if block != NULL and not cursor.is_short:
            load_values(ledger, block, part, <uint32_t>first, <uint32_t>count, column)
    return 0


cdef int load_values(
    Ledger ledger, Block* block, int part, uint32_t first, uint32_t count, const uint8_t* values
) except -1:
    """A stretch of a time column or of the clients; NULL: zeros."""
    if values == NULL and column_of(block, part)[0] == NULL:
        return 0
    ledger.add_column(block, part)
    if values == NULL:
        memset(column_of(block, part)[0] + first, 0, 4 * <size_t>count)
    else:
        memcpy(column_of(block, part)[0] + first, values, 4 * <size_t>count)
    block.stale |= 1 << part
    return 0


cdef Block* block_for_rows(Ledger ledger, int64_t flush, uint64_t number, uint64_t first) except? NULL:
    """The page, if the rows are not in what is stored of it. Rows before `first` that are lost are dead ones."""
    cdef Block* block
    cdef uint32_t place
    block = page_numbered(ledger, <uint32_t>number)
    if block.upto >= flush or block.cold:
        return NULL
    for place in range(block.count, <uint32_t>first):
        block.notices[place] = NOWHERE
        block.users[place] = 0
        block.states[place] = 0
    return block


cdef int walk_changes(Ledger ledger, Log log, int64_t flush, Cursor* cursor, bint is_real) except -1:
    cdef int kind = byte_at(cursor), part
    cdef uint64_t number = number_at(cursor), count = number_at(cursor), place = 0, index
    cdef uint64_t most = PAGE if kind == KIND_PAGE else ledger.user_count
    cdef uint64_t values[PARTS]
    cdef uint8_t state, columns
    cdef Block* block = NULL
    cdef uint32_t changed = 0
    if cursor.is_short:
        return 0
    if (kind != KIND_DENSE and kind != KIND_PAGE) or not is_number(<int64_t>number):
        raise ValueError(f"kind {kind}, number {number} of a block, expected kind 1 or 2")
    if kind == KIND_DENSE:
        block = ledger.dense_of(<int64_t>number)
    elif number < ledger.page_count:
        block = ledger.pages[number]
    if block != NULL and block.upto >= flush:
        block = NULL
    for index in range(count):
        place += number_at(cursor) + (index > 0)
        state = byte_at(cursor)
        columns = byte_at(cursor)
        if columns & ~0x1f:
            raise ValueError(f"columns {columns:#x}, expected bits 0 to 4")
        for part in range(1, PARTS):
            values[part] = number_at(cursor) if columns & 1 << part else 0
            if values[part] > NOWHERE:
                raise ValueError(f"value {values[part]}, expected 32 bits")
        if cursor.is_short:
            return 0
        if place >= most:
            raise ValueError(f"position {place}, expected one below {most}")
        if state & 8:
            raise ValueError("a state with a step above 7, expected 7 at most")
        if is_real and block != NULL and (kind == KIND_DENSE or place < block.count):
            if <uint32_t>place >= block.count:
                ledger.widen(block, <uint32_t>place + 1)
            if block.cold:
                patch_position(ledger, block, <uint32_t>place, state, values, columns & 1)
            else:
                change_position(ledger, block, <uint32_t>place, state, values, columns & 1)
            changed += 1
    if changed:
        pin_block(log, flush, block, changed)
    return 0


cdef int patch_position(
    Ledger ledger, Block* block, uint32_t place, uint8_t state, uint64_t* values, bint is_joined
) except -1:
    cdef Patch* patch = new_patch(ledger, block, place)
    cdef int part
    if not is_joined:
        patch[0] = Patch(place, True, [0, 0, 0, 0])
    for part in range(1, PARTS):
        if values[part]:
            patch_value(block, patch, part, <uint32_t>values[part])
    patch_state(block, place, state)
    block.states[place] = state
    block.stale |= 1
    return 0


cdef int change_position(
    Ledger ledger, Block* block, uint32_t place, uint8_t state, uint64_t* values, bint is_joined
) except -1:
    cdef uint32_t** column
    cdef uint32_t value
    cdef int part
    block.states[place] = state
    block.stale |= 1
    for part in range(1, PARTS):
        column = column_of(block, part)
        value = <uint32_t>values[part]
        if column[0] == NULL:
            if value == 0:
                continue
            ledger.add_column(block, part)
        if is_joined:
            value = joined(part, column[0][place], value)
        if column[0][place] != value:
            column[0][place] = value
            block.stale |= 1 << part
    return 0


cdef int walk_dropped(Ledger ledger, int64_t flush, Cursor* cursor, bint is_real) except -1:
    cdef int kind = byte_at(cursor)
    cdef uint64_t number = number_at(cursor)
    cdef Block* block
    if cursor.is_short:
        return 0
    if (kind != KIND_DENSE and kind != KIND_PAGE) or not is_number(<int64_t>number):
        raise ValueError(f"kind {kind}, number {number} of a block, expected kind 1 or 2")
    if not is_real:
        return 0
    if kind == KIND_DENSE:
        block = ledger.dense_of(<int64_t>number)
        if block != NULL and block.upto < flush:
            ledger.free_dense(<int64_t>number)
    elif number < ledger.page_count:
        block = ledger.pages[number]
        if block != NULL and block.upto < flush:
            ledger.pages[number] = NULL
            ledger.discard(block, -1)
    return 0


def ready(Ledger ledger not None):
    """Make what follows from parts and log: counts, bounds, unread, waiting. Once, after the last `replay`.

    About 10 ns for a position of a dense block, 30 for a row of a page.
    """
    cdef uint32_t user, index
    cdef Chunk* chunk
    cdef Log log = log_of(ledger)
    cdef list touched = []
    leave_lost_blocks(ledger)
    for user in range(ledger.user_count):
        ledger.unreads[user] = ledger.waitings[user] = 0
        ledger.dense_floors[user] = ledger.dense_count
        ledger.vector_floors[user] = NOWHERE
    for index in range(ledger.dense_count, 0, -1):
        count_dense(ledger, index - 1)
    count_rows(ledger)
    for index in range(ledger.page_count):
        if ledger.pages[index] != NULL:
            count_page(ledger, ledger.pages[index])
    for user in range(ledger.user_count):
        ledger.vector_floors[user] = min(ledger.vector_floors[user], ledger.vectors[user].count)
    # What `add_notice` and `free_dense` have noted on the way is what the file has.
    for index in range(ledger.chunk_count):
        chunk = ledger.chunks[index]
        if chunk != NULL:
            undo_lost(ledger, chunk)
            chunk.dirty_count = 0
            chunk.is_touched = log.is_outdated(chunk)
            if chunk.is_touched:
                touched.append(chunk.key)
    ledger.touched_chunks = touched
    ledger.dropped = []
    ledger.bounded = 0


cdef int undo_lost(Ledger ledger, Chunk* chunk) noexcept:
    """Notices whose dense block is not there, damaged or never written: what comes for them goes to pages."""
    cdef uint32_t place
    for place in range(chunk.count):
        if chunk.states[place] & DENSE and ledger.dense_of(chunk.key * PAGE + place) == NULL:
            chunk.states[place] &= ~DENSE
    return 0


cdef int count_positions(Block* block) noexcept nogil:
    """Positions by state, and the bounds of the times."""
    cdef uint32_t place
    memset(block.counts, 0, sizeof(block.counts))
    for place in range(block.count):
        block.counts[block.states[place]] += 1
    if not block.cold:
        bound_times(block)
    return 0


cdef int leave_lost_blocks(Ledger ledger) except -1:
    """Dense blocks of notices that are not there any more stay in the file; nobody can ask for them."""
    cdef uint32_t index, kept = 0
    for index in range(ledger.dense_count):
        if ledger.notice_of(ledger.dense[index].key):
            ledger.dense[kept] = ledger.dense[index]
            kept += 1
        else:
            ledger.discard(ledger.dense[index], -1)
    ledger.dense_count = kept
    return 0


cdef int count_dense(Ledger ledger, uint32_t index) except -1:
    cdef Block* block = ledger.dense[index]
    cdef Chunk* chunk = ledger.chunk_of(block.key)
    cdef uint32_t user
    cdef uint8_t state
    cdef uint8_t unread[256]
    cdef bint counts = is_counting(chunk.states[block.key % PAGE])
    chunk.states[block.key % PAGE] |= DENSE
    for user in range(256):
        unread[user] = counts and is_unread(<uint8_t>user)
    for user in range(block.count):
        state = block.states[user]
        ledger.unreads[user] += unread[state]
        if state & WAITING:
            ledger.waitings[user] += 1
            ledger.dense_floors[user] = index
    count_positions(block)
    return 0


cdef int count_rows(Ledger ledger) except -1:
    """Give each user a vector with room for the user's rows."""
    cdef uint32_t index, place, user
    cdef Block* page
    cdef Vector* vector
    for index in range(ledger.page_count):
        page = ledger.pages[index]
        if page == NULL:
            continue
        ledger.row_count += page.count
        for place in range(page.count):
            if page.notices[place] != NOWHERE or page.states[place]:
                ledger.vectors[page.users[place]].room += 1
    for user in range(ledger.user_count):
        vector = &ledger.vectors[user]
        if vector.room:
            vector.rows = <uint32_t*>malloc(vector.room * sizeof(uint32_t))
            if vector.rows == NULL:
                vector.room = 0
                raise MemoryError()
            ledger.memory += vector.room * sizeof(uint32_t)
    return 0


cdef int count_page(Ledger ledger, Block* page) except -1:
    """Put the rows of a page into their users' vectors. Rows of notices that are not there are dead."""
    cdef uint32_t place, user, notice, offset, asked = NOWHERE
    cdef uint32_t row = <uint32_t>page.key * PAGE
    cdef uint8_t state, notice_state = 0
    cdef Vector* vector
    page.low, page.high = NOWHERE, 0
    for place in range(page.count):
        notice, user, state = page.notices[place], page.users[place], page.states[place]
        if notice == NOWHERE and state == 0:
            continue
        vector = &ledger.vectors[user]
        vector.rows[vector.count] = row + place
        vector.count += 1
        offset = notice - <uint32_t>ledger.base_seq
        if offset != asked:
            asked = offset
            notice_state = 0
            if offset // PAGE < ledger.chunk_count and ledger.chunks[offset // PAGE] != NULL:
                notice_state = ledger.chunks[offset // PAGE].states[offset % PAGE]
        if notice_state == 0:
            page.states[place] = 0
            continue
        page.low = min(page.low, offset)
        page.high = max(page.high, offset)
        if is_unread(state) and is_counting(notice_state):
            ledger.unreads[user] += 1
        if state & WAITING:
            ledger.waitings[user] += 1
            ledger.vector_floors[user] = min(ledger.vector_floors[user], vector.count - 1)
    return count_positions(page)
