"""How many writes become few calls: users for whom the same is to be done go together, every text is sent once. Pure.

A *place* is an index into the values of a batch: elements and ids of a save, ids of a removal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from redis.crc import key_slot

from pushd.model import UserId

Places = tuple[int, ...]
Argument = bytes | str | int
Value = tuple[bytes | str, ...]

# What one call makes Redis copy: it serves nobody else meanwhile.
BYTES_AT_ONCE = 1024 * 1024
# What grouping takes the event loop at a time, well below 5 ms.
USERS_PER_STEP = 2000


@dataclass(frozen=True, slots=True)
class Call:
    """KEYS and ARGV of one run of a script."""

    keys: list[bytes]
    arguments: Sequence[Argument]


@dataclass(frozen=True, slots=True)
class Batch:
    """Users by what is to be done for them. A user is in one group only."""

    groups: Sequence[tuple[Places, Sequence[UserId]]]
    values: Sequence[Value]

    def call(self, prefix: bytes, head: Sequence[Argument] = ()) -> Call:
        """All of it in one call: `head`, the plan (scripts.py), and the values that the plan names."""
        keys: list[bytes] = []
        plan: list[str] = []
        numbers: dict[int, int] = {}  # of the places that this call sends, from 1
        for places, user_ids in self.groups:
            keys += [key_of(prefix, user_id) for user_id in user_ids]
            sent = [str(numbers.setdefault(place, len(numbers) + 1)) for place in places]
            plan.append(f"{len(user_ids)}:{','.join(sent)};")
        values = [value for place in numbers for value in self.values[place]]
        return Call(keys, [*head, "".join(plan), *values])

    def after(self, count: int) -> Batch:
        """What is left when the first `count` keys of `call` are done."""
        groups: list[tuple[Places, Sequence[UserId]]] = []
        for places, user_ids in self.groups:
            left = user_ids[count:]
            count = max(0, count - len(user_ids))
            if left:
                groups.append((places, left))
        return Batch(groups, self.values)

    def by_slot(self, prefix: bytes) -> list[Batch]:
        """The same as batches each of which is about one slot of a Redis Cluster."""
        slots: dict[int, list[tuple[Places, list[UserId]]]] = defaultdict(list)
        for places, user_ids in self.groups:
            for slot, its_user_ids in slotted(user_ids, prefix).items():
                slots[slot].append((places, its_user_ids))
        return [Batch(groups, self.values) for groups in slots.values()]

    def chunks(self, most_keys: int) -> Iterator[Batch]:
        """The same as batches of at most `most_keys` users and about BYTES_AT_ONCE written bytes."""
        chunk: list[tuple[Places, Sequence[UserId]]] = []
        keys_left, bytes_left = most_keys, BYTES_AT_ONCE
        for places, user_ids in self.groups:
            size = 0
            for place in places:
                size += 16 + len(self.values[place][0])
            start = 0
            while start < len(user_ids):
                count = max(1, min(keys_left, len(user_ids) - start, bytes_left // size))
                chunk.append((places, user_ids[start : start + count]))
                start, keys_left, bytes_left = start + count, keys_left - count, bytes_left - count * size
                if keys_left <= 0 or bytes_left < size:
                    yield Batch(chunk, self.values)
                    chunk, keys_left, bytes_left = [], most_keys, BYTES_AT_ONCE
        if chunk:
            yield Batch(chunk, self.values)


def key_of(prefix: bytes, user_id: UserId) -> bytes:
    """Where the user's mailbox is."""
    return b"%b%b" % (prefix, str(user_id).encode())


def slotted(user_ids: Iterable[UserId], prefix: bytes) -> dict[int, list[UserId]]:
    """Users by the slot of a Redis Cluster that their key is in."""
    slots: dict[int, list[UserId]] = defaultdict(list)
    for user_id in user_ids:
        slots[key_slot(key_of(prefix, user_id))].append(user_id)
    return slots


class Grouping:
    """Makes a batch of saves. `steps` does the work, `batch` has the result."""

    def __init__(self, values: Sequence[Value], parts: Sequence[tuple[int, Sequence[UserId]]], most: int) -> None:
        """`parts` are places, in order, and their users; of one user's places the `most` last are taken."""
        self._values = values
        self._parts = parts
        self._most = most
        self.batch = Batch((), values)

    def steps(self) -> Iterator[None]:
        """Comes back now and then, so that the event loop can do something else."""
        if len(self._parts) == 1:
            ((place, user_ids),) = self._parts
            self.batch = Batch([((place,), list(dict.fromkeys(user_ids)))], self._values)
            return
        by_user: dict[UserId, list[int]] = defaultdict(list)
        done = 0
        for place, user_ids in self._parts:
            for user_id in user_ids:
                by_user[user_id].append(place)
            done += len(user_ids)
            if done >= USERS_PER_STEP:
                done = 0
                yield
        groups: dict[Places, list[UserId]] = defaultdict(list)
        users = iter(by_user.items())
        while some := list(islice(users, USERS_PER_STEP)):
            for user_id, places in some:
                groups[tuple(places)].append(user_id)
            yield
        kept: list[tuple[Places, list[UserId]]] = []
        for wanted, its_user_ids in groups.items():
            kept.append((self._kept(wanted), its_user_ids))
            done += len(wanted)
            if done >= USERS_PER_STEP:
                done = 0
                yield
        self.batch = Batch(kept, self._values)

    def _kept(self, places: Places) -> Places:
        """Without a second save of the same id, and without what would be trimmed at once."""
        if len(places) == 1:
            return places
        first: dict[object, int] = {}
        for place in places:
            first.setdefault(self._values[place][-1] or place, place)
        return tuple(first.values())[-self._most :]
