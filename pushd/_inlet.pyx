"""The inlet: what clients send, a slice of it in each turn of the loop.

uvloop reads everything that is ready in one turn: 10,000 acknowledgements were one turn of 250 ms. So plain connections
stand in an epoll set of their own, whose descriptor the loop watches, and `serve` takes about half a millisecond's worth
of it. Their bytes do not pass through uvloop. Those of TLS connections do, and come in by `feed`.

Between two frames a parser of picows holds nothing, and 3 KB of memory. So one serves all connections, and is lent to
a connection only from the middle of a frame to its end.

Everything runs on the loop's thread. Times are seconds on the loop's monotonic clock.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport Py_buffer
from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memcpy
from picows.picows cimport WSFrame, WSListener, WSTransport
from posix.unistd cimport close

from pushd._fastpath cimport Connection, monotonic
from pushd.wire import DEFLATED


cdef extern from "<sys/socket.h>" nogil:
    ssize_t socket_recv "recv"(int fd, void* data, size_t size, int flags)
    const int MSG_DONTWAIT

cdef extern from "<sys/epoll.h>" nogil:
    const int EPOLL_CLOEXEC
    const int EPOLL_CTL_ADD
    const int EPOLL_CTL_DEL
    const unsigned int EPOLLIN
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int most, int timeout_ms)


cdef double SLICE_S = 0.0005  # of reading in one turn of the loop
cdef int CLOSE_OPCODE = 8
cdef int RSV_SHIFT = 4
cdef int IS_DEFLATED = DEFLATED


cdef class FrameParser(WSListener):
    """A parser of picows', and whose bytes are in it. Frames go to `Connection.owner.receive`."""

    def __init__(self, Inlet inlet, make, Py_ssize_t max_frame_bytes):
        self.inlet = inlet
        self.max_frame_bytes = max_frame_bytes
        self.protocol = make(self, max_frame_bytes)
        self.is_whole = True

    cdef int discard(self) except -1:
        """picows holds its listener, and nothing looks for such cycles here."""
        self.protocol = None
        return 0

    def failed(self, int code):
        """picows found a violation and goes no further; what it wants is a CLOSE with `code`."""
        self.is_broken = True
        if self.connection is not None and self.connection.owner is not None:
            self.connection.owner.protocol_failed(code)

    cpdef on_ws_connected(self, WSTransport transport):
        pass

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef Connection connection = self.connection
        self.is_whole = frame.tail_size == 0
        if <int>frame.msg_type == CLOSE_OPCODE:
            transport.close_handshake = None  # it has not been this parser's only connection
        if connection.owner is None:  # lost
            return
        connection.last_seen = self.inlet.now
        if connection.close_code == 0:
            connection.owner.receive(
                <int>frame.msg_type,
                frame.fin != 0,
                (frame.rsv1 << 2 | frame.rsv2 << 1 | frame.rsv3) << RSV_SHIFT,
                PyBytes_FromStringAndSize(frame.payload_ptr, frame.payload_size),
                self.inlet.now,
            )
        elif <int>frame.msg_type == CLOSE_OPCODE:
            connection.finish()


cdef class Inlet:
    """Reads for connections. `make(parser, max_frame_bytes)` gives the picows protocol that calls `parser`.

    `fileno` is readable while `serve` has something to do.
    """

    def __init__(self, make, Py_ssize_t max_frame_bytes, Py_ssize_t max_deflated_bytes):
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self.make = make
        self.members = []
        self.spare = [None, None]
        self.set_max_frame_bytes(max_frame_bytes, max_deflated_bytes)
        self.now = monotonic()

    def __dealloc__(self):
        if self.epoll >= 0:
            close(self.epoll)

    def fileno(self):
        """The descriptor of the epoll set."""
        return self.epoll

    def set_max_frame_bytes(self, Py_ssize_t plain, Py_ssize_t deflated):
        """The longest frame to take, from connections without and with permessage-deflate, from the next frame on."""
        self.max_frame_bytes[0] = plain
        self.max_frame_bytes[1] = deflated

    # ---- connections

    def watch(self, Connection connection not None):
        """Read what a plain connection sends, until `forget` or its end."""
        cdef epoll_event event
        while len(self.members) <= connection.fd:
            self.members.append(None)
        event.events = EPOLLIN
        event.data.fd = connection.fd
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, connection.fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        self.members[connection.fd] = connection

    def forget(self, Connection connection not None):
        """Read no more from it. Harmless when it is not watched."""
        cdef FrameParser parser = <FrameParser>connection.parser
        connection.parser = None
        if parser is not None and parser.connection is None:  # else it is at work, and will be seen to then
            parser.discard()
        if connection.fd < len(self.members) and self.members[connection.fd] is connection:
            self.members[connection.fd] = None
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, connection.fd, NULL)

    # ---- bytes

    def serve(self):
        """Read from those who have sent something, for about SLICE_S; the others' turn comes with the next call."""
        cdef double until
        self.now = monotonic()
        until = self.now + SLICE_S
        while True:
            if self.cursor >= self.filled:
                self.cursor = 0
                self.filled = epoll_wait(self.epoll, self.events, EVENTS, 0)
                if self.filled <= 0:
                    return
            while self.cursor < self.filled:
                member = self.members[self.events[self.cursor].data.fd]
                self.cursor += 1
                if member is not None:
                    self._read(<Connection>member)
                    self.now = monotonic()
                    if self.now >= until:
                        return
            if self.filled < EVENTS:
                return

    def feed(self, Connection connection not None, bytes data not None):
        """Bytes of a connection that came some other way."""
        cdef Py_ssize_t start = 0
        cdef Py_ssize_t count
        cdef Py_buffer* room
        cdef FrameParser parser
        self.now = monotonic()
        while start < PyBytes_GET_SIZE(data) and not connection.is_deaf and connection.transport is not None:
            parser = self._parser(connection)
            view = parser.protocol.get_buffer(-1)
            room = PyMemoryView_GET_BUFFER(view)
            count = min(room.len, PyBytes_GET_SIZE(data) - start)
            memcpy(room.buf, PyBytes_AS_STRING(data) + start, count)
            start += count
            self._parse(connection, parser, count, room.len)

    cdef int _read(self, Connection connection) except -1:
        cdef FrameParser parser = self._parser(connection)
        cdef Py_buffer* room
        cdef ssize_t count
        cdef int failure
        view = parser.protocol.get_buffer(-1)
        room = PyMemoryView_GET_BUFFER(view)
        count = socket_recv(connection.fd, room.buf, room.len, MSG_DONTWAIT)
        failure = errno
        if connection.transport is None or connection.transport.is_closing():
            self.forget(connection)
        elif count > 0:
            if not connection.is_deaf:
                self._parse(connection, parser, count, room.len)
        elif count == 0:
            self.forget(connection)
            connection.transport.close()
        elif failure != EAGAIN and failure != EINTR:
            self.forget(connection)
            connection.transport.abort()
        return 0

    cdef FrameParser _parser(self, Connection connection):
        """The one it has borrowed, or the one for all."""
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
        parser.is_whole = False
        try:
            parser.protocol.buffer_updated(count)
        except BaseException:
            parser.is_broken = True
            self._put_back(connection, parser, kind, room)
            raise
        return self._put_back(connection, parser, kind, room)

    cdef int _put_back(self, Connection connection, FrameParser parser, int kind, Py_ssize_t room) except -1:
        parser.connection = None
        if parser.is_whole and not parser.is_broken:
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
