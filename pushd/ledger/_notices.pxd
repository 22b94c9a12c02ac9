# The ledger's layout. Every fact about a recipient of a notice stands here once: while the notice is in flight, in the
# mailbox, in lists and in counts.
#
# Users are dense numbers in order of first appearance. Notices are their journal `seq`. A receipt is one state byte,
# times as offsets from the notice's acceptance, and the number of a client. It stands in one of two places:
#   dense block  one notice for many: position is the user's number, state 0 is no receipt
#   page         all else: rows in the order in which they came, PAGE to a page, with columns of users and notices
#
# All calls are made with the GIL held, on the loop's thread; passes (_lists) run beside them without the GIL on copies
# of the arrays of pointers, so memory that a pass may read is given to `release`, never to free(). A pass begins with
# `enter` and ends with `leave`. It reads a block's `count` before the block's columns: columns are exchanged first.

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum:
    PAGE = 4096        # rows of a page, notices of a chunk
    KINDS = 3          # of times: received, read, confirmed
    SECONDS = 0x80000000  # a time column's value with this bit counts seconds, else ms; plus one: 0 is never
    NOWHERE = 0xffffffff
    CHANGED = 1024
    JUMP = 1048576     # the farthest a seq may lie beyond the last chunk
    MOST_CHUNKS = 1048575  # seqs span less than 2^32

# The step of a receipt, in the low four bits of its state: it only rises, but for what `reset` will make of it.
cdef enum Step:
    NONE = 0       # no receipt; it may wait all the same
    PENDING = 1
    OFFLINE = 2
    EXPIRED = 3
    DELIVERED = 4
    READ = 5
    CONFIRMED = 6
    AGAIN = 7      # delivered, and unread again (version 1.1)
    STEPS = 0x0f

cdef enum Flag:
    WAITING = 0x10     # in the mailbox
    ARCHIVED = 0x20    # version 1.1
    ONLINE = 0x40      # the user was connected when it went out
    BY_MAILBOX = 0x80  # the channel is "offline"

cdef enum NoticeState:
    KNOWN = 0x01     # there is such a notice; 0 is a gap
    SETTLED = 0x02
    DENSE = 0x04     # its receipts are in a dense block
    HIDDEN = 0x08    # it has no push record (deleted, or records are kept elsewhere): no lists, no counts, no unread
    OVER = 0x10      # expired: its unread receipts do not count as unread any more
    REVOKED = 0x20   # version 1.1; as OVER
    SUCCESS = 0x40   # status of the push record, two bits: none yet, success, expired, failed
    PAST = 0x80
    FAILED = 0xc0
    STATUS = 0xc0

cdef struct Patch:         # what came of a position of a cold block
    uint32_t place
    uint32_t is_whole      # what is stored of it does not count any more; else the earlier time, the greater client stays
    uint32_t values[4]     # of parts 1-4; 0: nothing

cdef struct Block:
    int64_t key            # dense: the notice's seq; page: its number
    int64_t upto           # the last flush whose changes the stored parts contain
    int64_t logged_since   # the oldest flush with changes that the stored parts do not contain; 0: none
    uint32_t* users        # NULL: dense
    uint32_t* notices      # NULL: dense; low 32 bits of seq
    uint8_t* states
    uint32_t* times[3]     # NULL: nobody has this time
    uint32_t* clients      # NULL: nobody has a client
    uint32_t count         # positions in use
    uint32_t capacity
    uint32_t logged        # rows of a page that the log or the stored parts have
    uint32_t changed       # positions logged since the parts were stored
    uint32_t low           # page: offsets (seq - base_seq) of its notices lie between; 0 and 0xffffffff while empty
    uint32_t high
    uint32_t earliest[3]   # bounds of each time column's values, 0 left out; NOWHERE and 0 while empty
    uint32_t latest[3]
    uint32_t counts[256]   # positions by state
    uint32_t* dirty        # positions changed since the last flush; may name one twice
    uint32_t dirty_count
    uint32_t dirty_room
    uint8_t stale          # parts that differ from what is stored: bit 0 states (users, notices), 1-3 times, 4 clients
    uint8_t is_touched     # in Ledger.touched
    # A block is cold when `cold` is not 0: the file alone has its columns, but for its patches (_patches)
    uint8_t cold           # bit n: it has part n
    uint8_t told           # bit n: its states say which positions have the time of kind n
    Patch* patches         # those a flush has taken, then those since, both ascending. With the GIL only
    uint32_t patch_count
    uint32_t patch_room
    uint32_t patches_taken
    uint32_t epoch         # how often patches that the file has by now were forgotten

cdef struct Chunk:         # PAGE notices, from a multiple of PAGE on
    int64_t key            # its first seq // PAGE
    int64_t base_ms
    int64_t upto
    int64_t logged_since
    uint32_t* created_low  # ms since base_ms: 40 bits; never falls from place to place, gaps included
    uint8_t* created_high
    uint32_t* labels
    uint8_t* states
    uint32_t count         # positions in use: up to the highest seq
    uint32_t changed
    uint32_t* dirty
    uint32_t dirty_count
    uint32_t dirty_room
    uint8_t is_stale
    uint8_t is_touched

