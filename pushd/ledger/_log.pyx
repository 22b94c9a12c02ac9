# cython: cdivision=True
"""What of the ledger's log, the change rows, is in the file, and what still needs it."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from pushd.ledger._ledger cimport PAGE, Block, Chunk, Ledger

from collections import deque
from zlib import crc32

cdef extern from *:
    """
    #define lowest_bit(bits) ((uint32_t)__builtin_ctzll(bits))
    """
    uint32_t lowest_bit(uint64_t bits) noexcept nogil

cdef enum:
    SORTED = 32  # positions are sorted by insertion, more by setting bits


cdef bint is_blank(const uint32_t* values, uint32_t count) noexcept nogil:
    cdef uint32_t place
    for place in range(count):
        if values[place]:
            return False
    return True


cdef bytes blob(size_t body_size, Head* head, uint8_t** body):
    """An unfinished blob: its body is to be written, then it is `sealed`."""
    cdef bytes made = PyBytes_FromStringAndSize(NULL, HEAD + body_size + TAIL)
    head.magic = MAGIC
    head.version = FORMAT
    memcpy(PyBytes_AS_STRING(made), head, HEAD)
    body[0] = <uint8_t*>PyBytes_AS_STRING(made) + HEAD
    return made


cdef int seal(bytes made) except -1:
    cdef char* data = PyBytes_AS_STRING(made)
    cdef Py_ssize_t size = len(made) - TAIL
    cdef uint32_t check = crc32(PyMemoryView_FromMemory(data, size, 0x100))
    memcpy(data + size, &check, TAIL)
    return 0


cdef class Log:
    """What of the log is in the file, and what still needs it."""

    def __cinit__(self):
        self.rows = deque()
        self.pins = deque()
        self.full = {}
        self.partial = -1

    def __dealloc__(self):
        free(self.marks)

    cdef int keep_full(self, Chunk* chunk) except -1:
        """The chunk was stored, and no notices will follow in it."""
        self.full[chunk.key] = known(chunk)
        return 0

    cdef bint is_outdated(self, Chunk* chunk) except -1:
        """Whether a notice has come to a chunk that is stored as full, in a gap: the log has states only."""
        cdef object count = self.full.get(chunk.key)
        return count is not None and <uint32_t>count != known(chunk)

    cdef int pin(self, int64_t flush, int64_t key) except -1:
        """Keep the rows from `flush` on until the block or chunk is stored again."""
        self.pins.append((flush, key))
        return 0

    cdef int64_t floor(self, Ledger ledger, int64_t flush) except -1:
        """The oldest flush whose row is needed, after `flush` where there is none."""
        cdef object pins = self.pins
        cdef int64_t since
        while pins:
            since = pins[0][0]
            if logged_since(ledger, pins[0][1]) == since:
                return since
            pins.popleft()
        return flush + 1

    cdef size_t dropped_below(self, int64_t floor) except? 0:
        """Forget the rows below `floor`; bytes of those that are left."""
        cdef object rows = self.rows
        while rows and <int64_t>rows[0][0] < floor:
            self.total_bytes -= <size_t>rows.popleft()[1]
        return self.total_bytes

    cdef uint32_t distinct(self, uint32_t* positions, uint32_t count, uint32_t below) except? 0xffffffff:
        """Sort `positions` in place, each once, and those from `below` on left out; how many there are then."""
        cdef uint32_t index, place, found = 0
        cdef size_t words, word
        cdef uint64_t bits
        cdef void* room
        if count <= SORTED:
            return sorted_few(positions, count, below)
        words = (<size_t>below + 63) // 64
        if words > self.marks_room:
            room = realloc(self.marks, words * sizeof(uint64_t))
            if room == NULL:
                raise MemoryError()
            self.marks = <uint64_t*>room
            self.marks_room = words
        memset(self.marks, 0, words * sizeof(uint64_t))
        for index in range(count):
            place = positions[index]
            if place < below:
                self.marks[place >> 6] |= <uint64_t>1 << (place & 63)
        for word in range(words):
            bits = self.marks[word]
            while bits:
                positions[found] = <uint32_t>(word << 6) | lowest_bit(bits)
                found += 1
                bits &= bits - 1
        return found


cdef uint32_t known(const Chunk* chunk) noexcept nogil:
    """How many notices there are in a chunk."""
    cdef uint32_t place, count = 0
    for place in range(chunk.count):
        count += chunk.states[place] != 0
    return count


cdef uint32_t sorted_few(uint32_t* positions, uint32_t count, uint32_t below) noexcept nogil:
    """`distinct` by insertion."""
    cdef uint32_t index, place, at, end, found = 0
    for index in range(count):
        place = positions[index]
        at = found
        while at > 0 and positions[at - 1] > place:
            at -= 1
        if place >= below or (at > 0 and positions[at - 1] == place):
            continue
        end = found
        while end > at:
            positions[end] = positions[end - 1]
            end -= 1
        positions[at] = place
        found += 1
    return found


cdef Log log_of(Ledger ledger):
    if ledger.log is None:
        ledger.log = Log()
    return <Log?>ledger.log


cdef Block* block_of(Ledger ledger, int64_t key) noexcept:
    """The block whose part has this key; NULL where there is none."""
    cdef int64_t number = key >> 5
    if (key >> 3 & 3) == KIND_DENSE:
        return ledger.dense_of(number)
    return ledger.pages[number] if 0 <= number < ledger.page_count else NULL


cdef int64_t logged_since(Ledger ledger, int64_t key) noexcept:
    cdef Chunk* chunk
    cdef Block* block
    if (key >> 3 & 3) == KIND_CHUNK:
        chunk = ledger.chunk_of((key >> 5) * PAGE)
        return 0 if chunk == NULL else chunk.logged_since
    block = block_of(ledger, key)
    return 0 if block == NULL else block.logged_since
