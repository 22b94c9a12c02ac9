# Passes over notices: what lists of push records ask of the ledger. A pass copies under the GIL what may move, runs
# without it, and is counted in Ledger.readers, so that nothing it looks at is freed meanwhile.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pushd.ledger._ledger cimport Block, Ledger

cdef struct Notices:       # of a chunk
    int64_t first          # seq
    uint32_t count
    const uint8_t* states
    const uint32_t* labels

cdef struct Rows:          # of a page
    int64_t low            # seqs of its notices lie between
    int64_t high
    uint32_t count
    const uint32_t* notices
    const uint8_t* states
    const uint32_t* times[3]
    const Block* block

cdef struct Wanted:
    uint8_t statuses[4]    # marks
    const uint8_t* labels  # marks by label, of higher ones as of the last; NULL: any
    uint32_t last_label
    const uint8_t* having  # marks by seq from having_from on; NULL: any
    int64_t having_from
    int64_t having_count
    int64_t since_seq
    int64_t before_seq
    bint is_all            # but for since_seq and before_seq every push record

cdef struct Counted:       # of one notice's receipts, or of many
    uint64_t total
    uint64_t online
    uint64_t delivered
    uint64_t failed
    uint32_t latest        # the latest time, as a column has it

cdef class Pass:           # what one pass looks at
    cdef Ledger ledger
    cdef int64_t base      # seqs are from here on
    cdef int64_t span      # and below base + span
    cdef Notices* chunks
    cdef Py_ssize_t chunk_count
    cdef Rows* pages
    cdef Py_ssize_t page_count
    cdef Block** dense     # by seq
    cdef Py_ssize_t dense_count

    cdef void add_chunk(self, Py_ssize_t number) noexcept
    cdef void add_page(self, Block* page) noexcept

cdef class NoticeQuery:
    cdef Ledger ledger
    cdef Wanted wanted
    cdef object marks      # keep what `wanted` points to
    cdef object having

    cdef int64_t count(self, Pass data, uint8_t* marks, int64_t* failed) noexcept nogil
    cdef void add_marked(self, Counted* counted, Pass data, const uint8_t* marks) noexcept nogil
    cdef list in_order(self, Pass data, int64_t offset, int64_t limit, bint is_descending)
    cdef list sorted(self, Pass data, int sort, bytes ranks, int64_t offset, int64_t limit, bint is_descending)
