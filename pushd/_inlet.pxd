# The inlet's layout.

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


cdef class FrameParser(WSListener):
    cdef Inlet inlet
    cdef object protocol                # picows'; None once discarded
    cdef Connection connection          # whose bytes it is parsing now
    cdef Py_ssize_t max_frame_bytes
    cdef bint is_whole                  # no part of a frame is in it
    cdef bint is_broken                 # picows has given up

    cdef int discard(self) except -1


cdef class Inlet:
    cdef int epoll
    cdef epoll_event[EVENTS] events
    cdef int filled
    cdef int cursor
    cdef list members                   # Connection or None, by descriptor
    cdef list spare                     # FrameParser or None: plain, deflated
    cdef Py_ssize_t[2] max_frame_bytes
    cdef object make
    cdef readonly double now

    cdef int _read(self, Connection connection) except -1
    cdef FrameParser _parser(self, Connection connection)
    cdef int _parse(self, Connection connection, FrameParser parser, Py_ssize_t count, Py_ssize_t room) except -1
    cdef int _put_back(self, Connection connection, FrameParser parser, int kind, Py_ssize_t room) except -1
    cdef int _keep(self, FrameParser parser, int kind, Py_ssize_t room) except -1
