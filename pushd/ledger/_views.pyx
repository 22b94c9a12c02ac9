# cython: cdivision=True
"""What a pass over the ledger's columns looks at: where they are when it begins, and those it reads from the file."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

from pushd.ledger._cold cimport read_column
from pushd.ledger._ledger cimport HIDDEN, KINDS, KNOWN, NOWHERE, PAGE, Block, Chunk, Ledger

cdef enum:
    SCRATCH = 32 * 1024 * 1024  # bytes of columns that a pass keeps once it has read them

# What a chunk that is not there has.
cdef uint32_t NOTHING[PAGE]


cdef class Views:
    def __dealloc__(self):
        self.end()
        free(self.views)
        free(self.page_views)
        free(self.eras)

    # ---- what is there

    cdef int begin(self) except -1:
        """Copies where the columns are. `ledger`, `since` and `before` (offsets) are set; `end` must follow."""
        self.ledger.enter()
        self.is_open = True
        self.copy()
        with nogil:
            self.look()
        return 0

    cdef int end(self) except -1:
        if self.is_open:
            self.is_open = False
            self.forget()
            self.ledger.leave()
        return 0

    cdef int copy(self) except -1:
        cdef Ledger ledger = self.ledger
        cdef Chunk* chunk
        cdef Block* block
        cdef uint32_t i
        self.base_seq = ledger.base_seq
        self.page_count = ledger.page_count
        self.user_room = ledger.user_count
        self.era_count = max(1, ledger.chunk_count)
        self.views = <View*>malloc((<size_t>ledger.dense_count + ledger.page_count + 1) * sizeof(View))
        self.page_views = <uint32_t*>malloc((<size_t>self.page_count + 1) * 4)
        self.eras = <Era*>calloc(self.era_count + 1, sizeof(Era))
        if not (self.views and self.page_views and self.eras):
            raise MemoryError
        for i in range(self.era_count):
            self.eras[i] = Era(0, &NOTHING[0], <const uint8_t*>&NOTHING[0], <const uint8_t*>&NOTHING[0], 0, 0)
            if i < ledger.chunk_count and ledger.chunks[i] != NULL:
                chunk = ledger.chunks[i]
                self.eras[i] = Era(chunk.base_ms, chunk.created_low, chunk.created_high, chunk.states, chunk.count, 0)
        self.notice_end = (self.era_count - 1) * PAGE + self.eras[self.era_count - 1].count
        self.before = min(self.before, self.notice_end)
        for i in range(ledger.dense_count):
            block = ledger.dense[i]
            if block.key >= self.base_seq + self.since and block.key < self.base_seq + self.before:
                self.look_at(block, <uint32_t>(block.key - self.base_seq), <uint32_t>(block.key - self.base_seq))
                self.user_room = max(self.user_room, block.count)
        self.dense_count = self.count
        for i in range(ledger.page_count):
            block = ledger.pages[i]
            self.page_views[i] = NOWHERE
            if block != NULL and block.count and block.low < self.before and block.high >= self.since:
                self.page_views[i] = self.count
                self.look_at(block, block.low, min(block.high, self.notice_end - 1))
        return 0

    cdef void look_at(self, Block* block, uint32_t low, uint32_t high) noexcept:
        cdef View* view = &self.views[self.count]
        cdef int kind
        view.block, view.states, view.users, view.notices = block, block.states, block.users, block.notices
        view.clients, view.count, view.low, view.high = block.clients, block.count, low, high
        for kind in range(KINDS):
            view.times[kind], view.earliest[kind], view.latest[kind] = (
                block.times[kind], block.earliest[kind], block.latest[kind]
            )
        view.created, view.is_checked, view.matching = 0, False, -1
        view.cold, view.told = block.cold, block.told
        self.count += 1

    @cython.boundscheck(False)
    cdef void look(self) noexcept nogil:
        """Finds the notices without a record: their dense blocks have no rows, pages that may have some are checked."""
        cdef uint32_t i, place, mixed = 0, low = NOWHERE, high = 0
        cdef uint8_t all_bits, any_bits  # no wider, so that many are looked at at once
        cdef const uint8_t* states
        cdef View* view
        cdef Era* era
        for i in range(self.dense_count):
            view = &self.views[i]
            era = &self.eras[view.low // PAGE]
            view.created = self.created_of(view, 0)
            if era.states[view.low % PAGE] & (KNOWN | HIDDEN) != KNOWN:
                view.count = 0
        for i in range(self.dense_count, self.count):
            low, high = min(low, self.views[i].low // PAGE), max(high, self.views[i].high // PAGE)
        if low == NOWHERE:
            return
        for i in range(low, high + 1):
            era = &self.eras[i]
            era.mixed = mixed
            all_bits, any_bits = KNOWN, 0
            states = era.states
            for place in range(era.count):
                all_bits &= states[place]
                any_bits |= states[place]
            mixed += all_bits == 0 or (any_bits & HIDDEN) != 0
        self.eras[high + 1].mixed = mixed
        for i in range(self.dense_count, self.count):
            view = &self.views[i]
            view.is_checked = (
                view.low < self.since or view.high >= self.before
                or self.eras[view.low // PAGE].mixed != self.eras[view.high // PAGE + 1].mixed
            )

    # ---- columns in the file

    cdef bint has(self, View* view, int part) noexcept nogil:
        if part > KINDS:
            if view.clients != NULL:
                return True
        elif view.times[part - 1] != NULL:
            return True
        if not view.cold & 1 << part:
            return False
        with gil:
            if self.failure is not None:
                return False
            try:
                self.fetch(view, part)
            except BaseException as error:
                self.failure = error
                return False
        return True

    cdef int fetch(self, View* view, int part) except -1:
        cdef uint32_t* column
        if self.scratch + view.count * sizeof(uint32_t) > SCRATCH:
            self.forget()
        column = read_column(view.block, part, view.count, self.read)
        self.scratch += view.count * sizeof(uint32_t)
        if part > KINDS:
            view.clients = column
        else:
            view.times[part - 1] = column
        return 0

    cdef void forget(self) noexcept:
        cdef uint32_t i
        cdef int kind
        cdef View* view
        for i in range(self.count if self.scratch else 0):
            view = &self.views[i]
            if view.cold:
                free(<void*>view.clients)
                view.clients = NULL
                for kind in range(KINDS):
                    free(<void*>view.times[kind])
                    view.times[kind] = NULL
        self.scratch = 0

    # ---- rows

    cdef uint32_t offset_of(self, const View* view, uint32_t place) noexcept nogil:
        """Of the row's notice. One that was forgotten lies behind all others."""
        return view.low if view.notices == NULL else view.notices[place] - <uint32_t>self.base_seq

    cdef int64_t created_of(self, const View* view, uint32_t place) noexcept nogil:
        return self.created_at(self.offset_of(view, place))

    cdef int64_t created_at(self, uint32_t offset) noexcept nogil:
        cdef const Era* era
        offset = offset if offset < self.notice_end else 0
        era = &self.eras[offset // PAGE]
        return era.base_ms + (<int64_t>era.created_high[offset % PAGE] << 32 | era.created_low[offset % PAGE])
