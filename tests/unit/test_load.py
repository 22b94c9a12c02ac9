"""The load tool's pure parts: what it computes, when it publishes, how it keeps its books, what it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.loadlib.figures import NS_PER_S, Histogram, Schedule, Spread, per_second, spread_of
from bench.loadlib.http import Answer, AnswerParser, advice, request
from bench.loadlib.ledger import MIN_CONTENT, Ledger, content, message_id, padding
from bench.loadlib.machine import Usage, usage_from_metrics
from bench.loadlib.options import LoadError, Options, default_rate, fill_template, parse
from bench.loadlib.report import Deliveries, Memory, Report, document, table

URL = "ws://localhost:8801/ws"
TAG = "0123abcdl"


# ---- figures


def test_spread() -> None:
    assert spread_of([]) == Spread()
    assert spread_of([3_000_000]) == Spread(1, 3.0, 3.0, 3.0)
    assert spread_of([i * 1_000_000 for i in range(100, 0, -1)]) == Spread(100, 50.0, 99.0, 100.0)


@given(st.lists(st.integers(0, 20_000_000), min_size=1, max_size=200))
def test_histogram_is_spread_to_its_resolution(values_ns: list[int]) -> None:
    histogram = Histogram(resolution_ns=1000, span_ns=10_000_000)
    for value_ns in values_ns:
        histogram.add(value_ns)
    exact, coarse = spread_of(values_ns), histogram.spread()
    assert (coarse.count, coarse.max_ms) == (exact.count, exact.max_ms)
    for low, high in ((exact.p50_ms, coarse.p50_ms), (exact.p99_ms, coarse.p99_ms)):
        assert low <= high
        assert high <= low + 0.001 + 1e-9 or high == exact.max_ms


def test_histogram_of_nothing() -> None:
    assert Histogram().spread() == Spread()


def test_schedule() -> None:
    schedule = Schedule(rate=100, total=5, start_ns=1000)
    assert [schedule.due_at_ns(seq) for seq in (0, 1, 4)] == [1000, 10_001_000, 40_001_000]
    assert [schedule.due(now) for now in (0, 1000, 1001, 10_001_000, 40_001_000, 10**12)] == [0, 1, 1, 2, 5, 5]
    assert schedule.is_paced


def test_schedule_without_pauses() -> None:
    schedule = Schedule(rate=0, total=5, start_ns=1000)
    assert (schedule.due(0), schedule.due_at_ns(4), schedule.is_paced) == (5, 1000, False)


@given(st.floats(0.01, 1e6), st.integers(1, 10**6), st.integers(0, 10**15))
def test_a_notice_is_due_when_its_time_has_come(rate: float, total: int, start_ns: int) -> None:
    schedule = Schedule(rate, total, start_ns)
    seq = total - 1
    assert schedule.due(schedule.due_at_ns(seq) + 1000) == total
    assert schedule.due(start_ns - 1) == 0


def test_per_second() -> None:
    assert per_second(10, NS_PER_S // 2) == 20.0
    assert per_second(10, 0) == 0.0


# ---- books


def broadcast(notices: int = 4, connections: int = 2, publishers: int = 2) -> Ledger:
    return Ledger(TAG, notices, connections, is_broadcast=True, publishers=publishers, size=60)


def single(notices: int = 5, connections: int = 2) -> Ledger:
    return Ledger(TAG, notices, connections, is_broadcast=False, publishers=2, size=60)


def frame(text: str, known: str = "m1") -> bytes:
    return json.dumps(
        {"type": "load", "content": text, "data": None, "message_id": known}, separators=(",", ":")
    ).encode()


def test_content_has_its_size() -> None:
    assert len(content(TAG, 7, 12345, 100)) == 100
    assert len(content(TAG, 7, 12345, MIN_CONTENT)) == MIN_CONTENT
    assert content(TAG, 7, 12345, 60).endswith(padding(60 - MIN_CONTENT))


def test_message_id() -> None:
    assert message_id(frame("x", "0199ab")) == b"0199ab"
    assert message_id(b'{"type":"hello"}') == b""


def test_each_notice_of_one_user_is_accounted_for_once() -> None:
    ledger = single()
    texts = [ledger.content(seq, 1000 + seq) for seq in range(5)]
    assert ledger.first_sent_ns == 1000
    for seq, text in enumerate(texts):
        assert ledger.arrived(seq % 2, frame(text), 5_001_000 + seq)
    ledger.published = 5
    assert (ledger.expected, ledger.delivered, ledger.lost) == (5, 5, 0)
    assert ledger.latency.spread() == Spread(5, 5.0, 5.0, 5.0)
    assert not ledger.arrived(0, frame(texts[0]), 9000)
    assert ledger.count.duplicates == 1


def test_what_does_not_come_is_lost() -> None:
    ledger = broadcast()
    text = ledger.content(0, 1000)
    assert ledger.arrived(1, frame(text), 2000)
    ledger.published = 4
    assert (ledger.expected, ledger.expected_in_all, ledger.delivered, ledger.lost) == (8, 8, 1, 7)


def test_the_order_is_that_of_each_publisher() -> None:
    ledger = broadcast()
    texts = [ledger.content(seq, 1000) for seq in range(4)]
    for seq in (1, 0, 3, 2):  # publisher 0 sent 0 and 2, publisher 1 sent 1 and 3
        ledger.arrived(0, frame(texts[seq]), 2000)
    assert ledger.count.out_of_order == 0
    for seq in (2, 0):
        ledger.arrived(1, frame(texts[seq]), 2000)
    assert ledger.count.out_of_order == 1


def test_the_order_of_one_user_is_that_of_publishing() -> None:
    ledger = single()
    assert {ledger.publisher_of(seq) for seq in (0, 2, 4)} == {0}
    texts = [ledger.content(seq, 1000) for seq in range(5)]
    for seq in (0, 4, 2):
        ledger.arrived(0, frame(texts[seq]), 2000)
    assert ledger.count.out_of_order == 1


def test_what_is_not_as_it_was_sent_is_corrupt() -> None:
    ledger = single()
    text = ledger.content(0, 1000)
    wrong = [
        text[:-1] + "!",
        text.replace(" 0000000000 ", " 0000000002 "),
        text.replace(" 0000000000 ", " 0000000009 "),
        text.replace(" 0000000000 ", " x "),
        text + "x",
    ]
    for damaged in wrong:
        assert not ledger.arrived(0, frame(damaged), 2000)
    assert not ledger.arrived(1, frame(text), 2000)  # somebody else's
    assert (ledger.count.corrupt, ledger.delivered) == (len(wrong) + 1, 0)


def test_what_others_publish_is_foreign() -> None:
    ledger = single()
    ledger.content(0, 1000)
    assert not ledger.arrived(0, frame("maintenance at noon"), 2000)
    assert not ledger.arrived(0, frame(content("fedcba98l", 0, 1000, 60)), 2000)
    assert (ledger.count.foreign, ledger.count.corrupt) == (2, 0)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_all_that_is_sent_is_expected_somewhere(
    notices: int, connections: int, publishers: int, is_broadcast: bool
) -> None:
    ledger = Ledger(TAG, notices, connections, is_broadcast=is_broadcast, publishers=publishers, size=60)
    for seq in range(notices):
        assert 0 <= ledger.publisher_of(seq) < publishers
        text = ledger.content(seq, seq)
        for connection in range(connections) if is_broadcast else [seq % connections]:
            assert ledger.arrived(connection, frame(text), 10**6)
        ledger.published += 1
    assert ledger.lost == 0
    assert ledger.count.out_of_order == 0
    assert ledger.delivered == ledger.expected == ledger.expected_in_all


# ---- HTTP


def answer_bytes(status: int, body: bytes, *more: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d Whatever" % status, *more, b"Content-Length: %d" % len(body), b"", body]
    return b"\r\n".join(lines)


@given(st.integers(1, 40))
def test_answers_in_any_pieces(size: int) -> None:
    stream = answer_bytes(200, b'{"code":200}') + answer_bytes(503, b"{}", b"Retry-After: 3") + answer_bytes(200, b"")
    parser = AnswerParser()
    answers = [answer for at in range(0, len(stream), size) for answer in parser.feed(stream[at : at + size])]
    assert [(answer.status, answer.body) for answer in answers] == [(200, b'{"code":200}'), (503, b"{}"), (200, b"")]
    assert [answer.retry_after_s for answer in answers] == [1.0, 3.0, 1.0]


@pytest.mark.parametrize(
    "stream",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 abc\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_answers_of_something_else(stream: bytes) -> None:
    with pytest.raises(LoadError):
        AnswerParser().feed(stream)


def test_a_refusal_is_one_line_with_advice() -> None:
    body = b'{"code":401,"message":"a token or an API key is required","error":"UNAUTHORIZED","data":{}}'
    said = str(advice(Answer(401, b"", body), "publish refused"))
    expected = "publish refused: 401 UNAUTHORIZED: a token or an API key is required; give --secret or --api-key"
    assert said == expected
    assert "\n" not in str(advice(Answer(500, b"", b"<html>\nbroken"), "publish refused"))


def test_request() -> None:
    options = parse([URL])
    assert request(options, "GET", "/metrics", "") == b"GET /metrics HTTP/1.1\r\nHost: localhost:8801\r\n\r\n"
    with_body = request(options, "POST", "/x", "key", 12)
    assert b"\r\nAuthorization: Bearer key\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n" in with_body


# ---- options


def test_the_plans_command_line() -> None:
    options = parse(["-c", "1000", "-n", "10000", URL])
    assert (options.host, options.port, options.path) == ("localhost", 8801, "/ws")
    assert (options.connections, options.notices, options.target) == (1000, 10_000, "custom")
    assert (options.rate, options.api_prefix, options.is_acking) == (10_000, "/api/admin", False)
    assert options.resource(4) == "/ws?user_id=5"


def test_default_rate() -> None:
    assert default_rate("custom", 1000) == 10_000
    assert default_rate("all", 1000) == 10
    assert parse(["--target", "all", "-c", "500", "-n", "9", URL]).rate == 20
    assert parse(["--rate", "0", URL]).rate == 0


def test_what_a_connection_asks_for() -> None:
    assert parse(["--ack", URL + "?x=1"]).resource(0) == "/ws?x=1&user_id=1&ack=1"
    assert parse(["--secret", "s" * 32, URL]).resource(0) == "/ws"
    assert parse(["--secret", "s" * 32, "--ack", "--first-user", "9", URL]).resource(0) == "/ws?ack=1"
    assert parse(["ws://[::1]:8801/ws"]).authority == "[::1]:8801"


def test_ids_that_are_texts() -> None:
    options = parse(["--user-ids", "string", "--secret", "s", "--first-user", "7", URL])
    user_id = "00000000-0000-0000-0000-000000000009"
    assert options.user_id(2) == user_id
    assert options.claims(options.user_id(2), 1, 99) == {"uid": user_id, "type": 1, "exp": 99}
    assert parse(["--user-ids", "string", URL]).resource(8) == f"/ws?user_id={user_id}"


def test_claims() -> None:
    options = parse(["--secret", "s", "--token-template", '{"sub": "{user_id}", "roles": [{role}]}', URL])
    assert options.claims(7, 1, 99) == {"sub": "7", "roles": [1], "exp": 99}
    with pytest.raises(LoadError):
        fill_template("[1]", 1, 1)


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef\n")
    assert parse(["--secret", f"@{file}", URL]).secret == "0123456789abcdef"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "url"),
        (["http://localhost:8801/ws"], "expected a URL such as"),
        (["wss://localhost:8801/ws"], "wss://"),
        (["ws://localhost:99999/ws"], "not a URL"),
        (["ws://localhost:8801/ w"], "printable ASCII"),
        (["-c", "0", URL], "a whole number from 1"),
        (["-c", "x", URL], "a whole number from 1"),
        (["-n", "99999999", URL], "a whole number from 1 to 10000000"),
        (["--rate", "-1", URL], "a number from 0"),
        (["--rate", "nan", URL], "a number from 0"),
        (["--size", "10", URL], f"a whole number from {MIN_CONTENT}"),
        (["--target", "role", URL], "--target"),
        (["--target", "all", "-c", "10000", "-n", "10001", URL], "100010000 deliveries"),
        (["--offline", "1", "-c", "10001", URL], "--offline"),
        (["--api-prefix", "api", URL], "--api-prefix"),
        (["--api-prefix", "/a b", URL], "printable ASCII"),
        (["--token-template", "{", URL], "--token-template"),
        (["--secret", "@/does/not/exist", URL], "--secret: cannot read"),
        (["--api-key", "a\nb", URL], "--api-key: expected printable"),
        (["--frobnicate", URL], "--frobnicate"),
    ],
)
def test_wrong_arguments_are_one_line(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert expected in said
    assert said.startswith("load: ")
    assert said.count("\n") == 1


# ---- the report


def options_and_report() -> tuple[Options, Report]:
    options = parse(["-c", "10", "--secret", "topsecret", "--api-key", "alsosecret", URL])
    live = Deliveries(expected=100, delivered=100, published=100, latency=Spread(100, 1.0, 2.0, 3.0))
    return options, Report(connections=10, live=live, busy={"load tool delivering": 50.0})


def test_report_of_a_clean_run() -> None:
    options, report = options_and_report()
    text = table(options, report)
    assert "100 of 100 deliveries" in text
    assert "CAUTION" not in text
    assert not report.has_losses
    figures = json.loads(json.dumps(document(options, report)))["figures"]
    assert figures["live"]["latency"]["p99_ms"] == 2.0
    assert figures["has_losses"] is False


def test_report_says_what_is_wrong() -> None:
    options, report = options_and_report()
    assert report.live is not None
    report.live.lost = 1
    report.live.late_ms = 400.0
    report.connections_lost, report.close_codes = 2, {4008: 2}
    report.busy["load tool delivering"] = 97.0
    text = table(options, report)
    assert report.has_losses
    for expected in ("4008: 2", "97 % busy", "400 ms behind"):
        assert expected in text


def test_report_of_memory() -> None:
    options, report = options_and_report()
    report.live, report.memory = None, Memory(50_000_000, 60_000_000, 61_000_000, 5.0, 1_000_000.0)
    assert "1,000,000 B per connection" in table(options, report)
    report.memory = Memory()
    assert "--pid" in table(options, report)


def test_no_secret_leaves() -> None:
    options, report = options_and_report()
    assert "secret" not in json.dumps(document(options, report))


def test_usage_from_metrics() -> None:
    text = "# HELP x y\nprocess_resident_memory_bytes 7.5e+07\nprocess_cpu_seconds_total 1.5\nother 3\n"
    assert usage_from_metrics(text) == Usage(75_000_000, 1.5)
    assert usage_from_metrics("") == Usage()
