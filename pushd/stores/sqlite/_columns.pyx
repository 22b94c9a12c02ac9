# cython: cdivision=True, boundscheck=False, wraparound=False
"""Columns: what lists ask of receive records, kept in memory as arrays, so that a count or a page is a pass over them.

A pass costs a few nanoseconds a record and does not hold the GIL. `NoticeColumns` and `Owners` do not change once
made: a pass on one thread may go on while another thread makes the next ones.
"""

from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memset


cdef extern from "<string.h>" nogil:
    void* memmem(const void* haystack, size_t haystack_size, const void* needle, size_t needle_size)


cdef enum:
    BY_CREATED, BY_CREATED_AND_STATE, BY_RECEIVED, BY_READ, BY_CONFIRMED, BY_USER_ID, BY_USERNAME
    TIMES = 4  # created, received, read, confirmed
    MARKS = 256  # one for each value of a state
    KEYS = 6
    BUCKETS = 1024
    FEW = 4096  # are sorted rather than looked through again

# `_columns.pyi` says what follows among equals.
CREATED, CREATED_BY_STATE, RECEIVED, READ, CONFIRMED, USER_ID, USERNAME = range(BY_USERNAME + 1)
STATES = MARKS

cdef int[BY_USERNAME + 1] TIME_OF = [0, 0, 1, 2, 3, -1, -1]

# Before all times, and near enough for a difference to be a number.
cdef int64_t NEVER = -(1 << 62)


cdef struct Columns:
    Py_ssize_t count
    Py_ssize_t owners_count  # all numbers of owners are below
    int32_t* owners
    uint8_t* states
    int64_t* rowids
    int64_t* times[TIMES]  # NULL: each is as in `common`
    int64_t common[TIMES]

cdef struct Question:
    Columns** notices
    Py_ssize_t notices_count
    uint8_t* states
    uint8_t* members  # NULL: everybody
    int64_t since_ms
    int64_t before_ms
    int sort
    int time  # that is sorted by, or -1
    int64_t* user_ids
    int32_t* ranks

cdef struct Entry:
    int64_t keys[KEYS]
    int64_t rowid


cdef void* allocated(size_t size) except NULL:
    cdef void* memory = malloc(size or 1)
    if memory == NULL:
        raise MemoryError
    return memory


cdef int expect_as_long(list first, list other) except -1:
    if len(other) != len(first):
        raise ValueError(f"expected lists of {len(first)}, found one of {len(other)}")
    return 0


cdef class Owners:
    """Who the records belong to, by number: the user_id, the name, and its place among all names."""

    cdef int64_t* user_ids
    cdef int32_t* ranks
    cdef Py_ssize_t* ends  # of each name in `names`
    cdef Py_ssize_t count
    cdef bytes names

    def __init__(self, list user_ids, list names, list ranks):
        cdef Py_ssize_t owner, end = 0
        expect_as_long(user_ids, names)
        expect_as_long(user_ids, ranks)
        self.count = len(user_ids)
        self.user_ids = <int64_t*>allocated(self.count * sizeof(int64_t))
        self.ranks = <int32_t*>allocated(self.count * sizeof(int32_t))
        self.ends = <Py_ssize_t*>allocated(self.count * sizeof(Py_ssize_t))
        for owner in range(self.count):
            end += len(names[owner])
            self.user_ids[owner] = user_ids[owner]
            self.ranks[owner] = ranks[owner]
            self.ends[owner] = end
        self.names = b"".join(names)

    def __dealloc__(self):
        free(self.user_ids)
        free(self.ranks)
        free(self.ends)

    def __len__(self):
        return self.count

    cdef int expect(self, Py_ssize_t count) except -1:
        if count > self.count:
            raise ValueError(f"expected {count} owners, found {self.count}")
        return 0

    def having(self, bytes part not None):
        cdef bytearray members = bytearray(self.count)
        cdef uint8_t* marks = members
        cdef const char* names = self.names
        cdef const char* sought = part
        cdef Py_ssize_t owner, start = 0, size = len(part)
        with nogil:
            for owner in range(self.count):
                marks[owner] = memmem(names + start, self.ends[owner] - start, sought, size) != NULL
                start = self.ends[owner]
        return bytes(members)


