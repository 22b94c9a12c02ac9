# cython: cdivision=True
"""The ledger itself: notices, their receipts and who waits for what, in memory. `_ledger.pxd` shows how they lie there.

Everything here runs on the loop's thread. A seq that the ledger does not know has no receipts: asking for them finds
nothing, and noting them does nothing. User numbers that were never added raise IndexError. Whatever is wrong with
an argument, the ledger is as it was; after a MemoryError a list of users may have been noted up to one of them.
"""

from cpython.long cimport PyLong_AsLongLong
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from pushd.ledger._notices cimport release_chunk
from pushd.ledger._patches cimport new_patch, patch_at, patch_state, patch_value
from pushd.ledger._places cimport entry_of

cdef enum:
    MOST_USERS = 1 << 31
    CUT_USER = 64       # what looking at a user's vector costs, in rows that are moved
    MOST_CUT = 1 << 19


cdef uint32_t* read_numbers(list numbers, uint32_t end) except NULL:
    """The numbers, all below the end. To be freed."""
    cdef size_t i, count = <size_t>len(numbers)
    cdef uint32_t* values = <uint32_t*>malloc((count or 1) * sizeof(uint32_t))
    cdef long long value
    cdef object number
    if values == NULL:
        raise MemoryError
    try:
        for i in range(count):
            number = numbers[i]
            if not isinstance(number, int):  # others might run code that shortens the list
                raise TypeError(f"expected int, found {type(number).__name__}")
            value = PyLong_AsLongLong(number)
            if not 0 <= value < end:
                raise IndexError(f"number {value} of {end}")
            values[i] = <uint32_t>value
    except BaseException:
        free(values)
        raise
    return values


