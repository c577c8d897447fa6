"""Whispers from a client to the other clients of a stream (see Protocol: Whispers)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from tests.conformance.conftest import Connect
from tests.protocol.test_payloads import FALSY
from tests.support.client import BASE, Frame, identify, unique
from tests.support.server import Server


@pytest.mark.parametrize("data", [{"typing": True}, [1, {"a": None}], "text", 7, True])
async def test_a_whisper_reaches_the_other_subscribers_unchanged(connect: Connect, data: Any) -> None:
    room = identify("RoomChannel", room=unique("room"))
    ann, bob, base = await connect(), await connect(), await connect(protocols=[BASE])
    for client in (ann, bob, base):
        await client.subscribe(room)
    await ann.send("whisper", room, data=data)
    for client in (bob, base):
        assert await client.next() == {"identifier": room, "message": data}
    await ann.nothing()


async def test_a_falsy_whisper_is_dropped_in_every_spelling(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    ann, bob = await connect(), await connect()
    for client in (ann, bob):
        await client.subscribe(room)
    for text in FALSY:
        await ann.send_raw(f'{{"command":"whisper","identifier":{json.dumps(room)},"data":{text}}}')
    await ann.send("whisper", room)
    await ann.send("whisper", room, data=[0])
    assert await bob.next() == {"identifier": room, "message": [0]}


async def test_a_whisper_skips_its_sender_under_every_identifier(connect: Connect) -> None:
    room = unique("room")
    ann, bob = await connect(), await connect()
    first = await ann.subscribe(identify("RoomChannel", room=room))
    await ann.subscribe(identify("RoomChannel", room=room, again=True))
    await bob.subscribe(first)
    await ann.send("whisper", first, data={"n": 1})
    await bob.expect({"message": {"n": 1}})
    await ann.nothing()


async def test_whispers_keep_their_order_and_are_not_in_the_history(connect: Connect) -> None:
    stream = unique("room")
    room = identify("RoomChannel", room=stream)
    ann, bob = await connect(), await connect()
    await ann.subscribe(room)
    await bob.subscribe(room)
    for number in range(1, 21):
        await ann.send("whisper", room, data={"n": number})
    assert await bob.messages(room, 20) == [{"n": number} for number in range(1, 21)]
    late = await connect()
    await late.send("subscribe", room, history={"since": 1, "streams": {}})
    await late.expect({"type": "confirm_subscription"})
    await late.expect({"type": "confirm_history"})
    await late.nothing()


def without_position(frames: Iterable[Frame]) -> list[Any]:
    """Return the messages that have no position."""
    return [frame["message"] for frame in frames if "message" in frame and "offset" not in frame]


async def test_whispers_and_transient_broadcasts_during_a_replay_are_held_back_not_dropped(
    connect: Connect, server: Server
) -> None:
    # Each npm client requests history when it subscribes, and may whisper as soon as the subscription is confirmed.
    stream = unique("large:")
    room = identify("RoomChannel", room=stream)
    await server.call("count_up", stream, 1, 700)
    epoch = (await server.call("position", stream))["epoch"]
    ann, bob = await connect(), await connect()
    await ann.subscribe(room)
    await bob.send("subscribe", room, history={"streams": {stream: {"epoch": epoch, "offset": 0}}})
    await bob.expect({"type": "confirm_subscription"})
    await ann.send("whisper", room, data={"typing": True})
    await server.call("broadcast", stream, {"transient": True}, transient=True)
    await server.call("broadcast", stream, {"last": True})
    frames = await bob.until({"message": {"last": True}})
    # Messages without a position follow the replay. If the replay is still running when `last` is broadcast, `last` is
    # a part of it.
    while len(without_position(frames)) < 2:
        frames.append(await bob.next())
    assert [frame["offset"] for frame in frames if "offset" in frame] == list(range(1, 702))
    # The whisper and the broadcast have two senders, so their order is not known.
    assert sorted(without_position(frames), key=str) == [{"transient": True}, {"typing": True}]


async def test_whispers_are_dropped_if_the_channel_does_not_allow_them(connect: Connect) -> None:
    plain = identify("StreamChannel", streams=[unique("plain")])
    ann, bob = await connect(), await connect()
    await ann.subscribe(plain)
    await bob.subscribe(plain)
    await ann.send("whisper", plain, data={"n": 1})
    await ann.send("whisper", identify("RoomChannel", room="not subscribed"), data={"n": 1})
    await ann.nothing()
    await bob.nothing()


async def test_a_base_client_cannot_whisper(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    base, bob = await connect(protocols=[BASE]), await connect()
    await base.subscribe(room)
    await bob.subscribe(room)
    echo = await base.subscribe(identify("EchoChannel"))
    await base.send("whisper", room, data={"n": 1})
    await base.perform(echo, "echo", n=2)
    await base.expect({"identifier": echo})
    await bob.nothing()
