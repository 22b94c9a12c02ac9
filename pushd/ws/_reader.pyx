"""The reader: what clients send, a slice of it in each turn of the loop.

uvloop reads everything that is ready in one turn: 10,000 acknowledgements were one turn of 250 ms. So plain connections
stand in an epoll set of their own, whose descriptor the loop watches, and `serve` takes about half a millisecond's worth
of it (`turns.Slice` is the Python form of such a share of the loop). Their bytes do not pass through uvloop. Those of TLS
connections do, and come in by `feed`.

Between two frames a parser of picows holds nothing, and 3 KB of memory. So one serves all connections, and is lent to
a connection only from the middle of a frame to its end.

A connection may be paused: then it stands in no epoll set, and what it sends stays in the kernel. A connection that has
been closed is read from only now and then, for the CLOSE that it owes. When clients send more than can be read for
longer than a broadcast is acknowledged, the reader rests between two slices: the loop idles, and other threads get the GIL.

Everything runs on the loop's thread. Times are seconds on the loop's monotonic clock.
"""

import os
from heapq import heappop, heappush

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport Py_buffer
from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from libc.errno cimport EAGAIN, EINTR, errno
from libc.math cimport INFINITY
from libc.stdint cimport uint64_t
from libc.string cimport memcpy
from picows.picows cimport WSFrame, WSListener, WSTransport
from posix.unistd cimport close, read

from pushd._fastpath cimport Connection, monotonic
from pushd.protocol.frames import DEFLATED


cdef extern from "<sys/socket.h>" nogil:
    ssize_t socket_recv "recv"(int fd, void* data, size_t size, int flags)
    const int MSG_DONTWAIT
    const int MSG_PEEK

cdef extern from "<sys/epoll.h>" nogil:
    const int EPOLL_CLOEXEC
    const int EPOLL_CTL_ADD
    const int EPOLL_CTL_DEL
    const int EPOLL_CTL_MOD
    const unsigned int EPOLLIN
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int most, int timeout_ms)

cdef extern from "<sys/timerfd.h>" nogil:
    struct timerspec "timespec":
        long tv_sec
        long tv_nsec
    struct itimerspec:
        timerspec it_interval
        timerspec it_value
    const int CLOCK_MONOTONIC
    const int TFD_CLOEXEC
    const int TFD_NONBLOCK
    const int TFD_TIMER_ABSTIME
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int timer, int flags, const itimerspec* new, itimerspec* old)


cdef double SLICE_S = 0.0005  # of reading in one turn of the loop
cdef double SATURATED_S = 0.1  # of full slices; then there is a rest between two
cdef double REST_S = 0.0005
cdef double CLOSED_PAUSE_S = 0.02  # between two reads from a connection that owes a CLOSE
cdef int TEXT_OPCODE = 1
cdef int CLOSE_OPCODE = 8
cdef int RSV_SHIFT = 4
cdef int IS_DEFLATED = DEFLATED


cdef int _checked(int result) except -1:
    if result < 0:
        raise OSError(errno, os.strerror(errno))
    return result


cdef int _add(int epoll, int fd) except -1:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.fd = fd
    return _checked(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))


