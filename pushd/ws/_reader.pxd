# The reader's layout.

from libc.stdint cimport uint32_t
from picows.picows cimport WSFrame, WSListener, WSTransport

from pushd._fastpath cimport Connection

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data


cdef enum:
    EVENTS = 128           # asked for at a time
    KEPT_BYTES = 16384     # of read buffer: a parser that has grown beyond is not kept for others
    READ_MOST = 16384      # bytes at a time in the midst of a long frame, however large the buffer
    READ_LITTLE = 2048     # and else: all frames in it are heard, though the first one may end in a pause


cdef class FrameParser(WSListener):
    cdef Reader reader
    cdef object protocol                # picows'; None once discarded
    cdef Connection connection          # whose bytes it is parsing now
    cdef Py_ssize_t max_frame_bytes
    cdef Py_ssize_t pending             # bytes in it of a frame that has not come whole
    cdef object text                    # an incremental decoder, which has seen `checked` bytes of that frame's payload
    cdef Py_ssize_t checked             # -1: the frame has not been looked at
    cdef bint is_broken                 # picows has given up
    cdef int violation                  # with what code

    cdef int discard(self) except -1
    cdef int look_ahead(self, Connection connection) except -1


cdef class Reader:
    cdef int epoll                      # connections
    cdef int front                      # what the loop watches: `epoll`, unless it rests, and `timer`
    cdef epoll_event[EVENTS] events
    cdef int filled
    cdef int cursor
    cdef list members                   # Connection or None, by descriptor
    cdef list spare                     # FrameParser or None: plain, deflated
    cdef Py_ssize_t[2] max_frame_bytes
    cdef object make
    cdef readonly double now
    cdef double busy_since              # slices have been full; 0: the last one was not
    cdef double rests_until
    cdef bint is_resting
    cdef int timer                      # for the first of `due`, and the end of a rest
    cdef double armed_at
    cdef list due                       # heap of (when, number, Connection)
    cdef Py_ssize_t pauses_total
    cdef dict paused                    # until when, by Connection
    cdef dict rests                     # bytes that came by TLS and wait, by Connection

    cdef int _unwatch(self, Connection connection) except -1
    cdef int _push(self, Connection connection, double until) except -1
    cdef int _arm(self, double at) except -1
    cdef int _watch_set(self, unsigned int events) except -1
    cdef int _read_slice(self, double slice_ends) except -1
    cdef int _resume_due(self, double slice_ends) except -1
    cdef int _set_aside(self, Connection connection, bytes rest) except -1
    cdef int _finish(self, Connection connection) except -1
    cdef int _read(self, Connection connection) except -1
    cdef FrameParser _parser(self, Connection connection)
    cdef int _parse(self, Connection connection, FrameParser parser, Py_ssize_t count, Py_ssize_t room) except -1
    cdef int _put_back(self, Connection connection, FrameParser parser, int kind, Py_ssize_t room) except -1
    cdef int _keep(self, FrameParser parser, int kind, Py_ssize_t room) except -1
