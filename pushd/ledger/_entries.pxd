# Rows that a pass has found, and how they are sorted: by key, then by rank, then by notice.

from libc.stdint cimport int64_t, uint32_t

cdef struct Entry:
    int64_t key
    uint32_t rank
    uint32_t notice            # offset; either is inverted where the list is descending
    uint32_t view
    uint32_t place

cdef struct Entries:
    Entry* items
    int64_t count
    int64_t room
    bint is_full               # there was no memory for more

cdef void add(Entries* found, Entry entry) noexcept nogil
cdef void pick(Entries* found, int64_t offset, int64_t limit) noexcept nogil
