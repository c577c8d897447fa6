"""At its first subscribe, a client is sent the messages that came after the data of its page were read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from reliable_cable import (
    Channel,
    InvalidOption,
    PagePosition,
    StreamPosition,
    abroadcast,
    action,
    aforget,
    aposition,
    signed_stream_name,
)
from reliable_cable.consumer import get_hub
from reliable_cable.signing import verify_signed_stream, verify_stream_name
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.streams.base import YOUNG_TIME
from reliable_cable.stores.streams.memory import MemoryStreamStore

from .test_namespaces import within
from .test_races import received
from .wire import BASE, Client, identifier, leave_session, registered, run_event_loop


class Room(Channel, abstract=True):
    async def subscribed(self) -> None:
        if self.params.get("greet"):
            self.transmit({"hello": 1})
        for name, after in self.params.get("streams", {"room": self.params.get("after")}).items():
            self.stream_from(name, after=after)
        if self.params.get("lobby"):
            self.stream_from("lobby", after=await aposition(self.params["lobby"]))

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the protocol's name
        return True

    @action
    async def open(self, data: dict[str, Any]) -> None:
        self.stream_from(data["stream"], after=data["after"])


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60, "PUBLIC_STREAMS": ["room"]}
    with registered(Room=Room):
        yield


async def broadcast_numbers(*numbers: int, stream: str = "room") -> None:
    for number in numbers:
        await abroadcast(stream, number)


async def load_page(stream: str = "room") -> str:
    """Broadcast three messages. Return the position after the first one, as a page passes it to its client."""
    await broadcast_numbers(1, stream=stream)
    at = str(await aposition(stream))
    await broadcast_numbers(2, 3, stream=stream)
    return at


def named(offset: int, epoch: str, stream: str = "room") -> dict[str, Any]:
    """Return the history request of a client that has a position of its own, besides that of its page."""
    return {"since": 1, "streams": {stream: {"epoch": epoch, "offset": offset}}}


class TestSubscribing:
    async def test_a_client_that_asks_for_no_history_is_sent_what_came_after_the_page_then_live_messages(self) -> None:
        page = identifier("Room", after=await load_page(), greet=True)
        async with Client() as client:
            await client.send("subscribe", page, presence={"id": "7"})
            assert await received(client) == [{"hello": 1}, "confirm_subscription", 2, 3, "presence"]
            await broadcast_numbers(4)
            assert await received(client) == [4]

    async def test_the_page_is_more_exact_than_the_time_that_the_client_sends(self) -> None:
        page = identifier("Room", after=await load_page())
        async with Client() as client:
            await client.send("subscribe", page, history={"since": 1, "streams": {}}, presence={"id": "7"})
            assert await received(client) == ["confirm_subscription", 2, 3, "confirm_history", "presence"]

    async def test_without_later_messages_nothing_is_replayed(self) -> None:
        await load_page()
        page = identifier("Room", after=str(await aposition("room")))
        async with Client() as client:
            await client.send("subscribe", page, history={"since": 1, "streams": {}})
            assert await received(client) == ["confirm_subscription", "confirm_history"]
            await broadcast_numbers(4)
            assert await received(client) == [4]

    async def test_a_page_of_a_stream_without_messages_gets_all_of_them(self) -> None:
        page = identifier("Room", after=str(await aposition("room")))
        await broadcast_numbers(1, 2)
        async with Client() as client:
            await client.send("subscribe", page)
            assert await received(client) == ["confirm_subscription", 1, 2]

    async def test_a_position_of_the_client_itself_counts_more_than_that_of_the_page(self) -> None:
        page = identifier("Room", after=await load_page())
        epoch = (await aposition("room")).epoch
        async with Client() as client:
            await client.send("subscribe", page, history=named(2, epoch))
            assert await received(client) == ["confirm_subscription", 3, "confirm_history"]

    async def test_a_later_request_for_history_does_not_use_the_page(self) -> None:
        page = identifier("Room", after=await load_page())
        async with Client() as client:
            await client.subscribe(page)
            await received(client)
            await client.send("history", page, history={"since": False, "streams": {}})
            assert await received(client) == ["confirm_history"]
            await client.send("history", page, history={"since": 1, "streams": {}})
            assert await received(client) == [1, 2, 3, "confirm_history"]

    async def test_a_page_that_is_ahead_of_this_process_waits_for_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        await load_page()
        async with Client() as other, Client() as client:
            await other.subscribe(identifier("Room"))
            deliver = get_hub().deliver
            monkeypatch.setattr(get_hub()._listener, "_deliver", lambda event: None)
            await broadcast_numbers(4)
            page = identifier("Room", after=str(await aposition("room")))
            monkeypatch.setattr(get_hub()._listener, "_deliver", deliver)
            await client.send("subscribe", page)
            assert await received(client) == ["confirm_subscription"]
            await broadcast_numbers(5)
            assert await received(client) == [5]

    async def test_an_action_starts_a_stream_after_a_position(self) -> None:
        after = await load_page("other")
        async with Client() as client:
            await client.subscribe(identifier("Room"))
            await client.perform(identifier("Room"), "open", stream="other", after=after)
            assert await received(client) == [2, 3]

    async def test_a_handler_reads_a_position_itself(self) -> None:
        await broadcast_numbers(1, stream="lobby")
        async with Client() as client:
            await client.send("subscribe", identifier("Room", lobby="lobby"))
            assert await received(client) == ["confirm_subscription"]
            await client.send("subscribe", identifier("Room", lobby="room"))
            assert await received(client) == ["reject_subscription"]


class TestRestoring:
    async def test_a_client_that_returns_is_sent_what_came_after_its_own_position(self) -> None:
        page = identifier("Room", after=await load_page())
        async with Client() as client:
            await client.subscribe(page)
            assert await received(client) == [2, 3]
        await broadcast_numbers(4)
        async with Client(client.sid) as back:
            assert back.welcome["restored_ids"] == [page]
            await back.send("history", page, history=named(3, (await aposition("room")).epoch))
            assert await received(back) == [4, "confirm_history"]

    async def test_a_client_that_received_nothing_is_sent_what_came_after_the_page(self) -> None:
        page = identifier("Room", after=await load_page())
        sid = await leave_session(Client(), page)
        async with Client(sid) as back:
            await back.send("history", page, history={"since": 1, "streams": {}})
            assert await received(back) == [2, 3, "confirm_history"]

    async def test_a_stream_that_is_new_in_the_restored_subscription_starts_after_the_page(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        after, other = await load_page(), await load_page("other")
        page = identifier("Room", streams={"room": after, "other": other})
        both = Room.subscribed

        async def only_one(self: Room) -> None:
            self.stream_from("room", after=after)

        monkeypatch.setattr(Room, "subscribed", only_one)
        sid = await leave_session(Client(), page)
        monkeypatch.setattr(Room, "subscribed", both)
        async with Client(sid) as back:
            await back.send("history", page, history={"since": False, "streams": {}})
            assert await received(back) == [2, 3, 2, 3, "confirm_history"]


class TestRejecting:
    async def assert_told(self, page: str) -> None:
        """Check that a client is told of the loss once, with or without a history request, and gets later messages."""
        for history in ({}, {"history": {"since": 1, "streams": {}}}):
            async with Client() as client:
                await client.send("subscribe", page, **history)
                assert await received(client) == ["confirm_subscription", "reject_history"]
                at = (await aposition("room")).offset
                await broadcast_numbers(9)
                assert await received(client) == [at + 1]
            async with Client(client.sid) as back:
                assert back.welcome["restored_ids"] == [page]

    async def test_trimmed_messages(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "HISTORY_SIZE": 2}
        page = identifier("Room", after=await load_page())
        await broadcast_numbers(4, 5)
        store: Any = get_engine().streams
        now = store.clock()
        monkeypatch.setattr(store, "clock", lambda: now + YOUNG_TIME + 1)
        await self.assert_told(page)

    async def test_messages_that_were_trimmed_a_moment_ago_are_still_sent(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "HISTORY_SIZE": 2}
        page = identifier("Room", after=await load_page())
        await broadcast_numbers(4, 5)
        async with Client() as client:
            await client.send("subscribe", page)
            assert await received(client) == ["confirm_subscription", 2, 3, 4, 5]

    async def test_another_epoch(self) -> None:
        page = identifier("Room", after=await load_page())
        await aforget("room")
        await self.assert_told(page)
        await broadcast_numbers(1)
        await self.assert_told(page)

    async def test_an_offset_that_does_not_exist(self) -> None:
        await load_page()
        at = await aposition("room")
        for offset in (20, 10**14):
            await self.assert_told(identifier("Room", after=str(PagePosition(at.epoch, offset, "room"))))

    @pytest.mark.parametrize(
        "after",
        ["", "0", "latest", "1.2.3", 0, 7, False, True, [], {}, ["1"], {"offset": 1}, "9" * 1_900, "\0", "é", -1.5],
    )
    async def test_values_that_are_no_position(self, after: Any, caplog: pytest.LogCaptureFixture) -> None:
        await load_page()
        await self.assert_told(identifier("Room", after=after))
        assert "does not belong to the stream 'room'" in caplog.text

    async def test_a_position_of_another_stream(self) -> None:
        await load_page()
        await self.assert_told(identifier("Room", after=await load_page("other")))

    async def test_a_stream_that_began_in_lost_data(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lineage = "before"
        read = MemoryStreamStore.read

        async def alineage(self: Any, *, durable: bool = False) -> str:
            return lineage

        def read_lineage(*args: Any, **options: Any) -> Any:
            return replace(read(*args, **options), lineage=lineage)

        monkeypatch.setattr(MemoryStreamStore, "alineage", alineage)
        monkeypatch.setattr(MemoryStreamStore, "read", read_lineage)
        page = identifier("Room", after=str(await aposition("room")))
        async with Client() as client:
            await client.send("subscribe", page)
            assert await received(client) == ["confirm_subscription"]
        await run_event_loop()
        lineage = "after"
        await self.assert_told(page)

    async def test_one_of_several_streams(self) -> None:
        """If one stream cannot be replayed, no stream is replayed, as for every history request."""
        page = identifier("Room", streams={"other": await load_page("other"), "room": "?"})
        async with Client() as client:
            await client.send("subscribe", page)
            assert await received(client) == ["confirm_subscription", "reject_history"]

    async def test_a_restore_tells_a_client_again_that_has_not_read_the_notice(self) -> None:
        await load_page()
        page = identifier("Room", after="?")
        sid = await leave_session(Client(), page)
        async with Client(sid) as back:
            await back.send("history", page, history={"since": 1, "streams": {}})
            assert await received(back) == ["reject_history"]


class TestWithoutPositions:
    async def test_a_base_client_has_none_and_the_log_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        for after in (await load_page(), "?"):
            async with Client(protocol=BASE) as client:
                await client.send("subscribe", identifier("Room", after=after))
                assert await received(client) == ["confirm_subscription"]
        assert "actioncable-v1-ext-json" in caplog.text

    async def test_a_stream_without_a_history_has_none(self, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "HISTORY_SIZE": 0}
        for after in (str(await aposition("room")), "?"):
            async with Client() as client:
                await client.send("subscribe", identifier("Room", after=after))
                assert await received(client) == ["confirm_subscription"]
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


class TestPubSub:
    async def test_a_signed_name_carries_a_position(self) -> None:
        await load_page()
        signed = signed_stream_name("room", at=await aposition("room"))
        await broadcast_numbers(4)
        async with Client() as client:
            await client.send("subscribe", identifier("$pubsub", signed_stream_name=signed))
            assert await received(client) == ["confirm_subscription", 4]

    async def test_signed_and_public_streams_take_the_param_after(self) -> None:
        after = await load_page()
        for params in ({"signed_stream_name": signed_stream_name("room")}, {"stream_name": "room"}):
            async with Client() as client:
                await client.send("subscribe", identifier("$pubsub", **params, after=after))
                assert await received(client) == ["confirm_subscription", 2, 3]

    async def test_a_name_with_a_position_is_verified_where_names_are(self) -> None:
        await load_page()
        at = await aposition("room")
        signed = signed_stream_name("room", at=at)
        assert verify_stream_name(signed) == "room"
        assert verify_signed_stream(signed) == ("room", at)
        assert verify_signed_stream(signed_stream_name("room")) == ("room", None)
        encoded, _, digest = signed.partition("--")
        assert verify_signed_stream(f"{encoded}--{digest[:-1]}") is None
        assert verify_signed_stream(f"{signed_stream_name('other').partition('--')[0]}--{digest}") is None

    async def test_only_a_position_of_the_stream_can_be_signed(self) -> None:
        await load_page()
        at = await aposition("room")
        for wrong in (await aposition("other"), StreamPosition(at.epoch, at.offset), str(at), ""):
            with pytest.raises(InvalidOption, match="is not a position that position"):
                signed_stream_name("room", at=wrong)  # type: ignore[arg-type]


class TestNamespaces:
    async def test_a_position_is_one_of_a_tenant(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "NAMESPACE": "tests.unit.test_namespaces.namespace"}
        with within("red"):
            after = await load_page()
            signed = signed_stream_name("room", at=await aposition("room"))
        with within("blue"):
            blue = await load_page()
            with pytest.raises(InvalidOption):
                signed_stream_name("room", at=PagePosition.parse(after, "red\x1froom"))
        expected: dict[str, list[Any]] = {after: [2, 3], blue: ["reject_history"], signed: []}
        async with Client(scope={"tenant": "red"}) as client:
            for each, frames in expected.items():
                page = identifier("Room", after=each)
                if each is signed:
                    page = identifier("$pubsub", signed_stream_name=signed)
                await client.send("subscribe", page)
                assert await received(client) == ["confirm_subscription", *frames]
