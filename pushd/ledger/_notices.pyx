"""Passes over notices: pages of push records, sums over them, and the counts of each. See _notices.pyi."""

cimport cython
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.mman cimport MADV_HUGEPAGE, madvise
from posix.stdlib cimport posix_memalign

from pushd.ledger._ledger cimport (
    DELIVERED, EXPIRED, FAILED, HIDDEN, KNOWN, NONE, ONLINE, PAGE, PAST, STATUS, STEPS, SUCCESS,
    Block, Chunk, Ledger, created_of, time_of,
)

ctypedef fused Total:
    uint8_t
    uint32_t

cdef enum:
    BY_SEQ, BY_STATUS, BY_LABEL, BY_TOTAL
    LANES = 4  # of a histogram: what increments one number over and over waits for itself
    LANE_KEYS = 65536
    STATUSES_END = 4
    LARGE = 2097152

STATUSES = STATUSES_END
SEQ, STATUS_RANK, LABEL_RANK, TOTAL = range(BY_TOTAL + 1)

# The places of the statuses in the order of their names: accepted, expired, failed, success.
cdef uint32_t[4] RANK_OF_STATUS = [0, 3, 1, 2]

cdef uint8_t[256] IS_LISTED  # by the state of a receipt
cdef uint8_t[256] IS_ONLINE
cdef uint8_t[256] IS_DELIVERED
cdef uint8_t[256] IS_FAILED
cdef uint64_t[256] PACKED    # the four of them, 16 bits each: a page has few enough rows

cdef int prepare() except -1:
    cdef int state, step
    for state in range(256):
        step = state & STEPS
        IS_LISTED[state] = step != NONE
        IS_ONLINE[state] = step != NONE and (state & ONLINE) != 0
        IS_DELIVERED[state] = step >= DELIVERED
        IS_FAILED[state] = step == EXPIRED
        PACKED[state] = (
            IS_LISTED[state] | (<uint64_t>IS_ONLINE[state] << 16)
            | (<uint64_t>IS_DELIVERED[state] << 32) | (<uint64_t>IS_FAILED[state] << 48)
        )
    return 0

prepare()


cdef void* allocated(size_t size) except NULL:
    cdef void* memory = malloc(size or 1)
    if memory == NULL:
        raise MemoryError
    return memory


