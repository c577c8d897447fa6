"""Positions of pages: the first subscription of a page gets the messages after the page's data (see docs/pages.md)."""

from __future__ import annotations

from tests.conformance.conftest import Connect
from tests.support.client import Client, identify, unique
from tests.support.server import Server


async def numbers_after(client: Client, identifier: str) -> tuple[list[int], str]:
    """Subscribe with a request for history, and return the replayed numbers and the type of the acknowledgement."""
    await client.send("subscribe", identifier, history={"since": 1, "streams": {}})
    await client.expect({"type": "confirm_subscription", "identifier": identifier})
    frames = await client.until(lambda frame: str(frame.get("type", "")).endswith("_history"))
    return [frame["message"]["n"] for frame in frames[:-1]], frames[-1]["type"]


async def test_a_page_of_an_empty_stream_and_a_later_one(connect: Connect, server: Server) -> None:
    stream = unique("page")
    empty = await server.call("load_page", stream)
    await server.call("count_up", stream, 1, 2)
    later = await server.call("load_page", stream)
    await server.call("count_up", stream, 3, 4)
    client = await connect()
    pages = {
        identify("StreamChannel", streams=[stream], after=empty["after"]): [1, 2, 3, 4],
        identify("StreamChannel", streams=[stream], after=later["after"]): [3, 4],
        identify("$pubsub", signed_stream_name=empty["signed"]): [1, 2, 3, 4],
        identify("$pubsub", signed_stream_name=later["signed"]): [3, 4],
    }
    for identifier, numbers in pages.items():
        assert await numbers_after(client, identifier) == (numbers, "confirm_history")


async def test_a_page_is_told_if_its_position_is_not_served(connect: Connect, server: Server) -> None:
    stream, other = unique("page"), unique("page")
    await server.call("count_up", stream, 1, 2)
    old = await server.call("load_page", stream)
    await server.call("forget", stream)
    await server.call("count_up", stream, 3, 4)
    wrong = await server.call("load_page", other)
    client = await connect()
    for after in (old["after"], wrong["after"], "9" * 1000):
        identifier = identify("StreamChannel", streams=[stream], after=after)
        assert await numbers_after(client, identifier) == ([], "reject_history")
