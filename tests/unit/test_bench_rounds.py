"""The benchmarks' rounds, targets, tables, files and charts; and the programs in C, driven by one another."""

from __future__ import annotations

import asyncio
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.__main__ import offline_results, parse, stores_results
from bench.broadcast import FRAME, template
from bench.fanout import fnv
from bench.loadlib.chart import Bar, draw
from bench.loadlib.native import limit_server, load_client
from bench.loadlib.options import LoadError
from bench.loadlib.rounds import (
    Result,
    alternate,
    at_least,
    at_most,
    below,
    ratios,
    rounds_for,
    table,
    targets,
    write,
)
from bench.loadlib.servers import cores

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.mark.parametrize(
    ("target", "value", "is_met", "text"),
    [
        (at_least(0.97), 0.97, True, ">= 0.97"),
        (at_least(20_000), 19_999, False, ">= 20,000"),
        (at_most(1.25), 1.25, True, "<= 1.25"),
        (at_most(1.25), 1.26, False, "<= 1.25"),
        (below(5), 5.0, False, "< 5"),
        (below(5), 4.9, True, "< 5"),
    ],
)
def test_target(target, value, is_met, text):
    assert target.is_met(value) is is_met
    assert str(target) == text
    assert Result("it", [value], target=target).verdict == ("met" if is_met else "missed")


def test_median_is_judged_not_the_best():
    result = Result("it", [1.0, 9.0, 2.0], "ms", below(2))
    assert (result.figure.lowest, result.figure.median, result.figure.highest) == (1.0, 2.0, 9.0)
    assert result.verdict == "missed"
    assert Result("it", [1.0]).verdict == ""


async def test_rounds_alternate_after_one_to_warm_up():
    seen: list[str] = []

    async def one(name: str) -> int:
        seen.append(name)
        return len(seen)

    done = await alternate({"a": lambda: one("a"), "b": lambda: one("b")}, 3)
    assert seen == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert done == {"a": [3, 6, 7], "b": [4, 5, 8]}


def test_ratios_are_of_the_same_round():
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert ratios([2.0], [0.0]) == [0.0]


def test_quick_runs_have_fewer_rounds():
    assert rounds_for(True) == 2
    assert rounds_for(False) >= 5


def test_table_has_groups_spreads_and_verdicts():
    text = table(
        {
            "fan": [
                Result("hub", [100_000, 120_000, 110_000], "/s", group="all"),
                Result("loop", [130_000], "/s", group="all"),
                Result("share", [0.9], "x", at_least(0.97)),
            ]
        }
    )
    lines = text.splitlines()
    assert lines[1:3] == ["fan", "  all"]
    assert lines[3].split() == ["hub", "110,000", "/s", "(100,000-120,000)"]
    assert lines[5].split() == ["share", "0.9", "x", ">=", "0.97", "missed"]


def test_only_what_has_a_target_is_summed_up():
    held = Result("share", [1.0], target=at_least(0.97))
    assert targets({"fan": [Result("hub", [1.0]), held], "idle": [Result("rss", [1.0])]}) == {"fan": [held]}


def test_files(tmp_path: Path):
    results = [Result("hub <b>", [1.0, 3.0, 2.0], "ms", at_most(4), "all", {"frames": 7}), Result("alone", [5.0])]
    written = write("fan", results, is_quick=False, directory=tmp_path)
    assert [file.name for file in written] == ["fan.json", "fan.svg"]
    document = json.loads(written[0].read_text())
    assert document["results"][0] == {
        "what": "hub <b>", "group": "all", "unit": "ms", "median": 2.0, "lowest": 1.0, "highest": 3.0,
        "values": [1.0, 3.0, 2.0], "target": "<= 4", "verdict": "met", "details": {"frames": 7},
    }  # fmt: skip
    assert "hub &lt;b&gt;" in written[1].read_text()


def test_quick_runs_do_not_replace_full_ones(tmp_path: Path):
    written = write("fan", [Result("alone", [5.0])], is_quick=True, directory=tmp_path)
    assert written == [tmp_path / "quick" / "fan.json"]  # and nothing to draw


