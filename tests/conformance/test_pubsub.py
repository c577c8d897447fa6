"""`$pubsub`: signed and public streams, without a channel of the application (see Protocol: Signed streams)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import Client, identify, unique
from tests.support.server import Server

SECRET = "a secret that tests can sign with"


def sign(name: Any, secret: str = SECRET) -> str:
    """Sign a stream name as the documentation describes it (see Protocol: Signed streams)."""
    encoded = base64.b64encode(json.dumps(name).encode()).decode()
    return encoded + "--" + hmac.new(secret.encode(), encoded.encode(), hashlib.sha256).hexdigest()


async def test_a_signed_stream_has_positions_and_history(connect: Connect, server: Server) -> None:
    stream = unique("chat/")
    position = await server.call("broadcast", stream, {"n": 1})
    client = await connect()
    identifier = identify("$pubsub", signed_stream_name=sign(stream))
    known = {stream: {"epoch": position["epoch"], "offset": 0}}
    await client.send("subscribe", identifier, history={"streams": known})
    await client.expect({"type": "confirm_subscription"})
    await client.expect({"message": {"n": 1}, "offset": 1, "stream_id": stream})
    await client.expect({"type": "confirm_history"})


@pytest.mark.parametrize(
    "params",
    [
        {"signed_stream_name": sign("chat/1", "another secret")},
        {"signed_stream_name": sign("chat/1")[:-1]},
        {"signed_stream_name": "chat/1"},
        {"signed_stream_name": ""},
        {"signed_stream_name": None},
        {"signed_stream_name": {"a": 1}},
        {"signed_stream_name": "é--" + "0" * 64},
        {"signed_stream_name": sign({"no": "name"})},
        {"signed_stream_name": sign("")},
        {"stream_name": "chat/1"},
        {},
    ],
    ids=str,
)
async def test_invalid_signatures_are_rejected_and_public_streams_are_off_by_default(
    connect: Connect, params: dict[str, Any]
) -> None:
    client = await connect()
    identifier = identify("$pubsub", **params)
    await client.send("subscribe", identifier)
    assert await client.next() == {"type": "reject_subscription", "identifier": identifier}


async def test_a_public_stream_is_streamed_if_the_setting_allows_it(strict: Server) -> None:
    stream = unique("chat/")
    async with Client(strict.url) as client:
        identifier = await client.subscribe(identify("$pubsub", stream_name=stream))
        await strict.call("broadcast", stream, {"n": 1})
        await client.expect({"identifier": identifier, "message": {"n": 1}, "offset": 1})


async def test_the_signed_name_is_used_if_both_names_are_given(strict: Server) -> None:
    signed, public = unique("chat/"), unique("chat/")
    async with Client(strict.url) as client:
        await client.subscribe(identify("$pubsub", stream_name=public, signed_stream_name=sign(signed)))
        await strict.call("broadcast", public, {"n": 1})
        await strict.call("broadcast", signed, {"n": 2})
        await client.expect({"message": {"n": 2}})
        broken = identify("$pubsub", stream_name=public, signed_stream_name="broken")
        await client.send("subscribe", broken)
        await client.expect({"type": "reject_subscription", "identifier": broken})


async def test_whispers_are_on_for_public_streams_and_opt_in_for_signed_ones(connect: Connect, strict: Server) -> None:
    signed = identify("$pubsub", signed_stream_name=sign(unique("chat/")))
    public = identify("$pubsub", stream_name=unique("chat/"))
    for identifier in (signed, public):
        async with Client(strict.url) as ann, Client(strict.url) as bob:
            await ann.subscribe(identifier)
            await bob.subscribe(identifier)
            await ann.send("whisper", identifier, data={"n": 1})
            await bob.expect({"identifier": identifier, "message": {"n": 1}})
    ann, bob = await connect(), await connect()
    await ann.subscribe(signed)
    await bob.subscribe(signed)
    await ann.send("whisper", signed, data={"n": 1})
    await ann.nothing()
    await bob.nothing()


async def test_clients_may_join_presence_on_signed_and_public_streams(connect: Connect, strict: Server) -> None:
    client = await connect()
    signed = identify("$pubsub", signed_stream_name=sign(unique("chat/")))
    await client.subscribe(signed, presence={"id": "ann", "info": {}})
    await client.expect({"type": "presence", "message": {"type": "join", "id": "ann"}})
    async with Client(strict.url) as other:
        public = identify("$pubsub", stream_name=unique("chat/"))
        await other.subscribe(public)
        await other.send("join", public, presence={"id": "ann", "info": {}})
        await other.expect({"type": "presence", "message": {"type": "join", "id": "ann"}})


async def test_a_signed_subscription_is_restored(connect: Connect, server: Server) -> None:
    stream = unique("chat/")
    former = await connect()
    identifier = await former.subscribe(identify("$pubsub", signed_stream_name=sign(stream)))
    await former.cut()
    await server.call("broadcast", stream, {"n": 1})
    client = await connect(sid=former.sid)
    assert client.welcome["restored_ids"] == [identifier]
    await client.send("history", identifier, history={"streams": {}})
    await client.expect({"message": {"n": 1}})
    await client.expect({"type": "confirm_history"})


async def test_a_pubsub_stream_has_no_actions(connect: Connect) -> None:
    client = await connect()
    identifier = await client.subscribe(identify("$pubsub", signed_stream_name=sign(unique("chat/"))))
    for action in ("subscribed", "authorize_presence", "transmit", "speak", "__init__"):
        await client.perform(identifier, action)
    await client.nothing()
