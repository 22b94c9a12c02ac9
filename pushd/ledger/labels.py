"""Labels: what push records are filtered and sorted by besides their time, numbered.

A notice's label is the number of its type, sender, kind of target, priority and need_confirm together. There are few of
them, so a filter is a mark for each label, and a sort a rank.
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pushd.model import Notice, UserId
from pushd.records import PushFilter, PushSort

UNKNOWN = 0  # the label of a notice of which nothing is known but its number: none of a filter's
MOST = 1 << 24  # a number beyond is damage


class Label(NamedTuple):
    """What notices of one label have in common, as the table `label` has it behind the number."""

    type: str
    sender_id: UserId
    sender_name: str
    target: str
    priority: int
    need_confirm: int  # 0 or 1


LabelRow = tuple[int, str, UserId, str, str, int, int]  # the number, then a label


class Labels:
    """Labels and their numbers, from 1 on. Changed on the loop's thread only; the rest may be asked from any thread.

    A label costs about 500 bytes, for as long as the process runs: a publisher with ever new types costs memory.
    """

    def __init__(self) -> None:
        self._labels: list[Label | None] = [None]  # by number
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._types: list[str] = []  # each once, sorted
        self._seen_types: set[str] = set()
        self._taken = 1  # `taken` gave those below
        self._ranks: dict[PushSort, tuple[int, bytes]] = {}  # for how many labels, and theirs

    def __len__(self) -> int:
        """Numbers of labels are below."""
        return len(self._labels)

    def number(self, notice: Notice) -> int:
        """The number of a notice's label, a new one where it is the first."""
        key = (
            notice.type,
            notice.sender_id,
            notice.sender_name,
            notice.target.kind._value_,  # an enum's own hash is slow
            notice.priority._value_,
            1 if notice.need_confirm else 0,
        )
        return self._numbers.get(key) or self._add(Label._make(key))

    def label(self, number: int) -> Label | None:
        """What has this number; None where that is not known."""
        return self._labels[number] if 0 < number < len(self._labels) else None

    def taken(self) -> list[LabelRow]:
        """The labels that are new since the last call, to be stored."""
        numbers = range(self._taken, len(self._labels))
        self._taken = len(self._labels)
        return [(number, *label) for number in numbers if (label := self._labels[number]) is not None]

    def load(self, rows: Iterable[Sequence[Any]]) -> int:
        """Take in what is stored, before all else; how many rows are damaged and left out.

        The number of a damaged row is not given out again.
        """
        damaged = 0
        for row in rows:
            number = row[0] if row else None
            if type(number) is not int or not 0 < number < MOST:
                damaged += 1
                continue
            label = _read(row[1:])
            damaged += label is None
            self._labels.extend([None] * (number + 1 - len(self._labels)))
            self._labels[number] = label
            if label is not None:
                self._numbers.setdefault(label, number)
                self._seen_types.add(label.type)
        self._types = sorted(self._seen_types)
        self._taken = len(self._labels)
        return damaged

    def marks(self, where: PushFilter) -> bytes | None:
        """A mark for each label, by number, 1 where it is as the filter wants it; None: every notice's is.

        Labels that come later are not in it. Costs about 0.2 us a label.
        """
        wanted = [
            (place, value)
            for place, value in ((0, where.message_type), (1, where.sender_id), (3, where.target))
            if value is not None
        ]
        if not wanted:
            return None
        return bytes(
            label is not None and all(label[place] == value for place, value in wanted) for label in self._labels[:]
        )

    def ranks(self, sort: PushSort) -> bytes:
        """The place of each label, by number, in the order of PRIORITY or MESSAGE_TYPE: unsigned ints of 32 bits.

        Equal ones have the same; what is unknown comes first. Costs about 0.2 us a label when one is new.
        """
        labels = self._labels[:]
        known = self._ranks.get(sort)
        if known is not None and known[0] == len(labels):
            return known[1]
        if sort is PushSort.PRIORITY:
            places = array("I", (0 if label is None else label.priority + 1 for label in labels))
        else:
            rank_of = {name: rank for rank, name in enumerate(self._types[:], 1)}
            places = array("I", (0 if label is None else rank_of.get(label.type, 0) for label in labels))
        ranks = places.tobytes()
        self._ranks[sort] = (len(labels), ranks)
        return ranks

    def _add(self, label: Label) -> int:
        number = len(self._labels)
        if number >= MOST:
            return UNKNOWN
        if label.type not in self._seen_types:
            self._seen_types.add(label.type)
            insort(self._types, label.type)
        self._numbers[label] = number
        self._labels.append(label)
        return number


def _read(values: Sequence[Any]) -> Label | None:
    """A label as it is stored, None where it is damaged."""
    if len(values) != len(Label._fields):
        return None
    kinds = (str, int, str, str, int, int)
    if any(type(value) is not kind for value, kind in zip(values, kinds, strict=True)):
        return None
    label = Label._make(values)
    if not 0 <= label.priority < MOST or label.need_confirm not in (0, 1):
        return None
    return label