def test_chart_scales_to_what_reaches_farthest():
    bars = [Bar("a", "1", 1.0, 0.5, 2.0), Bar("b", "2", 2.0, 2.0, 2.0, mark=4.0, is_good=False)]
    root = ET.fromstring(draw("title", {"panel": bars, "zeros": [Bar("z", "0", 0.0, 0.0, 0.0)], "empty": []}))
    widths = [float(node.get("width", 0)) for node in root.iter() if node.tag.endswith("rect")][1:]
    assert widths == [95.0, 190.0, 0.0]  # of 380 px, which the target takes


# ---- other scripts' figures


def test_offline_figures_become_results():
    figure = {"median": 120_000.0, "lowest": 1.0, "highest": 130_000.0}
    document = {"parts": [{"part": "save", "mailbox": "redis", "runs": [1], "figures": {
        "copies saved/s": figure, "... seconds": figure}}]}  # fmt: skip
    first, second = offline_results(document)
    assert (first.what, first.figure.median, first.verdict) == ("save, redis: copies saved/s", 120_000.0, "met")
    assert (second.what, second.verdict, dict(second.details)) == ("save, redis: seconds", "", {})


def test_stores_figures_become_results():
    figure = {"median": 6.0, "lowest": 5.0, "highest": 7.0}
    line = {"task": "mailbox save", "wall_ms": figure, "speedup": figure, "trips": 2, "old_trips": 10}
    assert [result.verdict for result in stores_results({"lines": [line]})] == ["", "met", "missed"]


def test_unknown_benchmark(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse(["fanout", "nothing"])
    assert "no such benchmark: nothing" in capsys.readouterr().err
    assert parse(["--quick", "fanout"]).names == ["fanout"]


# ---- C


def test_checksum_is_fnv_1a():
    assert fnv(14695981039346656037, b"foobar") == 0x85944171F73967E8


NOTICE = template({**FRAME, "content": "x" * 300})  # a frame with a longer head


@needs_compiler
@pytest.mark.parametrize("acks", [[], ["--ack"]])
async def test_load_client_drives_the_limit_server(tmp_path: Path, acks: list[str]):
    notice = tmp_path / "notice"
    notice.write_text(NOTICE)
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"token{number}\n" for number in range(50)))
    core = cores().others
    with limit_server(tmp_path, 50, core=core) as server:
        options = ["--port", str(server.port), "--connections", "50", "--in-flight", "8", "--notice", str(notice),
                   "--tokens", str(tokens), "--header", "Authorization: Bearer {token}", "--timeout", "10",
                   "--match", '{"type":"bench"', *acks]  # fmt: skip
        async with load_client(tmp_path, "clients", options, core=core) as client:
            assert client.connected["connections"] == client.connected["upgrade"]["count"] == 50
            said = await client.ask("rounds 3 1")
            assert len(said["last_ms"]) == 3
            assert said["frame_bytes"] > 300
            report = await client.ask("report")
            assert report["delivery"]["count"] == 150
            assert 0 < report["delivery"]["p50_ms"] <= report["delivery"]["p99_ms"] <= report["delivery"]["max_ms"]
            assert (await client.ask("report"))["delivery"]["count"] == 0
            assert (await client.ask("expect 3"))["frames"] == 150
            assert (await client.ask("idle 0.01"))["pings"] == 0


@needs_compiler
async def test_load_client_complains(tmp_path: Path):
    with limit_server(tmp_path, 2, core=cores().others) as server:
        options = ["--port", str(server.port), "--connections", "2", "--timeout", "0.2"]
        async with load_client(tmp_path, "clients", options, core=cores().others) as client:
            with pytest.raises(LoadError, match="not everybody got every frame"):
                await client.ask("expect 1")


@needs_compiler
@pytest.mark.parametrize(
    ("rest", "complaint"),
    [(b"\x02no", "damaged or out of order"), (b"\x02ok\x88\x00", "closed by the server"), (b"", "not everybody got")],
)
async def test_load_client_answers_pings_and_compares_every_byte(tmp_path: Path, rest: bytes, complaint: str):
    answers: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(b"\x89\x02hi\x81")  # a ping, and the beginning of a frame
        answers.append(await reader.readexactly(8))
        writer.write(b"\x02ok" if len(answers) == 1 else rest)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = ["--port", str(port), "--connections", "2", "--raw", "--timeout", "0.3"]
    async with load_client(tmp_path, "clients", options, core=cores().others) as client:
        with pytest.raises(LoadError, match=complaint):
            await client.ask("expect 1")
    server.close()
    for writer in writers:
        writer.transport.abort()
    assert answers == [b"\x8a\x82\0\0\0\0hi"] * 2
