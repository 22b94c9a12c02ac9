"""Rows found by a pass, and the part of them that a page shows put in order."""

from libc.stdlib cimport qsort, realloc


cdef void add(Entries* found, Entry entry) noexcept nogil:
    cdef Entry* items
    if found.count == found.room:
        items = <Entry*>realloc(found.items, (found.room * 2 + 256) * sizeof(Entry))
        if items == NULL:
            found.is_full = True
            return
        found.items, found.room = items, found.room * 2 + 256
    found.items[found.count] = entry
    found.count += 1


cdef void pick(Entries* found, int64_t offset, int64_t limit) noexcept nogil:
    """Puts those from `offset` on, at most `limit`, where they belong in the order of all."""
    cdef int64_t end = min(found.count, offset + limit)
    if offset >= end:
        return
    divide(found.items, 0, found.count, offset)
    if end < found.count:
        divide(found.items, offset, found.count, end)
    qsort(found.items + offset, end - offset, sizeof(Entry), _compare)


cdef void divide(Entry* items, int64_t low, int64_t high, int64_t at) noexcept nogil:
    """Orders [low, high) so far that those before `at` are below those from `at` on."""
    cdef int64_t left, right
    cdef Entry middle
    while high - low > 1:
        left, right = low, high - 1
        middle = _median(&items[low], &items[(low + high) // 2], &items[high - 1])[0]
        while left <= right:
            while _compare(&items[left], &middle) < 0:
                left += 1
            while _compare(&items[right], &middle) > 0:
                right -= 1
            if left <= right:
                items[left], items[right] = items[right], items[left]
                left += 1
                right -= 1
        if at <= right:
            high = right + 1
        elif at >= left:
            low = left
        else:
            return


cdef const Entry* _median(const Entry* a, const Entry* b, const Entry* c) noexcept nogil:
    if _compare(a, b) > 0:
        a, b = b, a
    if _compare(b, c) <= 0:
        return b
    return c if _compare(a, c) < 0 else a


cdef int _compare(const void* one, const void* other) noexcept nogil:
    cdef const Entry* a = <const Entry*>one
    cdef const Entry* b = <const Entry*>other
    if a.key != b.key:
        return -1 if a.key < b.key else 1
    if a.rank != b.rank:
        return -1 if a.rank < b.rank else 1
    if a.notice != b.notice:
        return -1 if a.notice < b.notice else 1
    return 0
