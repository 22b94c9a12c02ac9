# Blocks that are cold: which, and what changes in them. A cold block has neither times nor clients in memory; what is
# said of a position is kept as a patch, logged as one, and joined with the column when that is read or stored again.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from pushd.ledger._notices cimport Block, Notices, Patch

cdef struct Ages:          # how far a walk from the oldest block on has come
    uint32_t dense
    uint32_t page

cdef Patch* patch_at(const Block* block, uint32_t place) noexcept  # NULL: there is none since the last taking
cdef Patch* new_patch(Notices ledger, Block* block, uint32_t place) except NULL  # also an existing one
cdef void patch_value(Block* block, Patch* patch, int part, uint32_t value) noexcept
cdef void patch_state(Block* block, uint32_t place, uint8_t state) noexcept  # before the state changes, after values
cdef int drop_patches(Notices ledger, Block* block, uint32_t count) except -1  # the first ones

cdef Block* next_oldest(Notices ledger, Ages* ages) noexcept  # with columns in memory and complete; NULL: no more
cdef bint is_at_rest(const Block* block) noexcept             # all of it is stored
cdef int make_cold(Notices ledger, Block* block) except -1    # its columns leave memory
cdef size_t columns_size(const Block* block) noexcept
cdef size_t living(Notices ledger) noexcept                   # bytes in use
cdef void bound_times(Block* block) noexcept nogil            # from what is in memory


cdef inline uint32_t joined(int part, uint32_t one, uint32_t other) noexcept nogil:
    """Of two times the earlier, of two clients the greater; 0 is none."""
    if part == 4:
        return max(one, other)
    return other if one == 0 or 0 < other < one else one


cdef inline bint says_time(uint8_t state, int kind) noexcept nogil:
    """Whether there should be such a time."""
    cdef uint8_t step = state & 0x0f
    return step >= 4 if kind == 0 else step == 6 or step == 5 and kind == 1


cdef inline void apply(uint32_t* column, uint32_t count, int part, const Patch* patches, uint32_t patch_count) noexcept:
    cdef uint32_t i, place
    for i in range(patch_count):
        place = patches[i].place
        if place < count:
            column[place] = joined(part, 0 if patches[i].is_whole else column[place], patches[i].values[part - 1])
