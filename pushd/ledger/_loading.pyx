# cython: cdivision=True
"""How the parts of the ledger's stored form (head of `_changes.pyx`) are loaded into a ledger that nobody uses yet.

What is damaged raises ValueError, says what was found and what was expected, and changes nothing.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from pushd.ledger._ledger cimport KNOWN, PAGE, Block, Chunk, Ledger, Vector
from pushd.ledger._log cimport (
    CHUNK_BASE,
    CHUNK_ROW,
    FORMAT,
    HEAD,
    KIND_CHUNK,
    KIND_DENSE,
    KIND_PAGE,
    MAGIC,
    PAGE_ROW,
    PARTS,
    TAIL,
    Head,
    Log,
    column_of,
    key_of,
    log_of,
)
from pushd.ledger._places cimport new_block

from zlib import crc32

cdef Head head_of(bytes body, int kind, int part, int64_t number):
    """The head of a sound blob of that kind, part and number."""
    cdef Head head
    cdef const char* data = PyBytes_AS_STRING(body)
    cdef Py_ssize_t size = len(body)
    cdef uint32_t check, wanted
    if size < HEAD + TAIL:
        raise ValueError(f"{size} bytes, expected {HEAD + TAIL} at least")
    memcpy(&head, data, HEAD)
    if head.magic != MAGIC:
        raise ValueError(f"begins with {body[:4]!r}, expected b'pLdg'")
    if head.version != FORMAT:
        raise ValueError(f"format {head.version}, expected {FORMAT}")
    memcpy(&check, data + size - TAIL, TAIL)
    wanted = crc32(PyMemoryView_FromMemory(<char*>data, size - TAIL, 0x100))
    if check != wanted:
        raise ValueError(f"checksum {check:08x}, expected {wanted:08x}")
    if head.kind != kind or head.part != part or head.number != number:
        raise ValueError(
            f"kind {head.kind}, part {head.part}, number {head.number}: expected {kind}, {part}, {number}"
        )
    if head.upto == 0 or not is_number(head.upto):
        raise ValueError(f"flush {head.upto}, expected one from 1 on")
    return head


cdef int expect(const char* what, int64_t found, int64_t most) except -1:
    if not 0 <= found <= most:
        raise ValueError(f"{what.decode()} {found}, expected {most} at most")
    return 0


cdef int expect_size(bytes body, int64_t size) except -1:
    if len(body) != HEAD + size + TAIL:
        raise ValueError(f"{len(body)} bytes, expected {HEAD + size + TAIL}")
    return 0


cdef int expect_states(const uint8_t* states, uint32_t count) except -1:
    """All values of a receipt's state are possible but for steps above AGAIN."""
    cdef uint8_t seen = 0
    cdef uint32_t place
    for place in range(count):
        seen |= states[place]
    if seen & 8:
        raise ValueError("a state with a step above 7, expected 7 at most")
    return 0


cdef int expect_users(const uint8_t* users, uint32_t count, uint32_t user_count) except -1:
    cdef uint32_t place, user, highest = 0
    for place in range(count):
        memcpy(&user, users + 4 * <size_t>place, 4)
        highest = max(highest, user)
    if count and highest >= user_count:
        raise ValueError(f"user {highest}, expected a number below {user_count}")
    return 0


def load_part(Ledger ledger not None, int64_t key, bytes body not None):
    """Take in one row of `block`. In ascending order of `key`, once `add_users` was called, before anything else.

    Raises ValueError for what is damaged, there twice, or has no part 0.
    """
    cdef int64_t number = key >> 5
    cdef int kind = key >> 3 & 3, part = key & 7
    cdef Head head
    if key < 0 or kind > KIND_PAGE or part >= PARTS or (kind == KIND_CHUNK and part):
        raise ValueError(f"key {key}, expected the key of a part")
    head = head_of(body, kind, part, number)
    if kind == KIND_CHUNK:
        load_chunk(ledger, &head, body)
    elif part:
        load_column(ledger, &head, body)
    else:
        load_states(ledger, &head, body)
    ledger.flush = max(ledger.flush, head.upto)


cdef int load_chunk(Ledger ledger, Head* head, bytes body) except -1:
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(body) + HEAD
    cdef size_t count = head.count
    cdef const uint8_t* low = data + CHUNK_BASE
    cdef const uint8_t* high = low + 4 * count
    cdef const uint8_t* labels = high + count
    cdef const uint8_t* states = labels + 4 * count
    cdef int64_t base_ms
    cdef Chunk* chunk
    cdef Log log = log_of(ledger)
    expect(b"chunk", head.number, (<int64_t>1 << 46) - 1)
    expect(b"notices", head.count, PAGE)
    expect_size(body, CHUNK_BASE + CHUNK_ROW * count)
    memcpy(&base_ms, data, CHUNK_BASE)
    if count == 0 or not is_number(base_ms):
        raise ValueError(f"{count} notices from {base_ms} ms on, expected some")
    expect_order(low, high, states, head.count)
    chunk = ledger.chunk_of(head.number * PAGE)
    if chunk != NULL and chunk.count:
        raise ValueError(f"chunk {head.number} is there already, expected it once")
    chunk = ledger.new_chunk(head.number * PAGE)
    chunk.base_ms = base_ms
    memcpy(chunk.created_low, low, 4 * count)
    memcpy(chunk.created_high, high, count)
    memcpy(chunk.labels, labels, 4 * count)
    memcpy(chunk.states, states, count)
    chunk.count = head.count
    chunk.upto = head.upto
    ledger.last_seq = max(ledger.last_seq, head.number * PAGE + head.count - 1)
    if log.partial >= 0:
        log.keep_full(ledger.chunk_of(log.partial * PAGE))  # another one is stored behind it
    log.partial = -1 if count == PAGE else head.number
    if count == PAGE:
        log.keep_full(chunk)
    return 0


