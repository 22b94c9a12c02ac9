# cython: cdivision=True
"""Lists and counts of receipts: which of the ledger's rows are on a page, found by narrowing down their keys."""

cimport cython
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from pushd.ledger._entries cimport Entries, Entry, add, pick
from pushd.ledger._ledger cimport KINDS, NONE, NOWHERE, STEPS, Ledger, time_of
from pushd.ledger._names cimport Named, Names, Order
from pushd.ledger._passes cimport ANY, BUCKETS, TIMED, UNTIMED, Pass
from pushd.ledger._views cimport View

from operator import index

from pushd.records import ReceiptSort

cdef enum:
    FEW = 131072       # so many rows are sorted rather than narrowed down
    ZOOMS = 4

_ALL = bytes([1]) * 256
_KINDS = {ReceiptSort.RECEIVED_AT: 0, ReceiptSort.READ_AT: 1, ReceiptSort.CONFIRMED_AT: 2}


cdef struct Wanted:    # a user on a page
    uint32_t user
    uint32_t place     # among the names; NOWHERE: any
    size_t first       # where the copy of his vector begins
    uint32_t count


cdef struct Wishes:
    Wanted* items
    uint32_t count
    uint32_t* rows     # copies of vectors


cdef class ReceiptQuery:
    cdef Ledger ledger
    cdef object users
    cdef Named named
    cdef bytes state_set
    cdef bytes having
    cdef int64_t having_from
    cdef int64_t user
    cdef int64_t since, before     # seqs
    cdef int64_t few
    cdef object read

    def __init__(self, Ledger ledger not None, users, *, seq=None, user=None, Named names=None, bytes state_set=None,
                 since_seq=None, before_seq=None, bytes having=None, int64_t having_from=0, int64_t few=FEW, read=None):
        self.ledger, self.users, self.named, self.read = ledger, users, names, read
        self.state_set = _ALL if state_set is None else state_set
        if len(self.state_set) != 256:
            raise ValueError("a set of states has 256 bytes")
        self.having, self.having_from = having, having_from
        self.few = few
        self.user = -1 if user is None else max(0, index(user))
        self.since = 0 if since_seq is None else max(0, index(since_seq))
        self.before = INT64_MAX if before_seq is None else min(INT64_MAX, max(0, index(before_seq)))
        if seq is not None:
            self.since, self.before = max(self.since, index(seq)), min(self.before, index(seq) + 1)

    def counts(self):
        cdef int64_t[5] counts
        cdef Pass scan = Pass.__new__(Pass)
        cdef Entries found = Entries(NULL, 0, 0, False)
        cdef int64_t i
        memset(counts, 0, sizeof(counts))
        try:
            self._begin(scan)
            if self.user >= 0:
                self._collect_user(scan, &found)
                for i in range(found.count):
                    scan.tally_row(&scan.views[found.items[i].view], found.items[i].place, counts)
            else:
                with nogil:
                    scan.tally(counts)
        finally:
            scan.end()
            free(found.items)
        return counts[0], counts[1], counts[2], counts[3], counts[4]

    def page(self, sort, int64_t offset, int64_t limit, bint is_descending):
        cdef Pass scan = Pass.__new__(Pass)
        cdef Entries found = Entries(NULL, 0, 0, False)
        offset, limit = min(max(0, offset), <int64_t>1 << 48), min(max(0, limit), <int64_t>1 << 31)
        if limit == 0:
            return []
        sort = ReceiptSort(sort)
        try:
            self._begin(scan)
            scan.is_inverted = is_descending
            if sort in _KINDS:
                scan.kind, scan.by_seq = _KINDS[sort], False
            if sort is ReceiptSort.USER_ID or sort is ReceiptSort.USERNAME:
                names = self.users.names() if sort is ReceiptSort.USERNAME else None
                if self.user >= 0:
                    return self._named_page_of_user(scan, names, offset, limit, is_descending, &found)
                return self._page_by_user(scan, names, offset, limit, is_descending, &found)
            if self.user >= 0:
                self._collect_user(scan, &found)
                with nogil:
                    pick(&found, offset, limit)
                return _rows(scan, &found, offset, limit)
            return self._page_by_key(scan, offset, limit, &found)
        finally:
            scan.end()
            free(found.items)

    def by_users(self, int64_t limit):
        cdef Pass scan = Pass.__new__(Pass)
        cdef Entries busiest = Entries(NULL, 0, 0, False), found = Entries(NULL, 0, 0, False)
        cdef Wishes wishes = Wishes(NULL, 0, NULL)
        cdef uint32_t* counts = NULL
        cdef uint32_t user, i
        cdef Wanted* wanted
        limit = min(max(0, limit), 1 << 24)
        try:
            self._begin(scan)
            counts = <uint32_t*>calloc(scan.user_room + 1, 4)
            if counts == NULL:
                raise MemoryError
            with nogil:
                if self.user < 0:
                    scan.count_users(counts)
                for user in range(scan.user_room):
                    if counts[user] or user == self.user:
                        add(&busiest, Entry(-<int64_t>counts[user], _rank_of(scan.order, user), 0, 0, user))
                pick(&busiest, 0, limit)
            _check(scan, &busiest)
            wishes.items = <Wanted*>malloc((min(limit, busiest.count) + 1) * sizeof(Wanted))
            if wishes.items == NULL:
                raise MemoryError
            for i in range(min(limit, busiest.count)):
                wishes.items[i] = Wanted(busiest.items[i].place, NOWHERE, 0, 0)
                wishes.count += 1
            self._copy_vectors(&wishes)
            users = []
            for i in range(wishes.count):
                wanted = &wishes.items[i]
                found.count = 0
                with nogil:
                    scan.collect_user(wanted.user, wishes.rows + wanted.first, wanted.count, &found)
                _check(scan, &found)
                if found.count:
                    users.append(_summed(scan, wanted.user, &found))
            return users
        finally:
            scan.end()
            free(counts)
            free(busiest.items)
            free(found.items)
            free(wishes.items)
            free(wishes.rows)

    cdef int _begin(self, Pass scan) except -1:
        cdef int64_t base = self.ledger.base_seq
        scan.ledger, scan.read = self.ledger, self.read
        scan.since = <uint32_t>min(max(0, self.since - base), <int64_t>NOWHERE)
        scan.before = <uint32_t>min(max(0, self.before - base), <int64_t>NOWHERE)
        scan.by_seq, scan.kind, scan.need = True, 0, ANY
        scan.begin()
        scan.match(self.state_set, self.named)
        scan.match_notices(self.having, self.having_from)
        scan.order = self.users.order()  # after the copy: it has all users that are there
        return 0

    # ---- by time

    cdef list _page_by_key(self, Pass scan, int64_t offset, int64_t limit, Entries* found):
        """By seq; or by a time, those that have none before all others when ascending."""
        cdef int64_t at
        if scan.by_seq:
            with nogil:
                at = narrow(scan, offset, limit, self.few, found)
            _check(scan, found)
            return _rows(scan, found, at, limit) if at >= 0 else []
        page = []
        for is_timed in (True, False) if scan.is_inverted else (False, True):
            scan.by_seq = not is_timed
            scan.ask(TIMED if is_timed else UNTIMED)
            found.count = 0
            with nogil:
                at = narrow(scan, offset, limit, self.few, found)
            _check(scan, found)
            if at < 0:
                offset -= -1 - at
                continue
            rows = _rows(scan, found, at, limit)
            page += rows
            limit -= min(limit, found.count - at)
            if limit == 0:
                break
            offset = 0
        return page

    # ---- by user

    cdef int _collect_user(self, Pass scan, Entries* found) except -1:
        """All that match of the one user."""
        cdef Wanted wanted = Wanted(0, NOWHERE, 0, 0)
        cdef Wishes wishes = Wishes(&wanted, 1, NULL)
        if self.user >= scan.user_room:
            return 0
        wanted.user = <uint32_t>self.user
        try:
            self._copy_vectors(&wishes)
            with nogil:
                scan.collect_user(wanted.user, wishes.rows, wanted.count, found)
        finally:
            free(wishes.rows)
        return _check(scan, found)

    cdef list _named_page_of_user(self, Pass scan, Names names, int64_t offset, int64_t limit, bint is_descending,
                                  Entries* found):
        """By what he was called, then the newest first when ascending."""
        cdef int64_t i, place
        cdef Entry* entry
        scan.is_inverted = not is_descending
        self._collect_user(scan, found)
        with nogil:
            for i in range(found.count):
                entry = &found.items[i]
                place = 0
                if names is not None and self.user < names.count:
                    place = names.place_of(<uint32_t>self.user, scan.base_seq + _offset(scan, entry))
                entry.key, entry.rank = -place if is_descending else place, 0
            pick(found, offset, limit)
        return _rows(scan, found, offset, limit)

    cdef list _page_by_user(self, Pass scan, Names names, int64_t offset, int64_t limit, bint is_descending,
                            Entries* found):
        cdef Wishes wishes = Wishes(NULL, 0, NULL)
        cdef int64_t seen
        try:
            seen = self._choose(scan, names, offset, limit, is_descending, &wishes)
            self._copy_vectors(&wishes)
            scan.is_inverted = not is_descending  # the newest first when ascending
            with nogil:
                _collect_wanted(scan, names, &wishes, found)
                pick(found, offset - seen, limit)
            _check(scan, found)
            return _rows(scan, found, offset - seen, limit)
        finally:
            free(wishes.items)
            free(wishes.rows)

    cdef int64_t _choose(self, Pass scan, Names names, int64_t offset, int64_t limit, bint is_descending,
                         Wishes* wishes) except -1:
        """Which users, or names of users, are on the page; returns how many rows are before the first of them."""
        cdef uint32_t places = scan.order.count if names is None else names.text_count
        cdef bint by_place = names is not None and names.span_count > 0
        cdef uint32_t* counts = <uint32_t*>calloc(max(places, scan.user_room) + 1, 4)
        cdef uint32_t place, user, i
        cdef int64_t count, seen = 0, skipped = 0
        wishes.items = <Wanted*>malloc((min(limit, places) + 1) * sizeof(Wanted))
        if wishes.items == NULL or counts == NULL:
            free(counts)
            raise MemoryError
        with nogil:
            if by_place:
                scan.count_places(names, counts)
            else:
                scan.count_users(counts)
            for i in range(places):
                place = places - 1 - i if is_descending else i
                user = scan.order.by_place[place] if names is None else names.owner_of(place)
                count = counts[place] if by_place else counts[user] if user < scan.user_room else 0
                if count and seen + count > offset:
                    wishes.items[wishes.count] = Wanted(user, place if by_place else <uint32_t>NOWHERE, 0, 0)
                    wishes.count += 1
                elif wishes.count == 0:
                    skipped += count
                seen += count
                if seen >= offset + limit or wishes.count > limit:
                    break
        free(counts)
        return skipped

    cdef int _copy_vectors(self, Wishes* wishes) except -1:
        """Vectors may be read with the GIL only."""
        cdef size_t size = 0
        cdef uint32_t i
        cdef Wanted* wanted
        for i in range(wishes.count):
            wanted = &wishes.items[i]
            wanted.first, wanted.count = size, 0
            if wanted.user < self.ledger.user_count:
                wanted.count = self.ledger.vectors[wanted.user].count
                size += wanted.count
        wishes.rows = <uint32_t*>malloc((size + 1) * 4)
        if wishes.rows == NULL:
            raise MemoryError
        for i in range(wishes.count):
            wanted = &wishes.items[i]
            if wanted.count:
                memcpy(wishes.rows + wanted.first, self.ledger.vectors[wanted.user].rows, wanted.count * <size_t>4)
        return 0