cdef class NoticeColumns:
    """The receive records of one notice, in the order of their user_ids."""

    cdef readonly str message_id
    cdef Columns columns

    def __init__(self, str message_id not None, list owners, list states, list rowids, *times):
        cdef Py_ssize_t row
        if len(times) != TIMES:
            raise ValueError(f"expected {TIMES} lists of times, not {len(times)}")
        for column in (states, rowids, *times):
            expect_as_long(owners, column)
        self.message_id = message_id
        reserve(&self.columns, len(owners))
        for row in range(self.columns.count):
            self.columns.owners[row] = owners[row]
            self.columns.states[row] = states[row]
            self.columns.rowids[row] = rowids[row]
            if self.columns.owners[row] < 0:
                raise ValueError(f"expected the number of an owner, not {owners[row]}")
            self.columns.owners_count = max(self.columns.owners_count, self.columns.owners[row] + 1)
        for kind in range(TIMES):
            self.take(kind, times[kind])

    cdef int take(self, int kind, list times) except -1:
        cdef Py_ssize_t row
        cdef int64_t* column
        first = times[0] if times else None
        self.columns.common[kind] = NEVER if first is None else first
        if times.count(first) == len(times):
            return 0
        column = self.columns.times[kind] = <int64_t*>allocated(self.columns.count * sizeof(int64_t))
        for row in range(self.columns.count):
            column[row] = NEVER if times[row] is None else times[row]
        return 0

    def __dealloc__(self):
        free(self.columns.owners)
        free(self.columns.states)
        free(self.columns.rowids)
        for kind in range(TIMES):
            free(self.columns.times[kind])

    def __len__(self):
        return self.columns.count

    def replaced(self, list user_ids, NoticeColumns changed not None, Owners owners not None):
        cdef NoticeColumns made = NoticeColumns.__new__(NoticeColumns)
        cdef Columns* old = &self.columns
        cdef Columns* new = &changed.columns
        cdef Columns* into = &made.columns
        cdef Py_ssize_t row = 0, added = 0, gone = 0, gone_count = len(user_ids)
        cdef int64_t user_id
        cdef int64_t* ids = <int64_t*>allocated(gone_count * sizeof(int64_t))
        try:
            into.owners_count = max(old.owners_count, new.owners_count)
            owners.expect(into.owners_count)
            for gone in range(gone_count):
                ids[gone] = user_ids[gone]
            made.message_id = self.message_id
            reserve(into, old.count + new.count)
            for kind in range(TIMES):
                into.common[kind] = old.common[kind] if old.count else new.common[kind]
                if old.times[kind] != NULL or new.times[kind] != NULL or (
                    old.count and new.count and old.common[kind] != new.common[kind]
                ):
                    into.times[kind] = <int64_t*>allocated((old.count + new.count) * sizeof(int64_t))
            into.count = 0
            with nogil:
                gone = 0
                while row < old.count:
                    user_id = owners.user_ids[old.owners[row]]
                    while added < new.count and owners.user_ids[new.owners[added]] < user_id:
                        copy_row(into, new, added)
                        added += 1
                    while gone < gone_count and ids[gone] < user_id:
                        gone += 1
                    if gone == gone_count or ids[gone] != user_id:
                        copy_row(into, old, row)
                    row += 1
                while added < new.count:
                    copy_row(into, new, added)
                    added += 1
        finally:
            free(ids)
        return made


cdef int reserve(Columns* columns, Py_ssize_t count) except -1:
    columns.count = count
    columns.owners = <int32_t*>allocated(count * sizeof(int32_t))
    columns.states = <uint8_t*>allocated(count)
    columns.rowids = <int64_t*>allocated(count * sizeof(int64_t))
    return 0


cdef inline void copy_row(Columns* into, const Columns* source, Py_ssize_t row) noexcept nogil:
    cdef Py_ssize_t at = into.count
    cdef int kind
    into.owners[at] = source.owners[row]
    into.states[at] = source.states[row]
    into.rowids[at] = source.rowids[row]
    for kind in range(TIMES):
        if into.times[kind] != NULL:
            into.times[kind][at] = time_of(source, kind, row)
    into.count += 1


cdef inline int64_t time_of(const Columns* columns, int kind, Py_ssize_t row) noexcept nogil:
    return columns.common[kind] if columns.times[kind] == NULL else columns.times[kind][row]


