# Passes over the ledger's columns without the GIL, for lists. A pass sees what is there when it begins, and may see
# changes that happen meanwhile; what it reads is not freed before it ends.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pushd.ledger._entries cimport Entries
from pushd.ledger._ledger cimport Block, Ledger
from pushd.ledger._names cimport Named, Names, Order

cdef enum:
    SEGMENT = 4096     # rows looked at between two steps
    BUCKETS = 4096     # of keys; one more takes what belongs into none

cdef enum Need:
    ANY = 0
    TIMED = 1          # rows that have a certain time
    UNTIMED = 2

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

cdef class Pass:
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
    # what matches
    cdef uint8_t table[256]    # by state
    cdef uint8_t* mask         # by user: 0 no, 1 yes, 3 it depends on the seq; NULL: all
    cdef Named named
    cdef bint has_several
    cdef uint32_t since, before
    # by what it is keyed
    cdef Order order
    cdef bint by_seq
    cdef int kind              # the time that `need` is about, and the key if not by seq
    cdef Need need
    cdef bint is_inverted

    cdef int begin(self) except -1
    cdef int end(self) except -1
    cdef int match(self, bytes state_set, Named named) except -1
    cdef int copy(self) except -1
    cdef void look(self) noexcept nogil
    cdef void look_at(self, Block* block, uint32_t low, uint32_t high) noexcept

    cdef bint is_match(self, const View* view, uint32_t place) noexcept nogil
    cdef uint32_t hits_of(self, const View* view, uint32_t start, uint32_t count, uint8_t* hits) noexcept nogil
    cdef int64_t matching_of(self, View* view) noexcept nogil
    cdef bint is_whole(self, const View* view) noexcept nogil
    cdef uint32_t offset_of(self, const View* view, uint32_t place) noexcept nogil
    cdef int64_t created_of(self, const View* view, uint32_t place) noexcept nogil
    cdef int64_t created_at(self, uint32_t offset) noexcept nogil
    cdef int64_t key_of(self, const View* view, uint32_t place) noexcept nogil
    cdef void bound(self, View* view) noexcept nogil

    cdef void tally(self, int64_t* counts) noexcept nogil
    cdef void tally_row(self, const View* view, uint32_t place, int64_t* counts) noexcept nogil
    cdef void count_users(self, uint32_t* counts) noexcept nogil
    cdef void count_places(self, Names names, uint32_t* counts) noexcept nogil
    cdef int64_t spread(self, int64_t first, int64_t last, int shift, int64_t* buckets) noexcept nogil
    cdef void spread_dense(self, const View* view, int64_t first, int shift, int64_t* buckets) noexcept nogil
    cdef int64_t collect(self, int64_t first, int64_t last, bint counts_below, Entries* found) noexcept nogil
    cdef void collect_dense(self, uint32_t index, int64_t first, int64_t last, Entries* found) noexcept nogil
    cdef void collect_user(self, uint32_t user, const uint32_t* rows, uint32_t row_count, Entries* found) noexcept nogil
    cdef int64_t user_key(self, const View* view, uint32_t place) noexcept nogil
    cdef void take(self, uint32_t index, uint32_t place, int64_t key, Entries* found) noexcept nogil
