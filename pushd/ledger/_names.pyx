"""Orders of users by id and by name, and whose name contains a text, made without the GIL but for copies."""

cimport cython
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcmp, memcpy
from posix.unistd cimport usleep

# After so many objects are looked at the GIL is let go of. Who waits for it gets it only when this thread sleeps: to
# give it up and take it again would wake the other one too late each time.
cdef enum:
    SLICE = 8192
    SPELL_SLICE = 1024
    PAUSE_US = 20


cdef class Order:
    def __cinit__(self, list ids):
        cdef list kept = ids[:]
        cdef uint32_t count = len(kept), user, place
        cdef Text* texts = <Text*>calloc(count + 1, sizeof(Text))
        self.by_place = <uint32_t*>malloc((count + 1) * 4)
        self.places = <uint32_t*>malloc((count + 1) * 4)
        self.count = count
        try:
            if not (texts and self.by_place and self.places):
                raise MemoryError
            for user in range(count):
                value = kept[user]
                texts[user].then = texts[user].owner = user
                if isinstance(value, int):  # as text with no body: before those that have one
                    texts[user].head = <uint64_t>(<int64_t>value) ^ (<uint64_t>1 << 63)
                else:
                    kept[user] = _point(&texts[user], value)
                if user % SLICE == SLICE - 1:
                    with nogil:
                        usleep(PAUSE_US)
            with nogil:
                qsort(texts, count, sizeof(Text), _compare)
                for place in range(count):
                    self.by_place[place] = texts[place].owner
                    self.places[texts[place].owner] = place
        finally:
            free(texts)

    def __dealloc__(self):
        free(self.by_place)
        free(self.places)

    def __len__(self):
        return self.count

    def by_id(self):
        cdef uint32_t place
        return [self.by_place[place] for place in range(self.count)]


cdef class Names:
    def __cinit__(self, Order order, list names, list since, dict earlier):
        cdef uint32_t user, room = 0, seen = 0
        cdef list lasts = names[:], sinces = since[:]
        earlier = earlier.copy()
        self.order, self.count, self.kept = order, order.count, []
        if len(lasts) < self.count or len(sinces) < self.count:
            raise ValueError("fewer names than users")
        for identities in earlier.values():
            room += 1 + len(identities)
        self.texts = <Text*>calloc(self.count + room + 1, sizeof(Text))
        self.places = <uint32_t*>malloc((self.count + 1) * 4)
        self.ranked = <uint32_t*>malloc((self.count + room + 1) * 4)
        self.spans = <Span*>malloc((len(earlier) + 1) * sizeof(Span))
        self.spells = <Spell*>malloc((room + 1) * sizeof(Spell))
        if not (self.texts and self.places and self.ranked and self.spans and self.spells):
            raise MemoryError
        for user in range(self.count):
            self.kept.append(_point(&self.texts[user], lasts[user]))
            self.texts[user].then, self.texts[user].owner = order.places[user], user
            self.places[user] = 0
            if user % SLICE == SLICE - 1:
                with nogil:
                    usleep(PAUSE_US)
        self.text_count = self.count
        for number, identities in earlier.items():
            if number < self.count:
                self._add_span(number, _spells(identities, lasts[number], sinces[number]))
            seen += 1
            if seen % SPELL_SLICE == 0:
                with nogil:
                    usleep(PAUSE_US)
        with nogil:
            self._sort()

    def __dealloc__(self):
        free(self.texts)
        free(self.places)
        free(self.ranked)
        free(self.spans)
        free(self.spells)

    def __len__(self):
        return self.count

    cdef int _add_span(self, uint32_t user, list spells) except -1:
        """A text for each name of the user; his last one has its own already."""
        cdef dict texts = {}
        cdef uint32_t first = 0
        cdef Text* text
        cdef Spell* spell
        if len(spells) == 1:
            return 0
        texts[spells[len(spells) - 1][1]] = user
        if self.span_count:
            first = self.spans[self.span_count - 1].first + self.spans[self.span_count - 1].count
        self.spans[self.span_count] = Span(first, len(spells))
        self.places[user] = SEVERAL | self.span_count
        self.span_count += 1
        for from_seq, name in spells:
            if name not in texts:
                text = &self.texts[self.text_count]
                self.kept.append(_point(text, name))
                text.then, text.owner = self.order.places[user], user
                texts[name] = self.text_count
                self.text_count += 1
            spell = &self.spells[first]
            spell.from_seq, spell.text, spell.name = from_seq, texts[name], 0
            first += 1
        self.spell_count = first
        return 0

    @cython.boundscheck(False)
    cdef int _sort(self) except -1 nogil:
        """Gives each text its place."""
        cdef uint32_t index, place
        cdef Text* texts = <Text*>malloc((self.text_count + 1) * sizeof(Text))
        cdef uint32_t* places = <uint32_t*>malloc((self.text_count + 1) * 4)
        if texts == NULL or places == NULL:
            free(texts)
            free(places)
            raise MemoryError
        memcpy(texts, self.texts, self.text_count * sizeof(Text))
        for index in range(self.text_count):
            # A user's texts differ: what is left to sort by is the id, so `owner` may say which text it is.
            texts[index].owner = index
        qsort(texts, self.text_count, sizeof(Text), _compare)
        for place in range(self.text_count):
            index = texts[place].owner
            places[index] = place
            self.ranked[place] = index
            if index < self.count and not self.places[index] & SEVERAL:
                self.places[index] = place
        for index in range(self.spell_count):
            self.spells[index].name = places[self.spells[index].text]
        free(texts)
        free(places)
        return 0

    cdef uint32_t owner_of(self, uint32_t place) noexcept nogil:
        return self.texts[self.ranked[place]].owner

    cdef uint32_t place_of(self, uint32_t user, int64_t seq) noexcept nogil:
        cdef uint32_t place = self.places[user]
        if place & SEVERAL:
            return self.spells[spell_at(self.spells, self.spans[place ^ SEVERAL], seq)].name
        return place

    def in_order(self):
        cdef uint32_t place
        return [(self.kept[self.ranked[place]], self.owner_of(place)) for place in range(self.text_count)]

    def containing(self, str text):
        return Named(self, text)