cdef inline bint matches(const Question* asked, const Columns* columns, Py_ssize_t row) noexcept nogil:
    if not asked.states[columns.states[row]]:
        return False
    if asked.members != NULL and not asked.members[columns.owners[row]]:
        return False
    return columns.times[0] == NULL or asked.since_ms <= columns.times[0][row] < asked.before_ms


cdef inline bint is_outside(const Question* asked, const Columns* columns) noexcept nogil:
    """True when no record of a notice is of the time that is asked for, as one that all have says."""
    return columns.times[0] == NULL and not (asked.since_ms <= columns.common[0] < asked.before_ms)


cdef inline bint is_beyond(const Question* asked, const Columns* columns, int64_t low, int64_t high) noexcept nogil:
    """True when no key of a notice is from `low` to `high`, as one that all have says."""
    return asked.time >= 0 and columns.times[asked.time] == NULL and not (low <= columns.common[asked.time] <= high)


cdef inline int64_t key_of(const Question* asked, const Columns* columns, Py_ssize_t row) noexcept nogil:
    """What a page is sorted by before all else."""
    if asked.time >= 0:
        return time_of(columns, asked.time, row)
    return asked.user_ids[columns.owners[row]] if asked.sort == BY_USER_ID else asked.ranks[columns.owners[row]]


cdef void fill_entry(Entry* entry, const Question* asked, Py_ssize_t notice, Py_ssize_t row) noexcept nogil:
    cdef const Columns* columns = asked.notices[notice]
    cdef int64_t user_id = asked.user_ids[columns.owners[row]]
    cdef int64_t created = time_of(columns, 0, row)
    cdef int64_t state = columns.states[row]
    cdef int64_t* keys = entry.keys
    entry.rowid = columns.rowids[row]
    keys[0] = key_of(asked, columns, row)
    if asked.time == 0:
        keys[1], keys[2], keys[3] = notice, (0 if asked.sort == BY_CREATED else state), user_id
        keys[4] = keys[5] = 0
    elif asked.time > 0:
        keys[1], keys[2], keys[3], keys[4] = user_id, created, state, entry.rowid
        keys[5] = 0
    else:
        keys[1], keys[2], keys[3] = -created, time_of(columns, 1, row), asked.ranks[columns.owners[row]]
        keys[4], keys[5] = state, entry.rowid


cdef int compared(const void* one, const void* other) noexcept nogil:
    cdef int64_t* left = (<Entry*>one).keys
    cdef int64_t* right = (<Entry*>other).keys
    cdef int key
    for key in range(KEYS):
        if left[key] != right[key]:
            return -1 if left[key] < right[key] else 1
    return 0


cdef Py_ssize_t bounds(const Question* asked, int64_t* lowest, int64_t* highest) noexcept nogil:
    """How many match, and between what their keys are."""
    cdef Py_ssize_t notice, row, count = 0
    cdef const Columns* columns
    cdef int64_t key
    lowest[0], highest[0] = INT64_MAX, INT64_MIN
    for notice in range(asked.notices_count):
        columns = asked.notices[notice]
        if is_outside(asked, columns):
            continue
        for row in range(columns.count):
            if matches(asked, columns, row):
                key = key_of(asked, columns, row)
                lowest[0] = min(lowest[0], key)
                highest[0] = max(highest[0], key)
                count += 1
    return count


cdef void spread(const Question* asked, int64_t low, int64_t high, int shift, Py_ssize_t* counts) noexcept nogil:
    """How many match in each of BUCKETS, which are 1 << shift wide, from `low` to `high`."""
    cdef Py_ssize_t notice, row
    cdef const Columns* columns
    cdef int64_t key
    memset(counts, 0, BUCKETS * sizeof(Py_ssize_t))
    for notice in range(asked.notices_count):
        columns = asked.notices[notice]
        if is_outside(asked, columns) or is_beyond(asked, columns, low, high):
            continue
        for row in range(columns.count):
            if matches(asked, columns, row):
                key = key_of(asked, columns, row)
                if low <= key <= high:
                    counts[(key - low) >> shift] += 1


cdef void collect(const Question* asked, int64_t low, int64_t high, Entry* entries) noexcept nogil:
    """Those that match and whose keys are from `low` to `high`, sorted."""
    cdef Py_ssize_t notice, row, count = 0
    cdef const Columns* columns
    cdef int64_t key
    for notice in range(asked.notices_count):
        columns = asked.notices[notice]
        if is_outside(asked, columns) or is_beyond(asked, columns, low, high):
            continue
        for row in range(columns.count):
            if matches(asked, columns, row):
                key = key_of(asked, columns, row)
                if low <= key <= high:
                    fill_entry(&entries[count], asked, notice, row)
                    count += 1
    qsort(entries, count, sizeof(Entry), compared)


