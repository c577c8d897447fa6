"""A restore runs `subscribed` again, and applies the differences to its former result (see Protocol: Restore)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import OperationalError

from reliable_cable import Channel, action, state
from reliable_cable.broadcasting import abroadcast
from reliable_cable.channel import registry
from reliable_cable.connection import restore as restore_module
from reliable_cable.connection.subscription import Subscription
from reliable_cable.reply import PresenceJoin
from reliable_cable.stores.engine import get_engine

from .wire import Client, connection_of, identifier, registered


class Room(Channel, abstract=True):
    """Starts the streams in `readable`, and joins as `member`."""

    #: The streams that may be read; None: the subscription is rejected.
    readable: list[str] | None
    allowed: bool
    whisper: bool
    member: tuple[str, Any] | None
    #: How many calls of `subscribed` fail because the database cannot be reached.
    outages: int
    calls: int

    count = state(default=0)

    async def before_subscribe(self) -> bool:
        return Room.allowed

    async def subscribed(self) -> None:
        Room.calls += 1
        if Room.outages:
            Room.outages -= 1
            raise OperationalError("the database is away")
        if Room.readable is None:
            return self.reject()
        for name in Room.readable:
            self.stream_from(name, whisper=Room.whisper)
        if Room.member is not None:
            self.presence.join(*Room.member)
        self.transmit({"count": self.count})

    async def handle_error(self, error: Exception, handler: str) -> None:
        self.transmit({"failed": handler})

    @action
    async def increment(self) -> None:
        self.count += 1

    @action
    async def start(self, data: dict[str, Any]) -> None:
        self.stream_from(data["stream"])

    @action
    async def stop(self, data: dict[str, Any]) -> None:
        self.stop_stream_from(data["stream"])

    @action
    async def join(self, data: dict[str, Any]) -> None:
        self.presence.join(data["id"], data["info"])

    @action
    async def hide(self) -> None:
        self.presence.leave()


ROOM, OTHER = identifier("Room"), identifier("Room", n=2)


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    Room.readable, Room.allowed, Room.whisper, Room.member = ["a", "b"], True, False, None
    Room.outages, Room.calls = 0, 0
    with registered(Room=Room):
        yield


def streams(client: Client, of: str = ROOM) -> list[str]:
    """Return the names of the streams of a subscription."""
    (record,) = [each for each in connection_of(client).record().data["subscriptions"] if each["identifier"] == of]
    return [stream["name"] for stream in record["streams"]]


async def leave(client: Client, *actions: dict[str, Any]) -> None:
    """Call actions, and wait until they have ended. The caller then disconnects the client."""
    for data in actions:
        await client.perform(ROOM, **data)
    assert await client.quiet()


async def begin(*actions: dict[str, Any]) -> str:
    """Return the session id of a client that subscribed, called these actions, and has disconnected."""
    async with Client() as client:
        await client.subscribe(ROOM)
        await leave(client, *actions)
    return client.sid


async def received(client: Client) -> list[Any]:
    """Request the history of the room. Return the messages, and the types and ids of presence events, before a pong."""
    await client.send("history", ROOM, history={})
    for _ in range(50):
        await asyncio.sleep(0)
    await client.send_text('{"command":"ping"}')
    result = []
    while (frame := await client.receive()) != {"type": "pong"}:
        if frame.get("type") == "presence":
            result.append((frame["message"]["type"], frame["message"]["id"]))
        elif "message" in frame:
            result.append(frame["message"])
    return result


def members(stream: str) -> dict[str, Any]:
    """Return the info of each member of a stream, by the member's id."""
    return dict(get_engine().presence.info(stream).records or {})


