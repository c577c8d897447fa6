"""Loads session records from the store in batches."""

from __future__ import annotations

import asyncio
from typing import Final

from reliable_cable.identity import Identity
from reliable_cable.stores.sessions.base import SessionRecord, SessionStore

#: The most records that are loaded at once.
LOAD_SIZE: Final = 200


_Request = tuple[str, Identity, asyncio.Future[SessionRecord | None]]


class SessionLoader:
    """Loads all records together that are requested in the same iteration of the event loop.

    Args:
        store: the session store.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._requests: list[_Request] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return the record of a session that belongs to this identity, or None.

        Raises:
            StoreError: the store could not be read.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[SessionRecord | None] = loop.create_future()
        self._requests.append((sid, identity, result))
        if len(self._requests) == 1:
            task = loop.create_task(self._load_all())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await result

    async def stop(self) -> None:
        """Cancel all loads."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load_all(self) -> None:
        requests, self._requests = self._requests, []
        for start in range(0, len(requests), LOAD_SIZE):
            await self._load_batch(requests[start : start + LOAD_SIZE])

    async def _load_batch(self, batch: list[_Request]) -> None:
        pairs = [(sid, identity) for sid, identity, _ in batch]
        try:
            if len(pairs) == 1:
                records = [await self._store.aload(*pairs[0])]
            else:
                records = await self._store.aload_many(pairs)
        except Exception as error:
            for _, _, result in batch:
                if not result.done():
                    result.set_exception(error)
            return
        for (_, _, result), record in zip(batch, records, strict=True):
            if not result.done():
                result.set_result(record)
