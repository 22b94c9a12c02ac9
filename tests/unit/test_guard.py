"""The guard around remote stores, and the circuit it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pushd.errors import StoreError, StoreLost, StoreUnavailable
from pushd.retry import Circuit
from pushd.stores.guard import Guard

TINY_S = 0.001


class DriverError(Exception):
    """What a driver raises."""


class GoneError(DriverError):
    """Nobody answered."""


def translate(error: Exception) -> StoreError | None:
    if isinstance(error, GoneError):
        return StoreLost("box", str(error))
    return StoreUnavailable("box", str(error)) if isinstance(error, DriverError) else None


class Work:
    """Does what it is told next: raises it, never ends for "hang", else returns it."""

    def __init__(self, *steps: object) -> None:
        self.steps = list(steps)
        self.calls = 0

    async def __call__(self) -> object:
        self.calls += 1
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        if step == "hang":
            await asyncio.Event().wait()
        return step


class Observed:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bool]] = []

    def __call__(self, store: str, operation: str, seconds: float, is_ok: bool) -> None:
        assert seconds >= 0
        self.calls.append((store, operation, is_ok))


@pytest.fixture
def observed() -> Observed:
    return Observed()


@pytest.fixture
def guard(observed: Observed) -> Guard:
    return Guard("box", observed, translate)


async def _fails(call: Awaitable[object], kind: type[StoreError]) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await call
    assert type(caught.value) is kind
    return caught.value


async def _open(guard: Guard) -> None:
    for _ in range(3):
        await _fails(guard.call("read", Work(GoneError())), StoreLost)


class TestCall:
    async def test_the_result_and_what_is_observed(self, guard: Guard, observed: Observed) -> None:
        assert await guard.call("read", Work(5)) == 5
        assert observed.calls == [("box", "read", True)]

    async def test_the_drivers_errors_are_translated_with_their_cause(self, guard: Guard, observed: Observed) -> None:
        cause = DriverError("no room")
        error = await _fails(guard.call("save", Work(cause)), StoreUnavailable)
        assert error.__cause__ is cause
        assert str(error) == "box: no room"
        assert observed.calls == [("box", "save", False)]

    async def test_our_own_errors_pass(self, guard: Guard) -> None:
        await _fails(guard.call("save", Work(StoreError("box", "never"))), StoreError)

    async def test_other_errors_pass_and_say_nothing_about_the_store(self, guard: Guard, observed: Observed) -> None:
        for _ in range(5):
            with pytest.raises(ValueError, match="a mistake"):
                await guard.call("save", Work(ValueError("a mistake")))
        assert observed.calls[-1] == ("box", "save", False)
        assert await guard.call("read", Work(1)) == 1

    async def test_no_answer_in_time(self, observed: Observed) -> None:
        guard = Guard("box", observed, translate, TINY_S)
        error = await _fails(guard.call("read", Work("hang")), StoreLost)
        assert str(error) == "box: read: no answer within 0.001 s"
        assert isinstance(error.__cause__, TimeoutError)

    async def test_a_cancelled_caller_is_no_failure(self, guard: Guard, observed: Observed) -> None:
        for _ in range(5):
            task = asyncio.create_task(guard.call("read", Work("hang")))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert observed.calls == []
        assert await guard.call("read", Work(1)) == 1


class TestCircuit:
    async def test_nothing_is_tried_while_it_is_open(self, guard: Guard, observed: Observed) -> None:
        await _open(guard)
        work = Work(1)
        count = len(observed.calls)
        await _fails(guard.call("read", work), StoreLost)
        await _fails(guard.read("read", work), StoreLost)
        assert work.calls == 0
        assert len(observed.calls) == count

    async def test_a_probe_that_is_answered_closes_it(self, guard: Guard) -> None:
        await _open(guard)
        await _fails(guard.call("check", Work(GoneError()), is_probe=True), StoreLost)
        await _fails(guard.call("read", Work(1)), StoreLost)
        assert await guard.call("check", Work(1), is_probe=True) == 1
        assert await guard.call("read", Work(2)) == 2

    @pytest.mark.parametrize("answer", [1, DriverError("an answer, too"), StoreError("box", "never")])
    async def test_any_answer_starts_the_count_again(self, guard: Guard, answer: object) -> None:
        for _ in range(4):
            await _fails(guard.call("read", Work(GoneError())), StoreLost)
            await _fails(guard.call("read", Work(GoneError())), StoreLost)
            await asyncio.gather(guard.call("read", Work(answer)), return_exceptions=True)
        assert await guard.call("read", Work(1)) == 1

    async def test_calls_without_an_answer_count(self, observed: Observed) -> None:
        guard = Guard("box", observed, translate, TINY_S)
        for _ in range(3):
            await _fails(guard.call("read", Work("hang")), StoreLost)
        work = Work(1)
        await _fails(guard.call("read", work), StoreLost)
        assert work.calls == 0

    def test_by_itself(self) -> None:
        circuit = Circuit(2)
        steps: list[tuple[Callable[[], None], bool]] = [
            (circuit.lost, False), (circuit.answered, False), (circuit.lost, False), (circuit.lost, True),
            (circuit.lost, True), (circuit.answered, False), (circuit.lost, False),
        ]  # fmt: skip
        assert not circuit.is_open
        for step, is_open in steps:
            step()
            assert circuit.is_open is is_open


class TestRead:
    async def test_a_lost_connection_is_tried_once_more(self, guard: Guard) -> None:
        work = Work(GoneError(), 5)
        assert await guard.read("read", work) == 5
        assert work.calls == 2

    async def test_but_once_only(self, guard: Guard) -> None:
        work = Work(GoneError("first"), GoneError("second"), 5)
        assert str(await _fails(guard.read("read", work), StoreLost)) == "box: second"
        assert work.calls == 2

    async def test_not_after_waiting_in_vain(self, observed: Observed) -> None:
        work = Work("hang", 5)
        await _fails(Guard("box", observed, translate, TINY_S).read("read", work), StoreLost)
        assert work.calls == 1

    async def test_not_after_an_answer(self, guard: Guard) -> None:
        work = Work(DriverError(), 5)
        await _fails(guard.read("read", work), StoreUnavailable)
        assert work.calls == 1

    async def test_not_when_it_opened_the_circuit(self, guard: Guard) -> None:
        for _ in range(2):
            await _fails(guard.call("read", Work(GoneError())), StoreLost)
        work = Work(GoneError(), 5)
        await _fails(guard.read("read", work), StoreLost)
        assert work.calls == 1
