"""What the forms of several subjects mean: periods and pages."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from pushd.api.forms import PeriodQuery, part_of
from pushd.errors import ErrorCode, RequestError
from pushd.records import Part

ZONE = ZoneInfo("Asia/Shanghai")
MIDNIGHT, DAY_MS = 1_740_758_400_000, 86_400_000  # 2025-03-01 00:00:00 in ZONE


def test_a_period_includes_both_ends() -> None:
    assert PeriodQuery().bounds(ZONE) == (None, None)
    assert PeriodQuery(start_date="2025-03-01").bounds(ZONE) == (MIDNIGHT, None)
    assert PeriodQuery(start_date="2025-03-01", end_date="2025-03-01").bounds(ZONE) == (MIDNIGHT, MIDNIGHT + DAY_MS)


@pytest.mark.parametrize("field", ["start_date", "end_date"])
def test_what_is_no_time_is_refused_by_name(field: str) -> None:
    with pytest.raises(RequestError) as caught:
        PeriodQuery(**{field: "yesterday"}).bounds(ZONE)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert caught.value.text.startswith(f"{field}: expected ")
    assert caught.value.details == {"field": field}


def test_pages() -> None:
    assert part_of(1, 10, "desc") == Part(offset=0, limit=10, is_descending=True)
    assert part_of(3, 10, "asc") == Part(offset=20, limit=10, is_descending=False)
