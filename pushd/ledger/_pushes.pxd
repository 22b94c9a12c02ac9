# What push records are asked for.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from pushd.ledger._ledger cimport Ledger
from pushd.ledger._push_counts cimport Counted, Pass

cdef struct Wanted:
    uint8_t statuses[4]    # marks
    uint8_t flags          # of a notice's state, which must be as in `state`
    uint8_t state
    const uint8_t* labels  # marks by label, of higher ones as of the last; NULL: any
    uint32_t last_label
    const uint8_t* having  # marks by seq from having_from on; NULL: any
    int64_t having_from
    int64_t having_count
    int64_t since_seq
    int64_t before_seq
    bint is_all            # but for since_seq and before_seq every push record

cdef class PushQuery:
    cdef Ledger ledger
    cdef Wanted wanted
    cdef object marks      # keep what `wanted` points to
    cdef object having

    cdef int64_t count(self, Pass data, uint8_t* marks, int64_t* failed) noexcept nogil
    cdef void add_marked(self, Counted* counted, Pass data, const uint8_t* marks) noexcept nogil
    cdef list in_order(self, Pass data, int64_t offset, int64_t limit, bint is_descending)
    cdef list sorted(self, Pass data, int sort, bytes ranks, int64_t offset, int64_t limit, bint is_descending)