cdef int page_of(
    const Question* asked, int64_t low, int64_t high, Py_ssize_t count, Py_ssize_t offset, Py_ssize_t limit, list page
) except -1:
    """Add to `page` the rowids of those from `offset` on among the `count` whose keys are from `low` to `high`."""
    cdef Py_ssize_t* counts
    cdef int64_t bucket
    cdef Py_ssize_t taken
    cdef int64_t first, last
    cdef int shift = 0
    cdef Entry* entries
    limit = min(limit, count - offset)
    if count <= FEW or low == high:
        entries = <Entry*>allocated(count * sizeof(Entry))
        with nogil:
            collect(asked, low, high, entries)
        for bucket in range(offset, offset + limit):
            page.append(entries[bucket].rowid)
        free(entries)
        return 0
    counts = <Py_ssize_t*>allocated(BUCKETS * sizeof(Py_ssize_t))
    try:
        while (high - low) >> shift >= BUCKETS:
            shift += 1
        with nogil:
            spread(asked, low, high, shift, counts)
        for bucket in range(BUCKETS):
            if limit <= 0:
                break
            if offset < counts[bucket]:
                taken = min(limit, counts[bucket] - offset)
                first = low + (bucket << shift)
                last = first + min(high - first, (<int64_t>1 << shift) - 1)
                page_of(asked, first, last, counts[bucket], offset, taken, page)
                limit -= taken
                offset = 0
            else:
                offset -= counts[bucket]
    finally:
        free(counts)
    return 0


cdef class Selection:
    """The records of these notices, of owners and in states that are marked, created since one time and before another.

    `notices` come in the order of their message_ids; `members` is what Owners.having() gives, None for everybody.
    """

    cdef list notices
    cdef Owners owners
    cdef bytes states
    cdef bytes members
    cdef Columns** pointers
    cdef Question question

    def __init__(self, list notices, Owners owners not None, bytes states not None, bytes members, since_ms, before_ms):
        cdef Py_ssize_t notice
        self.notices, self.owners, self.states, self.members = notices, owners, states, members
        if len(states) != STATES or (members is not None and len(members) != owners.count):
            raise ValueError("expected a mark for each state, and for each owner")
        self.pointers = <Columns**>allocated(len(notices) * sizeof(Columns*))
        for notice in range(len(notices)):
            self.pointers[notice] = &(<NoticeColumns?>notices[notice]).columns
            owners.expect(self.pointers[notice].owners_count)
        self.question.notices, self.question.notices_count = self.pointers, len(notices)
        self.question.states = self.states
        self.question.members = NULL if members is None else <uint8_t*>self.members
        self.question.since_ms = INT64_MIN if since_ms is None else since_ms
        self.question.before_ms = INT64_MAX if before_ms is None else before_ms
        self.question.user_ids, self.question.ranks = owners.user_ids, owners.ranks

    def __dealloc__(self):
        free(self.pointers)

    def counts(self):
        cdef Py_ssize_t[MARKS] totals
        cdef Py_ssize_t notice, row
        cdef const Columns* columns
        memset(totals, 0, sizeof(totals))
        with nogil:
            for notice in range(self.question.notices_count):
                columns = self.question.notices[notice]
                if is_outside(&self.question, columns):
                    continue
                for row in range(columns.count):
                    totals[columns.states[row]] += matches(&self.question, columns, row)
        return [totals[row] for row in range(MARKS)]

    def page(self, int sort, Py_ssize_t offset, Py_ssize_t limit):
        if not 0 <= sort <= BY_USERNAME:
            raise ValueError(f"expected one of the sorts, not {sort}")
        if offset < 0:
            raise ValueError(f"expected an offset of at least 0, not {offset}")
        cdef int64_t low, high
        cdef Py_ssize_t count
        cdef Question asked = self.question
        cdef list page = []
        asked.sort = sort
        asked.time = TIME_OF[sort]
        with nogil:
            count = bounds(&asked, &low, &high)
        if offset < count:
            page_of(&asked, low, high, count, offset, limit, page)
        return page
