# cython: cdivision=True
"""A user's own list of notices: walks over his receipts, newest first, and what he puts away. See _inbox.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from pushd.ledger._cold cimport read_column
from pushd.ledger._ledger cimport (
    ARCHIVED, CHANGED, KNOWN, NONE, PAGE, READ, STEPS, Block, Chunk, Ledger, Vector, created_of, is_counting, seq_of, time_of,
)
from pushd.ledger._patches cimport says_time

cdef enum:
    READ_KIND = 1
    CONFIRMED_KIND = 2

cdef struct Wanted:
    const uint8_t* states
    const uint8_t* labels      # NULL: any
    uint32_t label_count
    int64_t before


cdef bint is_wanted(Ledger ledger, const Wanted* wanted, int64_t seq, uint8_t state) noexcept:
    cdef Chunk* chunk
    cdef uint8_t notice_state
    if seq >= wanted.before or not wanted.states[state] or state & STEPS == NONE:
        return False
    chunk = ledger.chunk_of(seq)
    if chunk == NULL:
        return False
    notice_state = chunk.states[seq % PAGE]
    if not notice_state & KNOWN or not is_counting(notice_state):
        return False
    if wanted.labels == NULL:
        return True
    return chunk.labels[seq % PAGE] < wanted.label_count and wanted.labels[chunk.labels[seq % PAGE]]


cdef inline int64_t seq_at(Ledger ledger, uint32_t row) noexcept:
    return seq_of(ledger, ledger.pages[row // PAGE].notices[row % PAGE])


cdef uint32_t wanted_rows(
    Ledger ledger, const Vector* vector, const Wanted* wanted, uint32_t* rows, uint32_t most
) noexcept:
    """The rows of the newest that are wanted, newest first. They came nearly in order: sorting them in is cheap."""
    cdef uint32_t entry = vector.count, count = 0, row, place
    cdef int64_t seq
    cdef Block* page
    ledger.bound()
    while entry and most:
        entry -= 1
        row = vector.rows[entry]
        if count == most and ledger.base_seq + ledger.peak_of(row // PAGE) <= seq_at(ledger, rows[count - 1]):
            break
        page = ledger.pages[row // PAGE]
        if page == NULL:
            continue
        seq = seq_of(ledger, page.notices[row % PAGE])
        if not is_wanted(ledger, wanted, seq, page.states[row % PAGE]):
            continue
        if count == most:
            if seq <= seq_at(ledger, rows[count - 1]):
                continue
            count -= 1
        place = count
        while place and seq_at(ledger, rows[place - 1]) < seq:
            rows[place] = rows[place - 1]
            place -= 1
        rows[place] = row
        count += 1
    return count


cdef list places(Ledger ledger, uint32_t number, int64_t before, uint32_t limit, bytes states, bytes labels):
    """(seq, pointer to the block, place) of these, newest seq first."""
    cdef const Vector* vector = &ledger.vectors[ledger.checked(number)]
    cdef Wanted wanted = Wanted(<const uint8_t*>PyBytes_AS_STRING(states), NULL, 0, before)
    cdef uint32_t most = min(limit, vector.count), count, taken = 0, index = ledger.dense_index(before)
    cdef uint32_t* rows
    cdef int64_t seq
    cdef Block* block
    cdef list found = []
    if len(states) != 256:
        raise ValueError(f"{len(states)} marks for states")
    if labels is not None:
        wanted.labels, wanted.label_count = <const uint8_t*>PyBytes_AS_STRING(labels), <uint32_t>len(labels)
    rows = <uint32_t*>malloc((most or 1) * sizeof(uint32_t))
    if rows == NULL:
        raise MemoryError
    try:
        count = wanted_rows(ledger, vector, &wanted, rows, most)
        while <uint32_t>len(found) < limit:
            seq = seq_at(ledger, rows[taken]) if taken < count else -1
            block = NULL
            while index and ledger.dense[index - 1].key > seq and block == NULL:
                index -= 1
                block = ledger.dense[index]
                if number >= block.count or not is_wanted(ledger, &wanted, block.key, block.states[number]):
                    block = NULL
            if block != NULL:
                found.append((block.key, <size_t>block, number))
            elif taken < count:
                found.append((seq, <size_t>ledger.pages[rows[taken] // PAGE], rows[taken] % PAGE))
                taken += 1
            else:
                break
    finally:
        free(rows)
    return found


def seqs(Ledger ledger not None, uint32_t number, int64_t before, uint32_t limit, bytes states not None, bytes labels):
    return [seq for seq, _, _ in places(ledger, number, before, limit, states, labels)]


def receipts(
    Ledger ledger not None, uint32_t number, int64_t before, uint32_t limit, bytes states not None, bytes labels,
    read=None,
):
    cdef list found = []
    cdef Block* block
    cdef uint32_t place
    cdef uint8_t state
    cdef int64_t created_ms
    if read is not None:
        ledger.enter()
    try:
        for seq, pointer, place in places(ledger, number, before, limit, states, labels):
            block = <Block*><size_t>pointer
            state = block.states[place]
            if read is None and is_in_file(block, state):
                return None
            created_ms = ledger.created_ms(seq)
            found.append((
                seq, state,
                time_of(created_ms, value_of(block, READ_KIND, place, state, read)),
                time_of(created_ms, value_of(block, CONFIRMED_KIND, place, state, read)),
            ))
    finally:
        if read is not None:
            ledger.leave()
    return found


cdef bint is_in_file(const Block* block, uint8_t state) noexcept:
    return block.cold and (says_time(state, READ_KIND) or says_time(state, CONFIRMED_KIND))


cdef uint32_t value_of(Block* block, int kind, uint32_t place, uint8_t state, object read) except? 0:
    """The time of a kind as its column has it; only where the state says that there is one."""
    cdef uint32_t* column
    cdef uint32_t value
    if not says_time(state, kind):
        return 0
    if not block.cold:
        return 0 if block.times[kind] == NULL else block.times[kind][place]
    column = read_column(block, kind + 1, block.count, read)
    value = column[place]
    free(column)
    return value


def unread_changed(Ledger ledger not None):
    cdef uint32_t i, count = ledger.changed_count
    ledger.changed_count = 0
    return None if count >= CHANGED else [ledger.changed_users[i] for i in range(count)]


def archive(Ledger ledger not None, int64_t seq, uint32_t number, int64_t at_ms):
    if not ledger.mark(seq, number, READ, at_ms):
        return False
    return set_archived(ledger, seq, number, ARCHIVED)


def unarchive(Ledger ledger not None, int64_t seq, uint32_t number):
    return set_archived(ledger, seq, number, 0)


cdef bint set_archived(Ledger ledger, int64_t seq, uint32_t number, uint8_t bit) except -1:
    cdef Block* block
    cdef uint32_t place
    cdef uint8_t state
    if not ledger.find(seq, ledger.checked(number), &block, &place):
        return False
    state = block.states[place]
    if state & STEPS == NONE:
        return False
    if state & ARCHIVED != bit:
        ledger.note_dirty(block, place)
        ledger.put(block, place, number, (state & ~ARCHIVED) | bit, is_counting(ledger.notice_of(seq)))
    return True