cdef int64_t narrow(Pass scan, int64_t offset, int64_t limit, int64_t few, Entries* found) noexcept nogil:
    """Finds the rows of a page. Returns where among `found` they are; -1 - how many there are if none is behind offset.

    Bounds of blocks say where the page must be, unless they nearly all overlap; there keys are counted in buckets while
    these are too many to be sorted.
    """
    cdef int64_t[BUCKETS + 1] buckets
    cdef int64_t first = INT64_MAX, last = INT64_MIN, total = 0, below, rest = offset, count, under
    cdef double width = 0
    cdef uint32_t i, low, high
    cdef int shift
    cdef bint is_first = True
    cdef View* view
    for i in range(scan.count):
        view = &scan.views[i]
        scan.bound(view)
        if view.first <= view.last:
            first, last = min(first, view.first), max(last, view.last)
            width += <double>(view.last - view.first) + 1
    if first > last:
        return -1
    if width * 2 <= scan.count * (<double>(last - first) + 1):
        for i in range(scan.count):
            if scan.views[i].first <= scan.views[i].last:
                total += scan.matching_of(&scan.views[i])
        if offset >= total:
            return -1 - total
        _zoom(scan, offset, limit, &first, &last)
        below, count = 0, 0
        for i in range(scan.count):
            view = &scan.views[i]
            if view.first <= view.last and view.first <= last:
                if view.last < first:
                    below += view.matching
                else:
                    count += view.matching
        rest = offset - below
        if count <= few:
            rest = max(0, rest - scan.collect(first, last, True, found))
            pick(found, rest, limit)
            return rest
    while True:
        shift = _shift(first, last)
        under = scan.spread(first, last, shift, buckets)
        rest = max(0, rest - under) if is_first else rest
        is_first = False
        count, low, high = 0, 0, <uint32_t>((last - first) >> shift)
        while low <= high and count + buckets[low] <= rest:
            count += buckets[low]
            low += 1
        if low > high:
            return -1 - (offset - rest + count)
        rest -= count
        i, count = low, buckets[low]
        while i < high and count < rest + limit:
            i += 1
            count += buckets[i]
        last = first + ((<int64_t>i + 1) << shift) - 1
        first += <int64_t>low << shift
        if count <= few or shift == 0 or (i - low + 1) * 2 > high:
            scan.collect(first, last, False, found)
            pick(found, rest, limit)
            return rest


