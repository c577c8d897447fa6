"""The language and the tenant of handlers: nothing that one call sets reaches another call."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import Client, identify, unique
from tests.support.server import Server


@pytest.mark.parametrize("tell", ["tell", "atell"])
@pytest.mark.parametrize("switch", ["switch", "aswitch"])
async def test_a_language_does_not_reach_a_command_that_was_queued_behind(
    connect: Connect, server: Server, switch: str, tell: str
) -> None:
    client = await connect()
    first, second = [await client.subscribe(identify("ContextChannel", n=n)) for n in (1, 2)]
    gate = unique("gate")
    await client.perform(first, switch, gate=gate, language="fr")
    await server.call("wait_at_gate", gate, 1)
    await client.perform(second, tell)
    # A ping is answered at once, so after the pong, the command that was sent before the ping is in the queue.
    await client.send("ping")
    await client.expect({"type": "pong"})
    await server.call("open_gate", gate)
    await client.expect({"identifier": second, "message": {"language": "en-us"}})


async def test_each_call_has_the_tenant_and_the_language_of_its_own_connection(
    connect: Connect, server: Server, clients: AsyncExitStack
) -> None:
    identifier = identify("ContextChannel")

    async def call(client: Client) -> Any:
        await client.perform(identifier, "tell")
        return (await client.expect({"identifier": identifier}))["message"]

    tenants = {}
    for tenant, language in (("ada", "fr"), ("bob", "de")):
        query = f"tenant={tenant}&language={language}"
        client = Client(server.url.replace("/cable", "/tenants"), query=query)
        await clients.enter_async_context(client)
        await client.subscribe(identifier)
        tenants[client] = {"language": language, "tenants": [tenant, tenant]}
    other = await connect()
    await other.subscribe(identifier)
    for _ in range(6):
        answers = await asyncio.gather(*(call(client) for client in tenants))
        assert answers == list(tenants.values())
        assert await call(other) == {"language": "en-us", "tenants": [None, None]}
