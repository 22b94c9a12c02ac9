"""What fails unexpectedly costs one connection or one step, is counted, and is logged once per cause."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from pushd.errors import CloseCode
from pushd.presence.failures import Failures
from tests.unit.parts import House


async def test_a_connection_pays_for_what_fails_about_it(house: House) -> None:
    first, second = house.connect(1), house.connect(2)
    with capture_logs() as logs:
        for client in (first, second):
            with house.failures.at_cost_of(client.connection):
                raise ZeroDivisionError("odd")
    assert first.connection.close_code == second.connection.close_code == CloseCode.INTERNAL_ERROR
    assert [(line["event"], line["user_id"], line["conn_id"]) for line in logs] == [("arrival failed", 1, "c0")]
    assert house.metrics.errors.labels("arrival").value == 2


async def test_a_step_that_fails_ends_nothing_else(house: House) -> None:
    done: list[str] = []
    with capture_logs() as logs:
        for step in ("first", "second", "second"):
            with house.failures.carrying_on(step):
                done.append(step)
                raise ZeroDivisionError("odd")
    assert done == ["first", "second", "second"]
    assert [line["event"] for line in logs] == ["first failed", "second failed"]
    assert house.metrics.errors.labels("second").value == 2


async def test_what_ends_the_process_is_no_failure(house: House) -> None:
    with pytest.raises(KeyboardInterrupt), house.failures.carrying_on("step"):
        raise KeyboardInterrupt


async def test_a_close_that_fails_does_not_keep_others_open(house: House) -> None:
    class Stuck:
        def close(self, *_: Any) -> None:
            raise ZeroDivisionError("odd")

    client = house.connect(1)
    with capture_logs() as logs:
        Failures(Stuck(), house.metrics).close(client.connection, CloseCode.NO_PONG, "")  # type: ignore[arg-type]
    assert [line["event"] for line in logs] == ["close failed"]
    house.failures.close(client.connection, CloseCode.NO_PONG, "no pong")
    assert client.connection.close_code == CloseCode.NO_PONG