cdef int expect_order(const uint8_t* low, const uint8_t* high, const uint8_t* states, uint32_t count) except -1:
    cdef uint32_t place, value
    cdef uint64_t moment, before = 0
    for place in range(count):
        memcpy(&value, low + 4 * <size_t>place, 4)
        moment = <uint64_t>high[place] << 32 | value
        if moment < before:
            raise ValueError(f"notice {place} of the chunk is older than the one before, expected ascending times")
        before = moment
        if states[place] and not states[place] & KNOWN:
            raise ValueError(f"state {states[place]:#x} of a notice, expected 0 or bit 0 set")
    return 0


cdef int load_states(Ledger ledger, Head* head, bytes body) except -1:
    """Part 0 of a dense block or page."""
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(body) + HEAD
    cdef size_t count = head.count
    cdef bint is_page = head.kind == KIND_PAGE
    cdef Block* block
    expect(b"positions", head.count, PAGE if is_page else ledger.user_count)
    expect_size(body, (PAGE_ROW if is_page else 1) * count)
    if head.columns & ~0x1e:
        raise ValueError(f"columns {head.columns:#x}, expected bits 1 to 4")
    if is_page:
        expect(b"page", head.number, MOST_PAGES - 1)
        expect_users(data + 4 * count, head.count, ledger.user_count)
    expect_states(data + 8 * count if is_page else data, head.count)
    if is_page:
        if head.number < ledger.page_count and ledger.pages[head.number] != NULL:
            raise ValueError(f"page {head.number} is there already, expected it once")
        block = page_numbered(ledger, <uint32_t>head.number)
        memcpy(block.notices, data, 4 * count)
        memcpy(block.users, data + 4 * count, 4 * count)
        memcpy(block.states, data + 8 * count, count)
    else:
        if ledger.dense_of(head.number) != NULL:
            raise ValueError(f"the block of notice {head.number} is there already, expected it once")
        block = ledger.new_dense(head.number, head.count)
        memcpy(block.states, data, count)
    block.count = block.logged = head.count
    block.upto = head.upto
    block.stale = head.columns  # parts that are still to come; what does not come is written with the next ones
    return 0


cdef int load_column(Ledger ledger, Head* head, bytes body) except -1:
    """Parts 1 to 4."""
    cdef Block* block = NULL
    expect_size(body, 4 * <int64_t>head.count)
    if head.kind == KIND_DENSE:
        block = ledger.dense_of(head.number)
    elif head.number < ledger.page_count:
        block = ledger.pages[head.number]
    if block == NULL:
        raise ValueError(f"part {head.part} of {head.number} without part 0, expected that before it")
    if not block.stale & 1 << head.part or head.upto > block.upto:
        raise ValueError(f"part {head.part} of flush {head.upto}, expected none beside part 0 of flush {block.upto}")
    expect(b"positions", head.count, block.count)
    ledger.add_column(block, head.part)
    memcpy(column_of(block, head.part)[0], PyBytes_AS_STRING(body) + HEAD, 4 * <size_t>head.count)
    block.stale &= ~(1 << head.part)
    return 0


cdef Block* page_numbered(Ledger ledger, uint32_t number) except NULL:
    """That page, made where it is not there; those before it that are not there stay so."""
    if number >= ledger.page_count:
        ledger.reserve_pages(number + 1)
        ledger.page_count = number + 1
    if ledger.pages[number] == NULL:
        ledger.pages[number] = new_block(ledger, number, PAGE, True)
    return ledger.pages[number]


def renumber(Ledger ledger not None, uint32_t most):
    """Number the pages from 0 on, where there are numbers from `most` on: those of rows would come to an end.

    After `ready` of what was loaded as a whole, before anything else. Returns whether it did: then all that changed is to be written in one
    transaction, with `take_changes(ledger, 0, ...)`, since the log speaks of other numbers.
    """
    cdef uint32_t index, kept = 0, user
    cdef uint32_t* moved
    cdef Vector* vector
    cdef Block* page
    if ledger.page_count <= most:
        return False
    for index in range(ledger.page_count):
        if ledger.pages[index] != NULL and ledger.pages[index].cold:
            return False  # its columns are in the file under the old number
    moved = <uint32_t*>malloc(ledger.page_count * sizeof(uint32_t))
    if moved == NULL:
        raise MemoryError()
    try:
        for index in range(ledger.page_count):
            page = ledger.pages[index]
            if page == NULL:
                continue
            moved[index] = kept * PAGE
            ledger.dropped.extend([key_of(index, KIND_PAGE, part) for part in range(PARTS)])
            page.key, page.upto, page.logged_since, page.logged, page.changed = kept, 0, 0, 0, 0
            page.stale = 0x1f
            ledger.touch(page)
            ledger.pages[index] = NULL
            ledger.pages[kept] = page
            kept += 1
        for user in range(ledger.user_count):
            vector = &ledger.vectors[user]
            for index in range(vector.count):
                vector.rows[index] = moved[vector.rows[index] // PAGE] + vector.rows[index] % PAGE
    finally:
        free(moved)
    ledger.page_count = kept
    ledger.bounded = 0
    return True
