"""Files of groups: what is understood, and how the rest is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.errors import ConfigError
from pushd.model import Membership
from pushd.users.group_file import parse_groups
from pushd.values import MAX_USER_ID

HEADER = "group,user_id,title\n"


def parsed(text: str) -> list[Membership]:
    return list(parse_groups(text.splitlines(keepends=True), source="g.csv"))


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "memberships"),
    [
        (HEADER + "dept:12,7,Sales\ndept:12,8,\n", [(2, "dept:12", 7, "Sales"), (3, "dept:12", 8, "")]),
        ("group,user_id\r\na,7\r\n\r\nb,8", [(2, "a", 7, ""), (4, "b", 8, "")]),
        (" user_id , title,x, group \n 7 ,T,-,a", [(2, "a", 7, "T")]),
        (HEADER, []),
        (HEADER + "a,,A\nb, ,", [(2, "a", None, "A"), (3, "b", None, "")]),
        (HEADER + '"a, ""b""",7,"x,y"', [(2, 'a, "b"', 7, "x,y")]),
        (HEADER + f"销售部,{MAX_USER_ID},销售", [(2, "销售部", MAX_USER_ID, "销售")]),
        (HEADER + "a,7,", [(2, "a", 7, "")]),
        (HEADER + f"{'x' * 64},1,{'y' * 255}", [(2, "x" * 64, 1, "y" * 255)]),
    ],
)
def test_csv(text: str, memberships: list[tuple[int, str, int | None, str]]) -> None:
    assert parsed(text) == [Membership(*membership) for membership in memberships]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 'g.csv: line 1: group: found the header "", expected group,user_id[,title]'),
        ("group,title\n", "g.csv: line 1: user_id: found the header"),
        ("group;user_id\na;1", 'line 1: group: found the header "group;user_id"'),
        ("group,user_id,title,title\n", "line 1: title: found the header"),
        (HEADER + "a,7,\na,x,", 'g.csv: line 3: user_id: found "x", expected a whole number from 1 to'),
        (HEADER + "a,0,", 'line 2: user_id: found "0", expected'),
        (HEADER + "a,-7,", 'line 2: user_id: found "-7", expected'),
        (HEADER + "a,007,", 'line 2: user_id: found "007", expected'),
        (HEADER + f"a,{MAX_USER_ID + 1},", "line 2: user_id: found"),
        (HEADER + "a," + "9" * 5000 + ",", "line 2: user_id: found"),
        (HEADER + "a,٣,", "line 2: user_id: found"),
        (HEADER + "a,7", "line 2: title: found 2 fields, expected 3"),
        (HEADER + "a,7,b,c", "line 2: title: found 4 fields, expected 3"),
        (HEADER + ",7,", 'line 2: group: found "", expected 1 to 64 characters'),
        (HEADER + " a,7,", 'line 2: group: found " a", expected 1 to 64 characters, no control characters, no space'),
        (HEADER + "a\u3000,7,", "line 2: group: found"),
        (HEADER + f"{'x' * 65},7,", "line 2: group: found"),
        (HEADER + '"a\nb",7,', 'line 3: group: found "a\\nb", expected'),
        (HEADER + "a\x7f,7,", "line 2: group: found"),
        (HEADER + 'a,7,"b\nc"', 'line 3: title: found "b\\nc", expected a text'),
        (HEADER + f"a,7,{'x' * 256}", "line 2: title: found"),
        (HEADER + '"a"b,7,', "line 2: not valid CSV"),
        (HEADER + 'a,7,"b', "not valid CSV"),
        (HEADER + "a,7," + "x" * 200_000, "line 2: not valid CSV"),
    ],
)
def test_bad_csv(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_it_is_read_as_it_is_asked_for() -> None:
    read: list[int] = []

    def lines() -> Iterator[str]:
        yield HEADER
        for number in range(1, 1_000_000_000):
            read.append(number)
            yield f"a,{number},\n"

    memberships = parse_groups(lines(), source="g.csv")
    assert [next(memberships).user_id for _ in range(3)] == [1, 2, 3]
    assert len(read) <= 4


@given(st.text() | st.text().map(lambda text: HEADER + text))
def test_any_text_is_groups_or_a_config_error(text: str) -> None:
    try:
        parsed(text)
        line = "g.csv: "
    except ConfigError as error:
        line = str(error)
    assert line.startswith("g.csv: ")
