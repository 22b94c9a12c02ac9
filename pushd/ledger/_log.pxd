# What taking (_changes) and loading (_loading) of the ledger's stored form share. The form: head of _changes.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from pushd.ledger._ledger cimport Block, Chunk, Ledger

cdef enum:
    MAGIC = 0x67644c70  # "pLdg"
    FORMAT = 1
    HEAD = 28           # bytes before a body
    TAIL = 4            # and behind it: the CRC-32 of all before
    PARTS = 5           # of a block; a chunk has part 0 only
    CHUNK_BASE = 8      # bytes of a chunk's body before its columns
    CHUNK_ROW = 10      # bytes of a notice in a chunk
    PAGE_ROW = 9        # bytes of a row in part 0 of a page

cdef enum Kind:
    KIND_CHUNK = 0
    KIND_DENSE = 1
    KIND_PAGE = 2
    KIND_CHANGE = 3     # a row of `change`; not in keys

cdef enum Entry:
    ENTRY_NOTICES = 1
    ENTRY_ROWS = 2
    ENTRY_CHANGES = 3
    ENTRY_DROPPED = 4

cdef packed struct Head:
    uint32_t magic
    uint8_t version
    uint8_t kind
    uint8_t part
    uint8_t columns     # part 0: bit n, there is a part n; else 0
    int64_t number      # of the chunk, notice (seq), page or flush
    int64_t upto        # the flush that stored it: all changes up to there are in it
    uint32_t count      # notices or positions; 0 in a change row

cdef class Log:
    # The change rows that are in the file, oldest first: (flush, bytes)
    cdef object rows
    cdef size_t total_bytes
    # What needs them: (flush, key of part 0) of all that is logged since that flush; some are out of date
    cdef object pins
    cdef dict full           # the chunks all of whose notices are stored, by number: how many these were
    cdef int64_t partial     # number of the last chunk that was loaded, where some of its notices may be missing; or -1
    cdef int64_t next_chunk  # all before are full
    cdef uint64_t* marks     # scratch: a bit per position
    cdef size_t marks_room

    cdef int keep_full(self, Chunk* chunk) except -1
    cdef bint is_outdated(self, Chunk* chunk) except -1
    cdef int pin(self, int64_t flush, int64_t key) except -1
    cdef int64_t floor(self, Ledger ledger, int64_t flush) except -1
    cdef size_t dropped_below(self, int64_t floor) except? 0
    cdef uint32_t distinct(self, uint32_t* positions, uint32_t count, uint32_t below) except? 0xffffffff

cdef bint is_blank(const uint32_t* values, uint32_t count) noexcept nogil
cdef bytes blob(size_t body_size, Head* head, uint8_t** body)
cdef int seal(bytes made) except -1
cdef Log log_of(Ledger ledger)  # its own, made when first asked for
cdef Block* block_of(Ledger ledger, int64_t key) noexcept


cdef inline int64_t key_of(int64_t number, int kind, int part) noexcept nogil:
    return number << 5 | kind << 3 | part


cdef inline uint32_t** column_of(Block* block, int part) noexcept nogil:
    """Where part 1-4 of a block stands in memory."""
    return &block.clients if part == 4 else &block.times[part - 1]


cdef inline uint8_t* put_number(uint8_t* at, uint64_t value) noexcept nogil:
    while value >= 0x80:
        at[0] = <uint8_t>value | 0x80
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    return at + 1


cdef inline uint8_t* put_column(uint8_t* at, const void* column, size_t size) noexcept nogil:
    memcpy(at, column, size)
    return at + size
