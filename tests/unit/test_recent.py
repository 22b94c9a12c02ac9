"""What was used last is kept, and no more than twice the bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pushd.stores.sqlite.recent import Recent

calls = st.lists(st.tuples(st.sampled_from(["put", "put all", "get", "drop"]), st.integers(0, 20)), max_size=200)


@given(calls=calls, most=st.integers(1, 8))
def test_the_newest_are_there_and_the_others_go(calls: list[tuple[str, int]], most: int) -> None:
    recent: Recent[int, int] = Recent(most)
    known: dict[int, int] = {}  # in the order of their last use
    for at, (call, key) in enumerate(calls):
        if call == "put":
            recent.put(key, at)
            known.pop(key, None)
            known[key] = at
        elif call == "put all":
            recent.put_all([(key, at), (key + 1, at)])
            for one in (key, key + 1):
                known.pop(one, None)
                known[one] = at
        elif call == "drop":
            recent.drop(key)
            known.pop(key, None)
        else:
            found = recent.get(key)
            assert found in (None, known.get(key))
            if found is not None:
                known[key] = known.pop(key)
        assert len(recent) <= 2 * (most + 1)
    kept = list(known)[-1:]
    assert [recent.get(key) for key in kept] == [known[key] for key in kept]


def test_large_values_count_for_what_they_weigh() -> None:
    recent: Recent[int, bytes] = Recent(10, len)
    for key in range(100):
        recent.put(key, b"x" * 5)
    assert len(recent) in (2, 3, 4)
    assert recent.get(99) == b"xxxxx"
    assert recent.get(0) is None
