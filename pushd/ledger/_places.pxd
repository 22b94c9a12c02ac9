# Where the receipts lie. The columns themselves are declared in _notices.pxd.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pushd.ledger._notices cimport *

cdef class Places(Notices):
    # receipts
    cdef Block* dense_of(self, int64_t seq) noexcept
    cdef Block* new_dense(self, int64_t seq, uint32_t count) except NULL  # also an existing one; does not set DENSE
    cdef int widen(self, Block* block, uint32_t count) except -1  # a dense block has so many positions; counts[0] too
    cdef int free_dense(self, int64_t seq) except -1          # with what the file has of it
    cdef Block* new_page(self) except NULL                    # number page_count
    cdef int reserve_pages(self, uint32_t count) except -1
    cdef int add_column(self, Block* block, int part) except -1   # times (1-3) or clients (4), where it has none; not cold
    cdef int make_room(self, Block* block, int part, uint32_t place) except -1  # for a value: a column, or a patch
    # True: the position is theirs, its state may be 0. In pages: the last row of this notice and user; others are dead
    cdef bint find(self, int64_t seq, uint32_t user, Block** block, uint32_t* place) noexcept
    cdef void begin(self, Walk* walk, int64_t seq) noexcept
    cdef bint step(self, Walk* walk) noexcept                 # the next position whose state is not 0
    cdef int touch(self, Block* block) except -1
    # The position will be logged. A dense block that was never stored (upto 0) and rows from `logged` on are only
    # touched: they are stored or logged as a whole
    cdef int note_dirty(self, Block* block, uint32_t place) except -1
    cdef int own(self, uint32_t user, uint32_t row) except -1

    cdef void bound(self) noexcept
    cdef bint look_in(self, Block* page, uint32_t user, uint32_t notice, Block** block, uint32_t* place) noexcept
    cdef uint32_t dense_index(self, int64_t seq) noexcept     # of the first block not below
    cdef uint32_t peak_of(self, uint32_t page) noexcept
    cdef int discard(self, Block* block, int kind) except -1


cdef uint32_t entry_of(const Vector* vector, uint64_t row) noexcept nogil  # the first entry that is not below the row
cdef Block* new_block(Notices ledger, int64_t key, uint32_t capacity, bint is_page) except NULL