cdef void* zeroed(size_t count, size_t size) except NULL:
    """As calloc. What is large is asked for in large pages: to be given small ones takes longer than a pass."""
    cdef void* memory = NULL
    cdef size_t whole = (count * size // LARGE + 1) * LARGE
    if count * size < LARGE:
        memory = calloc(count or 1, size)
    elif posix_memalign(&memory, LARGE, whole) == 0:
        with nogil:
            madvise(memory, whole, MADV_HUGEPAGE)
            memset(memory, 0, count * size)
    if memory == NULL:
        raise MemoryError
    return memory


@cython.no_gc_clear
cdef class Pass:
    def __cinit__(self, Ledger ledger not None, bint has_pages):
        cdef Py_ssize_t number
        self.ledger = ledger
        ledger.enter()
        self.base = ledger.base_seq
        self.span = <int64_t>ledger.chunk_count * PAGE
        self.chunks = <Notices*>allocated(ledger.chunk_count * sizeof(Notices))
        for number in range(ledger.chunk_count):
            if ledger.chunks[number] != NULL:
                self.add_chunk(number)
        self.dense = <Block**>allocated(ledger.dense_count * sizeof(Block*))
        for number in range(ledger.dense_count):
            self.dense[number] = ledger.dense[number]
        self.dense_count = ledger.dense_count
        if has_pages:
            self.pages = <Rows*>allocated(ledger.page_count * sizeof(Rows))
            for number in range(ledger.page_count):
                if ledger.pages[number] != NULL and ledger.pages[number].low <= ledger.pages[number].high:
                    self.add_page(ledger.pages[number])

    cdef void add_chunk(self, Py_ssize_t number) noexcept:
        cdef Chunk* chunk = self.ledger.chunks[number]
        cdef Notices* copy = &self.chunks[self.chunk_count]
        copy.first, copy.count = self.base + number * PAGE, chunk.count
        copy.states, copy.labels = chunk.states, chunk.labels
        self.chunk_count += 1

    cdef void add_page(self, Block* page) noexcept:
        cdef Rows* copy = &self.pages[self.page_count]
        cdef int kind
        copy.low, copy.high, copy.count = self.base + page.low, self.base + page.high, page.count
        copy.notices, copy.states, copy.block = page.notices, page.states, page
        for kind in range(3):
            copy.times[kind] = page.times[kind]
        self.page_count += 1

    def __dealloc__(self):
        free(self.chunks)
        free(self.dense)
        free(self.pages)
        if self.ledger is not None:
            self.ledger.leave()


cdef void match_states(const Wanted* wanted, const uint8_t* states, Py_ssize_t count, uint8_t* marks) noexcept nogil:
    """Mark, by place, the states that are wanted. Written so that compilers do 16 of them at a time."""
    cdef uint8_t none = wanted.statuses[0], success = wanted.statuses[1]
    cdef uint8_t past = wanted.statuses[2], failed = wanted.statuses[3]
    cdef uint8_t state, status
    cdef Py_ssize_t place
    for place in range(count):
        state = states[place]
        status = state & STATUS
        marks[place] = <uint8_t>((state & (KNOWN | HIDDEN)) == KNOWN) & (
            (none & <uint8_t>(status == 0)) | (success & <uint8_t>(status == SUCCESS))
            | (past & <uint8_t>(status == PAST)) | (failed & <uint8_t>(status == FAILED))
        )


cdef uint32_t match(const Wanted* wanted, const Notices* chunk, uint8_t* marks) noexcept nogil:
    """Mark, by place, those of a chunk's notices that are wanted; how many. `marks` has PAGE places."""
    cdef int64_t first = max(wanted.since_seq - chunk.first, 0)
    cdef int64_t end = min(wanted.before_seq - chunk.first, <int64_t>chunk.count)
    cdef int64_t place, at
    cdef uint32_t count = 0, last = wanted.last_label
    cdef const uint32_t* labels = chunk.labels
    cdef const uint8_t* label_marks = wanted.labels
    memset(marks, 0, PAGE)
    if first >= end:
        return 0
    match_states(wanted, chunk.states + first, end - first, marks + first)
    if label_marks != NULL:
        for place in range(first, end):
            marks[place] &= label_marks[min(labels[place], last)]
    if wanted.having != NULL:
        for place in range(first, end):
            at = chunk.first + place - wanted.having_from
            marks[place] &= wanted.having[at] if 0 <= at < wanted.having_count else 0
    for place in range(PAGE):
        count += marks[place]
    return count


cdef Py_ssize_t dense_after(Pass data, int64_t seq) noexcept nogil:
    """The place of the first dense block that is not below `seq`."""
    cdef Py_ssize_t low = 0, high = data.dense_count, middle
    while low < high:
        middle = (low + high) // 2
        if data.dense[middle].key < seq:
            low = middle + 1
        else:
            high = middle
    return low


cdef void add_counts(Counted* counted, const uint32_t* counts) noexcept nogil:
    """Add a block's receipts, counted by state."""
    cdef int state
    cdef uint64_t count
    for state in range(256):
        count = counts[state]
        counted.total += count * IS_LISTED[state]
        counted.online += count * IS_ONLINE[state]
        counted.delivered += count * IS_DELIVERED[state]
        counted.failed += count * IS_FAILED[state]


cdef void add_rows(Counted* counted, const Rows* page, int64_t base, int64_t span, const uint8_t* marks) noexcept nogil:
    """Add the receipts of a page whose notices are marked, by seq from `base` on."""
    cdef const uint32_t* notices = page.notices
    cdef const uint8_t* states = page.states
    cdef uint32_t row, at, first = <uint32_t>base
    cdef uint64_t sums = 0
    for row in range(page.count):
        at = notices[row] - first
        if at < span:
            sums += PACKED[states[row]] & -<uint64_t>marks[at]
    counted.total += sums & 0xffff
    counted.online += (sums >> 16) & 0xffff
    counted.delivered += (sums >> 32) & 0xffff
    counted.failed += sums >> 48


cdef void add_all(Counted* counted, Pass data, const Wanted* wanted) noexcept nogil:
    """Add the receipts of all push records of the wanted seqs; marks are needed for pages at the ends only."""
    cdef Py_ssize_t number
    cdef Rows* page
    cdef uint32_t row
    cdef int64_t seq
    for number in range(dense_after(data, wanted.since_seq), dense_after(data, wanted.before_seq)):
        add_counts(counted, data.dense[number].counts)
    for number in range(data.page_count):
        page = &data.pages[number]
        if page.high < wanted.since_seq or page.low >= wanted.before_seq:
            continue
        if page.low >= wanted.since_seq and page.high < wanted.before_seq:
            add_counts(counted, page.block.counts)
            continue
        for row in range(page.count):
            seq = data.base + <uint32_t>(page.notices[row] - <uint32_t>data.base)
            if wanted.since_seq <= seq < wanted.before_seq:
                counted.total += IS_LISTED[page.states[row]]
                counted.delivered += IS_DELIVERED[page.states[row]]
                counted.failed += IS_FAILED[page.states[row]]


cdef bint has_gaps(const Block* page) noexcept nogil:
    """Whether some rows are no receipts that are listed."""
    cdef int state
    cdef uint32_t count = 0
    for state in range(0, 256, 16):  # those with the step NONE
        count += page.counts[state]
    return count != 0


cdef bint count_totals(Pass data, Total* totals) noexcept nogil:
    """Count the receipts that each notice has in pages, by seq from `base` on; False when a count does not fit."""
    cdef Py_ssize_t number
    cdef const uint32_t* notices
    cdef const uint8_t* states
    cdef uint32_t row, at, first = <uint32_t>data.base
    cdef int64_t span = data.span
    cdef uint8_t is_over = 0, one
    cdef Total total
    for number in range(data.page_count):
        notices, states = data.pages[number].notices, data.pages[number].states
        if has_gaps(data.pages[number].block):
            for row in range(data.pages[number].count):
                at = notices[row] - first
                if at < span:
                    one = IS_LISTED[states[row]]
                    totals[at] = total = totals[at] + one
                    is_over |= one & <uint8_t>(total == 0)
        else:  # as in nearly all: twice as fast
            for row in range(data.pages[number].count):
                at = notices[row] - first
                if at < span:
                    totals[at] = total = totals[at] + 1
                    is_over |= <uint8_t>(total == 0)
        if is_over:
            return False
    return True


cdef uint32_t highest_of(const Total* totals, int64_t count) noexcept nogil:
    cdef Total highest = 0
    cdef int64_t at
    for at in range(count):
        highest = max(highest, totals[at])
    return highest


cdef uint32_t total_of(const Block* block) noexcept nogil:
    """The receipts of a dense block."""
    cdef Counted counted
    memset(&counted, 0, sizeof(counted))
    add_counts(&counted, block.counts)
    return <uint32_t>counted.total


cdef struct Sorting:
    int sort
    int64_t base
    const uint32_t* ranks   # by label
    uint32_t rank_count
    uint8_t* few            # how many receipts in pages, by seq from `base` on; NULL where some have more than 255
    uint32_t* many          # then these
    uint32_t* dense         # of dense blocks, by place in Pass.dense
    uint32_t key_count      # all keys are below


cdef void fill_keys(Pass data, const Sorting* sorting, const Notices* chunk, uint32_t* keys) noexcept nogil:
    """What each notice of a chunk is sorted by. `keys` has PAGE places."""
    cdef const uint8_t* states = chunk.states
    cdef const uint32_t* labels = chunk.labels
    cdef const uint32_t* ranks = sorting.ranks
    cdef uint32_t place, label, count = chunk.count, rank_count = sorting.rank_count
    memset(keys + count, 0, (PAGE - count) * sizeof(uint32_t))
    if sorting.sort == BY_STATUS:
        for place in range(count):
            keys[place] = RANK_OF_STATUS[states[place] >> 6]
    elif sorting.sort == BY_LABEL:
        for place in range(count):
            label = labels[place]
            keys[place] = ranks[label] if label < rank_count else 0
    else:
        fill_totals(data, sorting, chunk, keys)


cdef void fill_totals(Pass data, const Sorting* sorting, const Notices* chunk, uint32_t* keys) noexcept nogil:
    cdef int64_t from_base = chunk.first - sorting.base
    cdef const uint8_t* few = sorting.few + from_base
    cdef Py_ssize_t block
    cdef uint32_t place
    if sorting.few == NULL:
        memcpy(keys, sorting.many + from_base, chunk.count * sizeof(uint32_t))
    else:
        for place in range(chunk.count):
            keys[place] = few[place]
    for block in range(dense_after(data, chunk.first), dense_after(data, chunk.first + chunk.count)):
        keys[data.dense[block].key - chunk.first] = sorting.dense[block]


cdef int count_keys(Pass data, Sorting* sorting) except -1 nogil:
    """Find out what there is to sort by. Raises MemoryError."""
    cdef uint32_t highest = 0
    cdef Py_ssize_t at
    if sorting.sort == BY_STATUS:
        highest = STATUSES_END - 1
    elif sorting.sort == BY_LABEL:
        highest = highest_of(sorting.ranks, sorting.rank_count)
    else:
        with gil:
            sorting.few = <uint8_t*>zeroed(data.span, 1)
            sorting.dense = <uint32_t*>allocated(data.dense_count * sizeof(uint32_t))
        for at in range(data.dense_count):
            sorting.dense[at] = total_of(data.dense[at])
        if count_totals(data, sorting.few):
            highest = highest_of(sorting.few, data.span)
        else:
            free(sorting.few)
            sorting.few = NULL
            with gil:
                sorting.many = <uint32_t*>zeroed(data.span, sizeof(uint32_t))
            count_totals(data, sorting.many)
            highest = highest_of(sorting.many, data.span)
        highest = max(highest, highest_of(sorting.dense, data.dense_count))
    sorting.key_count = highest + 1
    return 0


cdef int64_t spread(
    Pass data, const Wanted* wanted, const Sorting* sorting, uint32_t* counts, uint8_t* all_marks
) noexcept nogil:
    """How many of the wanted have each key, in the first of LANES rows of `counts`; how many in all. Marks them."""
    cdef uint8_t* marks
    cdef uint32_t[PAGE] keys
    cdef size_t lane = sorting.key_count if sorting.key_count <= LANE_KEYS else 0
    cdef uint32_t* second = counts + lane
    cdef uint32_t* third = counts + 2 * lane
    cdef uint32_t* fourth = counts + 3 * lane
    cdef uint32_t place
    cdef Py_ssize_t number, key
    cdef int64_t total = 0
    for number in range(data.chunk_count):
        marks = all_marks + (data.chunks[number].first - data.base)
        if not match(wanted, &data.chunks[number], marks):
            continue
        fill_keys(data, sorting, &data.chunks[number], keys)
        for place in range(0, PAGE, 4):
            counts[keys[place]] += marks[place]
            second[keys[place + 1]] += marks[place + 1]
            third[keys[place + 2]] += marks[place + 2]
            fourth[keys[place + 3]] += marks[place + 3]
    for key in range(sorting.key_count):
        if lane:
            counts[key] += second[key] + third[key] + fourth[key]
        total += counts[key]
    return total


cdef struct Stretch:  # of a sorted list: the places from `offset` on
    int64_t offset
    int64_t limit
    uint32_t first_key  # of its first place
    uint32_t last_key
    int64_t skipped     # of the first key, before it
    int64_t rest        # of the first key, behind its first place


cdef void find_stretch(Stretch* stretch, const uint32_t* counts, int64_t* places) noexcept nogil:
    """Where it begins and ends, and in `places` for each of its keys the place of the first one with it in it."""
    cdef int64_t before = 0
    cdef uint32_t key = 0
    while before + counts[key] <= stretch.offset:
        before += counts[key]
        key += 1
    stretch.first_key = key
    stretch.skipped = stretch.offset - before
    stretch.rest = before + counts[key] - stretch.offset
    while before < stretch.offset + stretch.limit:
        places[key] = max(before - stretch.offset, 0)
        before += counts[key]
        stretch.last_key = key
        key += 1


cdef uint32_t hits(const uint8_t* marks, const uint32_t* keys, uint32_t low, uint32_t high) noexcept nogil:
    """How many of PAGE are marked and have a key from `low` to `high`."""
    cdef uint32_t place, count = 0
    for place in range(PAGE):
        count += marks[place] & <uint32_t>(keys[place] - low <= high - low)
    return count


cdef int64_t gather(
    Pass data, const uint8_t* all_marks, const Sorting* sorting, const Stretch* stretch, int64_t* places, int64_t* seqs
) noexcept nogil:
    """Put the marked seqs of a stretch into their places, which hold 0; how many. A walk from the nearer end."""
    cdef const uint8_t* marks
    cdef uint32_t[PAGE] keys
    cdef bint is_backward = stretch.first_key == stretch.last_key and stretch.rest - stretch.limit < stretch.skipped
    cdef int64_t skipped = stretch.rest - stretch.limit if is_backward else stretch.skipped
    cdef uint32_t low = stretch.first_key, high = stretch.last_key  # keys that are still looked for
    cdef int64_t found = 0, at, place, at_page
    cdef Py_ssize_t number
    cdef Notices* chunk
    cdef uint32_t key, some
    for number in range(data.chunk_count):
        chunk = &data.chunks[data.chunk_count - 1 - number if is_backward else number]
        marks = all_marks + (chunk.first - data.base)
        fill_keys(data, sorting, chunk, keys)
        some = hits(marks, keys, low, high)
        if some <= skipped and (low == high or some == hits(marks, keys, low, low)):
            skipped -= some
            continue
        for at in range(chunk.count):
            place = chunk.count - 1 - at if is_backward else at
            key = keys[place]
            if not marks[place] or key < low or key > high:
                continue
            if key == low and skipped > 0:
                skipped -= 1
                continue
            at_page = stretch.limit - 1 - places[key] if is_backward else places[key]
            if not 0 <= at_page < stretch.limit:
                continue
            places[key] += 1
            if seqs[at_page]:  # more have this key than a moment ago
                continue
            seqs[at_page] = chunk.first + place
            found += 1
            if found == stretch.limit:
                return found
        if low < high and places[high] >= stretch.limit:
            high -= 1
    return found


cdef int64_t walk(
    Pass data, const Wanted* wanted, int64_t offset, int64_t limit, bint is_descending, int64_t* seqs
) noexcept nogil:
    """The seqs of a part of the wanted in the order of seq; how many."""
    cdef uint8_t[PAGE] marks
    cdef Py_ssize_t number
    cdef Notices* chunk
    cdef int64_t found = 0, place, at
    cdef uint32_t count
    for number in range(data.chunk_count):
        chunk = &data.chunks[data.chunk_count - 1 - number if is_descending else number]
        if chunk.first >= wanted.before_seq or chunk.first + chunk.count <= wanted.since_seq:
            continue
        count = match(wanted, chunk, marks)
        if offset >= count:
            offset -= count
            continue
        for at in range(chunk.count):
            place = chunk.count - 1 - at if is_descending else at
            if not marks[place]:
                continue
            if offset > 0:
                offset -= 1
                continue
            seqs[found] = chunk.first + place
            found += 1
            if found == limit:
                return found
    return found


cdef class NoticeQuery:
    def __init__(
        self,
        Ledger ledger not None,
        *,
        bytes statuses=None,
        bytes marks=None,
        having=None,
        int64_t having_from=0,
        int64_t since_seq=0,
        int64_t before_seq=INT64_MAX,
    ):
        cdef int status
        if statuses is not None and len(statuses) != STATUSES:
            raise ValueError(f"expected a mark for each of {STATUSES} statuses, not {len(statuses)}")
        self.ledger = ledger
        for status in range(STATUSES):
            self.wanted.statuses[status] = statuses is None or statuses[status] != 0
        if marks is not None:
            self.marks = marks + b"\0"
            self.wanted.labels = <const uint8_t*><bytes>self.marks
            self.wanted.last_label = len(marks)
        if having is not None:
            self.having = bytes(having)
            self.wanted.having = <const uint8_t*><bytes>self.having
            self.wanted.having_from, self.wanted.having_count = having_from, len(having)
        self.wanted.since_seq, self.wanted.before_seq = since_seq, before_seq
        self.wanted.is_all = statuses is None and marks is None and having is None

    def totals(self):
        cdef Pass data = Pass(self.ledger, True)
        cdef int64_t records = 0, failed = 0
        cdef Counted counted
        cdef uint8_t* marks = NULL
        memset(&counted, 0, sizeof(counted))
        try:
            if not self.wanted.is_all:
                marks = <uint8_t*>zeroed(data.span, 1)
            with nogil:
                records = self.count(data, marks, &failed)
                if self.wanted.is_all:
                    add_all(&counted, data, &self.wanted)
                elif records:
                    self.add_marked(&counted, data, marks)
        finally:
            free(marks)
        return records, failed, counted.total, counted.delivered, counted.failed

    cdef int64_t count(self, Pass data, uint8_t* marks, int64_t* failed) noexcept nogil:
        """How many are wanted, and how many of them failed; all of them are marked, unless `marks` is NULL."""
        cdef uint8_t[PAGE] some
        cdef uint8_t* into = some
        cdef int64_t count = 0
        cdef Py_ssize_t number
        cdef Notices* chunk
        cdef const uint8_t* states
        cdef uint32_t place, failures
        for number in range(data.chunk_count):
            chunk = &data.chunks[number]
            if marks != NULL:
                into = marks + (chunk.first - data.base)
            count += match(&self.wanted, chunk, into)
            states, failures = chunk.states, 0
            for place in range(chunk.count):
                failures += into[place] & <uint8_t>((states[place] & STATUS) == FAILED)
            failed[0] += failures
        return count

    cdef void add_marked(self, Counted* counted, Pass data, const uint8_t* marks) noexcept nogil:
        """Add the receipts of marked notices."""
        cdef Py_ssize_t number
        cdef int64_t seq
        for number in range(data.page_count):
            if data.pages[number].high >= self.wanted.since_seq and data.pages[number].low < self.wanted.before_seq:
                add_rows(counted, &data.pages[number], data.base, data.span, marks)
        for number in range(data.dense_count):
            seq = data.dense[number].key - data.base
            if 0 <= seq < data.span and marks[seq]:
                add_counts(counted, data.dense[number].counts)

    def page(self, int sort, int64_t offset, int64_t limit, bint is_descending, bytes ranks=None):
        if not BY_SEQ <= sort <= BY_TOTAL:
            raise ValueError(f"expected one of the sorts, not {sort}")
        if (ranks is not None) != (sort == BY_LABEL) or (ranks is not None and len(ranks) % sizeof(uint32_t)):
            raise ValueError("expected ranks of 32 bits for LABEL_RANK, and for nothing else")
        if offset < 0:
            raise ValueError(f"expected an offset of at least 0, not {offset}")
        cdef Pass data = Pass(self.ledger, sort == BY_TOTAL)
        limit = min(limit, data.span - offset)
        if limit <= 0:
            return []
        if sort == BY_SEQ:
            return self.in_order(data, offset, limit, is_descending)
        return self.sorted(data, sort, ranks, offset, limit, is_descending)

    cdef list in_order(self, Pass data, int64_t offset, int64_t limit, bint is_descending):
        cdef int64_t* seqs = <int64_t*>allocated(limit * sizeof(int64_t))
        cdef int64_t count, place
        try:
            with nogil:
                count = walk(data, &self.wanted, offset, limit, is_descending, seqs)
            return [seqs[place] for place in range(count)]
        finally:
            free(seqs)

    cdef list sorted(self, Pass data, int sort, bytes ranks, int64_t offset, int64_t limit, bint is_descending):
        cdef Sorting sorting
        cdef Stretch stretch
        cdef uint8_t* marks = NULL
        cdef uint32_t* counts = NULL
        cdef int64_t* places = NULL
        cdef int64_t* seqs = NULL
        cdef int64_t total, place
        memset(&sorting, 0, sizeof(sorting))
        sorting.sort, sorting.base = sort, data.base
        if ranks is not None:
            sorting.ranks = <const uint32_t*><const char*>ranks
            sorting.rank_count = len(ranks) // sizeof(uint32_t)
        try:
            with nogil:
                count_keys(data, &sorting)
            counts = <uint32_t*>zeroed(sorting.key_count, sizeof(uint32_t) * LANES)
            marks = <uint8_t*>zeroed(data.span, 1)
            with nogil:
                total = spread(data, &self.wanted, &sorting, counts, marks)
            limit = min(limit, total - offset)
            if limit <= 0:
                return []
            stretch.limit = limit
            stretch.offset = total - offset - limit if is_descending else offset
            places = <int64_t*>zeroed(sorting.key_count, sizeof(int64_t))
            seqs = <int64_t*>zeroed(limit, sizeof(int64_t))
            with nogil:
                find_stretch(&stretch, counts, places)
                gather(data, marks, &sorting, &stretch, places, seqs)
            found = [seqs[place] for place in range(limit) if seqs[place]]
            return found[::-1] if is_descending else found
        finally:
            free(sorting.few)
            free(sorting.many)
            free(sorting.dense)
            free(marks)
            free(counts)
            free(places)
            free(seqs)


cdef struct Asked:  # a notice whose receipts are counted
    int64_t seq
    Counted counted


cdef Py_ssize_t asked_from(const Asked* asked, Py_ssize_t low, Py_ssize_t high, int64_t seq) noexcept nogil:
    """The place of the first one, from `low` on and before `high`, that is not below `seq`."""
    cdef Py_ssize_t middle
    while low < high:
        middle = (low + high) // 2
        if asked[middle].seq < seq:
            low = middle + 1
        else:
            high = middle
    return low


cdef void count_page(const Rows* page, int64_t base, Asked* asked, Py_ssize_t count) noexcept nogil:
    """Add the receipts of a page to those that are asked for."""
    cdef Py_ssize_t first = asked_from(asked, 0, count, page.low)
    cdef Py_ssize_t end = asked_from(asked, first, count, page.high + 1)
    cdef Py_ssize_t at
    cdef int64_t seq
    cdef uint32_t row
    cdef int kind
    cdef Counted* counted
    if first == end:
        return
    for row in range(page.count):
        seq = base + <uint32_t>(page.notices[row] - <uint32_t>base)
        if seq < asked[first].seq or seq > asked[end - 1].seq or not IS_LISTED[page.states[row]]:
            continue
        at = asked_from(asked, first, end, seq)
        if asked[at].seq != seq:
            continue
        counted = &asked[at].counted
        counted.total += 1
        counted.online += IS_ONLINE[page.states[row]]
        counted.delivered += IS_DELIVERED[page.states[row]]
        counted.failed += IS_FAILED[page.states[row]]
        for kind in range(3):
            if page.times[kind] != NULL:
                counted.latest = max(counted.latest, page.times[kind][row])


cdef void count_asked(Pass data, Asked* asked, Py_ssize_t count) noexcept nogil:
    """Count the receipts of each of these notices, which are sorted by seq."""
    cdef Py_ssize_t at, place
    cdef int kind
    cdef const Block* block
    for at in range(count):
        place = dense_after(data, asked[at].seq)
        if place < data.dense_count and data.dense[place].key == asked[at].seq:
            block = data.dense[place]
            add_counts(&asked[at].counted, block.counts)
            for kind in range(3):
                asked[at].counted.latest = max(asked[at].counted.latest, block.latest[kind])
    for at in range(data.page_count):
        count_page(&data.pages[at], data.base, asked, count)


def counts_of(Ledger ledger not None, seqs):
    cdef list wanted = sorted(set(seqs))
    cdef Py_ssize_t at, count = len(wanted)
    cdef Asked* asked = <Asked*>zeroed(count, sizeof(Asked))
    cdef Counted* counted
    cdef Pass data
    cdef dict found = {}
    try:
        for at in range(count):
            asked[at].seq = wanted[at]
        data = Pass(ledger, True)
        with nogil:
            count_asked(data, asked, count)
        for at in range(count):
            counted = &asked[at].counted
            found[wanted[at]] = (
                counted.total, counted.online, counted.delivered, counted.failed,
                latest_of(ledger, asked[at].seq, counted.latest),
            )
    finally:
        free(asked)
    return found


cdef int64_t latest_of(Ledger ledger, int64_t seq, uint32_t latest) noexcept:
    """A column's value as a time, and the notice's own time where that is never; 0 where there is no such notice."""
    cdef Chunk* chunk = ledger.chunk_of(seq)
    cdef uint32_t place = <uint32_t>(seq % PAGE)
    if chunk == NULL or place >= chunk.count:
        return 0
    return max(created_of(chunk, place), time_of(created_of(chunk, place), latest))


def seq_at(Ledger ledger not None, int64_t at_ms):
    cdef Py_ssize_t low = 0, high = ledger.chunk_count, middle, probe
    cdef Chunk* chunk
    cdef uint32_t first, end, place
    while low < high:
        middle = probe = (low + high) // 2
        while probe >= low and (ledger.chunks[probe] == NULL or ledger.chunks[probe].count == 0):
            probe -= 1
        if probe < low:
            low = middle + 1
            continue
        chunk = ledger.chunks[probe]
        if created_of(chunk, chunk.count - 1) < at_ms:
            low = middle + 1
        else:
            high = probe
    if low >= ledger.chunk_count:
        return ledger.last_seq + 1
    chunk = ledger.chunks[low]
    first, end = 0, chunk.count - 1
    while first < end:
        place = (first + end) // 2
        if created_of(chunk, place) < at_ms:
            first = place + 1
        else:
            end = place
    return ledger.base_seq + low * PAGE + first
