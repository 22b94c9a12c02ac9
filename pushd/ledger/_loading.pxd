# What loading parts and replaying the log have in common.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from pushd.ledger._ledger cimport Block, Ledger
from pushd.ledger._log cimport Head

cdef enum:
    MOST_PAGES = 1 << 20       # the number of a row has 32 bits

# Raise ValueError.
cdef Head head_of(bytes body, int kind, int part, int64_t number)
cdef int expect_states(const uint8_t* states, uint32_t count) except -1
cdef int expect_users(const uint8_t* users, uint32_t count, uint32_t user_count) except -1

cdef Block* page_numbered(Ledger ledger, uint32_t number) except NULL


cdef inline bint is_number(int64_t number) noexcept nogil:
    """Of something in a key, or of a flush."""
    return 0 <= number < <int64_t>1 << 58
