"""Pages of push records, and sums over them. See _pushes.pyi."""

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from pushd.ledger._ledger cimport FAILED, HIDDEN, KNOWN, PAGE, PAST, STATUS, SUCCESS, Block, Ledger
from pushd.ledger._push_counts cimport (
    IS_LISTED, Column, Counted, Pass, add_all, add_counts, add_rows, allocated, dense_after, zeroed,
)

ctypedef fused Total:
    uint8_t
    uint32_t

cdef enum:
    BY_SEQ, BY_STATUS, BY_LABEL, BY_TOTAL
    LANES = 4  # of a histogram: what increments one number over and over waits for itself
    LANE_KEYS = 65536
    STATUSES_END = 4

STATUSES = STATUSES_END
SEQ, STATUS_RANK, LABEL_RANK, TOTAL = range(BY_TOTAL + 1)

# The places of the statuses in the order of their names: accepted, expired, failed, success.
cdef uint32_t[4] RANK_OF_STATUS = [0, 3, 1, 2]


cdef void match_states(const Wanted* wanted, const uint8_t* states, Py_ssize_t count, uint8_t* marks) noexcept nogil:
    """Mark, by place, the states that are wanted. Written so that compilers do 16 of them at a time."""
    cdef uint8_t none = wanted.statuses[0], success = wanted.statuses[1]
    cdef uint8_t past = wanted.statuses[2], failed = wanted.statuses[3]
    cdef uint8_t flags = wanted.flags, wanted_state = wanted.state
    cdef uint8_t state, status
    cdef Py_ssize_t place
    for place in range(count):
        state = states[place]
        status = state & STATUS
        marks[place] = <uint8_t>((state & flags) == wanted_state) & (
            (none & <uint8_t>(status == 0)) | (success & <uint8_t>(status == SUCCESS))
            | (past & <uint8_t>(status == PAST)) | (failed & <uint8_t>(status == FAILED))
        )


cdef uint32_t match(const Wanted* wanted, const Column* chunk, uint8_t* marks) noexcept nogil:
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


cdef void fill_keys(Pass data, const Sorting* sorting, const Column* chunk, uint32_t* keys) noexcept nogil:
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


cdef void fill_totals(Pass data, const Sorting* sorting, const Column* chunk, uint32_t* keys) noexcept nogil:
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
    cdef Column* chunk
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
    cdef Column* chunk
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


cdef class PushQuery:
    def __init__(
        self,
        Ledger ledger not None,
        *,
        bytes statuses=None,
        uint8_t flags=0,
        uint8_t state=0,
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
        self.wanted.flags, self.wanted.state = flags | KNOWN | HIDDEN, state & flags | KNOWN
        self.wanted.since_seq, self.wanted.before_seq = since_seq, before_seq
        self.wanted.is_all = statuses is None and marks is None and having is None and flags == 0

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
                    add_all(&counted, data, self.wanted.since_seq, self.wanted.before_seq)
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
        cdef Column* chunk
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