cdef struct Vector:        # the rows of one user in pages, ascending
    uint32_t* rows
    uint32_t count
    uint32_t room

cdef struct Walk:          # from receipt to receipt of one notice
    Block* block
    uint32_t place
    uint32_t user
    uint32_t page          # NOWHERE: a dense block
    uint32_t notice
    uint32_t offset

cdef struct Grave:
    void* memory
    size_t size

cdef class Notices:
    # what lists copy and read
    cdef Block** dense         # by seq
    cdef uint32_t dense_count, dense_room
    cdef Block** pages         # by number; NULL where dropped
    cdef uint32_t page_count, page_room
    cdef Chunk** chunks        # by number - base_seq / PAGE; NULL where there is no notice
    cdef uint32_t chunk_count, chunk_room
    cdef readonly int64_t base_seq  # of the first chunk; does not move while a pass is under way
    cdef uint32_t row_count    # of all pages that there are
    # copies of the bounds of pages before `bounded`, and the greatest `high` up to each: what `find` looks through.
    # Set `bounded` to 0 after any change to the bounds of a page that is not the last
    cdef uint32_t* lows
    cdef uint32_t* highs
    cdef uint32_t* peaks
    cdef uint32_t bounded
    # by user
    cdef readonly uint32_t user_count
    cdef uint32_t user_room
    cdef uint32_t* unreads
    cdef uint32_t changed_count   # users of whom it changed since that was asked, some twice; CHANGED or more: anybody
    cdef uint32_t changed_users[1024]
    cdef uint32_t* waitings
    cdef uint32_t* dense_floors   # hints: nothing waits for the user in dense blocks, or vector entries, before
    cdef uint32_t* vector_floors
    cdef Vector* vectors
    cdef uint32_t cut_user        # whose vector is looked at next for what is gone
    # what a flush takes
    cdef Block** touched
    cdef uint32_t touched_count, touched_room
    cdef list touched_chunks      # their keys
    cdef list dropped             # keys of parts to delete; some may never have been stored
    cdef public int64_t flush     # number of the last one taken
    cdef list patched             # keys (part 0) of blocks whose patches a flush has taken
    cdef object log               # _log.Log: what of the log is in the file; None until it is asked for
    # limits and sums
    cdef public uint32_t max_waiting
    cdef readonly size_t memory   # bytes
    cdef readonly int64_t last_seq
    cdef uint32_t readers         # passes under way
    cdef Grave* graveyard
    cdef uint32_t grave_count, grave_room

    # memory: what passes may read comes from `taken` and goes to `release`; the rest is `resized`
    cdef void* taken(self, size_t size) except NULL
    cdef int release(self, void* memory, size_t size) except -1
    cdef void* resized(self, void* memory, size_t old_size, size_t size) except NULL  # as realloc; size > 0
    cdef void enter(self) noexcept
    cdef void leave(self) noexcept
    cdef int reserve_users(self, uint32_t count) except -1
    # notices
    cdef Chunk* chunk_of(self, int64_t seq) noexcept          # NULL: there is none
    cdef Chunk* new_chunk(self, int64_t seq) except NULL      # the chunk of this seq, made where there is none
    # sets created, count, and base_ms of an empty chunk; between the times of the notices before and after
    cdef void place_in_time(self, Chunk* chunk, uint32_t place, int64_t created_ms) noexcept
    cdef int note_chunk(self, Chunk* chunk, uint32_t place) except -1  # as note_dirty
    cdef uint8_t notice_of(self, int64_t seq) noexcept        # its state; 0: there is none


cdef inline int64_t seq_of(Notices ledger, uint32_t notice) noexcept nogil:
    return ledger.base_seq + <uint32_t>(notice - <uint32_t>ledger.base_seq)


cdef inline int64_t created_of(const Chunk* chunk, uint32_t place) noexcept nogil:
    return chunk.base_ms + (<int64_t>chunk.created_high[place] << 32 | chunk.created_low[place])


# A time column's value.
cdef inline uint32_t offset_of_time(int64_t created_ms, int64_t at_ms) noexcept nogil:
    cdef int64_t since = at_ms - created_ms
    if since < 0:
        return 1
    if since + 1 < <int64_t>SECONDS:
        return <uint32_t>(since + 1)
    since = since // 1000
    return <uint32_t>SECONDS | <uint32_t>(since if since < 0x7ffffffe else 0x7ffffffe)


# 0: never
cdef inline int64_t time_of(int64_t created_ms, uint32_t value) noexcept nogil:
    if value == 0:
        return 0
    if value & <uint32_t>SECONDS:
        return created_ms + <int64_t>(value & 0x7fffffff) * 1000
    return created_ms + value - 1


# Of a notice that counts.
cdef inline bint is_unread(uint8_t state) noexcept nogil:
    cdef uint8_t step = state & STEPS
    return (step == PENDING or step == OFFLINE or step == DELIVERED or step == AGAIN) and not state & ARCHIVED


# Whether receipts of such a notice count as unread.
cdef inline bint is_counting(uint8_t notice_state) noexcept nogil:
    return not notice_state & (HIDDEN | OVER | REVOKED)


cdef int release_chunk(Notices ledger, Chunk* chunk) except -1