cdef class FrameParser(WSListener):
    """A parser of picows', which knows whose bytes are in it. Frames go to the connection's owner."""

    def __init__(self, Reader reader, make, Py_ssize_t max_frame_bytes):
        self.reader = reader
        self.max_frame_bytes = max_frame_bytes
        self.protocol = make(self, max_frame_bytes)
        self.checked = -1

    cdef int discard(self) except -1:
        """picows holds its listener, and nothing looks for such cycles here."""
        self.protocol = None
        return 0

    def failed(self, int code):
        """picows found a violation and goes no further; what it wants is a CLOSE with `code`.

        It looks one frame ahead, so the frame before the violation is still to come.
        """
        self.is_broken = True
        self.violation = self.violation or code

    cdef int look_ahead(self, Connection connection) except -1:
        """Refuse a text at its first bad byte, though its frame has not come whole.

        The frame begins so many bytes before the room for what is to come, its payload still masked (RFC 6455 section 5.2).
        """
        cdef Py_buffer* room
        cdef unsigned char* frame
        cdef char* piece
        cdef Py_ssize_t head, fresh, i
        view = self.protocol.get_buffer(-1)
        room = PyMemoryView_GET_BUFFER(view)
        frame = <unsigned char*>room.buf - self.pending
        if self.pending < 2 or frame[0] & 0x0F > TEXT_OPCODE:
            return 0
        head = 6 + (2 if frame[1] & 0x7F == 126 else 8 if frame[1] & 0x7F == 127 else 0)
        if self.checked < 0 and self.pending > head:
            self.checked = 0
            self.text = connection.owner.text_under_way(frame[0] & 0x0F, frame[0] & 0x70)
        if self.text is None:
            return 0
        fresh = self.pending - head - self.checked
        payload = PyBytes_FromStringAndSize(NULL, fresh)
        piece = PyBytes_AS_STRING(payload)
        for i in range(fresh):
            piece[i] = frame[head + self.checked + i] ^ frame[head - 4 + ((self.checked + i) & 3)]
        self.checked += fresh
        try:
            self.text.decode(payload)
        except UnicodeDecodeError:
            self.text = None
            connection.owner.text_failed()
        return 0

    cpdef on_ws_connected(self, WSTransport transport):
        pass

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef Connection connection = self.connection
        self.pending = frame.tail_size
        self.text = None
        self.checked = -1
        if <int>frame.msg_type == CLOSE_OPCODE:
            transport.close_handshake = None  # it has not been this parser's only connection
        if connection.owner is None or connection.is_deaf:  # lost, or it has said CLOSE
            return
        connection.last_seen = self.reader.now
        if connection.close_code == 0:
            connection.owner.receive(
                <int>frame.msg_type,
                frame.fin != 0,
                (frame.rsv1 << 2 | frame.rsv2 << 1 | frame.rsv3) << RSV_SHIFT,
                PyBytes_FromStringAndSize(frame.payload_ptr, frame.payload_size),
                self.reader.now,
            )
        if <int>frame.msg_type == CLOSE_OPCODE:
            connection.is_deaf = True
            self.reader._finish(connection)


