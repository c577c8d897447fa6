"""SQLite as `startproject` configures it: many writers in three processes, while clients of a server reconnect."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack

import pytest

from tests.stores.test_stock_sqlite import refused, run, stored
from tests.support.client import identify
from tests.support.recovering import RecoveringClient
from tests.support.server import ServerPool

WRITERS = (6, 5, 5)
#: How many broadcasts each writer makes.
COUNT = int(os.environ.get("CABLE_STOCK_BROADCASTS", "10"))
CLIENTS = 20
HISTORY_SIZE = 100_000


@pytest.mark.timeout(240 + COUNT)
async def test_no_broadcast_fails_and_no_message_is_lost_while_clients_reconnect(servers: ServerPool) -> None:
    identifier = identify("StreamChannel", streams=["a"])
    with servers.make("uvicorn", HISTORY_SIZE=HISTORY_SIZE) as server:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(RecoveringClient(server.url)) for _ in range(CLIENTS)]
            for client in clients:
                await client.subscribe(identifier)
            started = [
                run(str(server.database), writers, COUNT, poll=True, sessions=True, history_size=HISTORY_SIZE)
                for writers in WRITERS
            ]
            writing = asyncio.create_task(asyncio.to_thread(refused, *started))
            cuts = 0
            while not writing.done():
                cuts += await random.choice(clients).cut()
                await asyncio.sleep(0.02)
            assert await writing == []
            payloads, offsets = stored(str(server.database))
            assert offsets == list(range(1, sum(WRITERS) * COUNT + 1))
            for client in clients:
                await client.wait_for_messages(identifier, len(payloads))
                assert client.received[identifier] == payloads
                assert client.complaints == []
            assert cuts > CLIENTS
