# The ledger: what changes, and Python's calls. _notices.pxd declares how everything lies in memory, _places.pxd how it
# is found; others cimport all of it from here.

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t

from pushd.ledger._notices cimport *
from pushd.ledger._places cimport *

@cython.final
cdef class Ledger(Places):
    # Neither logs: note_dirty comes first. `put` keeps counts, unreads (where the notice counts), waitings and floors
    cdef void put(self, Block* block, uint32_t place, uint32_t user, uint8_t state, bint counts) noexcept
    cdef void put_time(self, Block* block, int kind, uint32_t place, uint32_t value) noexcept  # not 0; the earlier stays

    cdef void count_unread(self, uint32_t user, int change) noexcept
    cdef void lower_floors(self, Block* block, uint32_t place, uint32_t user) noexcept
    cdef int note_all(self, int64_t seq, const uint32_t* users, const uint32_t* clients, size_t count, uint8_t state,
                      int64_t received_ms) except -1
    cpdef bint conclude(self, int64_t seq, uint8_t status) except -1
    cdef uint32_t checked(self, uint32_t number) except? NOWHERE  # IndexError: no such user
    cdef int turn(self, Chunk* chunk, uint32_t place, uint8_t state) except -1
    cdef int free_empty(self, int64_t seq) except -1
    cdef int drop_pages(self, int64_t seq) except -1
    cdef int cut_vectors(self) except -1
    cdef list newest_places(self, uint32_t number, uint32_t limit)
    cdef uint32_t newest_rows(self, const Vector* vector, uint32_t* rows, uint32_t most) noexcept
    cdef uint32_t offset_of(self, uint32_t row) noexcept
    cdef int drop_chunks(self, int64_t seq) except -1
    cdef int append_row(self, int64_t seq, uint32_t user, Block** block, uint32_t* place) except -1
    cdef int merge(self, Block* block, uint32_t place, uint32_t user, uint8_t state, uint32_t received, uint32_t client,
                   bint counts) except -1
    cdef bint begin_waiting(self, Walk* walk, int64_t seq) noexcept
    cdef int trim(self, uint32_t user) except -1
    cdef bint oldest_waiting(self, uint32_t user, Block** block, uint32_t* place) noexcept
    cdef int stop_waiting(self, Block* block, uint32_t place, uint32_t user) except -1
    cdef int forget(self, Block* block, uint32_t place, uint32_t user, uint8_t kept, bint counts) except -1
    cdef tuple described(self, int64_t seq, Block* block, uint32_t place)
