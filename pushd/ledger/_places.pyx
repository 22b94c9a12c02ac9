# cython: cdivision=True
"""Where the receipts of the ledger lie: dense blocks and pages, and how one is found in them."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove

from pushd.ledger._patches cimport drop_patches, new_patch

cdef enum:
    MOST_PAGES = 1 << 20
    LANE = 32  # compared at once


cdef bint any_of(const uint32_t* values, uint32_t wanted) noexcept nogil:
    """Whether the wanted one is among the next LANE values."""
    cdef uint32_t i, found = 0
    for i in range(LANE):
        found |= values[i] == wanted
    return found


cdef bint any_between(const uint32_t* lows, const uint32_t* highs, uint32_t wanted) noexcept nogil:
    """Whether one of the next LANE ranges has the wanted one."""
    cdef uint32_t i, found = 0
    for i in range(LANE):
        found |= (lows[i] <= wanted) & (wanted <= highs[i])
    return found


cdef uint32_t entry_of(const Vector* vector, uint64_t row) noexcept nogil:
    """The first entry that is not below the row."""
    cdef uint32_t low = 0, high = vector.count, middle
    if high and vector.rows[high - 1] < row:
        return high
    while low < high:
        middle = low + (high - low) // 2
        if vector.rows[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low


cdef int release_columns(Notices ledger, Block* block) except -1:
    cdef int kind
    ledger.release(block.users, block.capacity * sizeof(uint32_t))
    ledger.release(block.notices, block.capacity * sizeof(uint32_t))
    ledger.release(block.states, block.capacity)
    ledger.release(block.clients, block.capacity * sizeof(uint32_t))
    for kind in range(KINDS):
        ledger.release(block.times[kind], block.capacity * sizeof(uint32_t))
    return 0


cdef Block* new_block(Notices ledger, int64_t key, uint32_t capacity, bint is_page) except NULL:
    cdef Block* block = <Block*>ledger.taken(sizeof(Block))
    cdef int kind
    block.key, block.low, block.capacity = key, NOWHERE, capacity or 1
    for kind in range(KINDS):
        block.earliest[kind] = NOWHERE
    try:
        block.states = <uint8_t*>ledger.taken(block.capacity)
        if is_page:
            block.users = <uint32_t*>ledger.taken(block.capacity * sizeof(uint32_t))
            block.notices = <uint32_t*>ledger.taken(block.capacity * sizeof(uint32_t))
    except MemoryError:
        release_columns(ledger, block)
        ledger.release(block, sizeof(Block))
        raise
    return block


cdef void exchange(Block* block, Block* wide, uint32_t capacity) noexcept:
    """The block gets the wider columns, the other one the block's."""
    cdef Block old = block[0]
    cdef int kind
    memcpy(wide.states, old.states, old.count)
    if old.clients != NULL:
        memcpy(wide.clients, old.clients, old.count * sizeof(uint32_t))
    for kind in range(KINDS):
        if old.times[kind] != NULL:
            memcpy(wide.times[kind], old.times[kind], old.count * sizeof(uint32_t))
        block.times[kind] = wide.times[kind]
    block.states, block.clients, block.capacity = wide.states, wide.clients, capacity
    wide[0] = old


