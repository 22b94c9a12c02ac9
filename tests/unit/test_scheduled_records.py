"""Two sorted lists read as one, whichever part is asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pushd.stores.sqlite.scheduled_records import merged

keys = st.lists(st.integers(0, 9), max_size=30)


@given(ours=keys, theirs=keys, offset=st.integers(0, 70), limit=st.integers(0, 20), is_descending=st.booleans())
def test_any_part_is_that_of_the_whole(
    ours: list[int], theirs: list[int], offset: int, limit: int, is_descending: bool
) -> None:
    a = sorted(((key, "a") for key in ours), reverse=is_descending)
    b = sorted(((key, "b") for key in theirs), reverse=is_descending)
    looks = 0

    def ours_from(start: int, count: int) -> list[tuple[int, str]]:
        nonlocal looks
        looks += 1
        return a[start : start + count]

    found = merged(
        ours_from,
        lambda item: (item[0],),
        lambda start, count: b[start : start + count],
        lambda item: (item[0],),
        theirs_total=len(b),
        offset=offset,
        limit=limit,
        is_descending=is_descending,
    )
    assert found == sorted(a + b, reverse=is_descending)[offset : offset + limit]
    assert looks <= 1 + min(offset, len(b)).bit_length()
