"""What passes over push records stand on: what they look at, and how they count receipts. See _push_counts.pyi."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from posix.mman cimport MADV_HUGEPAGE, madvise
from posix.stdlib cimport posix_memalign

from pushd.ledger._cold cimport read_column
from pushd.ledger._ledger cimport (
    DELIVERED, EXPIRED, NONE, ONLINE, PAGE, STEPS, Block, Chunk, Ledger, created_of, time_of,
)

cdef enum:
    LARGE = 2097152  # bytes of a large page

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
        self.chunks = <Column*>allocated(ledger.chunk_count * sizeof(Column))
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
        cdef Column* copy = &self.chunks[self.chunk_count]
        copy.first, copy.count = self.base + number * PAGE, chunk.count
        copy.states, copy.labels = chunk.states, chunk.labels
        self.chunk_count += 1

    cdef void add_page(self, Block* page) noexcept:
        cdef Rows* copy = &self.pages[self.page_count]
        cdef int kind
        copy.low, copy.high, copy.count = self.base + page.low, self.base + page.high, page.count
        copy.notices, copy.states, copy.block, copy.cold = page.notices, page.states, page, page.cold
        for kind in range(3):
            copy.times[kind] = page.times[kind]
        self.page_count += 1

    def __dealloc__(self):
        free(self.chunks)
        free(self.dense)
        free(self.pages)
        if self.ledger is not None:
            self.ledger.leave()


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


cdef void add_all(Counted* counted, Pass data, int64_t since_seq, int64_t before_seq) noexcept nogil:
    """Add the receipts of all push records with these seqs."""
    cdef Py_ssize_t number
    cdef Rows* page
    cdef uint32_t row
    cdef int64_t seq
    for number in range(dense_after(data, since_seq), dense_after(data, before_seq)):
        add_counts(counted, data.dense[number].counts)
    for number in range(data.page_count):
        page = &data.pages[number]
        if page.high < since_seq or page.low >= before_seq:
            continue
        if page.low >= since_seq and page.high < before_seq:
            add_counts(counted, page.block.counts)
            continue
        for row in range(page.count):
            seq = data.base + <uint32_t>(page.notices[row] - <uint32_t>data.base)
            if since_seq <= seq < before_seq:
                counted.total += IS_LISTED[page.states[row]]
                counted.delivered += IS_DELIVERED[page.states[row]]
                counted.failed += IS_FAILED[page.states[row]]


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


cdef int fetch(Pass data, Rows* page) except -1:
    """Read the times of a cold page; `release` frees them."""
    cdef int kind
    for kind in range(3):
        if page.cold & 2 << kind:
            page.times[kind] = read_column(page.block, 1 + kind, page.count, data.read)
    return 0


cdef void release(Rows* page) noexcept nogil:
    cdef int kind
    for kind in range(3 if page.cold else 0):
        free(<void*>page.times[kind])
        page.times[kind] = NULL


cdef void count_page(Pass data, Rows* page, Asked* asked, Py_ssize_t count) noexcept nogil:
    """Add the receipts of a page to those that are asked for."""
    cdef int64_t base = data.base
    cdef Py_ssize_t first = asked_from(asked, 0, count, page.low)
    cdef Py_ssize_t end = asked_from(asked, first, count, page.high + 1)
    cdef Py_ssize_t at
    cdef int64_t seq
    cdef uint32_t row
    cdef int kind
    cdef Counted* counted
    if first == end:
        return
    if page.cold:
        with gil:
            try:
                if data.failure is None:
                    fetch(data, page)
            except BaseException as error:
                data.failure = error
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
    release(page)


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
        count_page(data, &data.pages[at], asked, count)


def counts_of(Ledger ledger not None, seqs, read=None):
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
        data.read = read
        with nogil:
            count_asked(data, asked, count)
        if data.failure is not None:
            raise data.failure
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
