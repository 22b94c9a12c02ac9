# Passes over notices: what lists of push records ask of the ledger. A pass copies under the GIL what may move, and
# runs without it between Ledger.enter and leave, so that nothing it looks at is freed meanwhile.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pushd.ledger._ledger cimport Block, Ledger

cdef uint8_t[256] IS_LISTED  # by the state of a receipt

cdef struct Column:        # the notices of a chunk
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
    uint8_t cold           # as of the block: parts that the file alone has
    Block* block

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
    cdef Column* chunks
    cdef Py_ssize_t chunk_count
    cdef Rows* pages
    cdef Py_ssize_t page_count
    cdef Block** dense     # by seq
    cdef Py_ssize_t dense_count
    cdef object read       # of parts in the file: _cold.read_column
    cdef object failure    # of reading

    cdef void add_chunk(self, Py_ssize_t number) noexcept
    cdef void add_page(self, Block* page) noexcept

cdef void* allocated(size_t size) except NULL
cdef void* zeroed(size_t count, size_t size) except NULL
cdef Py_ssize_t dense_after(Pass data, int64_t seq) noexcept nogil
cdef void add_counts(Counted* counted, const uint32_t* counts) noexcept nogil
cdef void add_rows(Counted* counted, const Rows* page, int64_t base, int64_t span, const uint8_t* marks) noexcept nogil
cdef void add_all(Counted* counted, Pass data, int64_t since_seq, int64_t before_seq) noexcept nogil
