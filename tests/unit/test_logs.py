"""What the log looks like, for people and for machines, and what it must never contain."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from pushd.config.schema import LogConfig
from pushd.telemetry import logs

SECRET = "do-not-print-me"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def configured(level: Any = "info", form: Any = "json") -> Any:
    logs.configure(LogConfig(level=level, format=form))
    return structlog.get_logger("pushd.test")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    configured().info("serving", port=8801, name="张三\n")
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "serving", "level": "info", "logger": "pushd.test", "port": 8801, "name": "张三\n"}


def test_console(capsys: pytest.CaptureFixture[str]) -> None:
    configured(form="console").warning("queue is full", depth=5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for part in ("warning", "queue is full", "pushd.test", "depth", "5"):
        assert part in captured.err


@pytest.mark.parametrize("form", ["json", "console"])
def test_level(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = configured("warning", form)
    log.info("quiet")
    logging.getLogger("elsewhere").info("quiet")
    assert capsys.readouterr().err == ""
    log = configured("debug", form)  # again, as SIGHUP does
    log.debug("loud")
    assert capsys.readouterr().err.count("loud") == 1


def test_standard_loggers_end_in_the_same_place(capsys: pytest.CaptureFixture[str]) -> None:
    configured()
    logging.getLogger("asyncio").error("slow %s", "callback")
    (line,) = lines(capsys)
    assert (line["event"], line["logger"], line["level"]) == ("slow callback", "asyncio", "error")


def fail(token: str) -> None:
    raise RuntimeError("it broke")


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_tracebacks_have_no_local_variables(form: str, is_ours: bool, capsys: pytest.CaptureFixture[str]) -> None:
    log = configured(form=form) if is_ours else (configured(form=form), logging.getLogger("elsewhere"))[1]
    try:
        fail("".join(["do-not-", "print-me"]))
    except RuntimeError:
        log.exception("dispatch failed")
    text = capsys.readouterr().err
    assert "it broke" in text
    assert "RuntimeError" in text
    assert SECRET not in text
    if form == "json":
        assert json.loads(text)["exception"][0]["exc_type"] == "RuntimeError"


def test_what_json_cannot_say_is_said_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    configured().info("odd", value={1, 2}, error=ValueError("x"), nested={"deep": object})
    (line,) = lines(capsys)
    assert line["event"] == "odd"
