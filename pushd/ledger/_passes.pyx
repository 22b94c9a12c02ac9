# cython: cdivision=True
"""Passes over the ledger's columns without the GIL: which receipts match, how many, and those with certain keys."""

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcpy, memset

from pushd.ledger._entries cimport Entry, add
from pushd.ledger._ledger cimport (
    CONFIRMED, DELIVERED, HIDDEN, KNOWN, NONE, NOWHERE, ONLINE, PAGE, READ, SECONDS, STEPS, time_of,
)
from pushd.ledger._names cimport SEVERAL, spell_at
from pushd.ledger._patches cimport says_time

cdef enum:
    LANE = 64          # times compared at once

# Five sums in one number: how many rows of a state there are, and which of them are online, received, read, confirmed.
cdef uint64_t WEIGHTS[256]


def _weigh():
    for state in range(256):
        step = state & STEPS
        facts = (True, bool(state & ONLINE), step >= DELIVERED, step == READ or step == CONFIRMED, step == CONFIRMED)
        WEIGHTS[state] = sum(1 << 12 * i for i, fact in enumerate(facts) if fact)


_weigh()


cdef class Pass(Views):
    def __dealloc__(self):
        free(self.mask)

    # ---- what matches

    cdef int match(self, bytes state_set, Named named) except -1:
        """Sets the filter by state, and that by name."""
        cdef uint32_t state
        if len(state_set) != 256:
            raise ValueError("a set of states has 256 bytes")
        for state in range(256):
            self.table[state] = (state & STEPS) != NONE and state_set[state] != 0
        if named is not None:
            self.named = named
            self.mask = <uint8_t*>calloc(self.user_room + 1, 1)
            if self.mask == NULL:
                raise MemoryError
            memcpy(self.mask, named.users, min(self.user_room, named.names.count))
            self.has_several = named.names.span_count > 0
        return 0

    @cython.boundscheck(False)
    cdef int match_notices(self, bytes marks, int64_t first_seq) except -1:
        """Sets the filter by notice: a mark for each from `first_seq` on."""
        cdef uint32_t i
        cdef View* view
        if marks is None:
            return 0
        self.marks, self.marks_from = marks, first_seq - self.base_seq
        self.marks_at, self.marks_count = marks, len(marks)
        with nogil:
            for i in range(self.count):
                view = &self.views[i]
                if view.notices != NULL:
                    view.is_checked = True
                if not self.has_marks(view.low, view.high):
                    view.count = 0
        return 0

    cdef bint is_marked(self, int64_t offset) noexcept nogil:
        offset -= self.marks_from
        return 0 <= offset < self.marks_count and self.marks_at[offset] != 0

    cdef bint has_marks(self, int64_t low, int64_t high) noexcept nogil:
        """Whether any notice from the offset `low` to `high` is wanted."""
        low, high = max(0, low - self.marks_from), min(self.marks_count - 1, high - self.marks_from)
        return low <= high and memchr(self.marks_at + low, 1, high - low + 1) != NULL

    cdef void ask(self, Need need) noexcept:
        """Sets the filter by whether there is the time of `kind`."""
        cdef uint32_t state
        self.need = need
        for state in range(256):
            self.told[state] = self.table[state] and says_time(<uint8_t>state, self.kind) == (need == TIMED)

    @cython.boundscheck(False)
    cdef bint is_match(self, View* view, uint32_t place) noexcept nogil:
        cdef uint8_t hit
        return self.table[view.states[place]] and self.hits_of(view, place, 1, &hit)

    @cython.boundscheck(False)
    cdef uint32_t hits_of(self, View* view, uint32_t start, uint32_t count, uint8_t* hits) noexcept nogil:
        """Sets 1 for each row that matches, else 0, and returns how many do."""
        cdef const uint8_t* states = view.states + start
        cdef const uint32_t* users = view.users
        cdef const uint8_t* mask = self.mask
        cdef const uint8_t* table = self.table
        cdef const uint32_t* times
        cdef uint32_t i, offset, total = 0
        # Of a cold block the states may say who has the time: it need not be read
        cdef bint is_told = (
            self.need != ANY and view.cold and view.times[self.kind] == NULL and view.told & 1 << self.kind
        )
        if is_told:
            table = self.told
        if users != NULL:
            users += start
        if mask == NULL:
            for i in range(count):
                hits[i] = table[states[i]]
        elif users == NULL:
            for i in range(count):
                hits[i] = table[states[i]] & mask[start + i]
        else:
            for i in range(count):
                hits[i] = table[states[i]] & mask[users[i]]
        if is_told:
            pass
        elif self.need != ANY and self.has(view, 1 + self.kind):
            times = view.times[self.kind] + start
            if self.need == TIMED:
                for i in range(count):
                    hits[i] &= times[i] != 0
            else:
                for i in range(count):
                    hits[i] &= times[i] == 0
        elif self.need == TIMED:
            return 0
        if self.has_several:
            for i in range(count):
                if hits[i] and mask[start + i if users == NULL else users[i]] == 3:
                    hits[i] = self.named.at(
                        start + i if users == NULL else users[i], self.base_seq + self.offset_of(view, start + i)
                    )
        if view.is_checked:
            for i in range(count):
                offset = self.offset_of(view, start + i)
                hits[i] &= offset >= self.since and offset < self.before and (
                    self.eras[offset // PAGE].states[offset % PAGE] & (KNOWN | HIDDEN)
                ) == KNOWN
            if self.marks_at != NULL:
                for i in range(count):
                    hits[i] &= self.is_marked(self.offset_of(view, start + i))
        for i in range(count):
            total += hits[i]
        return total

    cdef bint is_whole(self, const View* view) noexcept nogil:
        """True when the states alone say what matches."""
        return self.mask == NULL and not view.is_checked and (
            self.need == ANY or self.need == UNTIMED and view.times[self.kind] == NULL and not view.cold
        )

    @cython.boundscheck(False)
    cdef int64_t matching_of(self, View* view) noexcept nogil:
        """How many rows match; counted once."""
        cdef uint8_t[SEGMENT] hits
        cdef uint32_t state, segment, start
        if view.matching >= 0:
            return view.matching
        view.matching = 0
        if view.count and self.is_whole(view):
            for state in range(256):
                view.matching += view.block.counts[state] if self.table[state] else 0
        else:
            for segment in range(segments_of(view.count, SEGMENT)):
                start = segment * SEGMENT
                view.matching += self.hits_of(view, start, min(<uint32_t>SEGMENT, view.count - start), hits)
        return view.matching

    # ---- rows and their keys

    cdef int64_t key_of(self, const View* view, uint32_t place) noexcept nogil:
        cdef int64_t key
        if self.by_seq:
            key = self.offset_of(view, place)
        else:
            key = time_of(view.created if view.notices == NULL else self.created_of(view, place),
                          view.times[self.kind][place])
        return -key if self.is_inverted else key

    cdef void bound(self, View* view) noexcept nogil:
        """Sets the bounds of the view's keys; none where no row can match."""
        cdef int64_t low, high
        view.first, view.last, view.matching = 1, 0, -1
        if view.count == 0 or self.need == TIMED and view.latest[self.kind] == 0:
            return
        if self.by_seq:
            low, high = max(view.low, self.since), <int64_t>min(view.high, self.before - 1)
        elif view.notices == NULL:
            low, high = view.created, view.created
        else:
            low, high = self.created_at(view.low), self.created_at(view.high)
        if not self.by_seq:
            # A time in whole seconds may be a little below the greatest in milliseconds.
            low = time_of(low, view.earliest[self.kind])
            high = time_of(high, view.latest[self.kind]) + (1000 if view.latest[self.kind] & <uint32_t>SECONDS else 0)
        view.first, view.last = (-high, -low) if self.is_inverted else (low, high)

    # ---- counting

    @cython.boundscheck(False)
    cdef void tally(self, int64_t* counts) noexcept nogil:
        """Adds how many rows match: all, online, received, read, confirmed."""
        cdef uint8_t[SEGMENT] hits
        cdef uint32_t index, state, segment, start, end, i
        cdef uint64_t total, rows
        cdef View* view
        for index in range(self.count):
            view = &self.views[index]
            if self.is_whole(view) and view.count:
                for state in range(256):
                    rows = view.block.counts[state] if self.table[state] else 0
                    for i in range(5 if rows else 0):
                        counts[i] += rows * (WEIGHTS[state] >> 12 * i & 1)
                continue
            for segment in range(segments_of(view.count, SEGMENT // 2)):
                start = segment * (SEGMENT // 2)
                end = min(<uint32_t>SEGMENT // 2, view.count - start)
                if self.hits_of(view, start, end, hits) == 0:
                    continue
                total = 0
                for i in range(end):
                    total += WEIGHTS[view.states[start + i]] & -<uint64_t>hits[i]
                for i in range(5):
                    counts[i] += total >> 12 * i & 0xfff

    cdef void tally_row(self, const View* view, uint32_t place, int64_t* counts) noexcept nogil:
        cdef int i
        for i in range(5):
            counts[i] += WEIGHTS[view.states[place]] >> 12 * i & 1

    @cython.boundscheck(False)
    cdef void count_users(self, uint32_t* counts) noexcept nogil:
        """Adds to each user's count how many of his rows match."""
        cdef uint8_t[SEGMENT] hits
        cdef uint32_t index, segment, start, end, i
        cdef View* view
        cdef const uint32_t* users
        cdef uint32_t* here
        for index in range(self.count):
            view = &self.views[index]
            for segment in range(segments_of(view.count, SEGMENT)):
                start = segment * SEGMENT
                end = min(<uint32_t>SEGMENT, view.count - start)
                if self.hits_of(view, start, end, hits) == 0:
                    continue
                if view.users == NULL:
                    here = counts + start
                    for i in range(end):
                        here[i] += hits[i]
                else:
                    users = view.users + start
                    for i in range(end):
                        counts[users[i]] += hits[i]

    @cython.boundscheck(False)
    cdef void count_places(self, Names names, uint32_t* counts) noexcept nogil:
        """Adds to the count of each place among `names` how many of its rows match. Users behind them are left out."""
        cdef uint8_t[SEGMENT] hits
        cdef uint32_t index, segment, start, end, i, user, place
        cdef View* view
        for index in range(self.count):
            view = &self.views[index]
            for segment in range(segments_of(view.count, SEGMENT)):
                start = segment * SEGMENT
                end = min(<uint32_t>SEGMENT, view.count - start)
                if self.hits_of(view, start, end, hits) == 0:
                    continue
                for i in range(end):
                    user = start + i if view.users == NULL else view.users[start + i]
                    if user >= names.count:
                        continue
                    place = names.places[user]
                    if place & SEVERAL:
                        place = names.spells[spell_at(
                            names.spells, names.spans[place ^ SEVERAL], self.base_seq + self.offset_of(view, start + i)
                        )].name
                    counts[place] += hits[i]

    # ---- keys

    @cython.boundscheck(False)
    cdef int64_t spread(self, int64_t first, int64_t last, int shift, int64_t* buckets) noexcept nogil:
        """Counts what matches by key, in buckets of 2 ** shift from `first` on; returns how many are below."""
        cdef uint8_t[SEGMENT] hits
        cdef uint32_t index, segment, start, end, i
        cdef uint64_t bucket
        cdef int64_t key, below = 0
        cdef View* view
        memset(buckets, 0, (BUCKETS + 1) * sizeof(int64_t))
        for index in range(self.count):
            view = &self.views[index]
            if view.first > view.last or view.last < first or view.first > last:
                continue
            if view.first >= first and (view.first - first) >> shift == (view.last - first) >> shift:
                buckets[(view.first - first) >> shift] += self.matching_of(view)
                continue
            if not (self.by_seq or self.has(view, 1 + self.kind)):
                continue
            if not self.by_seq and view.notices == NULL and view.first >= first and view.latest[self.kind] < SECONDS:
                self.spread_dense(view, first, shift, buckets)
                continue
            for segment in range(segments_of(view.count, SEGMENT)):
                start = segment * SEGMENT
                end = min(<uint32_t>SEGMENT, view.count - start)
                if self.hits_of(view, start, end, hits) == 0:
                    continue
                for i in range(end):
                    key = self.key_of(view, start + i) - first
                    below += hits[i] & (key < 0)
                    bucket = <uint64_t>key >> shift | <uint64_t>hits[i] - 1
                    buckets[bucket if bucket < BUCKETS else <uint64_t>BUCKETS] += 1
        return below

    @cython.boundscheck(False)
    cdef void spread_dense(self, View* view, int64_t first, int shift, int64_t* buckets) noexcept nogil:
        """The same of a dense block whose times are all in milliseconds, none below."""
        cdef uint8_t[SEGMENT] hits
        cdef uint32_t segment, start, end, i
        cdef uint64_t bucket
        cdef int64_t sign = -1 if self.is_inverted else 1
        cdef int64_t base = sign * (view.created - 1) - first
        cdef const uint32_t* times
        for segment in range(segments_of(view.count, SEGMENT)):
            start = segment * SEGMENT
            end = min(<uint32_t>SEGMENT, view.count - start)
            if self.hits_of(view, start, end, hits) == 0:
                continue
            times = view.times[self.kind] + start
            for i in range(end):
                # Without a branch: it would be mispredicted where every other row matches.
                bucket = <uint64_t>(base + sign * <int64_t>times[i]) >> shift | <uint64_t>hits[i] - 1
                buckets[bucket if bucket < BUCKETS else <uint64_t>BUCKETS] += 1

    @cython.boundscheck(False)
    cdef int64_t collect(self, int64_t first, int64_t last, bint counts_below, Entries* found) noexcept nogil:
        """Finds what matches with a key from `first` to `last`; returns how many are below, if asked for."""
        cdef uint8_t[SEGMENT] hits
        cdef uint32_t index, segment, start, end, i
        cdef int64_t key, below = 0
        cdef View* view
        for index in range(self.count):
            view = &self.views[index]
            if view.first > view.last or view.last < first or view.first > last:
                continue
            if not (self.by_seq or self.has(view, 1 + self.kind)):
                continue
            if not (self.by_seq or view.notices or counts_below and view.first < first):
                if view.latest[self.kind] < SECONDS:
                    self.collect_dense(index, first, last, found)
                    continue
            for segment in range(segments_of(view.count, SEGMENT)):
                start = segment * SEGMENT
                end = min(<uint32_t>SEGMENT, view.count - start)
                if self.hits_of(view, start, end, hits) == 0:
                    continue
                for i in range(end):
                    if hits[i]:
                        key = self.key_of(view, start + i)
                        if key < first:
                            below += 1
                        elif key <= last:
                            self.take(index, start + i, key, found)
        return below

    @cython.boundscheck(False)
    cdef void collect_dense(self, uint32_t index, int64_t first, int64_t last, Entries* found) noexcept nogil:
        """The same of a dense block whose times are all in milliseconds: few of them are in the range."""
        cdef View* view = &self.views[index]
        cdef const uint32_t* times = view.times[self.kind]
        cdef int64_t low = max((-last if self.is_inverted else first) - view.created + 1, 1)
        cdef int64_t high = min((-first if self.is_inverted else last) - view.created + 1, <int64_t>SECONDS - 1)
        cdef uint32_t lane, start, end, i, lowest = <uint32_t>low, width = <uint32_t>(high - low), any_in
        if low > high:
            return
        for lane in range(segments_of(view.count, LANE)):
            start, end = lane * LANE, min(view.count, (lane + 1) * LANE)
            any_in = 0
            for i in range(start, end):
                any_in |= times[i] - lowest <= width
            if any_in:
                for i in range(start, end):
                    if times[i] - lowest <= width and self.is_match(view, i):
                        self.take(index, i, self.key_of(view, i), found)

    cdef void collect_user(self, uint32_t user, const uint32_t* rows, uint32_t row_count, Entries* found) noexcept nogil:
        """Finds what matches of one user; `rows` is a copy of his vector. Their keys: rows without the time are first."""
        cdef uint32_t index, i, page
        cdef View* view
        for index in range(self.dense_count):
            view = &self.views[index]
            if user < view.count and self.is_match(view, user):
                self.take(index, user, self.user_key(view, user), found)
        for i in range(row_count):
            page = rows[i] // PAGE
            index = self.page_views[page] if page < self.page_count else <uint32_t>NOWHERE
            if index == NOWHERE or rows[i] % PAGE >= self.views[index].count:
                continue
            view = &self.views[index]
            if self.is_match(view, rows[i] % PAGE):
                self.take(index, rows[i] % PAGE, self.user_key(view, rows[i] % PAGE), found)

    cdef int64_t user_key(self, View* view, uint32_t place) noexcept nogil:
        if not self.by_seq and not (self.has(view, 1 + self.kind) and view.times[self.kind][place]):
            return <int64_t>1 << 62 if self.is_inverted else -(<int64_t>1 << 62)
        return self.key_of(view, place)

    cdef void take(self, uint32_t index, uint32_t place, int64_t key, Entries* found) noexcept nogil:
        cdef const View* view = &self.views[index]
        cdef uint32_t rank = place if view.users == NULL else view.users[place]
        cdef uint32_t offset = self.offset_of(view, place)
        cdef uint32_t inverted = NOWHERE if self.is_inverted else 0
        if offset < self.notice_end:
            rank = self.order.places[rank] if rank < self.order.count else rank
            add(found, Entry(key, rank ^ inverted, offset ^ inverted, index, place))


cdef uint32_t segments_of(uint32_t count, uint32_t size) noexcept nogil:
    return count // size + (count % size != 0)
