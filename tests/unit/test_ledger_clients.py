"""Facts of clients by number: once each, found whether they are stored or not, and dropped after their week."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from hypothesis import given
from hypothesis import strategies as st

from pushd.ledger.clients import FIRST_WEEK_MS, LAST, WEEK_BITS, WEEK_MS, ClientFacts, Clients, Row, first_of

DEVICE = ("mobile", "Android", "Chrome")
ANN = ("c1", "10.0.0.1", "Firefox")


def number_of(clients: Clients, connection_id: str, client_ip: str, user_agent: str) -> int:
    """The number, of one whose device is described."""
    number = clients.number(connection_id, client_ip, user_agent)
    clients.describe(number, DEVICE)
    return number


class Disk:
    """What was taken, once it is said to be stored."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.reads: list[set[int]] = []

    def store(self, rows: Iterable[Row]) -> None:
        self.rows.update((row[0], row) for row in rows)

    async def read(self, numbers: Collection[int]) -> list[Row]:
        self.reads.append(set(numbers))
        return [self.rows[number] for number in numbers if number in self.rows]


async def test_the_same_facts_have_one_number_and_nobody_has_none() -> None:
    clients = Clients()
    first = number_of(clients, *ANN)
    assert number_of(clients, "", "", "") == 0
    assert [number_of(clients, *ANN) for _ in range(2)] == [first, first]
    assert number_of(clients, "c1", "10.0.0.2", "Firefox") > first > 0
    assert await clients.facts([first, 0, 77]) == {first: ClientFacts(*ANN, *DEVICE)}


async def test_facts_are_in_memory_until_the_next_flush_shows_that_they_are_stored() -> None:
    disk = Disk()
    clients = Clients(disk.read)
    first = number_of(clients, *ANN)
    rows = clients.taken()
    assert rows == [(first, *ANN, *DEVICE)]
    assert await clients.facts([first]) == {first: ClientFacts(*ANN, *DEVICE)}
    assert disk.reads == []
    disk.store(rows)
    assert clients.taken() == []
    assert await clients.facts([first]) == {first: ClientFacts(*ANN, *DEVICE)}
    assert disk.reads == [{first}]


async def test_many_are_taken_in_parts() -> None:
    disk = Disk()
    clients = Clients(disk.read)
    numbers = [number_of(clients, f"c{place}", "", "") for place in range(5)]
    for most in (2, 2, 1, 0):
        assert clients.untaken == 5 - len(disk.rows)
        rows = clients.taken(2)
        assert len(rows) == most
        assert sorted(await clients.facts(numbers)) == numbers
        disk.store(rows)
    assert [*disk.rows] == numbers


def test_numbers_go_on_behind_what_is_stored() -> None:
    clients = Clients()
    clients.load(41)
    clients.load(7)
    assert number_of(clients, *ANN) == 42


async def test_a_client_is_stored_once_its_device_is_described() -> None:
    clients = Clients()
    for _ in range(3):
        first = clients.number(*ANN)
    assert clients.undescribed() == [(first, "Firefox")]
    assert clients.taken() == []
    assert await clients.facts([first]) == {first: ClientFacts(*ANN, "", "", "")}
    clients.describe(first, DEVICE)
    clients.describe(first, ("other", "", ""))
    clients.describe(first + 1, DEVICE)
    assert clients.undescribed() == []
    assert clients.taken() == [(first, *ANN, *DEVICE)]


@given(st.lists(st.integers(0, 9), max_size=200), st.integers(1, 5))
def test_recent_ones_keep_their_number_and_memory_is_bounded(seen: list[int], most: int) -> None:
    """Whoever comes again before `most` others have come is recognised."""
    clients = Clients(most=most)
    numbers: dict[int, int] = {}
    for place, name in enumerate(seen):
        number = number_of(clients, f"c{name}", "", "")
        earlier = [at for at in range(place) if seen[at] == name]
        if earlier and len({*seen[earlier[-1] + 1 : place]}) < most:
            assert number == numbers[name]
        elif name not in numbers:
            assert number > max(numbers.values(), default=0)
        numbers[name] = number
        assert len(clients._recent) <= most
        assert len(clients._older) <= most


@given(
    st.lists(st.tuples(st.integers(0, 3 * WEEK_MS), st.integers(0, 3)), max_size=40).map(sorted),
    st.integers(-WEEK_MS, 4 * WEEK_MS),
)
def test_what_was_used_since_a_time_has_no_number_below_the_first_of_that_time(
    uses: list[tuple[int, int]], kept_from: int
) -> None:
    clients = Clients()
    last = 0
    for at, name in uses:
        clients.begin(FIRST_WEEK_MS + at)
        number = number_of(clients, f"c{name}", "", "")
        if at >= kept_from:
            assert number >= first_of(FIRST_WEEK_MS + kept_from)
        last = max(last, number)
    assert first_of(FIRST_WEEK_MS + 4 * WEEK_MS) > last


def test_a_full_week_goes_on_into_the_next_and_what_is_of_the_past_is_dropped_too_late_at_worst() -> None:
    clients = Clients()
    clients.begin(FIRST_WEEK_MS + WEEK_MS)
    clients.load((2 << WEEK_BITS) - 1)
    assert number_of(clients, *ANN) == 2 << WEEK_BITS
    assert first_of(FIRST_WEEK_MS + WEEK_MS) == 1 << WEEK_BITS


def test_a_clock_that_steps_back_changes_nothing() -> None:
    clients = Clients()
    clients.begin(FIRST_WEEK_MS + 2 * WEEK_MS)
    first = number_of(clients, *ANN)
    clients.begin(0)
    assert number_of(clients, *ANN) == first
    assert number_of(clients, "c2", "", "") == first + 1


def test_without_any_more_numbers_nobody_has_one() -> None:
    clients = Clients()
    clients.begin(1 << 53)
    clients.load(LAST - 1)
    assert number_of(clients, *ANN) == LAST
    assert number_of(clients, "c2", "", "") == 0
    assert number_of(clients, *ANN) == LAST
