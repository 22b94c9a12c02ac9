from collections.abc import Mapping

UserKey = int | str

class Order:
    """User numbers in the order of their ids: integers, then texts. Made without the GIL but for short copies."""

    def __init__(self, ids: list[UserKey]) -> None: ...
    def __len__(self) -> int: ...
    def by_id(self) -> list[int]:
        """User numbers in that order."""

class Names:
    """The names of all users at one moment, in order. Made like Order.

    `names`: by user number; `earlier`: of users who were renamed, their identities (from_seq, name, role) before
    the last one; `since`: by number, from which seq on the last one counts.
    """

    def __init__(
        self, order: Order, names: list[str], since: list[int], earlier: Mapping[int, tuple[tuple[int, str, int], ...]]
    ) -> None: ...
    def __len__(self) -> int: ...
    def in_order(self) -> list[tuple[str, int]]:
        """(name, user number), by name and then by id; a user under each name that he ever had."""
    def containing(self, text: str) -> Named:
        """Those whose name has `text` in it, ASCII letters in either case."""

class Named:
    """Whose name, at which seq, contains a text."""

    def __len__(self) -> int:
        """How many users have, or had, such a name."""
    def has(self, number: int, seq: int) -> bool:
        """Whether the user's name at that seq is one."""
