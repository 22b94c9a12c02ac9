# Orders of users, and the masks of those whose name contains a text: made in reader threads, used by the passes there.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    SEVERAL = 0x80000000   # of a place: the user has had several names; the rest is an index into `several`

cdef struct Text:          # a string that is sorted
    uint64_t head          # its first bytes, so that most comparisons need no look at the rest
    const char* body       # UTF-8
    uint32_t size
    uint32_t then          # what equal ones are sorted by
    uint32_t owner         # whose it is

cdef struct Spell:         # from which seq on a user had a name
    int64_t from_seq
    uint32_t name          # index of its Text as made; after sorting, its place
    uint32_t text          # index of its Text as made

cdef struct Span:          # the spells of a user: ascending in from_seq, one at least
    uint32_t first
    uint32_t count

cdef class Order:
    cdef readonly uint32_t count
    cdef uint32_t* by_place    # user numbers
    cdef uint32_t* places      # by user number

cdef class Names:
    cdef Order order
    cdef readonly uint32_t count   # users
    cdef list kept                 # what the texts point into
    cdef Text* texts               # as made: that of each user, then those of users with several
    cdef uint32_t text_count       # and of places: distinct (name, user)
    cdef uint32_t* ranked          # by place: index of the text
    cdef uint32_t* places          # by user: the place of his name, or SEVERAL | index of his span
    cdef Span* spans
    cdef uint32_t span_count
    cdef Spell* spells
    cdef uint32_t spell_count

    cdef int _add_span(self, uint32_t user, list spells) except -1
    cdef int _sort(self) except -1 nogil
    cdef uint32_t owner_of(self, uint32_t place) noexcept nogil
    cdef uint32_t place_of(self, uint32_t user, int64_t seq) noexcept nogil

cdef class Named:
    cdef Names names
    cdef uint8_t* users            # by number: 0 no, 1 yes, 3 it depends on the seq
    cdef uint8_t* spells           # by spell of `names`: whether its name has the text

    cdef bint at(self, uint32_t user, int64_t seq) noexcept nogil

cdef uint32_t spell_at(const Spell* spells, Span span, int64_t seq) noexcept nogil
