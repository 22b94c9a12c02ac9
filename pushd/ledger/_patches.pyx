# cython: cdivision=True
"""Blocks whose times and clients the file alone has: how they become cold, and what is said of them afterwards."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memmove

from pushd.ledger._notices cimport KINDS, NOWHERE, PAGE, Block, Notices, Patch, seq_of


# ---- patches

cdef uint32_t first_from(const Block* block, uint32_t place) noexcept:
    """The first patch since the last taking that is not below the place."""
    cdef uint32_t low = block.patches_taken, high = block.patch_count, middle
    while low < high:
        middle = low + (high - low) // 2
        if block.patches[middle].place < place:
            low = middle + 1
        else:
            high = middle
    return low


cdef Patch* patch_at(const Block* block, uint32_t place) noexcept:
    cdef uint32_t index = first_from(block, place)
    if index < block.patch_count and block.patches[index].place == place:
        return &block.patches[index]
    return NULL


cdef Patch* new_patch(Notices ledger, Block* block, uint32_t place) except NULL:
    cdef Patch* patch = patch_at(block, place)
    cdef uint32_t index, room
    if patch != NULL:
        return patch
    if block.patch_count == block.patch_room:
        room = block.patch_room + block.patch_room // 2 + 8
        block.patches = <Patch*>ledger.resized(
            block.patches, block.patch_room * sizeof(Patch), room * sizeof(Patch)
        )
        block.patch_room = room
    index = first_from(block, place)
    patch = &block.patches[index]
    memmove(patch + 1, patch, (block.patch_count - index) * sizeof(Patch))
    patch[0] = Patch(place, False, [0, 0, 0, 0])
    block.patch_count += 1
    return patch


cdef void patch_value(Block* block, Patch* patch, int part, uint32_t value) noexcept:
    """Joins a value, not 0, with what is known of the position. Its state is still that of before."""
    cdef int kind = part - 1
    patch.values[kind] = joined(part, patch.values[kind], value)
    block.cold |= 1 << part
    if part > KINDS:
        return
    block.earliest[kind] = min(block.earliest[kind], value)
    if not (block.told & 1 << kind and says_time(block.states[patch.place], kind)):  # else one not later is stored
        block.latest[kind] = max(block.latest[kind], value)


cdef void patch_state(Block* block, uint32_t place, uint8_t state) noexcept:
    """Sees to it that `told` stays true."""
    cdef Patch* patch = patch_at(block, place)
    cdef int kind
    cdef bint has
    for kind in range(KINDS):
        has = patch != NULL and patch.values[kind]
        has = has or (patch == NULL or not patch.is_whole) and says_time(block.states[place], kind)
        if has != says_time(state, kind):
            block.told &= ~(1 << kind)


cdef int drop_patches(Notices ledger, Block* block, uint32_t count) except -1:
    block.patch_count -= count
    block.patches_taken -= min(count, block.patches_taken)
    block.epoch += 1
    if block.patch_count == 0:
        free(block.patches)
        ledger.memory -= block.patch_room * sizeof(Patch)
        block.patches, block.patch_room = NULL, 0
    elif count:
        memmove(block.patches, block.patches + count, block.patch_count * sizeof(Patch))
        block.patches = <Patch*>ledger.resized(
            block.patches, block.patch_room * sizeof(Patch), block.patch_count * sizeof(Patch)
        )
        block.patch_room = block.patch_count
    return 0


# ---- becoming cold

cdef Block* next_oldest(Notices ledger, Ages* ages) noexcept:
    cdef Block* dense = NULL
    cdef Block* page = NULL
    while ages.dense < ledger.dense_count and columns_size(ledger.dense[ages.dense]) == 0:
        ages.dense += 1
    if ages.dense < ledger.dense_count:
        dense = ledger.dense[ages.dense]
    while ages.page < ledger.page_count and (
        ledger.pages[ages.page] == NULL or ledger.pages[ages.page].count < PAGE
        or columns_size(ledger.pages[ages.page]) == 0
    ):
        ages.page += 1
    if ages.page < ledger.page_count:
        page = ledger.pages[ages.page]
    if dense == NULL or page != NULL and seq_of(ledger, page.notices[PAGE - 1]) < dense.key:
        ages.page += page != NULL
        return page
    ages.dense += 1
    return dense


cdef bint is_at_rest(const Block* block) noexcept:
    return (
        block.upto > 0 and not block.is_touched and block.dirty_count == 0 and block.logged_since == 0
        and not block.stale & ~1
    )


cdef size_t columns_size(const Block* block) noexcept:
    cdef uint32_t columns = block.clients != NULL
    cdef int kind
    for kind in range(KINDS):
        columns += block.times[kind] != NULL
    return <size_t>columns * block.capacity * sizeof(uint32_t)


cdef void bound_times(Block* block) noexcept nogil:
    cdef uint32_t place, value, least, most
    cdef uint32_t* values
    cdef int kind
    for kind in range(KINDS):
        values = block.times[kind]
        least, most = NOWHERE, 0
        if values != NULL:
            for place in range(block.count):
                value = values[place]
                least = min(least, value - 1)  # 0 becomes the greatest
                most = max(most, value)
        block.earliest[kind] = NOWHERE if most == 0 else least + 1
        block.latest[kind] = most


cdef int make_cold(Notices ledger, Block* block) except -1:
    """Its columns leave memory."""
    cdef uint32_t place
    cdef int kind
    cdef uint8_t is_told
    cdef uint32_t* times
    bound_times(block)
    for kind in range(KINDS):
        times, is_told = block.times[kind], True
        for place in range(block.count):
            is_told &= says_time(block.states[place], kind) == (times != NULL and times[place] != 0)
        block.told |= is_told << kind
        block.cold |= (times != NULL) << kind + 1
        block.times[kind] = NULL
        ledger.release(times, block.capacity * sizeof(uint32_t))
    block.cold |= (block.clients != NULL) << KINDS + 1
    times, block.clients = block.clients, NULL
    ledger.release(times, block.capacity * sizeof(uint32_t))
    return 0


cdef size_t living(Notices ledger) noexcept:
    """Bytes that are not in the graveyard."""
    cdef size_t left = ledger.memory
    cdef uint32_t i
    for i in range(ledger.grave_count):
        left -= ledger.graveyard[i].size
    return left
