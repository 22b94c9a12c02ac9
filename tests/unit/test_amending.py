"""Changes of notices in the midst of their delivery, at each moment at which they may come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pushd.core import read_past
from pushd.delivery.amendments import Amendments, as_edited
from pushd.delivery.current_mailbox import CurrentMailbox
from pushd.delivery.edits import Edit
from pushd.delivery.submission import Sender, Submission
from pushd.errors import RequestError
from pushd.model import Amended, MailboxItem, Step
from tests.daemon import until
from tests.unit.parts import START_MS, Client, House, item, notice

MANY = 160  # connections: a slice of no time reaches 16


async def _edit(house: House, message_id: str, content: str = "new", **fields: Any) -> int:
    return (await house.amending.edit(message_id, Edit(content=content, **fields), Sender())).connections


def _crowd(house: House) -> list[Client]:
    """Slices reach some of them at a time."""
    house.dispatcher.fan_outs.most_s = 0.0
    return [house.connect(user_id, is_told_changes=True) for user_id in range(1, MANY + 1)]


async def _begun(house: House, message_id: str) -> None:
    """The first slice of its fan-out was taken, in this turn of the loop."""
    async with asyncio.timeout(10):
        while not any(flight.notice.message_id == message_id for flight in house.dispatcher._jobs):
            await asyncio.sleep(0)


@pytest.mark.parametrize("names", [["m"], ["m", "other"], ["other", "m"]], ids=["alone", "first", "second"])
async def test_a_revoked_one_reaches_nobody_else(house: House, names: list[str]) -> None:
    """Those that go out with it do."""
    crowd = _crowd(house)
    publishing = [asyncio.create_task(house.publish(name, message_id=name, target="all")) for name in names]
    await _begun(house, "m")
    amended = Amended("m", is_revoked=True)
    house.amendments.note(amended)
    reached = set(house.amending._stop("m"))
    assert 0 < len(reached) < MANY
    await asyncio.gather(*publishing)
    await house.quiet()
    assert {client.connection.user_id for client in crowd if "m" in client.ids} == reached
    assert all(client.ids.count(name) == 1 for client in crowd for name in names if name != "m")
    assert await house.stores.records.received_by("m") == reached
    assert house.ids_settled.count("m") == 1
    assert not house.dispatcher._jobs


async def test_one_that_is_held_behind_a_mailbox_with_others_is_taken_out(house: House) -> None:
    house.dispatcher.fan_outs.most_s = 0.0
    client = house.open(1)
    house.hub.add(client.connection)
    _crowd(house)
    names = ["first", "m", "third"]
    await asyncio.gather(*(house.publish(name, message_id=name, target="all") for name in names))
    await house.quiet()
    await house.amending.revoke("m")
    house.hub.release(client.connection)
    assert client.ids == ["first", "third"]


async def test_one_whose_recipients_are_not_known_yet(make_house: Callable[..., House], frail: Any) -> None:
    house = make_house(stores=frail)
    house.start_all()
    client = house.arrive(1)
    await until(lambda: client.is_greeted)
    gate = frail.directory.pause("ids_by_role")
    await house.publish("m", message_id="m", target="role", roles=[0])
    await house.amending.revoke("m")
    gate.set()
    await house.quiet()
    assert (client.ids, house.ids_settled) == ([], ["m"])
    await house.publish("other", message_id="other", target="role", roles=[0])
    await until(lambda: client.ids == ["other"])


async def test_absent_ones_find_nothing(make_house: Callable[..., House], frail: Any) -> None:
    """A broadcast reaches who is connected first; who else it is for is asked behind that."""
    house = make_house(stores=frail)
    house.start_all()
    client = house.arrive(1)
    absent = house.arrive(2)
    await until(lambda: client.is_greeted and absent.is_greeted)
    absent.leave()
    await house.quiet()
    gate = frail.directory.pause("all_ids")
    await house.publish("m", message_id="m", target="all")
    await until(lambda: client.ids == ["m"])
    assert (await house.amending.revoke("m")).copies == 0
    gate.set()
    await house.quiet()
    assert await house.mailbox(2) == []
    assert "m" in house.ids_settled


async def test_who_gets_the_former_version_is_told_behind_it(house: House) -> None:
    crowd = _crowd(house)
    publishing = asyncio.create_task(house.publish("old", message_id="m", target="all"))
    await _begun(house, "m")
    assert await _edit(house, "m") == MANY
    await publishing
    for client in crowd:
        first, second = client.receive()
        assert (first["content"], second["type"], second["notice"]["content"]) == ("old", "update", "new")


async def test_one_that_waits_for_its_turn_goes_out_as_the_newest(make_house: Callable[..., House], frail: Any) -> None:
    house = make_house(stores=frail)
    house.start_all()
    client = house.arrive(1)
    await until(lambda: client.is_greeted)
    gate = frail.directory.pause("ids_by_role")
    await house.publish("old", message_id="m", target="role", roles=[0], expires_in_s=100)
    assert await _edit(house, "m") == 0
    (flight,) = house.intake.under_way("m")
    assert (flight.notice.content, flight.notice.version) == ("new", 2)
    gate.set()
    await until(lambda: client.notices == ["new"])


async def test_what_came_from_the_mailbox_and_is_not_acknowledged(house: House) -> None:
    """No receive record says yet that it was sent to this user."""
    await house.publish("old", message_id="m", target="custom", user_ids=[7])
    await until(lambda: house.mailbox(7))
    client = house.arrive(7, is_acking=True, is_told_changes=True)
    await until(lambda: client.ids == ["m"])
    assert await _edit(house, "m") == 1
    assert client.receive()[-1]["notice"]["content"] == "new"
    assert (await house.amending.revoke("m")).connections == 1
    assert client.receive() == [{"type": "revoke", "message_id": "m"}]


async def test_what_was_read_out_of_a_mailbox_before(house: House) -> None:
    (accepted,) = await house.accept("edited")
    newest = msgspec.structs.replace(accepted, content="new", version=2)
    house.amendments.note(Amended("gone", is_revoked=True))
    house.amendments.note(Amended("edited", version=2), newest)
    client = house.connect(7)
    house.replays.replay(client.connection, [item("gone"), item("edited"), item("plain")])
    assert [(one["message_id"], one["content"]) for one in client.receive()] == [("edited", "new"), ("plain", "plain")]


async def test_nothing_is_half_done_when_the_disk_refuses(make_house: Callable[..., House], frail: Any) -> None:
    house = make_house(stores=frail)
    house.start_all()
    client = house.connect(1, is_told_changes=True)
    await house.publish("old", message_id="m", target="custom", user_ids=[1, 2])
    await house.quiet()
    for operation in ("edit", "revoke"):
        frail.amendments.fail(operation)
    with pytest.raises(Exception, match="refused"):
        await _edit(house, "m")
    with pytest.raises(Exception, match="refused"):
        await house.amending.revoke("m")
    assert await house.mailbox(2) == ["m"]
    assert (client.notices, house.amendments.editing, len(house.amendments)) == (["old"], {}, 0)
    assert await _edit(house, "m") == 1


async def test_whom_a_failure_kept_from_hearing_of_a_revoke_hears_when_it_is_repeated(
    make_house: Callable[..., House], frail: Any
) -> None:
    house = make_house(stores=frail)
    house.start_all()
    client = house.connect(1, is_told_changes=True)
    await house.publish("old", message_id="m", target="custom", user_ids=[1])
    await house.quiet()
    frail.records.fail("sent_to", error=ValueError("odd"))
    with pytest.raises(ValueError, match="odd"):
        await house.amending.revoke("m")
    assert (await house.amending.revoke("m")).connections == 1
    assert (await house.amending.revoke("m")).connections == 0
    assert client.receive()[-1] == {"type": "revoke", "message_id": "m"}


async def test_an_edit_of_a_scheduled_one_that_fails_changes_nothing(
    make_house: Callable[..., House], frail: Any
) -> None:
    house = make_house(stores=frail)
    house.start_all()
    await house.intake.accept(Submission("old", message_id="m", delay_s=3600), Sender())
    frail.amendments.fail("edit", error=ValueError("odd"))
    with pytest.raises(ValueError, match="odd"):
        await _edit(house, "m", version=1)
    scheduled = await house.schedule.find("m")
    assert scheduled is not None
    assert (scheduled.notice.content, scheduled.notice.version) == ("old", 1)
    assert await _edit(house, "m", version=1) == 0
    (version,) = await house.stores.amendments.versions("m")
    assert (version.notice.content, version.notice.version) == ("old", 1)


async def test_whoever_asks_may_leave(house: House) -> None:
    """What was begun goes on."""
    client = house.connect(1, is_told_changes=True)
    await house.publish("old", message_id="m", target="custom", user_ids=[1])
    asked = asyncio.create_task(house.amending.revoke("m"))
    await asyncio.sleep(0)
    asked.cancel()
    await house.amending.finished()
    assert client.receive()[-1] == {"type": "revoke", "message_id": "m"}


async def test_an_id_that_was_revoked_is_not_published_again(make_house: Callable[..., House]) -> None:
    house = make_house(delivery={"dedup_window_s": 1})
    house.start_all()
    await house.publish("x", message_id="m", target="custom", user_ids=[1])
    await house.amending.revoke("m")
    house.clock.move(2)  # type: ignore[attr-defined]
    with pytest.raises(RequestError) as refused:
        await house.publish("y", message_id="m", target="custom", user_ids=[1])
    assert refused.value.code == "CONFLICT"


async def test_one_that_is_sent_again_says_what_was_edited_since_its_record_was_read(house: House) -> None:
    client = house.connect(1, is_acking=True)
    await house.publish("old", message_id="m", target="custom", user_ids=[1])
    await house.quiet()
    row = await house.stores.records.push_record("m")
    assert row is not None
    await _edit(house, "m")
    await house.intake.resend(row, Sender())
    await house.quiet()
    assert client.notices == ["old", "new"]


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_what_is_published_under_the_id_of_an_edited_one_is_not_taken_for_that(
    make_house: Callable[..., House], *, is_deleted: bool
) -> None:
    house = make_house(delivery={"dedup_window_s": 1})
    house.start_all()
    await house.publish("first", message_id="m", target="custom", user_ids=[1])
    await house.quiet()
    await _edit(house, "m", "edited")
    if is_deleted:
        assert await house.stores.records.delete("m")
    house.clock.move(2)  # type: ignore[attr-defined]
    here = house.connect(3, is_acking=True)
    await house.publish("anew", message_id="m", target="custom", user_ids=[2, 3])
    await house.quiet()
    absent = house.arrive(2, is_acking=True)
    await until(lambda: absent.notices != [])
    assert absent.notices == here.notices == ["anew"]
    past = await read_past(house.stores, house.set_aside, START_MS)
    assert [one.content for one in past.unsettled] == ["anew"]
    assert await _edit(house, "m", "edited again") == 0
    assert [one.content for one in (await house.stores.mailbox.read([2]))[2]] == ["edited again"]


async def test_a_reminder_that_could_not_be_queued_does_not_count(house: House) -> None:
    await house.publish("x", message_id="m", target="custom", user_ids=[1])
    await house.quiet()
    house.lanes.capacity = 0
    with pytest.raises(RequestError):
        await house.amending.remind("m", Step.READ)
    house.lanes.capacity = 10
    assert (await house.amending.remind("m", Step.READ)).n == 1


class TestConfirmedVersion:
    def test_while_not_everybody_was_told(self) -> None:
        amendments = Amendments([Amended("a", version=3), Amended("b", version=2), Amended("c")])
        assert amendments.versions(["a", "b", "c", "d"]) == {"a": 3, "b": 2}
        amendments.editing |= {"a": START_MS, "b": START_MS}
        assert amendments.versions(["a", "b", "c", "d"]) == {"a": 2}

    async def test_a_confirmation_of_that_moment_is_of_the_former_one(self, house: House) -> None:
        house.amendments.editing["m"] = house.clock.wall_ms() - 10
        assert house.acknowledgements._seen_ms(["m", "n"]) == house.clock.wall_ms() - 11
        assert house.acknowledgements._seen_ms(["n"]) == house.clock.wall_ms()


class TestCurrentMailbox:
    async def test_what_it_shows(self, house: House) -> None:
        waiting = [item(name) for name in ("gone", "lately", "long ago", "over", "plain")]

        class Store:
            save = remove = replace = clear = purge = None
            writers = 3

            async def read(self, user_ids: Any) -> dict[int, list[MailboxItem]]:
                return {1: waiting, 2: waiting[:1]}

        class Kept:
            async def notices(self, message_ids: Any) -> Any:
                assert sorted(message_ids) == ["lately", "long ago", "over"]
                return {name: notice(message_id=name, content="new", version=2, expires_ms=end) for name, end in ends}

        ends = [("lately", 0), ("long ago", START_MS + 1), ("over", START_MS)]
        amendments = Amendments([Amended("gone", is_revoked=True), *(Amended(name, version=2) for name, _ in ends)])
        mailbox = CurrentMailbox(Store(), amendments, Kept(), lambda: START_MS)  # type: ignore[arg-type]
        found = await mailbox.read([1, 2])
        assert mailbox.writers == 3
        assert list(found) == [1]
        assert [(one.message_id, one.content) for one in found[1]] == [
            ("lately", "new"), ("long ago", "new"), ("plain", "plain")
        ]  # fmt: skip

    def test_an_item_that_is_as_new_stays(self) -> None:
        amendments = Amendments([Amended("m", version=2)])
        newer = as_edited(item("m"), notice(message_id="m", content="third", version=3))
        assert amendments.current(newer) is newer
        assert not amendments.is_older(newer)
        amendments.forget(["m", "unknown"])
        assert len(amendments) == 0
