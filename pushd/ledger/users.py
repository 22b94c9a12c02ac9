"""Who the ledger's user numbers are: ids, and the name and role that each user had when a notice went out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from threading import Lock
from typing import Any

from pushd.ledger._names import Named, Names, Order
from pushd.model import User
from pushd.user_ids import INTEGERS, UserIds

UserKey = int | str
Identity = tuple[int, str, int]  # from which seq on, name, role

# More numbers than this without a row are damage: what comes behind is left aside.
MOST_MISSING = 100_000

ALL = 1 << 40

# Integers that a column of 64 bits holds.
MOST = (1 << 63) - 1

# Earlier identities of one user. Beyond, a new name is that of the last one's notices, too: two sources that do not
# agree on a name must not fill memory and disk.
MOST_EARLIER = 32

# Parts of names that were asked for last; a mask costs a byte a user.
KEPT_MASKS = 8


class Users:
    """Ids by number, numbers by id, and identities. Changed on the loop's thread only.

    A number is given in order of first appearance and never taken back. Ids are of the kind `of`. `order`,
    `names` and `named` are for reader threads: they hold the GIL for copies only, a millisecond at 100,000 users, and
    keep what they have made until users or names change.
    """

    def __init__(self, of: UserIds = INTEGERS) -> None:
        self.of = of
        self.ids: list[UserKey] = []  # by number
        self._numbers: dict[UserKey, int] = {}
        # The user's number, None where there is none. No method: there is a call for each receipt.
        self.number: Callable[[UserKey], int | None] = self._numbers.get
        # The last identity, by number; those before it, of users who have had several.
        self._since: list[int] = []
        self._names: list[str] = []
        self._roles: list[int] = []
        self._earlier: dict[int, tuple[Identity, ...]] = {}
        self._noted: list[User | None] = []  # the object that was noted last
        self._taken = 0
        self._changed: dict[int, int] = {}  # user -> the oldest seq whose identity is to be taken
        self._renames = 0
        self._making = Lock()
        self._order: Order | None = None
        self._sorted: tuple[tuple[int, int], Names] | None = None
        self._masks: dict[str, tuple[tuple[int, int], Named]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def existing(self, user_ids: Iterable[UserKey]) -> list[int]:
        """The users' numbers, in the order given. Raises KeyError where one has none."""
        known = self._numbers
        return [known[user_id] for user_id in user_ids]

    def numbers(self, user_ids: Iterable[UserKey]) -> list[int]:
        """The users' numbers, in the order given; unknown users get one."""
        known, user_ids = self._numbers, list(user_ids)
        try:
            return [known[user_id] for user_id in user_ids]
        except KeyError:
            return [known[user_id] if user_id in known else self._add(user_id) for user_id in user_ids]

    def known(self, user_ids: Iterable[UserKey]) -> list[tuple[UserKey, int]]:
        """(id, number) of those who have one."""
        known = self._numbers
        return [(user_id, known[user_id]) for user_id in user_ids if user_id in known]

    def note_name(self, number: int, seq: int, name: str, role: int) -> None:
        """Notes what a user is called when the notice `seq` goes out.

        A name that was unknown so far is filled in; an unknown one does not replace a known one, nor does what is
        said with an older notice replace what is known.
        """
        since, known = self._since[number], self._names[number]
        if (name, role) == (known, self._roles[number]) and since >= 0:
            return
        if since >= 0 and known and (not name or seq < since):
            return
        if 0 <= since < seq and known:
            earlier = self._earlier.get(number, ())
            if len(earlier) < MOST_EARLIER:
                self._earlier[number] = (*earlier, (since, known, self._roles[number]))
                since = seq
        elif since < 0:
            since = seq
        self._since[number], self._names[number], self._roles[number] = since, name, role
        self._changed[number] = min(since, self._changed.get(number, since))
        self._renames += 1

    def note_names(self, numbers: Sequence[int], users: Iterable[User], seq: int) -> None:
        """note_name for each; costs some 0.03 us for those who were noted last with the same User object."""
        noted = self._noted
        for number, user in zip(numbers, users, strict=True):
            if noted[number] is not user:
                self.note_name(number, seq, user.username, user.role)
                if (user.username, user.role) == (self._names[number], self._roles[number]):
                    noted[number] = user

    def name_role(self, number: int, seq: int) -> tuple[str, int]:
        """What the user was called when the notice `seq` went out; ("", 0): nobody has said."""
        if number not in self._earlier or seq >= self._since[number]:
            return self._names[number], self._roles[number]
        earlier = self._earlier[number]
        _, name, role = earlier[max(0, bisect_right(earlier, seq, key=_from_seq) - 1)]
        return name, role

    @property
    def untaken(self) -> int:
        """Of how many users `taken` would give something."""
        return max(len(self.ids) - self._taken, len(self._changed))

    def taken(self, most: int = ALL) -> tuple[list[tuple[int, UserKey]], list[tuple[int, int, str, int]]]:
        """Rows of `user_number` and of `identity` that are new or other than at the last call, of `most` users each."""
        rows = list(enumerate(self.ids[self._taken : self._taken + most], self._taken))
        self._taken += len(rows)
        changed, self._changed = self._changed, {}
        if len(changed) > most or self._taken < len(self.ids):
            # A name without its user is of no use: those come first.
            some = [number for number in islice(changed, most) if number < self._taken]
            self._changed, changed = changed, {number: changed.pop(number) for number in some}
        identities = [
            (number, *identity)
            for number, oldest in changed.items()
            for identity in (*self._earlier.get(number, ()), self._latest(number))
            if identity[0] >= oldest
        ]
        return rows, identities

    def load(self, users: Iterable[Sequence[Any]], identities: Iterable[Sequence[Any]]) -> int:
        """Puts back what `taken` gave, into an empty object. Returns how many rows were left aside, being damaged.

        A number without an id belongs to nobody: its id is no account's.
        """
        given, identities = list(users), list(identities)
        known: dict[int, UserKey] = {}
        for row in given:
            if _is_user(row, self.of.type):
                known.setdefault(*row)
        # What is damaged keeps its place: others' receipts are in blocks that name it.
        numbers = {row[0] for row in (*given, *identities) if row and _is_number(row[0])}
        aside = len(given) - len(known)
        for number in sorted(numbers):
            if number > len(numbers) + MOST_MISSING:
                aside += number in known
                continue
            while len(self.ids) < number:
                self._add(self.of.lost(len(self.ids)))
            user_id = known.get(number, self.of.lost(number))
            if user_id in self._numbers:
                aside += 1
                user_id = self.of.lost(number)
            self._add(user_id)
        self._taken = len(self.ids)
        return aside + self._load_identities(identities)

    def order(self) -> Order:
        """Numbers in the order of ids. From any thread."""
        with self._making:
            return self._ordered()

    def names(self) -> Names:
        """All names, in order. From any thread."""
        with self._making:
            return self._named()

    def named(self, text: str) -> Named:
        """Whose name contains `text`, as SQLite's lower() compares: ASCII letters in either case. From any thread."""
        with self._making:
            names, at = self._named(), self._at()
            kept = self._masks.pop(text, None)
            made = kept if kept is not None and kept[0] == at else (at, names.containing(text))
            while len(self._masks) >= KEPT_MASKS:
                del self._masks[next(iter(self._masks))]
            self._masks[text] = made
            return made[1]

    def _at(self) -> tuple[int, int]:
        return len(self.ids), self._renames

    def _ordered(self) -> Order:
        if self._order is None or len(self._order) != len(self.ids):
            self._order = Order(self.ids)
        return self._order

    def _named(self) -> Names:
        at = self._at()  # before the copy: what changes meanwhile is looked at the next time
        if self._sorted is None or self._sorted[0] != at:
            self._sorted = at, Names(self._ordered(), self._names, self._since, self._earlier)
        return self._sorted[1]

    def _add(self, user_id: UserKey) -> int:
        number = self._numbers[user_id] = len(self.ids)
        # Before the id: another thread takes its length for the number of all.
        self._names.append("")
        self._roles.append(0)
        self._since.append(-1)
        self._noted.append(None)
        self.ids.append(user_id)
        return number

    def _latest(self, number: int) -> Identity:
        return self._since[number], self._names[number], self._roles[number]

    def _load_identities(self, given: list[Sequence[Any]]) -> int:
        rows = [row for row in given if _is_identity(row) and row[0] < len(self.ids)]
        for number, *identity in sorted(rows, key=_number_and_seq):
            if self._since[number] >= 0:
                self._earlier[number] = (*self._earlier.get(number, ()), self._latest(number))
            self._since[number], self._names[number], self._roles[number] = identity
        return len(given) - len(rows)


def _number_and_seq(row: Sequence[Any]) -> tuple[int, int]:
    return row[0], row[1]


def _from_seq(identity: Identity) -> int:
    return identity[0]


def _is_user(row: Sequence[Any], kind: type) -> bool:
    return len(row) == 2 and _is_number(row[0]) and type(row[1]) is kind and (kind is str or _is_integer(row[1]))


def _is_identity(row: Sequence[Any]) -> bool:
    return (
        len(row) == 4 and _is_number(row[0]) and _is_number(row[1]) and isinstance(row[2], str) and _is_integer(row[3])
    )


def _is_number(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_integer(value: Any) -> bool:
    return type(value) is int and -MOST <= value <= MOST