@cython.boundscheck(False)
cdef void _zoom(Pass scan, int64_t offset, int64_t limit, int64_t* first, int64_t* last) noexcept nogil:
    """Narrows the range of keys to where the page must be, from the bounds of the blocks and how many rows match."""
    cdef int64_t[BUCKETS] starts
    cdef int64_t[BUCKETS] ends
    cdef int64_t before, most, least
    cdef uint32_t i, low, high, top
    cdef int shift, zoom
    cdef View* view
    for zoom in range(ZOOMS):
        shift = _shift(first[0], last[0])
        top = <uint32_t>((last[0] - first[0]) >> shift)
        memset(starts, 0, sizeof(starts))
        memset(ends, 0, sizeof(ends))
        before = 0
        for i in range(scan.count):
            view = &scan.views[i]
            if view.first > view.last or view.first > last[0]:
                continue
            if view.last < first[0]:
                before += view.matching
                continue
            starts[max(0, view.first - first[0]) >> shift] += view.matching
            if view.last <= last[0]:
                ends[(view.last - first[0]) >> shift] += view.matching
        low, most = 0, before + starts[0]
        while low < top and most <= offset:
            low += 1
            most += starts[low]
        high, least = 0, before + ends[0]
        while high < top and least < offset + limit:
            high += 1
            least += ends[high]
        last[0] = first[0] + ((<int64_t>high + 1) << shift) - 1
        first[0] += <int64_t>low << shift
        if shift == 0 or low == 0 and high == top:
            return


