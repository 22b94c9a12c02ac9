"""Types of the compiled columns of receive records. No method holds the GIL for longer than its lists take."""

# By what pages are sorted, ascending, and then, among equals:
CREATED: int  # message_id, user_id
CREATED_BY_STATE: int  # message_id, state, user_id
RECEIVED: int  # user_id, created, state, rowid; so READ and CONFIRMED
READ: int
CONFIRMED: int
USER_ID: int  # created, newest first; received; username; state; rowid
USERNAME: int  # user_id; the rest as USER_ID
STATES: int  # values of a state

class Owners:
    """Who the records belong to, by number: the user_id, the name, and its place among all names."""

    def __init__(self, user_ids: list[int], names: list[bytes], ranks: list[int]) -> None: ...
    def __len__(self) -> int: ...
    def having(self, part: bytes) -> bytes:
        """A byte for each owner: 1 where `part` is in the name."""

class NoticeColumns:
    """The receive records of one notice, in the order of their user_ids. Times are milliseconds, None for never.

    Raises ValueError for lists of different lengths and for an owner below 0; `replaced` and Selection, for one whom
    `owners` has not.
    """

    message_id: str
    def __init__(
        self,
        message_id: str,
        owners: list[int],
        states: list[int],
        rowids: list[int],
        created: list[int | None],
        received: list[int | None],
        read: list[int | None],
        confirmed: list[int | None],
    ) -> None: ...
    def __len__(self) -> int: ...
    def replaced(self, user_ids: list[int], changed: NoticeColumns, owners: Owners) -> NoticeColumns:
        """The same without the records of `user_ids`, in order, and with `changed`, which are of no others."""

class Selection:
    """The records of these notices, of owners and in states that are marked, created since one time and before another.

    `notices` come in the order of their message_ids; `members` is what Owners.having() gives, None for everybody.
    Raises ValueError where there is not one mark for each state, or for each owner.
    """

    def __init__(
        self,
        notices: list[NoticeColumns],
        owners: Owners,
        states: bytes,
        members: bytes | None,
        since_ms: int | None,
        before_ms: int | None,
    ) -> None: ...
    def counts(self) -> list[int]:
        """How many there are in each of STATES."""

    def page(self, sort: int, offset: int, limit: int) -> list[int]:
        """The rowids of at most `limit` records from `offset` on, in ascending order of `sort`. Raises ValueError."""
