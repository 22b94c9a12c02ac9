# Passes over the ledger's columns without the GIL, for lists.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pushd.ledger._entries cimport Entries
from pushd.ledger._names cimport Named, Names, Order
from pushd.ledger._views cimport View, Views

cdef enum:
    SEGMENT = 4096     # rows looked at between two steps
    BUCKETS = 4096     # of keys; one more takes what belongs into none

cdef enum Need:
    ANY = 0
    TIMED = 1          # rows that have a certain time
    UNTIMED = 2

cdef class Pass(Views):
    # what matches
    cdef uint8_t table[256]    # by state
    cdef uint8_t told[256]     # the same with `need`, where states tell of the time
    cdef uint8_t* mask         # by user: 0 no, 1 yes, 3 it depends on the seq; NULL: all
    cdef Named named
    cdef bint has_several
    cdef bytes marks           # by notice, of which those behind and before are not wanted; None: all
    cdef int64_t marks_from    # the first one's offset
    cdef const uint8_t* marks_at   # NULL: all
    cdef int64_t marks_count
    # by what it is keyed
    cdef Order order
    cdef bint by_seq
    cdef int kind              # the time that `need` is about, and the key if not by seq
    cdef Need need
    cdef bint is_inverted

    cdef int match(self, bytes state_set, Named named) except -1
    cdef int match_notices(self, bytes marks, int64_t first_seq) except -1
    cdef bint is_marked(self, int64_t offset) noexcept nogil
    cdef bint has_marks(self, int64_t low, int64_t high) noexcept nogil

    cdef void ask(self, Need need) noexcept
    cdef bint is_match(self, View* view, uint32_t place) noexcept nogil
    cdef uint32_t hits_of(self, View* view, uint32_t start, uint32_t count, uint8_t* hits) noexcept nogil
    cdef int64_t matching_of(self, View* view) noexcept nogil
    cdef bint is_whole(self, const View* view) noexcept nogil
    cdef int64_t key_of(self, const View* view, uint32_t place) noexcept nogil
    cdef void bound(self, View* view) noexcept nogil

    cdef void tally(self, int64_t* counts) noexcept nogil
    cdef void tally_row(self, const View* view, uint32_t place, int64_t* counts) noexcept nogil
    cdef void count_users(self, uint32_t* counts) noexcept nogil
    cdef void count_places(self, Names names, uint32_t* counts) noexcept nogil
    cdef int64_t spread(self, int64_t first, int64_t last, int shift, int64_t* buckets) noexcept nogil
    cdef void spread_dense(self, View* view, int64_t first, int shift, int64_t* buckets) noexcept nogil
    cdef int64_t collect(self, int64_t first, int64_t last, bint counts_below, Entries* found) noexcept nogil
    cdef void collect_dense(self, uint32_t index, int64_t first, int64_t last, Entries* found) noexcept nogil
    cdef void collect_user(self, uint32_t user, const uint32_t* rows, uint32_t row_count, Entries* found) noexcept nogil
    cdef int64_t user_key(self, View* view, uint32_t place) noexcept nogil
    cdef void take(self, uint32_t index, uint32_t place, int64_t key, Entries* found) noexcept nogil