class TestRights:
    async def test_the_client_gets_the_transmissions_of_subscribed_again_with_the_restored_state(self) -> None:
        sid = await begin({"action": "increment"})
        async with Client(sid) as client:
            assert client.welcome["restored_ids"] == [ROOM]
            assert (await client.receive())["message"] == {"count": 1}
            assert await client.quiet()

    @pytest.mark.parametrize("check", ["subscribed", "before_subscribe"])
    async def test_a_rejected_subscription_is_not_restored_and_gets_nothing(self, check: str) -> None:
        sid = await begin()
        if check == "subscribed":
            Room.readable = None
        else:
            Room.allowed = False
        async with Client(sid) as client:
            assert client.welcome["restored_ids"] == []
            await abroadcast("a", {"n": 1})
            assert await client.quiet()
            await client.send("subscribe", ROOM)
            assert await client.receive() == {"type": "reject_subscription", "identifier": ROOM}

    async def test_an_outage_of_the_database_is_retried(self) -> None:
        sid = await begin()
        Room.outages, Room.calls = 3, 0
        async with Client(sid) as client:
            assert client.welcome["restored_ids"] == [ROOM]
        assert Room.calls == 4

    async def test_an_error_leaves_the_subscription_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sid = await begin()
        monkeypatch.setattr(Room, "readable", [""])
        async with Client(sid) as client:
            # No frame may come before the welcome.
            assert client.welcome["restored_ids"] == []
            assert await client.quiet()
            await client.send("subscribe", ROOM)
            assert (await client.receive())["message"] == {"failed": "subscribed"}

    async def test_slow_handlers_do_not_delay_the_welcome_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # A client that waits too long for the welcome gives up the connection and reconnects, again and again.
        async with Client() as former:
            await former.subscribe(ROOM)
            await former.subscribe(OTHER)
        # On the clock of the event loop, each call of `subscribed` takes longer than a whole restore may take.
        loop = asyncio.get_running_loop()
        now = loop.time
        Room.calls = 0
        monkeypatch.setattr(loop, "time", lambda: now() + Room.calls * (restore_module.RESTORE_TIMEOUT + 1))
        async with Client(former.sid) as client:
            assert client.welcome["restored_ids"] == [ROOM]
            assert (await client.receive())["message"] == {"count": 0}
            await client.subscribe(OTHER)


class TestStreams:
    async def test_one_that_subscribed_does_not_start_now_is_stopped(self) -> None:
        sid = await begin()
        Room.readable = ["b"]
        async with Client(sid) as client:
            await abroadcast("a", {"stream": "a"})
            await abroadcast("b", {"stream": "b"})
            assert await received(client) == [{"count": 0}, {"stream": "b"}]

    async def test_one_that_subscribed_starts_for_the_first_time_begins_at_the_restore(self) -> None:
        sid = await begin()
        Room.readable = ["c", "a", "b"]
        await abroadcast("c", {"n": "before"})
        async with Client(sid) as client:
            assert streams(client) == ["c", "a", "b"]
            await abroadcast("c", {"n": "after"})
            assert await received(client) == [{"count": 0}, {"n": "after"}]

    async def test_one_that_stays_continues_where_the_client_left_it(self) -> None:
        sid = await begin()
        await abroadcast("a", {"n": 1})
        async with Client(sid) as client:
            await abroadcast("a", {"n": 2})
            assert await received(client) == [{"count": 0}, {"n": 1}, {"n": 2}]

    async def test_those_that_actions_started_stay_and_those_that_actions_stopped_stay_stopped(self) -> None:
        sid = await begin({"action": "start", "stream": "d"}, {"action": "stop", "stream": "a"})
        for _ in range(2):  # the second time from the record of a restored session
            async with Client(sid) as client:
                assert streams(client) == ["b", "d"]
                await client.receive()
            sid = client.sid

    async def test_one_that_an_action_started_again_is_still_compared(self) -> None:
        sid = await begin({"action": "stop", "stream": "a"}, {"action": "start", "stream": "a"})
        Room.readable = ["b"]
        async with Client(sid) as client:
            assert streams(client) == ["b"]

    async def test_their_options_are_those_of_the_new_call(self) -> None:
        Room.whisper = True
        sid = await begin()
        Room.whisper = False
        async with Client(sid) as client:
            (record,) = connection_of(client).record().data["subscriptions"]
            assert [stream["whisper"] for stream in record["streams"]] == [False, False]

    async def test_a_new_one_does_not_take_the_stream_id_of_another_restored_subscription(self) -> None:
        # The client has one position for each stream id.
        Room.readable = ["a"]
        async with Client() as former:
            await former.subscribe(ROOM)
            Room.readable = ["b"]
            await former.subscribe(OTHER)
        Room.readable = ["a", "b"]
        async with Client(former.sid) as client:
            records = connection_of(client).record().data["subscriptions"]
            ids = {record["identifier"]: {each["name"]: each["id"] for each in record["streams"]} for record in records}
            assert (ids[ROOM]["a"], ids[OTHER]["b"]) == ("a", "b")
            assert len({ids[one][name] for one in (ROOM, OTHER) for name in "ab"}) == 4

    async def test_the_stream_id_of_one_that_is_gone_is_free_again(self) -> None:
        sid = await begin()
        Room.readable = ["b"]
        async with Client(sid) as client:
            await client.receive()
            Room.readable = ["a"]
            await client.subscribe(OTHER)
            await abroadcast("a", {"n": 1})
            assert (await client.receive())["stream_id"] == "a"