cdef class Named:
    def __cinit__(self, Names names, str text):
        cdef bytes folded = text.encode("utf-8", "replace").lower()
        cdef const char* part = folded
        cdef uint32_t size = len(folded), index, user, spell, count
        cdef Span span
        cdef uint8_t* has = <uint8_t*>malloc(names.text_count + 1)
        self.names = names
        self.users = <uint8_t*>calloc(names.count + 1, 1)
        self.spells = <uint8_t*>calloc(names.spell_count + 1, 1)
        try:
            if not (has and self.users and self.spells):
                raise MemoryError
            with nogil:
                for index in range(names.text_count):
                    has[index] = _contains(names.texts[index].body, names.texts[index].size, part, size)
                for user in range(names.count):
                    self.users[user] = has[user]
                for index in range(names.span_count):
                    span, count = names.spans[index], 0
                    for spell in range(span.first, span.first + span.count):
                        self.spells[spell] = has[names.spells[spell].text]
                        count += self.spells[spell]
                    user = names.texts[names.spells[span.first].text].owner
                    self.users[user] = 3 if 0 < count < span.count else count > 0
        finally:
            free(has)

    def __dealloc__(self):
        free(self.users)
        free(self.spells)

    def __len__(self):
        cdef uint32_t user, count = 0
        for user in range(self.names.count):
            count += self.users[user] != 0
        return count

    def has(self, uint32_t number, int64_t seq):
        return number < self.names.count and self.at(number, seq)

    cdef bint at(self, uint32_t user, int64_t seq) noexcept nogil:
        cdef uint32_t place
        if self.users[user] == 3:
            place = self.names.places[user] ^ SEVERAL
            return self.spells[spell_at(self.names.spells, self.names.spans[place], seq)]
        return self.users[user]


cdef uint32_t spell_at(const Spell* spells, Span span, int64_t seq) noexcept nogil:
    """Which spell the seq is in; the first one counts for all before. The last one is the likeliest."""
    cdef uint32_t index = span.first + span.count - 1
    cdef uint32_t low = span.first, middle
    if index == low or spells[index].from_seq <= seq:
        return index
    while index - low > 1:
        middle = (low + index) >> 1
        if spells[middle].from_seq <= seq:
            low = middle
        else:
            index = middle
    return low


cdef str _point(Text* text, str string):
    """Points at the string's UTF-8, and returns what must be kept for it."""
    cdef Py_ssize_t size
    cdef const char* body
    cdef int i
    try:
        body = PyUnicode_AsUTF8AndSize(string, &size)
    except UnicodeEncodeError:  # half of a surrogate pair: SQLite would not keep it either
        return _point(text, string.encode("utf-8", "replace").decode())
    text.body, text.size, text.head = body, <uint32_t>size, 0
    for i in range(8):
        text.head = text.head << 8 | (<uint8_t>body[i] if i < size else 0)
    return string


cdef list _spells(tuple earlier, str last, object since):
    """(from_seq, name) of one user, without changes of the role alone."""
    cdef list spells = []
    for from_seq, name, _ in earlier:
        if not spells or spells[len(spells) - 1][1] != name:
            spells.append((from_seq, name))
    if not spells or spells[len(spells) - 1][1] != last:
        spells.append((since, last))
    return spells


@cython.boundscheck(False)
cdef int _compare(const void* one, const void* other) noexcept nogil:
    cdef const Text* a = <const Text*>one
    cdef const Text* b = <const Text*>other
    cdef uint32_t size
    cdef int order
    if (a.body == NULL) != (b.body == NULL):
        return -1 if a.body == NULL else 1
    if a.head != b.head:
        return -1 if a.head < b.head else 1
    if a.body != NULL:
        size = min(a.size, b.size)
        order = memcmp(a.body, b.body, size)
        if order:
            return order
        if a.size != b.size:
            return -1 if a.size < b.size else 1
    return -1 if a.then < b.then else 1


cdef bint _contains(const char* body, uint32_t size, const char* part, uint32_t part_size) noexcept nogil:
    cdef uint32_t start, i
    if part_size > size:
        return False
    for start in range(size - part_size + 1):
        i = 0
        while i < part_size and _folded(body[start + i]) == part[i]:
            i += 1
        if i == part_size:
            return True
    return False


cdef inline char _folded(char letter) noexcept nogil:
    return letter + 32 if c"A" <= letter <= c"Z" else letter