cdef class Reader:
    """Reads for connections. `make(parser, max_frame_bytes)` gives the picows protocol that calls `parser`.

    `fileno` is readable while `serve` has something to do.
    """

    def __init__(self, make, Py_ssize_t max_frame_bytes, Py_ssize_t max_deflated_bytes):
        self.epoll = _checked(epoll_create1(EPOLL_CLOEXEC))
        self.front = _checked(epoll_create1(EPOLL_CLOEXEC))
        self.timer = _checked(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK))
        _add(self.front, self.epoll)
        _add(self.front, self.timer)
        self.make = make
        self.members = []
        self.due = []
        self.armed_at = INFINITY
        self.paused = {}
        self.rests = {}
        self.spare = [None, None]
        self.set_max_frame_bytes(max_frame_bytes, max_deflated_bytes)
        self.now = monotonic()

    def __cinit__(self):
        self.epoll = self.front = self.timer = -1

    def __dealloc__(self):
        for fd in (self.front, self.timer, self.epoll):
            if fd >= 0:
                close(fd)

    def fileno(self):
        """The descriptor of an epoll set."""
        return self.front

    def set_max_frame_bytes(self, Py_ssize_t plain, Py_ssize_t deflated):
        """The longest frame to take, from connections without and with permessage-deflate, from the next frame on."""
        self.max_frame_bytes[0] = plain
        self.max_frame_bytes[1] = deflated

    # ---- connections

    def watch(self, Connection connection not None):
        """Read what a plain connection sends, until `forget` or its end."""
        while len(self.members) <= connection.fd:
            self.members.append(None)
        _add(self.epoll, connection.fd)
        self.members[connection.fd] = connection

    def forget(self, Connection connection not None):
        """Read no more from a connection. Harmless when it is not watched."""
        cdef FrameParser parser = <FrameParser>connection.parser
        connection.parser = None
        if parser is not None and parser.connection is None:  # else it is at work, and will be seen to then
            parser.discard()
        if connection.is_paused:
            connection.is_paused = False
            del self.paused[connection]
            self.rests.pop(connection, None)
        self._unwatch(connection)

    cdef int _unwatch(self, Connection connection) except -1:
        if connection.fd < len(self.members) and self.members[connection.fd] is connection:
            self.members[connection.fd] = None
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, connection.fd, NULL)
        return 0

    # ---- pauses

    def pause(self, Connection connection not None, double until):
        """Read nothing from a connection until then, or until `resume`. Frames that have been read already still come.

        What was said last about a connection holds.
        """
        cdef double former = INFINITY
        if connection.is_closing():
            return
        if connection.is_paused:
            former = self.paused[connection]
        else:
            connection.is_paused = True
            if connection.is_secure:
                connection.transport.pause_reading()
            else:
                self._unwatch(connection)
        self.paused[connection] = until
        if until < former:
            self._push(connection, until)

    def resume(self, Connection connection not None):
        """Read on from a connection. Harmless when it is not paused."""
        if not connection.is_paused:
            return
        connection.is_paused = False
        del self.paused[connection]
        rest = self.rests.pop(connection, None)
        if connection.is_closing():
            return
        connection.last_seen = self.now = monotonic()
        if rest is not None:
            self.feed(connection, rest)
        if connection.is_paused or connection.is_closing():
            return
        if connection.is_secure:
            connection.transport.resume_reading()
        else:
            self.watch(connection)

    cdef int _push(self, Connection connection, double until) except -1:
        self.pauses_total += 1
        heappush(self.due, (until, self.pauses_total, connection))
        return self._arm(until)

    cdef int _arm(self, double at) except -1:
        """Have the timer end then, or earlier."""
        cdef itimerspec ends
        if at >= self.armed_at:
            return 0
        ends.it_interval.tv_sec = ends.it_interval.tv_nsec = 0
        ends.it_value.tv_sec = <long>at
        ends.it_value.tv_nsec = min(<long>((at - ends.it_value.tv_sec) * 1e9) + 1, 999_999_999)  # 0 would disarm it
        _checked(timerfd_settime(self.timer, TFD_TIMER_ABSTIME, &ends, NULL))
        self.armed_at = at
        return 0

    cdef int _resume_due(self, double slice_ends) except -1:
        """The timer has ended: read on from those whose pause is over; those beyond the slice in the next turn."""
        cdef uint64_t endings
        cdef double until
        read(self.timer, &endings, sizeof(endings))
        self.armed_at = INFINITY
        while self.due and self.due[0][0] <= self.now < slice_ends:
            connection = heappop(self.due)[2]
            until = self.paused.get(connection, 0.0)
            if until > self.now:
                if until != INFINITY:
                    self._push(<Connection>connection, until)
            else:
                self.resume(connection)
            self.now = monotonic()
        return self._arm(self.due[0][0]) if self.due else 0

    # ---- bytes

    def serve(self):
        """Read from those who have sent something, for about SLICE_S; the rest is left to the next call."""
        cdef double slice_ends
        self.now = monotonic()
        slice_ends = self.now + SLICE_S
        if self.now >= self.armed_at:
            self._resume_due(slice_ends)
        if self.is_resting:
            if self.now < self.rests_until:
                self._arm(self.rests_until)
                return
            self.is_resting = False
            self._watch_set(EPOLLIN)
        if not self._read_slice(slice_ends):
            self.busy_since = 0
        elif self.busy_since == 0:
            self.busy_since = self.now
        elif self.now - self.busy_since > SATURATED_S:
            self.is_resting = True
            self.rests_until = self.now + REST_S
            self._watch_set(0)
            self._arm(self.rests_until)

    cdef int _watch_set(self, unsigned int events) except -1:
        cdef epoll_event event
        event.events = events
        event.data.fd = self.epoll
        _checked(epoll_ctl(self.front, EPOLL_CTL_MOD, self.epoll, &event))
        return 0

    cdef int _read_slice(self, double slice_ends) except -1:
        """1 when there may be more."""
        while True:
            if self.cursor >= self.filled:
                self.cursor = 0
                self.filled = epoll_wait(self.epoll, self.events, EVENTS, 0)
                if self.filled <= 0:
                    return 0
            while self.cursor < self.filled:
                member = self.members[self.events[self.cursor].data.fd]
                self.cursor += 1
                if member is not None:
                    self._read(<Connection>member)
                    self.now = monotonic()
                    if self.now >= slice_ends:
                        return 1
            if self.filled < EVENTS:
                return 0

    def feed(self, Connection connection not None, bytes data not None):
        """Take bytes of a connection that came some other way. What takes longer than a slice waits."""
        cdef Py_ssize_t start = 0
        cdef Py_ssize_t count
        cdef Py_buffer* room
        cdef FrameParser parser
        cdef double until
        self.now = monotonic()
        until = self.now + SLICE_S
        while start < PyBytes_GET_SIZE(data) and not connection.is_deaf and connection.transport is not None:
            if connection.is_paused or self.now >= until:
                self._set_aside(connection, data[start:])
                return
            parser = self._parser(connection)
            view = parser.protocol.get_buffer(-1)
            room = PyMemoryView_GET_BUFFER(view)
            count = min(room.len, READ_MOST if parser.pending >= READ_LITTLE else READ_LITTLE, PyBytes_GET_SIZE(data) - start)
            memcpy(room.buf, PyBytes_AS_STRING(data) + start, count)
            start += count
            self._parse(connection, parser, count, room.len)
            self.now = monotonic()
        if connection.close_code != 0:
            self.pause(connection, self.now + CLOSED_PAUSE_S)

    cdef int _set_aside(self, Connection connection, bytes rest) except -1:
        if not connection.is_paused:
            self.pause(connection, self.now)
        if connection.is_paused:
            self.rests[connection] = self.rests.get(connection, b"") + rest
        return 0

    cdef int _finish(self, Connection connection) except -1:
        """Both sides have said CLOSE.

        A socket that is closed with bytes unread sends a reset, which can overtake our CLOSE: then only our side of the
        stream ends here, and what the client sends is dropped until it ends its own.
        """
        cdef char byte
        if connection.transport is None:
            return 0
        if not connection.is_secure and socket_recv(connection.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0:
            if not connection.transport.is_closing():
                connection.transport.write_eof()
        else:
            connection.finish()
        return 0

    cdef int _read(self, Connection connection) except -1:
        cdef char[READ_MOST] dropped
        cdef FrameParser parser = None
        cdef Py_buffer* room = NULL
        cdef ssize_t count
        cdef int failure
        if connection.is_deaf:
            count = socket_recv(connection.fd, dropped, sizeof(dropped), MSG_DONTWAIT)
        else:
            parser = self._parser(connection)
            view = parser.protocol.get_buffer(-1)
            room = PyMemoryView_GET_BUFFER(view)
            count = min(room.len, READ_MOST if parser.pending >= READ_LITTLE else READ_LITTLE)
            count = socket_recv(connection.fd, room.buf, count, MSG_DONTWAIT)
        failure = errno
        if connection.transport is None or connection.transport.is_closing():
            self.forget(connection)
        elif count > 0:
            if parser is not None:
                self._parse(connection, parser, count, room.len)
            if connection.close_code != 0:
                self.pause(connection, self.now + CLOSED_PAUSE_S)
        elif count == 0:
            self.forget(connection)
            connection.transport.close()
        elif failure != EAGAIN and failure != EINTR:
            self.forget(connection)
            connection.transport.abort()
        return 0

    cdef FrameParser _parser(self, Connection connection):
        """The parser that the connection has borrowed, or the one for all."""
        cdef int kind = (connection.dialect & IS_DEFLATED) != 0
        cdef FrameParser parser = <FrameParser>connection.parser
        if parser is not None:
            return parser
        parser = <FrameParser>self.spare[kind]
        if parser is None or parser.max_frame_bytes != self.max_frame_bytes[kind]:
            if parser is not None:
                parser.discard()
            parser = self.spare[kind] = FrameParser(self, self.make, self.max_frame_bytes[kind])
        return parser

    cdef int _parse(self, Connection connection, FrameParser parser, Py_ssize_t count, Py_ssize_t room) except -1:
        """`count` bytes are in the parser's buffer, which had `room`: take the frames out, and see whose it is then."""
        cdef int kind = (connection.dialect & IS_DEFLATED) != 0
        parser.connection = connection
        parser.pending += count
        try:
            parser.protocol.buffer_updated(count)
            if connection.owner is not None and not connection.is_deaf:
                if parser.violation != 0:
                    connection.owner.protocol_failed(parser.violation)
                elif parser.pending != 0 and connection.close_code == 0:
                    parser.look_ahead(connection)
        except BaseException:
            parser.is_broken = True
            self._put_back(connection, parser, kind, room)
            raise
        return self._put_back(connection, parser, kind, room)

    cdef int _put_back(self, Connection connection, FrameParser parser, int kind, Py_ssize_t room) except -1:
        parser.connection = None
        if parser.pending == 0 and not parser.is_broken:
            connection.parser = None
            return self._keep(parser, kind, room)
        if self.spare[kind] is parser:
            self.spare[kind] = None
        if parser.is_broken or connection.owner is None:
            connection.parser = None
            parser.discard()
        else:
            connection.parser = parser
        return 0

    cdef int _keep(self, FrameParser parser, int kind, Py_ssize_t room) except -1:
        """For all, unless there is one, or its read buffer has grown: picows' never shrink."""
        if self.spare[kind] is parser:
            if room <= KEPT_BYTES:
                return 0
            self.spare[kind] = None
        elif self.spare[kind] is None and len(parser.protocol.get_buffer(-1)) <= KEPT_BYTES:
            self.spare[kind] = parser
            return 0
        return parser.discard()