cdef class Places(Notices):
    """Blocks of receipts, and which of their positions have changed."""

    def __dealloc__(self):
        cdef uint32_t i
        self.readers = 0
        for i in range(self.dense_count):
            self.dense[i].is_touched = False
            self.discard(self.dense[i], -1)
        for i in range(self.page_count):
            if self.pages[i] != NULL:
                self.pages[i].is_touched = False
                self.discard(self.pages[i], -1)
        free(self.dense)
        free(self.pages)
        free(self.touched)
        free(self.lows)
        free(self.highs)
        free(self.peaks)

    # ---- receipts: where they are

    cdef uint32_t dense_index(self, int64_t seq) noexcept:
        cdef uint32_t low = 0, high = self.dense_count, middle
        if high and self.dense[high - 1].key <= seq:
            return high - (self.dense[high - 1].key == seq)
        while low < high:
            middle = (low + high) // 2
            if self.dense[middle].key < seq:
                low = middle + 1
            else:
                high = middle
        return low

    cdef Block* dense_of(self, int64_t seq) noexcept:
        cdef uint32_t index = self.dense_index(seq)
        if index == self.dense_count or self.dense[index].key != seq:
            return NULL
        return self.dense[index]

    cdef Block* new_dense(self, int64_t seq, uint32_t count) except NULL:
        cdef uint32_t index = self.dense_index(seq), user, room
        cdef Block* block
        if index < self.dense_count and self.dense[index].key == seq:
            return self.dense[index]
        if self.dense_count == self.dense_room:
            room = self.dense_room + self.dense_room // 4 + 64
            self.dense = <Block**>self.resized(
                self.dense, self.dense_room * sizeof(Block*), room * sizeof(Block*)
            )
            self.dense_room = room
        block = new_block(self, seq, count, False)
        block.count = block.counts[0] = count
        memmove(self.dense + index + 1, self.dense + index, (self.dense_count - index) * sizeof(Block*))
        self.dense[index] = block
        if index < self.dense_count:
            for user in range(self.user_count):
                self.dense_floors[user] += self.dense_floors[user] > index
        self.dense_count += 1
        return block

    cdef int widen(self, Block* block, uint32_t count) except -1:
        cdef Block wide
        cdef uint32_t capacity = count + count // 8 + 64
        cdef int kind
        if count <= block.count:
            return 0
        if count > block.capacity:
            wide = block[0]
            wide.states, wide.clients = NULL, NULL
            for kind in range(KINDS):
                wide.times[kind] = NULL
            try:
                wide.states = <uint8_t*>self.taken(capacity)
                if block.clients != NULL:
                    wide.clients = <uint32_t*>self.taken(capacity * sizeof(uint32_t))
                for kind in range(KINDS):
                    if block.times[kind] != NULL:
                        wide.times[kind] = <uint32_t*>self.taken(capacity * sizeof(uint32_t))
            except MemoryError:
                wide.capacity = capacity
                release_columns(self, &wide)
                raise
            exchange(block, &wide, capacity)
            release_columns(self, &wide)
        block.counts[0] += count - block.count
        block.count = count
        block.stale |= 1 | (16 if block.clients != NULL else 0)
        for kind in range(KINDS):
            block.stale |= (2 << kind) if block.times[kind] != NULL else 0
        return 0

    cdef int discard(self, Block* block, int kind) except -1:
        """Frees the block; of what kind it is says which keys of the file go, -1 none."""
        cdef uint32_t i
        cdef int part
        if block.is_touched:
            for i in range(self.touched_count):
                if self.touched[i] == block:
                    self.touched_count -= 1
                    self.touched[i] = self.touched[self.touched_count]
                    break
        if kind >= 0:
            for part in range(KINDS + 2):
                self.dropped.append(block.key << 5 | kind << 3 | part)
        if block.dirty != NULL:
            free(block.dirty)
            self.memory -= block.dirty_room * sizeof(uint32_t)
        drop_patches(self, block, block.patch_count)
        release_columns(self, block)
        self.release(block, sizeof(Block))
        return 0

    cdef int free_dense(self, int64_t seq) except -1:
        cdef Block* block = self.dense_of(seq)
        cdef uint32_t index = self.dense_index(seq), user
        cdef Chunk* chunk = self.chunk_of(seq)
        if chunk != NULL:
            self.note_chunk(chunk, <uint32_t>(seq % PAGE))
            chunk.states[seq % PAGE] &= ~DENSE
        if block == NULL:
            return 0
        self.dense_count -= 1
        memmove(self.dense + index, self.dense + index + 1, (self.dense_count - index) * sizeof(Block*))
        for user in range(self.user_count):
            self.dense_floors[user] -= self.dense_floors[user] > index
        return self.discard(block, 1)

    cdef Block* new_page(self) except NULL:
        cdef Block* block
        if self.page_count == MOST_PAGES:
            raise OverflowError("no more numbers for rows: the next start gives them out anew")
        self.reserve_pages(self.page_count + 1)
        block = new_block(self, self.page_count, PAGE, True)
        self.pages[self.page_count] = block
        self.page_count += 1
        return block

    cdef int reserve_pages(self, uint32_t count) except -1:
        """Room for so many, NULL from `page_count` on."""
        cdef size_t room, old = self.page_room
        if count > old:
            room = max(<size_t>count, old + old // 4 + 64)
            self.lows = <uint32_t*>self.resized(self.lows, old * sizeof(uint32_t), room * sizeof(uint32_t))
            self.highs = <uint32_t*>self.resized(self.highs, old * sizeof(uint32_t), room * sizeof(uint32_t))
            self.peaks = <uint32_t*>self.resized(self.peaks, old * sizeof(uint32_t), room * sizeof(uint32_t))
            self.pages = <Block**>self.resized(self.pages, old * sizeof(Block*), room * sizeof(Block*))
            self.page_room = <uint32_t>room
        return 0

    cdef int add_column(self, Block* block, int part) except -1:
        cdef uint32_t** column = &block.clients if part == KINDS + 1 else &block.times[part - 1]
        if column[0] == NULL:
            column[0] = <uint32_t*>self.taken(block.capacity * sizeof(uint32_t))
            block.stale |= 1 << part
        return 0

    cdef int make_room(self, Block* block, int part, uint32_t place) except -1:
        if block.cold:
            new_patch(self, block, place)
        else:
            self.add_column(block, part)
        return 0

    cdef void bound(self) noexcept:
        cdef Block* page
        while self.bounded + 1 < self.page_count:
            page = self.pages[self.bounded]
            self.lows[self.bounded] = NOWHERE if page == NULL else page.low
            self.highs[self.bounded] = 0 if page == NULL else page.high
            self.peaks[self.bounded] = self.highs[self.bounded]
            if self.bounded:
                self.peaks[self.bounded] = max(self.peaks[self.bounded], self.peaks[self.bounded - 1])
            self.bounded += 1

    cdef uint32_t peak_of(self, uint32_t page) noexcept:
        """The greatest offset of a notice in this page and those before."""
        cdef uint32_t before
        if page < self.bounded:
            return self.peaks[page]
        before = self.peaks[page - 1] if page else 0
        return before if self.pages[page] == NULL else max(before, self.pages[page].high)

    cdef bint look_in(self, Block* page, uint32_t user, uint32_t notice, Block** block, uint32_t* place) noexcept:
        """Finds the user's row in this page, the last if there are several: earlier ones are dead."""
        cdef Vector* vector = &self.vectors[user]
        cdef uint64_t first = page.key * PAGE
        cdef uint32_t entry = entry_of(vector, first + PAGE)
        while entry and vector.rows[entry - 1] >= first:
            entry -= 1
            if page.notices[vector.rows[entry] % PAGE] == notice:
                block[0], place[0] = page, vector.rows[entry] % PAGE
                return True
        return False

    cdef bint find(self, int64_t seq, uint32_t user, Block** block, uint32_t* place) noexcept:
        cdef uint8_t state = self.notice_of(seq)
        cdef uint32_t notice = <uint32_t>seq, offset, page
        cdef Block* last
        if state == 0 or user >= self.user_count:
            return False
        if state & DENSE:
            block[0], place[0] = self.dense_of(seq), user
            return block[0] != NULL and user < block[0].count
        if self.vectors[user].count == 0:
            return False
        offset = <uint32_t>(seq - self.base_seq)
        self.bound()
        if self.bounded < self.page_count:
            last = self.pages[self.bounded]
            if last != NULL and last.low <= offset <= last.high and self.look_in(last, user, notice, block, place):
                return True
        if self.bounded == 0 or offset > self.peaks[self.bounded - 1]:
            return False
        page = self.bounded
        while page:
            if page % LANE == 0 and not any_between(self.lows + page - LANE, self.highs + page - LANE, offset):
                page -= LANE
                continue
            page -= 1
            if self.lows[page] <= offset <= self.highs[page]:
                if self.look_in(self.pages[page], user, notice, block, place):
                    return True
        return False

    cdef void begin(self, Walk* walk, int64_t seq) noexcept:
        cdef uint8_t state = self.notice_of(seq)
        walk.block, walk.page, walk.place = NULL, 0, NOWHERE
        walk.notice, walk.offset = <uint32_t>seq, <uint32_t>(seq - self.base_seq)
        if state & DENSE:
            walk.page, walk.block = NOWHERE, self.dense_of(seq)
        elif state == 0:
            walk.page = NOWHERE
        else:
            self.bound()

    cdef bint step(self, Walk* walk) noexcept:
        cdef Block* block = walk.block
        cdef uint32_t place = walk.place + 1
        if walk.page == NOWHERE:
            if block == NULL:
                return False
            while place < block.count and block.states[place] == 0:
                place += 1
            walk.place = walk.user = place
            return place < block.count
        while True:
            while block != NULL and place < block.count:
                if place % LANE == 0 and place + LANE <= block.count and not any_of(block.notices + place, walk.notice):
                    place += LANE
                    continue
                if block.notices[place] == walk.notice and block.states[place]:
                    walk.block, walk.place, walk.user = block, place, block.users[place]
                    return True
                place += 1
            block, place = NULL, 0
            while walk.page < self.page_count and block == NULL:
                if walk.page < self.bounded:
                    if walk.page % LANE == 0 and walk.page + LANE <= self.bounded:
                        if not any_between(self.lows + walk.page, self.highs + walk.page, walk.offset):
                            walk.page += LANE
                            continue
                    if self.lows[walk.page] <= walk.offset <= self.highs[walk.page]:
                        block = self.pages[walk.page]
                else:
                    block = self.pages[walk.page]
                    if block != NULL and not block.low <= walk.offset <= block.high:
                        block = NULL
                walk.page += 1
            if block == NULL:
                walk.block, walk.place = NULL, NOWHERE
                return False

    # ---- receipts: changes

    cdef int touch(self, Block* block) except -1:
        cdef size_t room
        if block.is_touched:
            return 0
        if self.touched_count == self.touched_room:
            room = self.touched_room * 2 + 64
            self.touched = <Block**>self.resized(
                self.touched, self.touched_room * sizeof(Block*), room * sizeof(Block*)
            )
            self.touched_room = <uint32_t>room
        self.touched[self.touched_count] = block
        self.touched_count += 1
        block.is_touched = True
        return 0

    cdef int note_dirty(self, Block* block, uint32_t place) except -1:
        cdef size_t room
        cdef uint32_t i
        self.touch(block)
        if block.upto == 0 if block.users == NULL else place >= block.logged:
            return 0
        if block.dirty_count and block.dirty[block.dirty_count - 1] == place:
            return 0
        if block.dirty_count == block.dirty_room:
            if block.dirty_room >= 2 * block.count + 16:
                for i in range(block.count):
                    block.dirty[i] = i
                block.dirty_count = block.count
            else:
                room = <size_t>block.dirty_room * 2 + 16
                block.dirty = <uint32_t*>self.resized(
                    block.dirty, block.dirty_room * sizeof(uint32_t), room * sizeof(uint32_t)
                )
                block.dirty_room = <uint32_t>room
        block.dirty[block.dirty_count] = place
        block.dirty_count += 1
        return 0

    cdef int own(self, uint32_t user, uint32_t row) except -1:
        cdef Vector* vector = &self.vectors[user]
        cdef size_t room
        if vector.count == vector.room:
            room = <size_t>vector.room + (vector.room >> 3) + 4
            vector.rows = <uint32_t*>self.resized(
                vector.rows, vector.room * sizeof(uint32_t), room * sizeof(uint32_t)
            )
            vector.room = <uint32_t>room
        vector.rows[vector.count] = row
        vector.count += 1
        return 0
