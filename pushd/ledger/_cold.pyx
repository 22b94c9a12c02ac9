# cython: cdivision=True
"""How blocks become cold; then their times and clients are read from the file, with what has changed, and made anew."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from pushd.ledger._ledger cimport KINDS, Block, Ledger, created_of, time_of
from pushd.ledger._loading cimport head_of
from pushd.ledger._log cimport HEAD, KIND_DENSE, KIND_PAGE, TAIL, Head, blob, block_of, key_of, seal
from pushd.ledger._notices cimport PAGE, Patch
from pushd.ledger._patches cimport (
    Ages, apply, columns_size, drop_patches, is_at_rest, living, make_cold, next_oldest,
)


def cool(Ledger ledger not None, size_t most):
    """Let the oldest blocks become cold that are wholly stored, until no more than `most` bytes are left, if they can.

    Call it when everything that was taken is written. Returns how many bytes are left, without those that only a pass
    under way still has. 10 us for a block of 10,000 positions.
    """
    cdef Ages ages = Ages(0, 0)
    cdef Block* block = next_oldest(ledger, &ages)
    cdef size_t left = living(ledger), size
    while left > most and block != NULL:
        if is_at_rest(block):
            size = columns_size(block)
            make_cold(ledger, block)
            left -= size
        block = next_oldest(ledger, &ages)
    return left


cdef inline int kind_of(const Block* block) noexcept:
    return KIND_DENSE if block.users == NULL else KIND_PAGE


cdef int fill(uint32_t* column, uint32_t count, object body, int64_t key) except -1:
    """What a part says; nothing where it is missing or damaged."""
    cdef Head head
    if body is None:
        return 0
    try:
        head = head_of(body, key >> 3 & 3, key & 7, key >> 5)
    except (ValueError, TypeError):  # it was sound at the start
        return 0
    if len(body) == HEAD + 4 * <int64_t>head.count + TAIL:
        memcpy(column, PyBytes_AS_STRING(body) + HEAD, 4 * <size_t>min(count, head.count))
    return 0


cdef uint32_t* read_column(Block* block, int part, uint32_t count, object read) except NULL:
    cdef uint32_t* column
    cdef uint32_t epoch
    cdef int64_t key = key_of(block.key, kind_of(block), part)
    cdef object body
    while True:
        epoch = block.epoch
        body = read(key)
        if block.epoch == epoch:  # else it may not have what was a patch until now
            break
    column = <uint32_t*>calloc(count or 1, sizeof(uint32_t))
    if column == NULL:
        raise MemoryError
    try:
        fill(column, count, body, key)
    except BaseException:
        free(column)
        raise
    apply(column, count, part, block.patches, block.patch_count)
    return column


cdef class PatchedPart:
    """A part that is to be made of what is stored of it and of what has changed."""
    cdef bytes patches
    cdef Head head

    def made(self, stored):
        """The new body, from the stored one or None. Said twice it is the same."""
        cdef uint8_t* column = NULL
        cdef bytes body = blob(4 * <size_t>self.head.count, &self.head, &column)
        cdef const Patch* patches = <const Patch*>PyBytes_AS_STRING(self.patches)
        memset(column, 0, 4 * <size_t>self.head.count)
        fill(<uint32_t*>column, self.head.count, stored, key_of(self.head.number, self.head.kind, self.head.part))
        apply(<uint32_t*>column, self.head.count, self.head.part, patches, len(self.patches) // sizeof(Patch))
        seal(body)
        return body


cdef object patched_part(Block* block, int part, int64_t flush):
    cdef PatchedPart made
    cdef const Patch* patch
    cdef uint32_t i
    for i in range(block.patch_count):
        patch = &block.patches[i]
        if patch.values[part - 1] or patch.is_whole and block.cold & 1 << part:
            made = PatchedPart.__new__(PatchedPart)
            made.patches = PyBytes_FromStringAndSize(<char*>block.patches, block.patch_count * sizeof(Patch))
            memset(&made.head, 0, sizeof(Head))
            made.head.kind, made.head.part, made.head.number = kind_of(block), part, block.key
            made.head.upto, made.head.count = flush, block.count
            return made
    return None


def forget_patches(Ledger ledger not None):
    """All that was taken is written: the columns in the file have the patches."""
    cdef list keys = ledger.patched
    cdef Block* block
    ledger.patched = []
    for key in keys:
        block = block_of(ledger, key)
        if block != NULL and block.patches_taken:
            drop_patches(ledger, block, block.patches_taken)


def newest(Ledger ledger not None, uint32_t number, uint32_t limit, read):
    """As Ledger.newest, whatever is cold. For threads that read."""
    ledger.enter()
    try:
        return [described(ledger, seq, <Block*><size_t>block, place, read) for seq, block, place in
                ledger.newest_places(number, limit)]
    finally:
        ledger.leave()


cdef tuple described(Ledger ledger, int64_t seq, Block* block, uint32_t place, object read):
    cdef uint32_t values[4]
    cdef uint32_t* column
    cdef int64_t created_ms
    cdef int part
    if not block.cold:
        return ledger.described(seq, block, place)
    for part in range(1, KINDS + 2):
        values[part - 1] = 0
        if block.cold & 1 << part:
            column = read_column(block, part, block.count, read)
            values[part - 1] = column[place]
            free(column)
    created_ms = created_of(ledger.chunk_of(seq), <uint32_t>(seq % PAGE)) if ledger.notice_of(seq) else 0
    return (seq, block.states[place], time_of(created_ms, values[0]), time_of(created_ms, values[1]),
            time_of(created_ms, values[2]), values[3])