cdef class Ledger(Places):
    """Who was sent which notice and how far it got with each, who waits for what, and what is unread."""

    def __cinit__(self, uint32_t max_waiting):
        self.max_waiting = max_waiting
        self.touched_chunks = []
        self.dropped = []
        self.patched = []

    # ---- changes

    cdef int turn(self, Chunk* chunk, uint32_t place, uint8_t state) except -1:
        """The notice's new state; its unread receipts begin or cease to count with it."""
        cdef Walk walk
        cdef int change = is_counting(state) - is_counting(chunk.states[place])
        self.note_chunk(chunk, place)
        if change and chunk.states[place]:
            self.begin(&walk, chunk.key * PAGE + place)
            while self.step(&walk):
                if is_unread(walk.block.states[walk.place]):
                    self.count_unread(walk.user, change)
        chunk.states[place] = state
        return 0

    cdef void put(self, Block* block, uint32_t place, uint32_t user, uint8_t state, bint counts) noexcept:
        cdef uint8_t old = block.states[place]
        if block.cold:
            patch_state(block, place, state)
        block.counts[old] -= 1
        block.counts[state] += 1
        block.states[place] = state
        block.stale |= 1
        if counts and is_unread(state) != is_unread(old):
            self.count_unread(user, is_unread(state) - is_unread(old))
        if old & WAITING and not state & WAITING:
            self.waitings[user] -= 1
        elif state & WAITING and not old & WAITING:
            self.lower_floors(block, place, user)
            self.waitings[user] += 1

    cdef void count_unread(self, uint32_t user, int change) noexcept:
        self.unreads[user] += change
        if self.changed_count < CHANGED:
            self.changed_users[self.changed_count] = user
            self.changed_count += 1

    cdef void lower_floors(self, Block* block, uint32_t place, uint32_t user) noexcept:
        """Something begins to wait for the user there."""
        cdef uint32_t entry
        if self.waitings[user] == 0:
            self.dense_floors[user], self.vector_floors[user] = self.dense_count, self.vectors[user].count
        if block.users == NULL:
            self.dense_floors[user] = min(self.dense_floors[user], self.dense_index(block.key))
        else:
            entry = entry_of(&self.vectors[user], block.key * PAGE + place)
            self.vector_floors[user] = min(self.vector_floors[user], entry)

    cdef void put_time(self, Block* block, int kind, uint32_t place, uint32_t value) noexcept:
        cdef uint32_t* times = block.times[kind]
        if block.cold:
            patch_value(block, patch_at(block, place), kind + 1, value)
            return
        if times[place] and times[place] <= value:
            return
        times[place] = value
        block.stale |= 2 << kind
        block.earliest[kind] = min(block.earliest[kind], value)
        block.latest[kind] = max(block.latest[kind], value)

    cdef int append_row(self, int64_t seq, uint32_t user, Block** block, uint32_t* place) except -1:
        """A row with state 0 for this notice and user."""
        cdef Block* page = self.pages[self.page_count - 1] if self.page_count else NULL
        cdef uint32_t offset = <uint32_t>(seq - self.base_seq)
        if page == NULL or page.count == PAGE:
            page = self.new_page()
        self.touch(page)
        self.own(user, <uint32_t>(page.key * PAGE + page.count))
        block[0], place[0] = page, page.count
        page.users[page.count], page.notices[page.count] = user, <uint32_t>seq
        page.low, page.high = min(page.low, offset), max(page.high, offset)
        page.counts[0] += 1
        page.stale |= 1
        page.count += 1
        self.row_count += 1
        return 0

    cdef int merge(self, Block* block, uint32_t place, uint32_t user, uint8_t state, uint32_t received, uint32_t client,
                   bint counts) except -1:
        """What is said of a receipt joins what is known of it."""
        cdef uint8_t old = block.states[place]
        if received:
            self.make_room(block, 1, place)
        if client:
            self.make_room(block, KINDS + 1, place)
        self.note_dirty(block, place)
        if received:
            self.put_time(block, 0, place, received)
        if client and block.cold:
            patch_value(block, patch_at(block, place), KINDS + 1, client)
        elif client and client > block.clients[place]:
            block.clients[place] = client
            block.stale |= 16
        self.put(block, place, user, max(old & STEPS, state & STEPS) | ((old | state) & ~STEPS), counts)
        if self.waitings[user] > self.max_waiting:
            self.trim(user)
        return 0

    cdef int note_all(self, int64_t seq, const uint32_t* users, const uint32_t* clients, size_t count, uint8_t state,
                      int64_t received_ms) except -1:
        """`note` and `wait`, of users that there are. Receipts of a hidden notice are only waited for."""
        cdef Chunk* chunk = self.chunk_of(seq)
        cdef uint8_t notice_state = self.notice_of(seq)
        cdef Block* block
        cdef uint32_t received = 0, place
        cdef size_t i
        cdef bint counts = is_counting(notice_state)
        if notice_state & HIDDEN:
            state &= WAITING
        if notice_state == 0 or state == 0:
            return 0
        if received_ms > 0 and not notice_state & HIDDEN:
            received = offset_of_time(created_of(chunk, seq % PAGE), received_ms)
            state = max(state & STEPS, <int>DELIVERED) | (state & ~STEPS)
        if notice_state & DENSE:
            block = self.new_dense(seq, self.user_count)  # is there, but for a damaged file
        for i in range(count):
            place = users[i]
            if notice_state & DENSE:
                if place >= block.count:
                    self.widen(block, self.user_count)
            elif not self.find(seq, place, &block, &place) or block.states[place] == 0:
                self.append_row(seq, users[i], &block, &place)
            self.merge(block, place, users[i], state, received, clients[i] if clients != NULL else 0, counts)
        return 0

    # ---- what waits

    cdef bint oldest_waiting(self, uint32_t user, Block** block, uint32_t* place) noexcept:
        """Moves the floors up to what waits for the user, and finds the lower seq of the two. False: nothing."""
        cdef Vector* vector = &self.vectors[user]
        cdef uint32_t index = self.dense_floors[user], entry = self.vector_floors[user], row = 0
        cdef Block* page = NULL
        while index < self.dense_count and (
            user >= self.dense[index].count or not self.dense[index].states[user] & WAITING
        ):
            index += 1
        while entry < vector.count:
            row = vector.rows[entry]
            page = self.pages[row // PAGE]
            if page != NULL and page.states[row % PAGE] & WAITING:
                break
            entry += 1
        self.dense_floors[user], self.vector_floors[user] = index, entry
        if entry < vector.count:
            block[0], place[0] = page, row % PAGE
            if index == self.dense_count or self.dense[index].key > seq_of(self, page.notices[row % PAGE]):
                return True
        elif index == self.dense_count:
            return False
        block[0], place[0] = self.dense[index], user
        return True

    cdef int stop_waiting(self, Block* block, uint32_t place, uint32_t user) except -1:
        self.note_dirty(block, place)
        self.put(block, place, user, block.states[place] & ~WAITING, False)
        return 0

    cdef bint begin_waiting(self, Walk* walk, int64_t seq) noexcept:
        """As `begin`, to look for who waits: a dense block that nobody waits in is left out. Whether it is a dense one."""
        cdef int state
        cdef uint32_t waiting = 0
        self.begin(walk, seq)
        if walk.page != NOWHERE:
            return False
        if walk.block != NULL:
            for state in range(256):
                waiting += walk.block.counts[state] if state & WAITING else 0
            if waiting == 0:
                walk.block = NULL
        return True

    cdef int trim(self, uint32_t user) except -1:
        cdef Block* block
        cdef uint32_t place
        while self.waitings[user] > self.max_waiting and self.oldest_waiting(user, &block, &place):
            self.stop_waiting(block, place, user)
        return 0

    cdef int forget(self, Block* block, uint32_t place, uint32_t user, uint8_t kept, bint counts) except -1:
        """Only these bits stay of a receipt."""
        cdef int kind
        if block.cold:
            new_patch(self, block, place)[0] = Patch(place, True, [0, 0, 0, 0])
        self.note_dirty(block, place)
        for kind in range(KINDS):
            if block.times[kind] != NULL and block.times[kind][place]:
                block.times[kind][place] = 0
                block.stale |= 2 << kind
        if block.clients != NULL and block.clients[place]:
            block.clients[place] = 0
            block.stale |= 16
        self.put(block, place, user, block.states[place] & kept, counts)
        return 0

    cdef int free_empty(self, int64_t seq) except -1:
        """The dense block of a hidden notice goes when it waits for nobody."""
        cdef Block* block = self.dense_of(seq)
        if block != NULL and block.counts[0] == block.count and self.notice_of(seq) & (HIDDEN | KNOWN) != KNOWN:
            self.free_dense(seq)
        return 0

    cdef int drop_pages(self, int64_t seq) except -1:
        """Pages go when all their notices are below, and they have neither receipts nor anybody who waits."""
        cdef uint32_t i
        cdef Block* page
        for i in range(self.page_count):
            page = self.pages[i]
            if page != NULL and page.counts[0] == page.count and page.high < seq - self.base_seq:
                self.pages[i] = NULL
                self.row_count -= page.count
                self.discard(page, 2)
        self.bounded = 0
        return 0

    cdef int cut_vectors(self) except -1:
        """Users' vectors lose their beginnings where half of a vector or more is of pages that are gone. Some users' in
        each call: two milliseconds."""
        cdef uint32_t first = 0, user, dead, left
        cdef uint64_t cost = 0
        cdef Vector* vector
        while first < self.page_count and self.pages[first] == NULL:
            first += 1
        for left in range(self.user_count if first else 0):
            if cost > MOST_CUT:
                break
            self.cut_user = self.cut_user + 1 if self.cut_user + 1 < self.user_count else 0
            user = self.cut_user
            vector = &self.vectors[user]
            cost += CUT_USER
            dead = entry_of(vector, <uint64_t>first * PAGE)
            if dead and dead >= vector.count - dead:
                vector.count -= dead
                cost += vector.count + CUT_USER
                memmove(vector.rows, vector.rows + dead, vector.count * sizeof(uint32_t))
                self.vector_floors[user] -= min(dead, self.vector_floors[user])
                vector.rows = <uint32_t*>self.resized(
                    vector.rows, vector.room * sizeof(uint32_t), max(vector.count, 1) * sizeof(uint32_t)
                )
                vector.room = max(vector.count, 1)
        return 0

    cdef int drop_chunks(self, int64_t seq) except -1:
        """Chunks go up to the oldest receipt, or the oldest notice that waits."""
        cdef int64_t oldest = seq, shift
        cdef uint32_t i, place, gone
        cdef Block* page
        if self.dense_count:
            oldest = min(oldest, self.dense[0].key)
        for i in range(self.page_count):
            page = self.pages[i]
            if page == NULL or page.low >= oldest - self.base_seq:
                continue
            for place in range(page.count):
                if page.states[place]:
                    oldest = min(oldest, seq_of(self, page.notices[place]))
        gone = <uint32_t>min((oldest - self.base_seq) // PAGE, <int64_t>self.chunk_count)
        for i in range(gone):
            if self.chunks[i] != NULL:
                self.dropped.append(self.chunks[i].key << 5)
                if self.chunks[i].is_touched:
                    self.touched_chunks.remove(self.chunks[i].key)
                release_chunk(self, self.chunks[i])
        self.chunk_count -= gone
        memmove(self.chunks, self.chunks + gone, self.chunk_count * sizeof(Chunk*))
        memset(self.chunks + self.chunk_count, 0, gone * sizeof(Chunk*))
        shift = <int64_t>gone * PAGE
        self.base_seq += shift
        for i in range(self.page_count):
            page = self.pages[i]
            if page != NULL and page.count:
                page.low -= <uint32_t>min(shift, <int64_t>page.low)
                page.high -= <uint32_t>min(shift, <int64_t>page.high)
        self.bounded = 0
        return 0

    cdef tuple described(self, int64_t seq, Block* block, uint32_t place):
        cdef int64_t created_ms = created_of(self.chunk_of(seq), <uint32_t>(seq % PAGE)) if self.notice_of(seq) else 0
        cdef int64_t times[3]
        cdef int kind
        for kind in range(KINDS):
            times[kind] = 0 if block.times[kind] == NULL else time_of(created_ms, block.times[kind][place])
        return (seq, block.states[place], times[0], times[1], times[2],
                0 if block.clients == NULL else block.clients[place])

    # ---- for Python: notices

    def add_users(self, uint32_t count):
        """User numbers below `count` exist from now on."""
        if count > MOST_USERS:
            raise OverflowError(f"{count} users are too many")
        if count > self.user_room:
            self.reserve_users(count)
        if count > self.user_count:
            self.user_count = count

    def add_notice(self, int64_t seq, int64_t created_ms, uint32_t label, uint8_t state=KNOWN):
        """There is a notice, accepted then, or at the same time as the one before if that is later.

        A seq again gets another label and state. ValueError: a seq below the first chunk, or more than JUMP beyond the
        last.
        """
        cdef Chunk* chunk
        cdef uint32_t place
        if seq < 0 or created_ms < 0 or state & DENSE:
            raise ValueError(f"notice {seq} of {created_ms} with state {state}")
        chunk = self.new_chunk(seq)
        place = <uint32_t>(seq % PAGE)
        self.note_chunk(chunk, place)
        if chunk.states[place] == 0:
            self.place_in_time(chunk, place, created_ms)
        elif state & HIDDEN:
            self.hide(seq)
        chunk.labels[place] = label
        self.turn(chunk, place, state | KNOWN | (chunk.states[place] & DENSE))
        self.last_seq = max(self.last_seq, seq)

    def notice_state(self, int64_t seq):
        """Its state; 0: there is none."""
        return self.notice_of(seq)

    def set_notice(self, int64_t seq, uint8_t set=0, uint8_t clear=0):
        """Sets and clears bits of its state. For HIDDEN and OVER there are `hide` and `expire`."""
        if (set | clear) & (KNOWN | DENSE | HIDDEN):
            raise ValueError(f"bits {set} and {clear}")
        if self.notice_of(seq):
            self.turn(self.chunk_of(seq), <uint32_t>(seq % PAGE), (self.notice_of(seq) & ~clear) | set)

    def created_ms(self, int64_t seq):
        """When it was accepted; 0: there is no such notice."""
        return created_of(self.chunk_of(seq), <uint32_t>(seq % PAGE)) if self.notice_of(seq) else 0

    def label(self, int64_t seq):
        """Its label; 0: there is no such notice."""
        return self.chunk_of(seq).labels[seq % PAGE] if self.notice_of(seq) else 0

    def begin_dense(self, int64_t seq):
        """Its receipts go to a dense block from now on. Of no effect once it has any."""
        cdef Walk walk
        cdef Chunk* chunk = self.chunk_of(seq)
        if self.notice_of(seq) == 0 or self.notice_of(seq) & DENSE:
            return
        self.begin(&walk, seq)
        if self.step(&walk):
            return
        self.note_chunk(chunk, <uint32_t>(seq % PAGE))
        self.new_dense(seq, self.user_count)
        chunk.states[seq % PAGE] |= DENSE

    def note(self, int64_t seq, list numbers not None, uint8_t state, int64_t received_ms=0, list clients=None):
        """Merges what became of the notice for these users: the greater step, what flags there are, the earliest time
        it was received (which means DELIVERED at least), the greater client. 0 is no time, and no client."""
        cdef uint32_t* users = NULL
        cdef uint32_t* theirs = NULL
        if (state & STEPS) > AGAIN or state & ARCHIVED or state & (STEPS | WAITING) == 0:
            raise ValueError(f"state {state}")
        if clients is not None and len(clients) != len(numbers):
            raise ValueError(f"{len(numbers)} users with {len(clients)} clients")
        try:
            users = read_numbers(numbers, self.user_count)
            if clients is not None:
                theirs = read_numbers(clients, NOWHERE)
            self.note_all(seq, users, theirs, len(numbers), state, received_ms)
        finally:
            free(users)
            free(theirs)

    def sent(self, int64_t seq, uint32_t number, uint32_t client, int64_t received_ms):
        """It went out to its only recipient, who is connected and has received it, unless that time is 0: `note` and
        `conclude`. False: it is hidden, or there is none."""
        if client == NOWHERE or received_ms < 0:
            raise ValueError(f"client {client} at {received_ms}")
        self.checked(number)
        if not self.conclude(seq, SUCCESS):
            return False
        self.note_all(seq, &number, &client, 1, (DELIVERED if received_ms else PENDING) | ONLINE, received_ms)
        return True

    def received(self, int64_t seq, uint32_t number, int64_t at_ms):
        """`note` for one user, to whom it went out: he has received it. False: as above."""
        if at_ms <= 0:
            raise ValueError(f"at {at_ms}")
        self.checked(number)
        if self.notice_of(seq) & (KNOWN | HIDDEN) != KNOWN:
            return False
        self.note_all(seq, &number, NULL, 1, DELIVERED | ONLINE, at_ms)
        return True

    cpdef bint conclude(self, int64_t seq, uint8_t status) except -1:
        """The status of its push record. False: it is hidden, or there is none."""
        cdef uint8_t state = self.notice_of(seq)
        if status & ~STATUS:
            raise ValueError(f"status {status}")
        if state & (KNOWN | HIDDEN) != KNOWN:
            return False
        self.turn(self.chunk_of(seq), <uint32_t>(seq % PAGE), (state & ~STATUS) | status)
        return True

    def settle(self, list seqs not None):
        """Nothing is left to do for these notices; there may be none of some of them."""
        cdef int64_t seq
        for seq in seqs:
            if seq < 0:
                raise ValueError(f"notice {seq}")
        for seq in seqs:
            if self.notice_of(seq):
                self.turn(self.chunk_of(seq), <uint32_t>(seq % PAGE), self.notice_of(seq) | SETTLED)

    def waiting_count(self, uint32_t number):
        """How many notices wait for the user."""
        return self.waitings[self.checked(number)]

    def unread(self, uint32_t number):
        """How many of the user's receipts are unread, of notices that count."""
        return self.unreads[self.checked(number)]

    cdef uint32_t checked(self, uint32_t number) except? NOWHERE:
        if number >= self.user_count:
            raise IndexError(f"user {number} of {self.user_count}")
        return number

    def forget_notice(self, int64_t seq):
        """There is no such notice after all: what was noted of it goes too."""
        cdef Walk walk
        cdef Chunk* chunk = self.chunk_of(seq)
        if self.notice_of(seq) == 0:
            return
        self.begin(&walk, seq)
        while self.step(&walk):
            self.forget(walk.block, walk.place, walk.user, 0, is_counting(self.notice_of(seq)))
        if self.notice_of(seq) & DENSE:
            self.free_dense(seq)
        self.turn(chunk, <uint32_t>(seq % PAGE), 0)

    def unsettled(self):
        """Notices that are not settled."""
        return self.seqs(0, self.last_seq, 0, SETTLED, <uint64_t>-1)

    def seqs(self, int64_t first, int64_t last, uint8_t set, uint8_t clear, uint64_t limit):
        """At most `limit` notices in [first, last] that have all bits of `set` and none of `clear`, ascending."""
        cdef list found = []
        cdef uint8_t mask = set | clear | KNOWN, value = set | KNOWN
        cdef Chunk* chunk
        cdef int64_t seq = max(first, self.base_seq), end = min(last, self.last_seq)
        while seq <= end and <uint64_t>len(found) < limit:
            chunk = self.chunk_of(seq)
            if chunk == NULL:
                seq += PAGE - seq % PAGE
                continue
            while seq <= end and chunk.states[seq % PAGE] & mask != value and (seq + 1) % PAGE:
                seq += 1
            if seq <= end and chunk.states[seq % PAGE] & mask == value:
                found.append(seq)
            seq += 1
        return found

    def mark(self, int64_t seq, uint32_t number, uint8_t step, int64_t at_ms):
        """The user has read (READ) or confirmed (CONFIRMED) it, so has received it, and it waits no more.

        The earliest times stay. False: there is no listed receipt.
        """
        cdef Block* block
        cdef uint32_t place, value
        cdef uint8_t state, notice_state = self.notice_of(seq)
        cdef int kind
        if (step != READ and step != CONFIRMED) or at_ms <= 0:
            raise ValueError(f"step {step} at {at_ms}")
        if not self.find(seq, self.checked(number), &block, &place):
            return False
        state = block.states[place]
        if state & STEPS == NONE:
            if state & WAITING:
                self.stop_waiting(block, place, number)
            return False
        for kind in range(step - READ + 2):
            self.make_room(block, 1 + kind, place)
        self.note_dirty(block, place)
        value = offset_of_time(created_of(self.chunk_of(seq), <uint32_t>(seq % PAGE)), at_ms)
        for kind in range(step - READ + 2):
            self.put_time(block, kind, place, value)
        if state & STEPS != AGAIN:
            step = max(step, state & STEPS)
        self.put(block, place, number, (state & ~(STEPS | WAITING)) | step, is_counting(notice_state))
        return True

    def expire(self, int64_t seq, uint64_t limit):
        """Marks at most `limit` receipts that were not received as expired, and returns how many.

        With none of them left the notice is OVER: what was received does not count as unread any more either.
        """
        cdef Walk walk
        cdef uint8_t state, notice_state = self.notice_of(seq)
        cdef uint64_t count = 0
        self.begin(&walk, seq)
        while self.step(&walk):
            state = walk.block.states[walk.place]
            if state & STEPS == PENDING or state & STEPS == OFFLINE:
                if count == limit:
                    return count
                self.note_dirty(walk.block, walk.place)
                self.put(walk.block, walk.place, walk.user, (state & ~STEPS) | EXPIRED, is_counting(notice_state))
                count += 1
        if notice_state and not notice_state & OVER:
            self.turn(self.chunk_of(seq), <uint32_t>(seq % PAGE), notice_state | OVER)
        return count

    def reset(self, int64_t seq, uint64_t limit):
        """Makes at most `limit` receipts that are read or confirmed unread again, and returns how many.

        When that was is forgotten, but for what the file alone has: there the first times stay.
        """
        cdef Walk walk
        cdef uint8_t state, notice_state = self.notice_of(seq)
        cdef uint64_t count = 0
        cdef int kind
        self.begin(&walk, seq)
        while count < limit and self.step(&walk):
            state = walk.block.states[walk.place]
            if state & STEPS != READ and state & STEPS != CONFIRMED:
                continue
            self.note_dirty(walk.block, walk.place)
            for kind in range(1, KINDS):
                if walk.block.times[kind] != NULL and walk.block.times[kind][walk.place]:
                    walk.block.times[kind][walk.place] = 0
                    walk.block.stale |= 2 << kind
            self.put(walk.block, walk.place, walk.user, (state & ~STEPS) | AGAIN, is_counting(notice_state))
            count += 1
        return count

    def hide(self, int64_t seq):
        """Its record is deleted: there are no receipts any more, but it waits for whom it waits for."""
        self.drop(seq, <uint64_t>-1)

    def drop(self, int64_t seq, uint64_t limit):
        """Forgets at most `limit` of its receipts, and returns how many. With none left the notice is HIDDEN."""
        cdef Walk walk
        cdef uint8_t notice_state = self.notice_of(seq)
        cdef uint64_t count = 0
        self.begin(&walk, seq)
        while self.step(&walk):
            if walk.block.states[walk.place] & STEPS:
                if count == limit:
                    return count
                self.forget(walk.block, walk.place, walk.user, WAITING, is_counting(notice_state))
                count += 1
        if notice_state and not notice_state & HIDDEN:
            self.turn(self.chunk_of(seq), <uint32_t>(seq % PAGE), notice_state | HIDDEN)
        self.free_empty(seq)
        return count

    def forget_before(self, int64_t seq):
        """Frees what is of no use any more of notices below: chunks, pages without a receipt and without anybody who
        waits, and dropped dense blocks. A chunk stays while it has a notice that waits or has receipts, or a pass is
        under way."""
        cdef uint32_t index
        for index in range(self.dense_count, 0, -1):
            self.free_empty(self.dense[index - 1].key)
        if seq > self.base_seq and self.chunk_count:
            self.drop_pages(seq)
            self.cut_vectors()
            if self.readers == 0:
                self.drop_chunks(seq)

    # ---- for Python: what waits

    def wait(self, int64_t seq, list numbers not None):
        """It waits for these users. For whom more than `max_waiting` wait, the oldest do not any more."""
        cdef uint32_t* users = read_numbers(numbers, self.user_count)
        try:
            self.note_all(seq, users, NULL, len(numbers), WAITING, 0)
        finally:
            free(users)

    def remove(self, int64_t seq, uint32_t number):
        """It waits for this user no more. False: it did not."""
        cdef Block* block
        cdef uint32_t place
        if not self.find(seq, self.checked(number), &block, &place) or not block.states[place] & WAITING:
            return False
        self.stop_waiting(block, place, number)
        return True

    def clear(self, uint32_t number):
        """Nothing waits for the user any more. How many did."""
        cdef Block* block
        cdef uint32_t place, before = self.waitings[self.checked(number)]
        while self.waitings[number] and self.oldest_waiting(number, &block, &place):
            self.stop_waiting(block, place, number)
        return before - self.waitings[number]

    def waiting(self, uint32_t number):
        """What waits for the user, oldest first."""
        cdef list found = []
        cdef uint32_t index, entry, row, place, left = self.waitings[self.checked(number)]
        cdef Vector* vector = &self.vectors[number]
        cdef Block* block
        if left == 0 or not self.oldest_waiting(number, &block, &place):
            return found
        index, entry = self.dense_floors[number], self.vector_floors[number]
        while index < self.dense_count and left:
            block = self.dense[index]
            if number < block.count and block.states[number] & WAITING:
                found.append(block.key)
                left -= 1
            index += 1
        while entry < vector.count and left:
            row = vector.rows[entry]
            block = self.pages[row // PAGE]
            if block != NULL and block.states[row % PAGE] & WAITING:
                found.append(seq_of(self, block.notices[row % PAGE]))
                left -= 1
            entry += 1
        found.sort()
        return found

    def has_waiting(self, int64_t seq):
        """Whether it waits for anybody."""
        cdef Walk walk
        cdef bint is_dense = self.begin_waiting(&walk, seq)
        while not is_dense and self.step(&walk):
            if walk.block.states[walk.place] & WAITING:
                return True
        return is_dense and walk.block != NULL

    def drop_waiting(self, int64_t seq, uint64_t limit):
        """It waits for at most `limit` users less. How many it did wait for of those."""
        cdef Walk walk
        cdef uint64_t count = 0
        self.begin_waiting(&walk, seq)
        while count < limit and self.step(&walk):
            if walk.block.states[walk.place] & WAITING:
                self.stop_waiting(walk.block, walk.place, walk.user)
                count += 1
        self.free_empty(seq)
        return count

    # ---- for Python: receipts

    def receipt(self, int64_t seq, uint32_t number):
        """(state, received_ms, read_ms, confirmed_ms, client) of a listed receipt; None: there is none. 0: never.

        LookupError: it is in a cold block.
        """
        cdef Block* block
        cdef uint32_t place
        if self.find(seq, self.checked(number), &block, &place) and block.states[place] & STEPS:
            if block.cold:
                raise LookupError("its times are in the file")
            return self.described(seq, block, place)[1:]
        return None

    def receipts(self, int64_t seq, uint8_t mask=0, uint8_t value=0):
        """Users who have a listed receipt of it with (state & mask) == value, in any order."""
        cdef Walk walk
        cdef uint8_t state
        cdef list found = []
        self.begin(&walk, seq)
        while self.step(&walk):
            state = walk.block.states[walk.place]
            if state & STEPS and state & mask == value:
                found.append(walk.user)
        return found

    def counts(self, int64_t seq):
        """How many listed receipts of it have which state."""
        cdef uint32_t counts[256]
        cdef Block* block = self.dense_of(seq)
        cdef Walk walk
        cdef int state
        memset(counts, 0, sizeof(counts))
        if self.notice_of(seq) & DENSE and block != NULL:
            memcpy(counts, block.counts, sizeof(counts))
        else:
            self.begin(&walk, seq)
            while self.step(&walk):
                counts[walk.block.states[walk.place]] += 1
        return {state: counts[state] for state in range(256) if state & STEPS and counts[state]}

    def newest(self, uint32_t number, uint32_t limit):
        """(seq, state, received_ms, read_ms, confirmed_ms, client) of the user's listed receipts, newest seq first.

        None: some of them are in cold blocks (_cold.newest).
        """
        cdef list found = []
        for seq, block, place in self.newest_places(number, limit):
            if (<Block*><size_t>block).cold:
                return None
            found.append(self.described(seq, <Block*><size_t>block, place))
        return found

    cdef list newest_places(self, uint32_t number, uint32_t limit):
        """(seq, pointer to the block, place) of these."""
        cdef Vector* vector = &self.vectors[self.checked(number)]
        cdef uint32_t most = min(limit, vector.count), count, taken = 0, index = self.dense_count
        cdef uint32_t* rows = <uint32_t*>malloc((most or 1) * sizeof(uint32_t))
        cdef int64_t seq
        cdef list found = []
        if rows == NULL:
            raise MemoryError
        try:
            count = self.newest_rows(vector, rows, most)
            while <uint32_t>len(found) < limit:
                seq = seq_of(self, self.pages[rows[taken] // PAGE].notices[rows[taken] % PAGE]) if taken < count else -1
                while index and self.dense[index - 1].key > seq and (
                    number >= self.dense[index - 1].count or self.dense[index - 1].states[number] & STEPS == NONE
                ):
                    index -= 1
                if index and self.dense[index - 1].key > seq:
                    index -= 1
                    found.append((self.dense[index].key, <size_t>self.dense[index], number))
                elif taken < count:
                    found.append((seq, <size_t>self.pages[rows[taken] // PAGE], rows[taken] % PAGE))
                    taken += 1
                else:
                    break
        finally:
            free(rows)
        return found

    def summary(self, uint32_t number):
        """How many of the user's receipts are unread, how many are listed, and the newest seq of those or 0."""
        cdef Vector* vector = &self.vectors[self.checked(number)]
        cdef uint32_t entry, index, row, listed = 0
        cdef int64_t newest = 0
        cdef Block* block
        for index in range(self.dense_count):
            block = self.dense[index]
            if number < block.count and block.states[number] & STEPS:
                listed += 1
                newest = block.key
        for entry in range(vector.count):
            row = vector.rows[entry]
            block = self.pages[row // PAGE]
            if block != NULL and block.states[row % PAGE] & STEPS:
                listed += 1
                newest = max(newest, seq_of(self, block.notices[row % PAGE]))
        return self.unreads[number], listed, newest

    cdef uint32_t newest_rows(self, const Vector* vector, uint32_t* rows, uint32_t most) noexcept:
        """The rows of the newest listed receipts in pages. They came nearly in order: sorting them in is cheap."""
        cdef uint32_t entry = vector.count, count = 0, row, offset, place
        cdef Block* page
        self.bound()
        while entry and most:
            entry -= 1
            row = vector.rows[entry]
            if count == most and self.peak_of(row // PAGE) <= self.offset_of(rows[count - 1]):
                break
            page = self.pages[row // PAGE]
            if page == NULL or page.states[row % PAGE] & STEPS == NONE:
                continue
            offset = self.offset_of(row)
            if count == most:
                if offset <= self.offset_of(rows[count - 1]):
                    continue
                count -= 1
            place = count
            while place and self.offset_of(rows[place - 1]) < offset:
                rows[place] = rows[place - 1]
                place -= 1
            rows[place] = row
            count += 1
        return count

    cdef uint32_t offset_of(self, uint32_t row) noexcept:
        return self.pages[row // PAGE].notices[row % PAGE] - <uint32_t>self.base_seq