cdef int _shift(int64_t first, int64_t last) noexcept nogil:
    cdef int shift = 0
    while (last - first) >> shift >= BUCKETS:
        shift += 1
    return shift


cdef void _collect_wanted(Pass scan, Names names, Wishes* wishes, Entries* found) noexcept nogil:
    """All rows of the users, in their order; of a name of a user only those when it was his."""
    cdef uint32_t i
    cdef int64_t start, entry, kept
    cdef Wanted* wanted
    for i in range(wishes.count):
        wanted = &wishes.items[i]
        start = kept = found.count
        scan.collect_user(wanted.user, wishes.rows + wanted.first, wanted.count, found)
        for entry in range(start, found.count):
            if wanted.place == NOWHERE or names.place_of(
                wanted.user, scan.base_seq + _offset(scan, &found.items[entry])
            ) == wanted.place:
                found.items[kept] = found.items[entry]
                found.items[kept].key, found.items[kept].rank = i, 0
                kept += 1
        found.count = kept


cdef uint32_t _offset(Pass scan, const Entry* entry) noexcept nogil:
    return scan.offset_of(&scan.views[entry.view], entry.place)


cdef uint32_t _rank_of(Order order, uint32_t user) noexcept nogil:
    return order.places[user] if user < order.count else user


cdef int _check(Pass scan, Entries* found) except -1:
    if scan.failure is not None:
        raise scan.failure
    if found.is_full:
        raise MemoryError
    return 0


cdef list _rows(Pass scan, Entries* found, int64_t start, int64_t limit):
    cdef int64_t i
    page = []
    for i in range(start, min(found.count, start + limit)):
        row = _row(scan, &found.items[i])
        if row is not None:
            page.append(row)
    return page


cdef tuple _row(Pass scan, const Entry* entry):
    """(seq, user number, state, received_ms, read_ms, confirmed_ms, client); None: it has gone meanwhile."""
    cdef View* view = &scan.views[entry.view]
    cdef uint32_t place = entry.place, client = 0
    cdef int64_t created = scan.created_of(view, place)
    cdef uint8_t state = view.states[place]
    cdef int64_t[3] times
    cdef int kind
    if state & STEPS == NONE:
        return None
    for kind in range(KINDS):
        times[kind] = time_of(created, view.times[kind][place]) if scan.has(view, 1 + kind) else 0
    if scan.has(view, 1 + KINDS):
        client = view.clients[place]
    if scan.failure is not None:
        raise scan.failure
    return (
        scan.base_seq + scan.offset_of(view, place), place if view.users == NULL else view.users[place], state,
        times[0], times[1], times[2], client,
    )


cdef tuple _summed(Pass scan, uint32_t user, Entries* found):
    """(user number, all, received, read, confirmed, newest seq)."""
    cdef int64_t[5] counts
    cdef int64_t i
    cdef uint32_t newest = 0
    memset(counts, 0, sizeof(counts))
    for i in range(found.count):
        scan.tally_row(&scan.views[found.items[i].view], found.items[i].place, counts)
        newest = max(newest, _offset(scan, &found.items[i]))
    return user, counts[0], counts[2], counts[3], counts[4], scan.base_seq + newest
