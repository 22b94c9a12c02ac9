# cython: cdivision=True
"""Notices of the ledger: their memory, the users' columns, and the chunks in which notices lie."""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset


cdef int release_chunk(Notices ledger, Chunk* chunk) except -1:
    if chunk == NULL:
        return 0
    if chunk.dirty != NULL:
        free(chunk.dirty)
        ledger.memory -= chunk.dirty_room * sizeof(uint32_t)
    ledger.release(chunk.created_low, PAGE * sizeof(uint32_t))
    ledger.release(chunk.created_high, PAGE)
    ledger.release(chunk.labels, PAGE * sizeof(uint32_t))
    ledger.release(chunk.states, PAGE)
    ledger.release(chunk, sizeof(Chunk))
    return 0


cdef class Notices:
    """What the ledger knows of notices, and has one of for each user."""

    def __dealloc__(self):
        cdef uint32_t i
        self.readers = 0
        for i in range(self.chunk_count):
            release_chunk(self, self.chunks[i])
        for i in range(self.user_room):
            free(self.vectors[i].rows)
        for i in range(self.grave_count):
            free(self.graveyard[i].memory)
        free(self.chunks)
        free(self.graveyard)
        free(self.unreads)
        free(self.waitings)
        free(self.dense_floors)
        free(self.vector_floors)
        free(self.vectors)

    # ---- memory

    cdef void* taken(self, size_t size) except NULL:
        cdef void* memory = calloc(1, size or 1)
        if memory == NULL:
            raise MemoryError
        self.memory += size
        return memory

    cdef int release(self, void* memory, size_t size) except -1:
        """Frees it once no pass is under way. What cannot even be remembered for later is lost."""
        cdef Grave* graves
        if memory == NULL:
            return 0
        if self.readers == 0:
            free(memory)
            self.memory -= size
            return 0
        if self.grave_count == self.grave_room:
            graves = <Grave*>realloc(self.graveyard, (self.grave_room * 2 + 64) * sizeof(Grave))
            if graves == NULL:
                return 0
            self.graveyard, self.grave_room = graves, self.grave_room * 2 + 64
        self.graveyard[self.grave_count] = Grave(memory, size)
        self.grave_count += 1
        return 0

    cdef void* resized(self, void* memory, size_t old_size, size_t size) except NULL:
        cdef void* moved = realloc(memory, size)
        if moved == NULL:
            raise MemoryError
        if size > old_size:
            memset(<char*>moved + old_size, 0, size - old_size)
        self.memory += size - old_size
        return moved

    cdef void enter(self) noexcept:
        self.readers += 1

    cdef void leave(self) noexcept:
        cdef uint32_t i
        self.readers -= 1
        if self.readers:
            return
        for i in range(self.grave_count):
            free(self.graveyard[i].memory)
            self.memory -= self.graveyard[i].size
        self.grave_count = 0

    cdef int reserve_users(self, uint32_t count) except -1:
        cdef size_t room = <size_t>count + count // 8 + 64
        cdef uint32_t** columns[4]
        cdef void* moved[5]
        cdef int i
        columns[:] = [&self.unreads, &self.waitings, &self.dense_floors, &self.vector_floors]
        for i in range(5):  # not resized: untouched zeros cost no memory
            moved[i] = calloc(room, sizeof(Vector) if i == 4 else sizeof(uint32_t))
            if moved[i] == NULL:
                while i:
                    i -= 1
                    free(moved[i])
                raise MemoryError
        for i in range(4):
            if self.user_room:
                memcpy(moved[i], columns[i][0], self.user_room * sizeof(uint32_t))
            free(columns[i][0])
            columns[i][0] = <uint32_t*>moved[i]
        if self.user_room:
            memcpy(moved[4], self.vectors, self.user_room * sizeof(Vector))
        free(self.vectors)
        self.vectors = <Vector*>moved[4]
        self.memory += (room - self.user_room) * (4 * sizeof(uint32_t) + sizeof(Vector))
        self.user_room = <uint32_t>room
        return 0

    # ---- notices

    cdef Chunk* chunk_of(self, int64_t seq) noexcept:
        if seq < self.base_seq or (seq - self.base_seq) // PAGE >= self.chunk_count:
            return NULL
        return self.chunks[(seq - self.base_seq) // PAGE]

    cdef Chunk* new_chunk(self, int64_t seq) except NULL:
        cdef int64_t base = self.base_seq if self.chunk_count else seq - seq % PAGE
        cdef int64_t index = (seq - base) // PAGE
        cdef Chunk* chunk
        cdef size_t room
        if seq < base or index >= MOST_CHUNKS or index > self.chunk_count + JUMP // PAGE:
            raise ValueError(f"seq {seq} is too far from the others")
        if index < self.chunk_count and self.chunks[index] != NULL:
            return self.chunks[index]
        if index >= self.chunk_room:
            room = index + index // 8 + 8
            self.chunks = <Chunk**>self.resized(
                self.chunks, self.chunk_room * sizeof(Chunk*), room * sizeof(Chunk*)
            )
            self.chunk_room = <uint32_t>room
        chunk = <Chunk*>self.taken(sizeof(Chunk))
        try:
            chunk.created_low = <uint32_t*>self.taken(PAGE * sizeof(uint32_t))
            chunk.created_high = <uint8_t*>self.taken(PAGE)
            chunk.labels = <uint32_t*>self.taken(PAGE * sizeof(uint32_t))
            chunk.states = <uint8_t*>self.taken(PAGE)
        except MemoryError:
            release_chunk(self, chunk)
            raise
        chunk.key = seq // PAGE
        self.base_seq = base
        self.chunks[index] = chunk
        if index >= self.chunk_count:
            self.chunk_count = <uint32_t>index + 1
        return chunk

    cdef void place_in_time(self, Chunk* chunk, uint32_t place, int64_t created_ms) noexcept:
        cdef int64_t index = chunk.key - self.base_seq // PAGE, other, offset
        cdef uint32_t i
        if place < chunk.count:
            created_ms = max(created_ms, created_of(chunk, place))  # a gap's: that of the notice before
        elif chunk.count:
            created_ms = max(created_ms, created_of(chunk, chunk.count - 1))
        else:
            for other in range(index - 1, -1, -1):
                if self.chunks[other] != NULL and self.chunks[other].count:
                    created_ms = max(created_ms, created_of(self.chunks[other], self.chunks[other].count - 1))
                    break
        for i in range(place + 1, chunk.count):
            if chunk.states[i]:
                created_ms = min(created_ms, created_of(chunk, i))
                break
        else:
            for other in range(index + 1, self.chunk_count):
                if self.chunks[other] != NULL and self.chunks[other].count:
                    created_ms = min(created_ms, created_of(self.chunks[other], 0))
                    break
        if place >= chunk.count:
            if chunk.count == 0:
                chunk.base_ms = created_ms
            for i in range(chunk.count, place):
                chunk.created_low[i] = chunk.created_low[chunk.count - 1] if chunk.count else 0
                chunk.created_high[i] = chunk.created_high[chunk.count - 1] if chunk.count else 0
            chunk.count = place + 1
        offset = min(created_ms - chunk.base_ms, (<int64_t>1 << 40) - 1)
        i = place
        while True:  # gaps after it go with it
            chunk.created_low[i] = <uint32_t>offset
            chunk.created_high[i] = <uint8_t>(offset >> 32)
            i += 1
            if i >= chunk.count or chunk.states[i] or created_of(chunk, i) >= chunk.base_ms + offset:
                break
        chunk.is_stale = True

    cdef int note_chunk(self, Chunk* chunk, uint32_t place) except -1:
        cdef uint32_t i
        cdef size_t room
        chunk.is_stale = True
        if chunk.is_touched and chunk.dirty_count and chunk.dirty[chunk.dirty_count - 1] == place:
            return 0
        if chunk.dirty_count == chunk.dirty_room:
            if chunk.dirty_room >= 2 * PAGE:
                for i in range(PAGE):
                    chunk.dirty[i] = i
                chunk.dirty_count = PAGE
            else:
                room = <size_t>chunk.dirty_room * 2 + 16
                chunk.dirty = <uint32_t*>self.resized(
                    chunk.dirty, chunk.dirty_room * sizeof(uint32_t), room * sizeof(uint32_t)
                )
                chunk.dirty_room = <uint32_t>room
        if not chunk.is_touched:
            self.touched_chunks.append(chunk.key)
            chunk.is_touched = True
        chunk.dirty[chunk.dirty_count] = place
        chunk.dirty_count += 1
        return 0

    cdef uint8_t notice_of(self, int64_t seq) noexcept:
        cdef Chunk* chunk = self.chunk_of(seq)
        return 0 if chunk == NULL else chunk.states[seq % PAGE]
