"""Users from CSV and JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.errors import ConfigError
from pushd.model import User
from pushd.users.import_file import parse_users
from pushd.values import MAX_USER_ID

HEADER = "id,username,user_type\n"
ADA, BOB = User(user_id=7, username="ada", role=1), User(user_id=8, username="", role=-2)


def refusal(text: str, source: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_users(text, source=source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "users"),
    [
        (HEADER + "7,ada,1\n8,,-2\n", [ADA, BOB]),
        (HEADER + "7,ada,1\r\n\r\n8,,-2", [ADA, BOB]),
        ("user_type,email,id,username\n1,x,7,ada", [ADA]),
        (" id , username , user_type \n 7 ,ada, 1", [ADA]),
        (HEADER, []),
        (HEADER + '7,"a, ""b""",1', [User(user_id=7, username='a, "b"', role=1)]),
        (HEADER + "7,张三\u2028x,1", [User(user_id=7, username="张三\u2028x", role=1)]),
        (HEADER + "7,123,1", [User(user_id=7, username="123", role=1)]),
        (HEADER + f"{MAX_USER_ID},a,0", [User(user_id=MAX_USER_ID, username="a", role=0)]),
    ],
)
def test_csv(text: str, users: list[User]) -> None:
    assert parse_users(text, source="users.CSV") == users


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "u.csv: line 1: id: found the header"),
        ("id,username\n", "u.csv: line 1: user_type: found the header"),
        ("id;username;user_type\n7;ada;1", 'line 1: id: found the header "id;username;user_type"'),
        ("id,id,username,user_type\n", "line 1: id: found the header"),
        (HEADER + "7,ada,1\nx,bob,1", 'u.csv: line 3: id: found "x", expected a whole number from 1 to'),
        (HEADER + "0,bob,1", 'line 2: id: found "0", expected'),
        (HEADER + "-7,bob,1", 'line 2: id: found "-7", expected'),
        (HEADER + "7.0,bob,1", 'line 2: id: found "7.0", expected'),
        (HEADER + f"{MAX_USER_ID + 1},bob,1", 'line 2: id: found "9223372036854775808"'),
        (HEADER + "7,bob,", 'line 2: user_type: found "", expected'),
        (HEADER + "7,bob,admin", 'line 2: user_type: found "admin", expected'),
        (HEADER + "7,bob", "line 2: user_type: found 2 fields, expected 3"),
        (HEADER + "7,bob,1,2", "line 2: user_type: found 4 fields, expected 3"),
        (HEADER + '7,"a\nb",1', 'line 3: username: found "a\\nb", expected'),
        (HEADER + f"7,{'x' * 256},1", "line 2: username: found"),
        (HEADER + "7,a,1\n8,b,1\n7,c,1", "line 4: id: found 7 again, expected it only once (line 2)"),
        (HEADER + '7,"a"b,1', "line 2: not valid CSV"),
        (HEADER + '7,"a', "not valid CSV"),
        (HEADER + "7," + "x" * 200_000 + ",1", "line 2: not valid CSV"),
    ],
)
def test_bad_csv(text: str, expected: str) -> None:
    assert expected in refusal(text, "u.csv")


def test_json() -> None:
    items = [
        {"id": 7, "username": "ada", "user_type": 1, "email": None},
        {"id": 8, "username": "", "user_type": -2},
    ]
    assert parse_users(json.dumps(items), source="dir/users.json") == [ADA, BOB]
    assert parse_users("[]", source="users.json") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "u.json: line 1: column 1: not valid JSON"),
        ('[\n{"id": }]', "u.json: line 2: column 8: not valid JSON"),
        ("{}", "line 1: found an object, expected a list of objects with id, username, user_type"),
        ("[" * 100_000, "not valid JSON"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        ("[7]", "item 1: found 7, expected an object"),
        ("[[]]", "item 1: found a list, expected an object"),
        ('[{"username": "a", "user_type": 1}]', "item 1: id: found none, expected a whole number"),
        ('[{"id": "07", "username": "a", "user_type": 1}]', 'item 1: id: found "07", expected'),
        ('[{"id": true, "username": "a", "user_type": 1}]', "item 1: id: found true, expected"),
        ('[{"id": 7.0, "username": "a", "user_type": 1}]', "item 1: id: found 7.0, expected"),
        ('[{"id": NaN, "username": "a", "user_type": 1}]', "item 1: id: found nan, expected"),
        ('[{"id": 7, "username": 3, "user_type": 1}]', "item 1: username: found 3, expected"),
        ('[{"id": 7, "username": null, "user_type": 1}]', "item 1: username: found null, expected"),
        ('[{"id": 7, "user_type": 1}]', "item 1: username: found none, expected"),
        ('[{"id": 7, "username": "\\ud800", "user_type": 1}]', "item 1: username: found"),
        ('[{"id": 7, "username": "a\\u0000", "user_type": 1}]', "item 1: username: found"),
        ('[{"id": 7, "username": {"a": 1}, "user_type": 1}]', "item 1: username: found an object"),
        ('[{"id": 7, "username": "a", "user_type": 99999999999}]', "item 1: user_type: found 99999999999"),
    ],
)
def test_bad_json(text: str, expected: str) -> None:
    assert expected in refusal(text, "u.json")


@pytest.mark.parametrize("source", ["users.txt", "users", "csv/users", ""])
def test_the_ending_says_the_format(source: str) -> None:
    assert "expected FILE.csv or FILE.json" in refusal("", source)


@given(st.text() | st.text().map(lambda text: HEADER + text), st.sampled_from(["u.csv", "u.json"]))
def test_any_text_is_users_or_a_config_error(text: str, source: str) -> None:
    try:
        parse_users(text, source=source)
        line = f"{source}: "
    except ConfigError as error:
        line = str(error)
    assert line.startswith(f"{source}: ")
