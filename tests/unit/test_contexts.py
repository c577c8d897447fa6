"""`run_in_context` runs coroutines in contexts of their own, without a task for each coroutine."""

from __future__ import annotations

import asyncio
import gc
from contextvars import ContextVar, copy_context

import pytest

from reliable_cable.conf import read_settings
from reliable_cable.connection.handlers import run_in_context
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.memory import MemoryStreamStore

language: ContextVar[str] = ContextVar("language", default="en")


async def change(value: str) -> str:
    """Set the variable, await, and return the value before and after."""
    before = language.get()
    token = language.set(value)
    await asyncio.sleep(0)
    after = language.get()
    language.reset(token)
    language.set(after)
    return f"{before} {after}"


async def test_what_a_coroutine_sets_does_not_reach_its_caller() -> None:
    language.set("de")
    context = copy_context()
    assert await run_in_context(context, change("fr")) == "de fr"
    assert language.get() == "de"
    assert context[language] == "fr"


async def test_the_coroutine_belongs_to_the_task_of_the_caller() -> None:
    async def current() -> asyncio.Task[object] | None:
        return asyncio.current_task()

    assert await run_in_context(copy_context(), current()) is asyncio.current_task()


async def test_coroutines_in_several_tasks_do_not_mix_their_contexts() -> None:
    values = [str(number) for number in range(10)]
    results = await asyncio.gather(*(run_in_context(copy_context(), change(value)) for value in values))
    assert results == [f"en {value}" for value in values]


async def test_a_coroutine_can_be_timed_out_by_its_caller_and_by_itself() -> None:
    async def wait() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await run_in_context(copy_context(), wait())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await run_in_context(copy_context(), asyncio.Event().wait())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_coroutine_can_catch_the_error_of_what_it_awaits() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_exception, ValueError("broken"))

    async def catch() -> str:
        language.set("fr")
        try:
            await future
        except ValueError as error:
            return f"{error} {language.get()}"
        return ""

    assert await run_in_context(copy_context(), catch()) == "broken fr"


async def test_closing_the_caller_closes_the_coroutine() -> None:
    closed = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(language.get())

    async def caller() -> None:
        await run_in_context(copy_context(), wait())

    coroutine = caller()
    coroutine.send(None)
    coroutine.close()
    assert closed == ["en"]


async def test_a_cancelled_coroutine_leaves_no_reference_cycle() -> None:
    async def caller() -> None:
        await run_in_context(copy_context(), asyncio.Event().wait())

    async def cancel() -> None:
        task = asyncio.create_task(caller())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    await cancel()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await cancel()
        await asyncio.sleep(0)
        assert gc.collect() == 0
    finally:
        gc.enable()


async def test_events_of_a_store_are_not_delivered_in_the_context_of_the_code_that_sent_them() -> None:
    """In the context of the sender, asgiref may use another thread than the shared one, which a handler may need."""
    seen = []
    store = MemoryStreamStore(read_settings({"ENGINE": "memory"}))
    listener = store.listen(lambda event: seen.append(language.get()))
    await listener.subscribe("room")
    language.set("de")
    store.append([("room", Message("1"))])
    await asyncio.sleep(0)
    assert seen == ["en"]
    await listener.close()