class TestPresence:
    @pytest.fixture(autouse=True)
    def _member(self) -> None:
        Room.member = ("ann", {"name": "Ann"})

    async def test_a_member_that_joins_again_causes_no_event(self) -> None:
        sid = await begin()
        async with Client(sid) as client:
            assert await received(client) == [{"count": 0}]
            assert members("a") == {"ann": {"name": "Ann"}}

    async def test_a_new_info_is_stored(self) -> None:
        sid = await begin()
        Room.member = ("ann", {"name": "Anna"})
        async with Client(sid) as client:
            assert await received(client) == [{"count": 0}]
            assert members("a") == {"ann": {"name": "Anna"}}

    async def test_a_member_that_an_action_changed_stays_so(self) -> None:
        sid = await begin({"action": "join", "id": "ann", "info": "away"})
        async with Client(sid) as client:
            await received(client)
            assert members("a") == {"ann": "away"}

    @pytest.mark.parametrize("info", [{"name": "Ann"}, {"name": "Anna"}])
    async def test_a_member_that_an_action_removed_does_not_return(self, info: Any) -> None:
        sid = await begin({"action": "hide"})
        Room.member = ("ann", info)
        async with Client(sid) as client:
            assert await received(client) == [{"count": 0}]
            assert members("a") == {}

    async def test_a_member_as_which_subscribed_does_not_join_now_leaves(self) -> None:
        sid = await begin()
        Room.member = None
        async with Client(sid) as client:
            assert await received(client) == [{"count": 0}, ("leave", "ann")]
            assert members("a") == {}

    async def test_a_member_leaves_a_stream_that_is_gone(self) -> None:
        sid = await begin()
        Room.readable = ["b"]
        async with Client(sid) as client:
            assert ("join", "ann") in await received(client)
            assert (members("a"), members("b")) == ({}, {"ann": {"name": "Ann"}})

    async def test_a_pending_join_is_in_the_record(self) -> None:
        Room.member = None
        async with Client() as client:
            await client.subscribe(ROOM)
            subscription = connection_of(client).subscriptions[ROOM]
            assert isinstance(subscription, Subscription)
            subscription.presence.join_later([PresenceJoin("eve")])
            assert subscription.record()["member"] == ["eve", None]

    async def test_a_client_that_has_the_members_of_a_stream_that_is_gone_subscribes_afresh(self) -> None:
        async with Client() as former:
            await former.subscribe(ROOM)
            await former.send("presence", ROOM)
            while (await former.receive())["message"]["type"] != "info":
                pass
        Room.readable = ["b"]
        async with Client(former.sid) as client:
            assert client.welcome["restored_ids"] == []


class TestARecordOfAnOlderRelease:
    async def begin(self, *actions: dict[str, Any]) -> str:
        """Return the id of a session whose record does not say which streams `subscribed` started."""
        async with Client() as client:
            await client.subscribe(ROOM)
            identity = connection_of(client).identity
            await leave(client, {"action": "increment"}, *actions)
        store = get_engine().sessions
        record = store.load(client.sid, identity)
        assert record is not None
        del record.data["subscriptions"][0]["subscribed"]
        store.save({client.sid: record})
        return client.sid

    async def test_is_restored_if_subscribed_starts_exactly_its_streams(self) -> None:
        sid = await self.begin()
        async with Client(sid) as client:
            assert streams(client) == ["a", "b"]
            assert (await client.receive())["message"] == {"count": 1}
        Room.readable = ["b"]
        async with Client(client.sid) as client:
            assert streams(client) == ["b"], "the next record says it"

    @pytest.mark.parametrize("readable", [["a"], ["a", "b", "c"]])
    async def test_is_not_restored_if_subscribed_starts_others(self, readable: list[str]) -> None:
        sid = await self.begin()
        Room.readable = readable
        async with Client(sid) as client:
            assert client.welcome["restored_ids"] == []

    async def test_is_not_restored_if_an_action_may_have_started_one_of_its_streams(self) -> None:
        sid = await self.begin({"action": "start", "stream": "d"})
        async with Client(sid) as client:
            assert client.welcome["restored_ids"] == []


class TestResubscribed:
    async def test_is_called_instead_of_subscribed_and_keeps_all_streams(self) -> None:
        class Kept(Room, abstract=True):
            async def resubscribed(self) -> None:
                self.stream_from("d")
                self.transmit({"back": self.count})

        registry["Room"] = [Kept]
        sid = await begin({"action": "increment"})
        Room.readable, Room.calls = None, 0
        async with Client(sid) as client:
            assert streams(client) == ["a", "b", "d"]
            assert (await client.receive())["message"] == {"back": 1}
        assert Room.calls == 0

    async def test_the_streams_are_compared_after_a_deploy_that_removes_it(self) -> None:
        class Kept(Room, abstract=True):
            async def resubscribed(self) -> None: ...

        registry["Room"] = [Kept]
        sid = await begin()
        async with Client(sid) as client:
            sid = client.sid
        registry["Room"] = [Room]
        Room.readable = ["b"]
        async with Client(sid) as client:
            assert streams(client) == ["b"]
