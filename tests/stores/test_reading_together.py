"""The model store reads many streams with few queries, if the reads are requested at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db.backends.utils import CursorWrapper

from reliable_cable.concurrency.batching import BATCH_SIZE, PARALLEL_BATCHES
from reliable_cable.exceptions import StoreError
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_reading import PageReader

from .conftest import MODEL_STORES, MakeStore

pytestmark = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)

NAMES = [f"stream {number}" for number in range(300)]


async def read(store: ModelStreamStore, stream: str, after: int = 1) -> StreamPage:
    return await store.aread(stream, after=after, limit=10, max_size=1000)


async def test_many_reads_take_few_queries(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[str] = []
    execute = CursorWrapper.execute

    def counted(cursor: Any, sql: str, params: Any = None) -> Any:
        queries.append(sql)
        return execute(cursor, sql, params)

    store = make_store(streams={"stream 1*": {"history_ttl": 60}})
    await store.aappend([(name, Message(f'"{name}"')) for name in NAMES[:200] + NAMES[:5]])
    monkeypatch.setattr(CursorWrapper, "execute", counted)
    pages = await asyncio.gather(*(read(store, name) for name in NAMES))
    hops = -(-len(NAMES) // BATCH_SIZE) + PARALLEL_BATCHES
    # The TTLs of the streams differ, and two streams out of three have had messages.
    assert len([sql for sql in queries if '"reliable_cable_stream' in sql]) <= 5 + 2 * hops
    assert [(page.tail, len(page.entries)) for page in pages] == [(2, 1)] * 5 + [(1, 0)] * 195 + [(0, 0)] * 100
    assert pages == [await read(store, name) for name in NAMES]
    assert pages[3].entries[0].data == '"stream 3"'


async def test_an_error_reaches_all_that_wait(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(reader: PageReader, requests: Any) -> Any:
        raise StoreError("down")

    store = make_store()
    with monkeypatch.context() as patch:
        patch.setattr(PageReader, "_rows", fail)
        results = await asyncio.gather(*(read(store, name) for name in NAMES), return_exceptions=True)
    assert {str(result) for result in results} == {"down"}
    assert (await read(store, "a")).tail == 0


async def test_a_caller_that_is_cancelled_does_not_disturb_others(make_store: MakeStore) -> None:
    store = make_store()
    await store.aappend([("a", Message("1"))])
    first, second, *others = [asyncio.create_task(read(store, "a", after=0)) for _ in range(4)]
    first.cancel()
    await asyncio.sleep(0)
    second.cancel()
    pages = await asyncio.gather(*others)
    assert [len(page.entries) for page in pages] == [1, 1]
    assert first.cancelled()
    assert second.cancelled()
