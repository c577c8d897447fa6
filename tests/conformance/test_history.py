"""Replays of history: `since`, positions, incomplete history and several streams (see Protocol: History)."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import BASE, PATIENCE, Client, Frame, identify, unique
from tests.support.server import Server


async def fill(server: Server, stream: str, count: int) -> str:
    """Broadcast the numbers from 1 to `count`, and return the epoch of the stream."""
    await server.call("count_up", stream, 1, count)
    return str((await server.call("position", stream))["epoch"])


def at(epoch: str, offset: int) -> Frame:
    """Return a position as clients send it."""
    return {"epoch": epoch, "offset": offset}


async def replay(client: Client, identifier: str, history: Any) -> tuple[list[int], str]:
    """Subscribe with a history request, and return the replayed numbers and the type of the acknowledgement."""
    await client.send("subscribe", identifier, history=history)
    await client.expect({"type": "confirm_subscription", "identifier": identifier})
    return await read_replay(client, identifier)


async def replayable_time(connect: Connect, *streams: str, ahead: int = 0) -> int:
    """Return the current time in seconds, as soon as streams without messages can be replayed since then.

    A Redis may have lost messages from before its start, so this waits if it was started just now.

    Args:
        connect: opens connections.
        streams: the names of the streams.
        ahead: by how many seconds the clock of the client is fast.
    """
    identifier = identify("StreamChannel", streams=list(streams))
    async with asyncio.timeout(PATIENCE):
        while True:
            client, now = await connect(), int(time.time()) + ahead
            _, acknowledgement = await replay(client, identifier, {"since": now, "streams": {}})
            await client.close()
            if acknowledgement == "confirm_history":
                return now
            await asyncio.sleep(0.1)


async def read_replay(client: Client, identifier: str) -> tuple[list[int], str]:
    """Read a replay, and return its numbers and the type of the acknowledgement."""
    frames = await client.until(lambda frame: str(frame.get("type", "")).endswith("_history"))
    assert all(frame["identifier"] == identifier for frame in frames)
    return [frame["message"]["n"] for frame in frames[:-1]], frames[-1]["type"]


async def test_a_position_is_exclusive_and_replayed_messages_carry_positions(connect: Connect, server: Server) -> None:
    stream = unique("history")
    epoch = await fill(server, stream, 5)
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream])
    assert await replay(client, identifier, {"streams": {stream: at(epoch, 3)}}) == ([4, 5], "confirm_history")
    replayed = [frame for frame in client.log if "message" in frame]
    assert [(f["stream_id"], f["epoch"], f["offset"]) for f in replayed] == [(stream, epoch, 4), (stream, epoch, 5)]


async def test_offset_zero_asks_for_everything_and_the_tail_for_nothing(connect: Connect, server: Server) -> None:
    stream = unique("history")
    epoch = await fill(server, stream, 3)
    for offset, numbers in [(0, [1, 2, 3]), (3, [])]:
        client = await connect()
        identifier = identify("StreamChannel", streams=[stream])
        assert await replay(client, identifier, {"streams": {stream: at(epoch, offset)}}) == (
            numbers,
            "confirm_history",
        )


async def test_since_is_inclusive_and_in_seconds(connect: Connect, server: Server) -> None:
    stream = unique("history")
    before = await replayable_time(connect, stream)
    await fill(server, stream, 3)
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream])
    assert await replay(client, identifier, {"since": before, "streams": {}}) == ([1, 2, 3], "confirm_history")


@pytest.mark.parametrize("since", [0, 1])
async def test_since_0_asks_for_all_messages(connect: Connect, server: Server, since: int) -> None:
    stream = unique("history")
    await fill(server, stream, 3)
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream])
    assert await replay(client, identifier, {"since": since, "streams": {}}) == ([1, 2, 3], "confirm_history")


async def test_since_is_not_used_for_a_stream_with_a_position(connect: Connect, server: Server) -> None:
    stream, other = unique("history"), unique("history")
    before = await replayable_time(connect, stream, other)
    epoch = await fill(server, stream, 4)
    await server.call("count_up", other, 11, 12)
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream, other])
    numbers, acknowledgement = await replay(client, identifier, {"since": before, "streams": {stream: at(epoch, 3)}})
    assert (sorted(numbers), acknowledgement) == ([4, 11, 12], "confirm_history")


async def test_a_client_whose_clock_is_fast_gets_the_messages_of_the_last_seconds(
    connect: Connect, server: Server
) -> None:
    # If `since` lies in the future, the server uses its own time minus one ping interval.
    stream = unique("history")
    since = await replayable_time(connect, stream, ahead=3600)
    await fill(server, stream, 2)
    identifier = identify("StreamChannel", streams=[stream])
    assert await replay(await connect(), identifier, {"since": since, "streams": {}}) == ([1, 2], "confirm_history")


@pytest.mark.parametrize(
    "history",
    [{}, {"since": False}, {"since": None, "streams": None}, {"streams": {}}, {"since": "x", "streams": []}],
)
async def test_a_history_request_that_asks_for_nothing_is_confirmed(
    connect: Connect, server: Server, history: Any
) -> None:
    # None of these values is an error, and each request gets one acknowledgement.
    stream = unique("history")
    await fill(server, stream, 2)
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream])
    assert await replay(client, identifier, history) == ([], "confirm_history")
    await client.nothing()
    await server.call("broadcast", stream, {"n": 3})
    assert await client.messages(identifier, 1) == [{"n": 3}]


async def test_a_subscribe_without_history_gets_no_replay(connect: Connect, server: Server) -> None:
    stream = unique("history")
    await fill(server, stream, 2)
    client = await connect()
    await client.subscribe(identify("StreamChannel", streams=[stream]))
    await client.nothing()


async def test_a_channel_without_any_stream_acknowledges_history_too(connect: Connect) -> None:
    client = await connect()
    identifier = identify("EchoChannel")
    history = {"since": int(time.time()), "streams": {"whatever": at("e", 3)}}
    assert await replay(client, identifier, history) == ([], "confirm_history")
    await client.nothing()


async def test_the_history_command_replays_and_live_messages_follow(connect: Connect, server: Server) -> None:
    stream = unique("history")
    epoch = await fill(server, stream, 3)
    client = await connect()
    identifier = await client.subscribe(identify("StreamChannel", streams=[stream]))
    await client.send("history", identifier, history={"streams": {stream: at(epoch, 1)}})
    assert await read_replay(client, identifier) == ([2, 3], "confirm_history")
    await client.send_raw(json.dumps({"history": {}, "identifier": identifier, "command": "history"}))
    assert await read_replay(client, identifier) == ([], "confirm_history")
    await client.send("history", identifier)
    assert await read_replay(client, identifier) == ([], "confirm_history")
    await server.call("broadcast", stream, {"n": 4})
    assert await client.messages(identifier, 1) == [{"n": 4}]
    await client.nothing()


async def test_a_position_at_the_tail_is_confirmed_although_all_entries_have_expired(
    connect: Connect, server: Server
) -> None:
    # Streams named `brief:*` keep their entries for 0.3 s.
    stream = unique("brief:")
    epoch = await fill(server, stream, 3)
    client = await connect()
    replayed = [3]
    while replayed:  # until the third entry has expired
        probe = await connect()
        replayed, acknowledgement = await replay(
            probe, identify("StreamChannel", streams=[stream]), {"streams": {stream: at(epoch, 2)}}
        )
        await probe.close()
    assert acknowledgement == "reject_history", "the entry between the position and the tail has expired"
    identifier = identify("StreamChannel", streams=[stream])
    assert await replay(client, identifier, {"streams": {stream: at(epoch, 3)}}) == ([], "confirm_history")


async def test_a_replay_that_needs_trimmed_entries_is_rejected(connect: Connect, server: Server) -> None:
    # Streams named `small:*` keep five entries. The position before the oldest entry can still be served.
    stream = unique("small:")
    epoch = await fill(server, stream, 8)
    expected = {2: ([], "reject_history"), 3: ([4, 5, 6, 7, 8], "confirm_history"), 8: ([], "confirm_history")}
    for offset, outcome in expected.items():
        client = await connect()
        identifier = identify("StreamChannel", streams=[stream])
        assert await replay(client, identifier, {"streams": {stream: at(epoch, offset)}}) == outcome
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream])
    assert await replay(client, identifier, {"since": 1, "streams": {}}) == ([], "reject_history")


async def test_after_a_rejected_history_the_subscription_gets_live_messages(connect: Connect, server: Server) -> None:
    stream = unique("small:")
    epoch = await fill(server, stream, 8)
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream])
    assert await replay(client, identifier, {"streams": {stream: at(epoch, 1)}}) == ([], "reject_history")
    await server.call("count_up", stream, 9, 10)
    assert await client.messages(identifier, 2) == [{"n": 9, "writer": ""}, {"n": 10, "writer": ""}]


@pytest.mark.parametrize("position", [{"epoch": "another", "offset": 1}, {"epoch": None, "offset": 99}])
async def test_a_position_of_another_epoch_or_beyond_the_tail_is_rejected(
    connect: Connect, server: Server, position: Frame
) -> None:
    stream = unique("history")
    epoch = await fill(server, stream, 3)
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream])
    history = {"since": int(time.time()), "streams": {stream: {**position, "epoch": position["epoch"] or epoch}}}
    assert await replay(client, identifier, history) == ([], "reject_history")


async def test_a_forgotten_stream_begins_another_epoch(connect: Connect, server: Server) -> None:
    stream = unique("history")
    epoch = await fill(server, stream, 3)
    await server.call("forget", stream)
    assert await fill(server, stream, 3) != epoch
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream])
    assert await replay(client, identifier, {"streams": {stream: at(epoch, 3)}}) == ([], "reject_history")


async def test_a_live_subscriber_gets_reject_history_when_the_epoch_changes(connect: Connect, server: Server) -> None:
    stream = unique("history")
    await fill(server, stream, 3)
    client, base = await connect(), await connect(protocols=[BASE])
    identifier = await client.subscribe(identify("StreamChannel", streams=[stream]))
    await base.subscribe(identifier)
    await server.call("count_up", stream, 4, 4)
    await server.call("forget", stream)
    position = await server.call("broadcast", stream, {"n": 1})
    await client.expect({"message": {"n": 4}, "offset": 4})
    await client.expect({"type": "reject_history", "identifier": identifier})
    await client.expect({"message": {"n": 1}, "offset": 1, "epoch": position["epoch"]})
    await client.nothing()
    await base.expect({"message": {"n": 4}})
    await base.expect({"type": "disconnect", "reconnect": True})


async def test_if_one_of_several_streams_is_incomplete_only_the_rejection_is_sent(
    connect: Connect, server: Server
) -> None:
    whole, trimmed = unique("history"), unique("small:")
    epochs = {whole: await fill(server, whole, 3), trimmed: await fill(server, trimmed, 8)}
    for streams in ([whole, trimmed], [trimmed, whole]):
        client = await connect()
        identifier = identify("StreamChannel", streams=streams)
        history = {"streams": {stream: at(epoch, 1) for stream, epoch in epochs.items()}}
        assert await replay(client, identifier, history) == ([], "reject_history")


async def test_several_streams_are_replayed_each_in_order(connect: Connect, server: Server) -> None:
    streams = [unique("history") for _ in range(3)]
    epochs = [await fill(server, stream, 4) for stream in streams]
    client = await connect()
    identifier = identify("StreamChannel", streams=streams)
    history = {"streams": {name: at(epoch, 1) for name, epoch in zip(streams, epochs, strict=True)}}
    _, acknowledgement = await replay(client, identifier, history)
    assert acknowledgement == "confirm_history"
    for stream in streams:
        offsets = [frame["offset"] for frame in client.log if frame.get("stream_id") == stream]
        assert offsets == [2, 3, 4]


async def test_streams_that_the_subscription_does_not_have_are_never_read(connect: Connect, server: Server) -> None:
    # If the server read such streams, any client could read any stream.
    secret, mine = unique("secret"), unique("history")
    epoch = await fill(server, secret, 3)
    await fill(server, mine, 1)
    client = await connect()
    identifier = identify("StreamChannel", streams=[mine])
    history = {"streams": {secret: at(epoch, 0), mine: at("", 0)}}
    numbers, _ = await replay(client, identifier, history)
    await server.call("count_up", secret, 4, 4)
    assert all(frame.get("stream_id") in (None, mine) for frame in client.log)
    assert numbers in ([], [1])
    await client.nothing()


@pytest.mark.slow
async def test_a_long_history_arrives_completely_while_broadcasts_continue(connect: Connect, server: Server) -> None:
    # The server reads a long history in several steps, and holds back live messages until the end of the replay.
    stream = unique("large:")
    epoch = await fill(server, stream, 700)
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream])
    await client.send("subscribe", identifier, history={"streams": {stream: at(epoch, 0)}})
    await server.call("count_up", stream, 701, 800)
    await client.expect({"type": "confirm_subscription"})
    frames = await client.until({"type": "confirm_history"})
    if frames[-2]["offset"] < 800:  # if not, the replay contains all messages that were broadcast meanwhile
        frames += await client.until({"message": {"n": 800}})
    messages = [frame for frame in frames if "message" in frame]
    assert [frame["offset"] for frame in messages] == list(range(1, 801))
    assert [frame for frame in frames if "message" not in frame] == [
        {"type": "confirm_history", "identifier": identifier}
    ]


async def test_a_history_larger_than_the_limit_of_pending_frames_does_not_make_the_client_too_slow(
    connect: Connect, server: Server
) -> None:
    # The history has 10 MB, and MAX_PENDING_SIZE is 1 MiB.
    stream = unique("history")
    await server.call("flood", stream, 100, 100_000)
    epoch = (await server.call("position", stream))["epoch"]
    client = await connect()
    identifier = identify("StreamChannel", streams=[stream])
    numbers, acknowledgement = await replay(client, identifier, {"streams": {stream: at(epoch, 0)}})
    assert (numbers, acknowledgement) == (list(range(1, 101)), "confirm_history")


async def test_transient_streams_and_messages_have_no_position(connect: Connect, server: Server) -> None:
    transient, kept = unique("cursor:"), unique("history")
    since = await replayable_time(connect, transient, kept)
    client = await connect()
    identifier = identify("StreamChannel", streams=[transient, kept])
    assert await replay(client, identifier, {"since": since, "streams": {}}) == ([], "confirm_history")
    assert await server.call("broadcast", transient, {"x": 1}) is None
    assert await client.next() == {"identifier": identifier, "message": {"x": 1}}
    assert await server.call("broadcast", kept, {"x": 2}, transient=True) is None
    assert await client.next() == {"identifier": identifier, "message": {"x": 2}}
    assert (await server.call("broadcast", kept, {"x": 3}))["offset"] == 1
    await client.expect({"message": {"x": 3}, "offset": 1})
