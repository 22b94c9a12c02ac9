"""The hub: every live connection of this node, and every byte written to one.

Connections are split into shards by user id for look-up, and stand in one contiguous array for broadcasts.
A frame is encoded once and written with send(2) to each descriptor; only what the kernel does not
take goes through uvloop's transport.

Everything runs on the loop's thread. Times are seconds on the loop's monotonic clock.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject, PyObject_Hash
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc

from pushd.errors import CloseCode
from pushd.protocol.frames import PING_FRAME, close_frame

cdef extern from "<sys/socket.h>" nogil:
    ssize_t socket_send "send"(int fd, const void* data, size_t size, int flags)
    const int MSG_DONTWAIT
    const int MSG_MORE
    const int MSG_NOSIGNAL


cdef int SLOW_CONSUMER = CloseCode.SLOW_CONSUMER
cdef uint64_t SPREAD = 0x9E3779B97F4A7C15
cdef int64_t NEVER = INT64_MAX  # where a frame ends that is not written


cdef ssize_t try_send(int fd, const char* data, Py_ssize_t size) noexcept nogil:
    """Bytes the kernel took now, 0 when it takes none, -1 when the socket is broken."""
    cdef ssize_t sent = socket_send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        return 0 if errno == EAGAIN or errno == EINTR else -1
    return sent


cdef class Connection:
    """One live WebSocket, and what uvloop calls for it: the transport's protocol.

    `owner` (protocol.owner) hears what its client says; `details` (model.Client) is what is known of the client.
    """

    def __init__(
        self,
        Hub hub,
        transport,
        *,
        user_id,
        str conn_id,
        int dialect,
        bint is_acking,
        double now,
        details,
        bint is_told_changes=False,
        bint is_guest=False,
    ):
        self.hub = hub
        self.transport = transport
        self.index = -1
        self.fd = transport.get_extra_info("socket").fileno()
        self.is_secure = transport.get_extra_info("ssl_object") is not None
        self.user_id = user_id
        self.conn_id = conn_id
        self.dialect = dialect
        self.is_acking = is_acking
        self.told_changes = is_told_changes
        self.guest = is_guest
        self.last_seen = now
        self.details = details
        # An empty buffer is then announced by resume_writing: the moment all of it is in the kernel.
        transport.set_write_buffer_limits(high=1 if self.is_secure else 0, low=0)

    @property
    def is_guest(self):
        """True for a connection without an account."""
        return self.guest != 0

    @property
    def is_told_changes(self):
        """True where it was opened with changes=1."""
        return self.told_changes != 0

    @property
    def is_registered(self):
        """True while notices are delivered to it."""
        return self.index >= 0

    @property
    def pending_bytes(self):
        """Bytes accepted for this connection that the kernel does not have yet."""
        return self._pending()

    @property
    def unsent_bytes(self):
        """Those of the pending bytes that are in the transport."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    @property
    def cost(self):
        """About what the pending bytes take in memory: it is this that `max_pending_bytes` bounds."""
        return self._cost()

    def begin(self, bytes head not None):
        """Write the handshake's answer; the kernel keeps it for the frame that follows, 200 ms at most (tcp(7))."""
        cdef ssize_t sent = 0
        if not self.is_secure and self.transport.get_write_buffer_size() == 0:
            sent = max(0, socket_send(self.fd, <char*>head, len(head), MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE))
        if sent < len(head):  # where it failed, the transport finds out why
            self.transport.write(head[sent:])

    cdef Py_ssize_t _pending(self) except -1:
        if self.transport is None:
            return 0
        return self.held_bytes + <Py_ssize_t>self.transport.get_write_buffer_size()

    cdef Py_ssize_t _cost(self) except -1:
        """Of the writes since the buffer was empty, those that wait are taken to be of average size."""
        cdef Py_ssize_t unsent, writes
        cdef int64_t queued
        if self.transport is None:
            return 0
        unsent = <Py_ssize_t>self.transport.get_write_buffer_size()
        queued = self.queued_total - self.queued_base
        writes = self.queued_writes if unsent >= queued else <Py_ssize_t>(self.queued_writes * <int64_t>unsent // queued)
        if self.held is not None:
            writes += len(self.held)
        return self.held_bytes + unsent + writes * WRITE_COST

    cdef int _emptied(self) except -1:
        """The transport's buffer is empty."""
        self.queued_base = self.queued_total
        self.queued_writes = 0
        return 0

    cdef int _queue(self, bytes frame, tuple ids) except -2:
        """Give bytes to the transport; QUEUED when some of them stay there."""
        self.queued_total += PyBytes_GET_SIZE(frame)
        self.transport.write(frame)
        if self.transport.is_closing():
            self._remember(self.queued_total, ids)
            return GONE
        if self.transport.get_write_buffer_size() == 0:
            self._emptied()
            return HANDED
        self.queued_writes += 1
        self._remember(self.queued_total, ids)
        return QUEUED

    cdef int _remember(self, int64_t end, tuple ids) except -1:
        if ids is None:
            return 0
        if self.unflushed is None:
            self.unflushed = []
        self.unflushed.append((end, ids))
        return 0

    cdef list _take_handed(self):
        """Ids of queued notices that are in the kernel by now."""
        cdef int64_t handed_total
        cdef list unflushed = self.unflushed
        if unflushed is None or self.transport.is_closing():
            return []
        handed_total = self.queued_total - <int64_t>self.transport.get_write_buffer_size()
        self.unflushed = [entry for entry in unflushed if entry[0] > handed_total] or None
        return [message_id for end, ids in unflushed if end <= handed_total for message_id in ids]

    cdef list _take_all(self):
        """Ids of all notices that were queued or held and are not known to be in the kernel."""
        cdef list entries = (self.unflushed or []) + (self.held or [])
        self.unflushed = self.held = None
        self.held_bytes = 0
        return [message_id for _, ids in entries if ids is not None for message_id in ids]

    def drained(self, loop):
        """A future that is done when the transport's buffer is empty or the connection closed."""
        if self.drain_waiter is None:
            self.drain_waiter = loop.create_future()
            if self.transport is None or self.transport.get_write_buffer_size() == 0:
                self._wake()
        return self.drain_waiter if self.drain_waiter is not None else _done(loop)

    def _wake(self):
        waiter, self.drain_waiter = self.drain_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ---- what uvloop tells

    def data_received(self, data):
        """Give bytes to the owner that came by TLS."""
        if self.owner is not None:
            self.owner.data_received(data)

    def eof_received(self):
        """Have the transport close itself."""
        return False

    def pause_writing(self):
        """The transport holds bytes: the hub knows, it looks at the buffer itself."""

    def resume_writing(self):
        """Report what was queued: the buffer ran empty, so all of it is in the kernel."""
        cdef list handed
        if self.transport is None:
            return
        if self.index >= 0 and self.hub.slots[self.index].state == BUFFERED and not self.is_secure:
            self.hub.slots[self.index].state = DIRECT
        self._emptied()
        handed = self._take_handed()
        if handed:
            self.hub.on_handed(self, handed)
        self._wake()

    def connection_lost(self, error):
        """The transport is about to close its descriptor."""
        owner, self.owner = self.owner, None
        self.hub._depart(self)
        self.hub.closing.pop(self, None)
        self._wake()
        self.transport = None
        if owner is not None:
            owner.lost()

    # ---- how it ends

    def is_closing(self):
        """True when the transport is closing or gone."""
        return self.transport is None or self.transport.is_closing()

    def finish(self):
        """Flush and disconnect: both sides have said CLOSE."""
        if self.transport is not None:
            self.transport.close()

    def abort(self):
        """Disconnect at once; what is unsent is lost."""
        if self.transport is not None:
            self.transport.abort()


def _done(loop):
    future = loop.create_future()
    future.set_result(None)
    return future


cdef class FanOut:
    """One notice on its way to many connections; `Hub.advance` takes it further slice by slice.

    `encode(dialect)` gives the complete WebSocket frame and is called for each dialect in use. With
    `users` None the whole array is walked. `exclude` is a set of user ids or None.

    With `tells_apart`, which is for lists of users, `encode` is called with TOLD_CHANGES added for connections opened
    with changes=1, and may say None: these get nothing. Without a `message_id` nobody acknowledges what is sent.
    """

    def __init__(self, str message_id, encode, list users=None, exclude=None, *, bint tells_apart=False):
        self.ids = None if message_id is None else (message_id,)
        self.frames = [None] * (2 * DIALECTS if tells_apart else DIALECTS)
        self.tells_apart = tells_apart
        self.encode = encode
        self.users = users
        self.is_walk = users is None
        self.exclude = exclude or None
        self.absent = []
        self.handed_ids = []
        self.waiting_ids = []

    @property
    def handed(self):
        """Users for whom the kernel took the frame on a connection that does not acknowledge."""
        if self.reached is not None:
            return self.reached[0]
        return list(dict.fromkeys((self if self.leader is None else self.leader).handed_ids))

    @property
    def waiting(self):
        """Users who must acknowledge, or whose kernel has not taken the frame yet."""
        if self.reached is not None:
            return self.reached[1]
        return list(dict.fromkeys((self if self.leader is None else self.leader).waiting_ids))

    def absorb(self, FanOut other not None):
        """Take another one to the same connections along, its frames behind one's own in every write.

        False when that cannot be. What comes of it is asked of `other` as if it had gone by itself.
        """
        if self.is_begun or other.is_begun or other.followers or self.is_stopped or other.is_stopped:
            return False
        if self.tells_apart or other.tells_apart:
            return False
        if self.users != other.users or self.exclude != other.exclude:
            return False
        if self.followers is None:
            self._frame(1)
            self.joined_bytes = PyBytes_GET_SIZE(self._frame(0))
            self.followers = []
        other._frame(1)  # one that cannot be encoded raises here, and goes by itself
        if self.joined_bytes + PyBytes_GET_SIZE(other._frame(0)) > JOINED_BYTES:
            return False
        self.joined_bytes += PyBytes_GET_SIZE(other._frame(0))
        self.ids += other.ids
        self.followers.append(other)
        self.frames = [None] * DIALECTS
        other.leader, other.absent = self, self.absent
        return True

    def stop(self):
        """Reach nobody else. Who has been reached stays in `handed` and `waiting`; those it went with go on."""
        cdef FanOut leader = self if self.leader is None else self.leader
        if self.is_stopped or self.is_finished or leader.is_finished:
            return
        if self.leader is not None or self.followers:
            self.reached = (self.handed, self.waiting)
        self.is_stopped = True
        if leader is not self:
            leader.followers.remove(self)
        leader._rejoin()

    cdef int _rejoin(self) except -1:
        """One of those that go together was stopped."""
        cdef list alive = ([] if self.is_stopped else [self]) + (self.followers or [])
        if len(alive) == 0:
            return 0  # the next slice ends it
        self.frames = [None] * len(self.frames)
        if self.followers is not None:
            self.ids = (self.ids[0],) if not self.is_stopped else ()
            for other in self.followers:
                self.ids += (<FanOut>other).ids
        return 0

    cdef bytes _frame(self, int dialect):
        frame = self.frames[dialect]
        if frame is None:
            frame = b"" if self.is_stopped else self.encode(dialect)
            if type(frame) is not bytes:
                raise TypeError("a frame is bytes")
            if self.followers:
                frame = b"".join([frame, *[(<FanOut>other)._frame(dialect) for other in self.followers]])
            self.frames[dialect] = frame
        return <bytes>frame

    cdef bytes _frame_for(self, Connection connection):
        """With `tells_apart`; b"": nothing."""
        cdef int kind = connection.dialect + (DIALECTS if connection.told_changes else 0)
        frame = self.frames[kind]
        if frame is None:
            frame = self.frames[kind] = self.encode(kind) or b""
        return <bytes>frame

    cdef int _note(self, Connection connection, int outcome) except -1:
        if outcome != GONE:
            self.sent_total += 1
        if connection.guest:
            self.guests_total += outcome != GONE
        elif outcome == HANDED and not connection.is_acking:
            self.handed_ids.append(connection.user_id)
        else:
            self.waiting_ids.append(connection.user_id)
        return 0


cdef inline Py_ssize_t shard_of(object user_id) except -1:
    """By the upper bits of the hash times 2**64 / phi: the shard's dict goes by the lower ones."""
    return <Py_ssize_t>((<uint64_t>PyObject_Hash(user_id) * SPREAD) >> 58)


cdef inline Py_ssize_t frames_in(tuple ids):
    """How many frames one write carries: replayed notices are joined, one id each."""
    return 1 if ids is None or len(ids) == 0 else len(ids)


cdef class Hub:
    """The registry of connections. `on_handed` and `on_gone` are called synchronously; set them before use."""

    def __init__(self, Py_ssize_t max_pending_bytes, double linger_s=2.0):
        self.members = []
        self.tombstones = []
        self.shards = tuple([{} for _ in range(SHARDS)])
        self.closing = {}
        self.max_pending_bytes = max_pending_bytes
        self.linger_s = linger_s
        self.on_handed = self.on_gone = _ignore

    def __dealloc__(self):
        free(self.slots)

    @property
    def max_frame_bytes(self):
        """The largest frame that is taken for a connection with nothing else pending."""
        return self.max_pending_bytes - WRITE_COST

    def set_max_pending_bytes(self, Py_ssize_t value):
        """A changed limit holds from the next write."""
        self.max_pending_bytes = value

    # ---- registry

    def add(self, Connection connection not None):
        """Register. Notices for it are held back until `release`."""
        cdef Slot* slot
        if connection.index >= 0 or connection.close_code != 0 or connection.transport is None:
            raise ValueError("the connection is registered or closed already")
        if connection.hub is not self:
            raise ValueError("the connection was made for another hub")
        self._reserve()
        connection.index = self.size
        slot = &self.slots[self.size]
        slot.user_id = <PyObject*>connection.user_id
        slot.fd = connection.fd
        slot.state = HELD
        slot.dialect = connection.dialect
        slot.is_acking = connection.is_acking
        slot.is_guest = connection.guest
        self.members.append(connection)
        self.size += 1
        self.connections_total += 1
        self.told_total += connection.told_changes
        self._index_user(connection)

    cdef int _reserve(self) except -1:
        cdef Slot* slots
        cdef Py_ssize_t capacity
        if self.size < self.capacity:
            return 0
        capacity = max(1024, 2 * self.capacity)
        slots = <Slot*>realloc(self.slots, capacity * sizeof(Slot))
        if slots == NULL:
            raise MemoryError()
        self.slots = slots
        self.capacity = capacity
        return 0

    cdef int _index_user(self, Connection connection) except -1:
        cdef dict shard
        if connection.guest:
            self.guests_total += 1
            return 0
        shard = <dict>self.shards[shard_of(connection.user_id)]
        present = shard.get(connection.user_id)
        if present is None:
            shard[connection.user_id] = connection
            self.users_total += 1
        elif isinstance(present, list):
            (<list>present).append(connection)
        else:
            shard[connection.user_id] = [present, connection]
        return 0

    cdef int _unindex_user(self, Connection connection) except -1:
        cdef dict shard
        if connection.guest:
            self.guests_total -= 1
            return 0
        shard = <dict>self.shards[shard_of(connection.user_id)]
        present = shard[connection.user_id]
        if isinstance(present, list):
            (<list>present).remove(connection)
            if len(<list>present) == 1:
                shard[connection.user_id] = (<list>present)[0]
        else:
            del shard[connection.user_id]
            self.users_total -= 1
        return 0

    cdef object _lookup(self, object user_id):
        return (<dict>self.shards[shard_of(user_id)]).get(user_id)

    def connections_of(self, user_id):
        """The user's connections, oldest first."""
        present = self._lookup(user_id)
        if present is None:
            return []
        return list(<list>present) if isinstance(present, list) else [present]

    def only_connection(self, user_id):
        """The connection of a user who has one; None for who has none or several."""
        present = self._lookup(user_id)
        return None if isinstance(present, list) else present

    def has_user(self, user_id):
        """True while the user has a connection that notices can be sent to."""
        return self._lookup(user_id) is not None

    def has_acking(self, user_id):
        """True while the user has a connection that acknowledges."""
        return any(connection.is_acking for connection in self.connections_of(user_id))

    def user_ids(self):
        """Ids of the connected users, guests left out."""
        return [user_id for shard in self.shards for user_id in shard]

    def snapshot(self):
        """Every registered connection."""
        return [member for member in self.members if member is not None]

    cdef int _free_slot(self, Py_ssize_t index) except -1:
        """Mark a slot dead; the array closes the gap when no walk could miss who is moved into it."""
        self.slots[index].state = DEAD
        self.members[index] = None
        self.tombstones.append(index)
        if self.walks == 0:
            self._compact()
        return 0

    cdef int _compact(self) except -1:
        cdef Py_ssize_t index, last
        cdef Connection moved
        for index in sorted(self.tombstones, reverse=True):
            last = self.size - 1
            if index != last:
                moved = <Connection>self.members[last]
                self.slots[index] = self.slots[last]
                self.members[index] = moved
                moved.index = index
            self.members.pop()
            self.size = last
        self.tombstones.clear()
        return 0

    cdef int _depart(self, Connection connection) except -1:
        """Stop delivering to a connection and say what it got and never got. Harmless when done already."""
        cdef list handed
        if connection.index < 0:
            return 0
        self._free_slot(connection.index)
        connection.index = -1
        self._unindex_user(connection)
        self.connections_total -= 1
        self.told_total -= connection.told_changes
        handed = connection._take_handed()
        if handed:
            self.on_handed(connection, handed)
        self.on_gone(connection, connection._take_all())
        return 0

    # ---- writing to one connection

    def send(self, Connection connection not None, bytes frame not None, tuple ids=None):
        """Write a control frame or replayed notices, past anything held back. True unless the connection is gone.

        With `ids`, `on_handed` is called when the kernel has it all: possibly before this returns.
        """
        cdef int outcome = self._write(connection, frame, ids, True)
        if outcome == HANDED and ids is not None:
            self.on_handed(connection, list(ids))
        return outcome != GONE

    def deliver(self, Connection connection not None, bytes frame not None, tuple ids not None):
        """Write a notice, as `advance` does: True when the kernel has all of it, False while it waits, None when the
        connection is gone, of which `on_gone` has been told."""
        cdef int outcome = self._write(connection, frame, ids, False)
        return None if outcome == GONE else outcome == HANDED

    def release(self, Connection connection not None):
        """Write what was held back while the mailbox came first; from now on notices are written as they come."""
        cdef list handed = []
        if connection.index < 0 or self.slots[connection.index].state != HELD:
            return
        self.slots[connection.index].state = BUFFERED
        while connection.held:
            frame, ids = connection.held.pop(0)
            connection.held_bytes -= len(frame)
            if self._write(connection, frame, ids, False) == HANDED and ids is not None:
                handed.extend(ids)
        connection.held = None
        if handed:
            self.on_handed(connection, handed)

    def drop_held(self, str message_id not None):
        """Do not write this notice where it is held back behind a mailbox. What it was joined with stays."""
        cdef Connection connection
        cdef list left
        for member in self.members:
            if member is None or (<Connection>member).held is None:
                continue
            connection = <Connection>member
            if not any([ids is not None and message_id in ids for _, ids in connection.held]):
                continue
            left = [
                entry if entry[1] is None or message_id not in entry[1] else _without(entry[0], entry[1], message_id)
                for entry in connection.held
            ]
            connection.held = [entry for entry in left if entry[0]]
            connection.held_bytes = sum([len(frame) for frame, _ in connection.held])

    cdef int _write(self, Connection connection, bytes frame, tuple ids, bint is_control) except -2:
        cdef int state
        if connection.index < 0:
            return GONE
        state = self.slots[connection.index].state
        if state == DIRECT:
            return self._finish_direct(
                connection, frame, ids, try_send(connection.fd, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
            )
        if connection._cost() + PyBytes_GET_SIZE(frame) + WRITE_COST > self.max_pending_bytes:
            if state == HELD and not is_control:
                self._hold(connection, frame, ids)
            else:
                connection._remember(NEVER, ids)
            self.slow_consumers += 1
            self.close(connection, SLOW_CONSUMER, "slow consumer")
            return GONE
        if state == HELD and not is_control:
            return self._hold(connection, frame, ids)
        return self._write_behind(connection, frame, ids)

    cdef int _finish_direct(self, Connection connection, bytes frame, tuple ids, ssize_t sent) except -2:
        """The kernel took `sent` bytes of `frame` (-1: the socket is broken); the transport gets the rest."""
        if sent < 0:
            connection._remember(NEVER, ids)
            connection.transport.abort()
            self._depart(connection)
            return GONE
        if sent == PyBytes_GET_SIZE(frame):
            self.frames_sent += frames_in(ids)
            self.bytes_sent += sent
            return HANDED
        self.slots[connection.index].state = BUFFERED
        self.bytes_sent += sent
        return self._write_behind(connection, frame[sent:] if sent else frame, ids)

    cdef int _write_behind(self, Connection connection, bytes frame, tuple ids) except -2:
        """Append to the transport's buffer, and go back to direct sends once that is empty."""
        cdef int outcome = connection._queue(frame, ids)
        if outcome == GONE:
            # The peer sent EOF, and may never read what keeps the transport open.
            self._linger(connection)
            self._depart(connection)
            return GONE
        self.frames_sent += frames_in(ids)
        self.bytes_sent += PyBytes_GET_SIZE(frame)
        if outcome == QUEUED:
            if connection.unflushed is not None and len(connection.unflushed) % UNFLUSHED_BEFORE_LOOKING == 0:
                handed = connection._take_handed()
                if handed:
                    self.on_handed(connection, handed)
        elif self.slots[connection.index].state == BUFFERED and not connection.is_secure:
            self.slots[connection.index].state = DIRECT
        return outcome

    cdef int _hold(self, Connection connection, bytes frame, tuple ids) except -2:
        if connection.held is None:
            connection.held = []
        connection.held.append((frame, ids))
        connection.held_bytes += PyBytes_GET_SIZE(frame)
        return QUEUED

    # ---- ending connections

    def close(self, Connection connection not None, int code, str reason=""):
        """Send CLOSE behind what is queued and stop delivering; `on_gone` follows at once.

        The transport ends when the peer answers, and is aborted `linger_s` later otherwise.
        """
        if connection.close_code != 0 or connection.transport is None:
            return
        connection.close_code = code
        if not connection.transport.is_closing():
            connection._queue(close_frame(code, reason), None)
        self._linger(connection)
        self._depart(connection)

    cdef int _linger(self, Connection connection) except -1:
        """Abort the transport `linger_s` from now, unless it ends before."""
        if connection not in self.closing:
            connection.abort_at = monotonic() + self.linger_s
            self.closing[connection] = None
        return 0

    def reap(self, double now):
        """Abort closed connections whose peers did not answer in time; how many are still lingering."""
        cdef Connection connection
        for connection in list(self.closing):
            if connection.abort_at > now:
                break
            del self.closing[connection]
            if connection.transport is not None:
                connection.transport.abort()
        return len(self.closing)

    def sweep(self, double now, double idle_s, double timeout_s, Py_ssize_t limit):
        """Look at the next `limit` connections: ping the idle ones.

        Returns (connections without a pong, connections whose token expired); closing them is the
        caller's. A whole round takes `connections_total / limit` calls.
        """
        cdef Py_ssize_t steps = min(limit, self.size)
        cdef Connection connection
        silent = []
        expired = []
        for _ in range(steps):
            if self.size == 0:  # `on_gone` may have closed everybody
                break
            if self.sweep_cursor >= self.size:
                self.sweep_cursor = 0
            member = self.members[self.sweep_cursor]
            self.sweep_cursor += 1
            if member is None:
                continue
            connection = <Connection>member
            if connection.expires_at and now >= connection.expires_at:
                expired.append(connection)
            elif connection.is_paused:  # its pong would not be seen
                continue
            elif connection.ping_sent > connection.last_seen:
                if now - connection.ping_sent >= timeout_s:
                    silent.append(connection)
            elif now - connection.last_seen >= idle_s:
                connection.ping_sent = now
                self._write(connection, PING_FRAME, None, True)
        return silent, expired

    # ---- fan-out

    def advance(self, FanOut job not None, double budget_s):
        """Write `job` to further connections for about `budget_s`; True when it has reached all of them.

        `turns.Slice` is the Python form of such a budget.
        """
        cdef double until = monotonic() + budget_s
        cdef bint is_finished = True  # also when it raises
        if job.is_finished:
            return True
        if job.is_stopped and not job.followers:
            job.is_finished = True
            if job.is_begun and job.is_walk:
                self._end_walk()
            return True
        if not job.is_begun:
            job.is_begun = True
            self.walks += job.is_walk
        try:
            is_finished = self._walk(job, until) if job.is_walk else self._visit_users(job, until)
        finally:
            if is_finished and not job.is_finished:
                job.is_finished = True
                if job.is_walk:
                    self._end_walk()
        return is_finished

    cdef int _end_walk(self) except -1:
        self.walks -= 1
        if self.walks == 0 and self.tombstones:
            self._compact()
        return 0

    cdef bint _walk(self, FanOut job, double until) except -1:
        cdef Py_ssize_t countdown = SENDS_PER_CLOCK_READING
        cdef Py_ssize_t frames = frames_in(job.ids)
        cdef Py_ssize_t index
        cdef ssize_t sent
        cdef bytes frame
        cdef Slot* slot
        while job.cursor < self.size:
            index = job.cursor
            job.cursor += 1
            slot = &self.slots[index]
            if slot.state == DEAD or (job.exclude is not None and <object>slot.user_id in job.exclude):
                continue
            if slot.state != DIRECT:
                self._deliver(job, <Connection>self.members[index])
            elif job.frames[slot.dialect] is None:
                job._frame(slot.dialect)  # runs Python, which may move the array: look again
                job.cursor = index
                continue
            else:
                frame = <bytes>job.frames[slot.dialect]
                sent = try_send(slot.fd, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
                if sent == PyBytes_GET_SIZE(frame):
                    self.frames_sent += frames
                    self.bytes_sent += sent
                    job.sent_total += 1
                    if slot.is_guest:
                        job.guests_total += 1
                    elif slot.is_acking:
                        job.waiting_ids.append(<object>slot.user_id)
                    else:
                        job.handed_ids.append(<object>slot.user_id)
                else:
                    connection = <Connection>self.members[index]
                    job._note(connection, self._finish_direct(connection, frame, job.ids, sent))
            countdown -= 1
            if countdown == 0:
                countdown = SENDS_PER_CLOCK_READING
                if monotonic() >= until:
                    break
        return job.cursor >= self.size

    cdef bint _visit_users(self, FanOut job, double until) except -1:
        cdef Py_ssize_t countdown = SENDS_PER_CLOCK_READING
        cdef Py_ssize_t total = len(job.users)
        while job.cursor < total:
            user_id = job.users[job.cursor]
            job.cursor += 1
            present = self._lookup(user_id)
            if present is None:
                job.absent.append(user_id)
            elif isinstance(present, list):
                for connection in list(<list>present):
                    self._deliver(job, <Connection>connection)
            else:
                self._deliver(job, <Connection>present)
            countdown -= 1
            if countdown == 0:
                countdown = SENDS_PER_CLOCK_READING
                if monotonic() >= until:
                    break
        return job.cursor >= total

    cdef int _deliver(self, FanOut job, Connection connection) except -1:
        cdef bytes frame = job._frame_for(connection) if job.tells_apart else job._frame(connection.dialect)
        if frame:
            job._note(connection, self._write(connection, frame, job.ids, False))
        return 0


cdef tuple _without(bytes joined, tuple ids, str message_id):
    """A write that is one frame for each of `ids`, without those of one notice: the rest, and whose it is."""
    cdef Py_ssize_t begin = 0, end, length
    cdef list frames = [], left = []
    for one in ids:
        length = joined[begin + 1]  # RFC 6455, section 5.2; ours are not masked
        end = begin + 2 + length
        if length >= 126:
            end = begin + (4 if length == 126 else 10)
            end += int.from_bytes(joined[begin + 2:end], "big")
        if one != message_id:
            frames.append(joined[begin:end])
            left.append(one)
        begin = end
    return b"".join(frames), tuple(left)


def _ignore(connection, message_ids):
    """Does nothing, until somebody listens."""
