# What a pass over the ledger's columns looks at. It sees what is there when it begins, and may see changes that happen
# meanwhile; what it reads is not freed before it ends.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from pushd.ledger._ledger cimport Block, Ledger

cdef struct View:      # of a block
    Block* block
    const uint8_t* states
    const uint32_t* users      # NULL: dense
    const uint32_t* notices
    const uint32_t* times[3]
    const uint32_t* clients
    uint32_t count
    uint32_t low, high         # offsets of its notices
    uint32_t earliest[3]
    uint32_t latest[3]
    int64_t created            # dense
    uint8_t cold, told         # as of the block; columns of a cold one are NULL until `has` reads them
    uint8_t is_checked         # its notices must be looked at, one by one
    int64_t first, last        # bounds of its keys; first > last: it has none
    int64_t matching           # how many of its rows match, once counted

cdef struct Era:       # of a chunk
    int64_t base_ms
    const uint32_t* created_low
    const uint8_t* created_high
    const uint8_t* states
    uint32_t count
    uint32_t mixed             # eras before this one that have notices without a record

cdef class Views:
    cdef Ledger ledger
    cdef bint is_open
    cdef View* views           # dense blocks first, by seq; then pages
    cdef uint32_t count, dense_count
    cdef uint32_t* page_views  # by page number: its view, or NOWHERE
    cdef uint32_t page_count
    cdef Era* eras
    cdef uint32_t era_count
    cdef int64_t base_seq
    cdef uint32_t notice_end   # offsets are below
    cdef uint32_t user_room    # user numbers are below
    cdef uint32_t since, before    # offsets of notices that are looked at
    cdef object read           # of parts in the file: _cold.read_column
    cdef object failure        # of reading; whoever was without the GIL then raises it later
    cdef size_t scratch        # bytes of columns that were read

    cdef int begin(self) except -1
    cdef int end(self) except -1
    cdef int copy(self) except -1
    cdef void look(self) noexcept nogil
    cdef void look_at(self, Block* block, uint32_t low, uint32_t high) noexcept
    # Whether there is such a column, which may mean to read it. It is there until the next time something is read
    cdef bint has(self, View* view, int part) noexcept nogil
    cdef int fetch(self, View* view, int part) except -1
    cdef void forget(self) noexcept
    cdef uint32_t offset_of(self, const View* view, uint32_t place) noexcept nogil
    cdef int64_t created_of(self, const View* view, uint32_t place) noexcept nogil
    cdef int64_t created_at(self, uint32_t offset) noexcept nogil
