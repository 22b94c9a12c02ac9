# The hub's layout. One Slot per registered connection, contiguous: fan-out walks these and touches a
# Connection only when its socket is not writable at once.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    const int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* result)


cdef inline double monotonic() noexcept nogil:
    """The loop's clock, s."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef enum:
    SHARDS = 64
    SENDS_PER_CLOCK_READING = 16
    UNFLUSHED_BEFORE_LOOKING = 128
    DIALECTS = 4      # of frames.Dialect, each deflated or not
    JOINED_BYTES = 32768   # of frames of several notices in one write
    WRITE_COST = 192  # of a write that waits, beside its payload: uvloop's entry, the head of a bytes object


cdef enum State:
    DIRECT = 0    # the transport's buffer is empty: send() straight to the descriptor
    BUFFERED = 1  # the transport holds bytes, or encrypts: everything goes behind them
    HELD = 2      # the mailbox comes first: notices wait in Connection.held
    DEAD = 3      # nothing is written any more


cdef enum Outcome:
    GONE = -1     # the connection is closing; the frame was not taken
    QUEUED = 0    # taken, but not yet by the kernel
    HANDED = 1    # the kernel has all of it


cdef struct Slot:
    PyObject* user_id   # of its Connection, which keeps it
    int fd
    uint8_t state
    uint8_t dialect
    uint8_t is_acking
    uint8_t is_guest


cdef class Connection:
    cdef object __weakref__

    # where it is
    cdef readonly Hub hub
    cdef readonly object transport      # uvloop's; None once it is lost
    cdef Py_ssize_t index               # of its Slot; -1 when not registered
    cdef int fd

    # whose it is
    cdef readonly object user_id        # model.UserId: opaque here
    cdef readonly str conn_id
    cdef readonly uint8_t dialect
    cdef uint8_t guest                  # a truth value, as the next one: what these take is in every connection
    cdef uint8_t told_changes
    cdef readonly bint is_acking
    cdef readonly bint is_secure
    cdef public object owner            # protocol.owner.Owner: hears what the client says; None once it is lost
    cdef public object details          # model.Client: what is known of the client; opaque here

    # what is read from it
    cdef object parser                  # borrowed while it is in the midst of a frame, else None
    cdef public bint is_deaf            # what it still sends is read and dropped
    cdef readonly bint is_paused        # by the reader: nothing is read

    # liveness, on the loop's clock
    cdef public double last_seen
    cdef public double expires_at       # 0: never
    cdef double ping_sent

    # what is not yet in the kernel
    cdef list held                      # [(frame, ids)] while HELD
    cdef Py_ssize_t held_bytes
    cdef list unflushed                 # [(queued_total behind the frame, ids)]
    cdef int64_t queued_total           # bytes ever given to the transport
    cdef int64_t queued_base            # the same when its buffer was empty last
    cdef int queued_writes              # since then
    cdef object drain_waiter            # a future, while somebody waits for an empty buffer

    # how it ends
    cdef public int close_code          # what was sent or received; 0 while open
    cdef double abort_at

    cdef Py_ssize_t _pending(self) except -1
    cdef Py_ssize_t _cost(self) except -1
    cdef int _emptied(self) except -1
    cdef int _queue(self, bytes frame, tuple ids) except -2
    cdef int _remember(self, int64_t end, tuple ids) except -1
    cdef list _take_handed(self)
    cdef list _take_all(self)


cdef class FanOut:
    cdef list frames                     # per dialect, encoded when the first connection needs it; b"": nothing is sent
    cdef object encode                  # what gives the frame of a dialect
    cdef tuple ids                      # message_ids: of one notice, or of all that go together; None: it is no notice
    cdef readonly bint tells_apart      # those opened with changes=1 get another frame, and some may get none
    cdef FanOut leader                  # with which it goes, or None
    cdef list followers                 # which go with it; None while none was offered
    cdef Py_ssize_t joined_bytes        # of its frame and theirs, as JSON; 0 while it was not asked for
    cdef readonly bint is_walk          # the whole array, rather than a list of users
    cdef list users
    cdef object exclude                 # a set, or None
    cdef Py_ssize_t cursor
    cdef bint is_begun
    cdef bint is_stopped
    cdef bint is_finished
    cdef tuple reached                  # (handed, waiting) when it was stopped while it went with others, else None
    cdef list handed_ids                # a user for each connection
    cdef list waiting_ids
    cdef readonly list absent
    cdef readonly Py_ssize_t sent_total
    cdef readonly Py_ssize_t guests_total

    cdef bytes _frame(self, int dialect)
    cdef bytes _frame_for(self, Connection connection)
    cdef int _rejoin(self) except -1
    cdef int _note(self, Connection connection, int outcome) except -1


cdef class Hub:
    cdef Slot* slots
    cdef Py_ssize_t size                # slots in use, dead ones included
    cdef Py_ssize_t capacity
    cdef list members                   # Connection or None, parallel to slots
    cdef list tombstones                # indexes freed while walks were under way
    cdef Py_ssize_t walks
    cdef tuple shards                   # of dict[user_id, Connection | list[Connection]], guests left out
    cdef dict closing                   # closed connections whose transport is still there, oldest first
    cdef Py_ssize_t sweep_cursor

    cdef readonly Py_ssize_t max_pending_bytes
    cdef readonly Py_ssize_t connections_total
    cdef readonly Py_ssize_t guests_total
    cdef readonly Py_ssize_t users_total
    cdef readonly Py_ssize_t told_total   # connections opened with changes=1
    cdef readonly int64_t frames_sent
    cdef readonly int64_t bytes_sent
    cdef readonly int64_t slow_consumers
    cdef public object on_handed        # (connection, [message_id]): the kernel has them now
    cdef public object on_gone          # (connection, [message_id]): closed, and these never left
    cdef public double linger_s

    cdef int _reserve(self) except -1
    cdef int _free_slot(self, Py_ssize_t index) except -1
    cdef int _compact(self) except -1
    cdef int _index_user(self, Connection connection) except -1
    cdef int _unindex_user(self, Connection connection) except -1
    cdef object _lookup(self, object user_id)
    cdef int _write(self, Connection connection, bytes frame, tuple ids, bint is_control) except -2
    cdef int _finish_direct(self, Connection connection, bytes frame, tuple ids, ssize_t sent) except -2
    cdef int _write_behind(self, Connection connection, bytes frame, tuple ids) except -2
    cdef int _hold(self, Connection connection, bytes frame, tuple ids) except -2
    cdef int _linger(self, Connection connection) except -1
    cdef int _depart(self, Connection connection) except -1
    cdef int _end_walk(self) except -1
    cdef bint _walk(self, FanOut job, double until) except -1
    cdef bint _visit_users(self, FanOut job, double until) except -1
    cdef int _deliver(self, FanOut job, Connection connection) except -1
