"""A task writes the content of a run, and readers receive it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.utils import timezone

from reliable_cable import forget, history
from reliable_cable.runs import watching
from reliable_cable.runs.access import RunPermissions
from reliable_cable.runs.attempt import Attempt
from reliable_cable.runs.exceptions import RunFailed, RunLost, RunNotQueued, RunStopped
from reliable_cable.runs.models import WRITER_DIED, Run, Status
from reliable_cable.runs.writing import awriting, writing
from tests.support.run_reader import RunReader
from tests.unit.wire import Client, identifier

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("each_engine")]


@pytest.fixture
def owner() -> User:
    return User.objects.create(username="ann")


@pytest.fixture
def run(owner: User) -> Run:
    return Run.objects.start(owner=owner, input={"prompt": "?"})


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sent(run: Run) -> list[dict[str, Any]]:
    """Return the events on the stream of a run."""
    return [entry.data for entry in history(run.stream, limit=1000)]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["content"] for event in events if event["event"] == "chunk")


def test_a_run_is_written_and_completed(run: Run) -> None:
    with writing(run.pk) as out:
        assert out.run.input == {"prompt": "?"}
        out.write("Hel")
        out.write("lo")
        out.source("https://example.com/", "Example")
        out.count({"output_tokens": 2})
    run.refresh_from_db()
    assert (run.status, run.text, run.usage) == (Status.COMPLETED, "Hello", {"output_tokens": 2})
    assert run.parts == [{"type": "source", "url": "https://example.com/", "title": "Example", "at": 5}]
    assert run.started_at is not None
    assert run.ended_at is not None
    events = sent(run)
    assert [events[0]["event"], events[-1]["event"]] == ["start", "complete"]
    assert text_of(events) == "Hello"


def test_text_is_broadcast_and_saved_while_it_is_written(run: Run) -> None:
    with writing(run.pk) as out:
        out.write("a")
        wait_until(lambda: text_of(sent(run)) == "a")
        wait_until(lambda: Run.objects.get(pk=run.pk).text == "a")
        out.write("b")
    assert text_of(sent(run)) == "ab"


def test_an_error_fails_the_run(run: Run) -> None:
    def write() -> None:
        with writing(run.pk) as out:
            out.write("a")
            raise ZeroDivisionError("secret")

    with pytest.raises(ZeroDivisionError):
        write()
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.FAILED, "a")
    assert "secret" not in run.error
    assert sent(run)[-1] == {"event": "error", "attempt": 1, "message": run.error}


def test_the_user_reads_the_message_of_a_run_failed(run: Run) -> None:
    with pytest.raises(RunFailed), writing(run.pk):
        raise RunFailed("The model is overloaded.")
    run.refresh_from_db()
    assert run.error == "The model is overloaded."


def test_a_stop_ends_the_next_write(run: Run) -> None:
    with writing(run.pk) as out:
        out.write("a")
        assert run.stop()
        wait_until(lambda: out.stopped)
        out.write("b")
        pytest.fail("write() must raise")
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.STOPPED, "a")
    assert sent(run)[-1]["event"] == "stopped"
    assert not run.stop(), "the run has ended"


def test_a_stopped_run_whose_task_is_delivered_again_is_left_alone(run: Run) -> None:
    with writing(run.pk) as out:
        out.write("a")
        assert run.stop()
        raise RunStopped
    with writing(run.pk) as out:
        assert out.stopped
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.STOPPED, "a")


def test_a_queued_run_is_stopped_at_once(run: Run) -> None:
    assert run.stop()
    assert sent(run)[-1]["event"] == "stopped"
    with writing(run.pk) as out:
        with pytest.raises(RunStopped):
            out.write("a")
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.STOPPED, "")


async def test_a_stop_cancels_an_async_task_that_waits(run: Run) -> None:
    async with asyncio.timeout(30), awriting(run.pk) as out:
        out.write("a")
        await run.astop()
        await asyncio.Event().wait()
    await run.arefresh_from_db()
    assert (run.status, run.text) == (Status.STOPPED, "a")


async def test_a_cancelled_task_fails_its_run(run: Run) -> None:
    started = asyncio.Event()

    async def write() -> None:
        async with awriting(run.pk) as out:
            out.write("a")
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await run.arefresh_from_db()
    assert (run.status, run.text) == (Status.FAILED, "a")


def test_a_run_has_one_writer(run: Run) -> None:
    with writing(run.pk) as out:
        out.write("a")
        with pytest.raises(RunNotQueued), writing(run.pk):
            pass
    with pytest.raises(RunNotQueued, match="completed"), writing(run.pk):
        pass
    assert text_of(sent(run)) == "a"


def test_a_retry_is_a_new_attempt_on_the_same_stream(run: Run) -> None:
    with pytest.raises(Run.DoesNotExist):
        Run.objects.retry(run.pk)
    for text in ("a", "b"):
        with writing(run.pk) as out:
            out.write(text)
        Run.objects.retry(run.pk)
    run.refresh_from_db()
    assert (run.status, run.attempt, run.text) == (Status.QUEUED, 3, "")
    assert [event["attempt"] for event in sent(run)] == [1, 1, 1, 2, 2, 2]


def expire(run: Run) -> None:
    """Let the lease of a run expire."""
    Run.objects.filter(pk=run.pk).update(lease_until=timezone.now() - timedelta(seconds=1))


def test_a_run_whose_writer_died_fails_once(run: Run) -> None:
    def write() -> None:
        with writing(run.pk) as out:
            out.write("a")
            wait_until(lambda: Run.objects.get(pk=run.pk).text == "a")
            expire(run)
            assert [failed.pk for failed in Run.objects.expire()] == [run.pk]
            assert Run.objects.expire() == []
            wait_until(lambda: out.write("b"))

    with pytest.raises(RunLost):
        write()
    run.refresh_from_db()
    assert (run.status, run.text) == (Status.FAILED, "a")
    assert [event["event"] for event in sent(run)].count("error") == 1


@pytest.mark.parametrize("method", ["write", "reason"])
def test_empty_text_adds_nothing_but_tells_of_a_stop(run: Run, method: str) -> None:
    with writing(run.pk) as out:
        add = getattr(out, method)
        add("")
        run.stop()
        wait_until(lambda: out.stopped)
        with pytest.raises(RunStopped):
            add("")
    run.refresh_from_db()
    assert (run.status, run.text, run.parts) == (Status.STOPPED, "", [])


def test_a_task_is_told_at_the_end_that_its_run_was_deleted(run: Run) -> None:
    def write() -> None:
        with writing(run.pk) as out:
            out.write("a")
            Run.objects.filter(pk=run.pk).delete()

    with pytest.raises(RunLost):
        write()


async def test_an_async_task_is_told_at_the_end_that_its_run_was_deleted(run: Run) -> None:
    async def write() -> None:
        async with awriting(run.pk) as out:
            out.write("a")
            await Run.objects.filter(pk=run.pk).adelete()

    with pytest.raises(RunLost):
        await write()


def test_the_own_error_of_a_task_is_raised_although_its_run_was_deleted(run: Run) -> None:
    def write() -> None:
        with writing(run.pk):
            Run.objects.filter(pk=run.pk).delete()
            raise KeyError("x")

    with pytest.raises(KeyError):
        write()


async def test_a_late_reader_gets_one_message_and_then_the_rest(run: Run, owner: User) -> None:
    reader = RunReader()
    async with awriting(run.pk) as out:
        out.write("a" * 10_000)
        await sync_to_async(wait_until)(lambda: Run.objects.get(pk=run.pk).text)
        out.write("b")
        async with Client(scope={"user": owner}) as client:
            await client.send("subscribe", identifier("RunChannel", id=str(run.pk)), history={"since": 1})
            await reader.read(client.receive, lambda reader: reader.text)
            out.write("c")
            await reader.read(client.receive, lambda reader: reader.text.endswith("c"))
            out.write("d")
            pass_on = asyncio.create_task(reader.read(client.receive, lambda reader: reader.text.endswith("d")))
            await pass_on
    assert reader.names[0] == "snapshot"
    assert reader.names.count("snapshot") == 1
    assert reader.text == "a" * 10_000 + "bcd"


def test_a_paused_writer_does_not_take_the_end_by_a_server_for_its_own(run: Run) -> None:
    attempt = Attempt(run)
    attempt.begin()
    attempt.coalescer.add("a")
    expire(run)
    assert Run.objects.expire()
    attempt.end(Status.FAILED, "an error of the task")
    assert attempt.lost
    assert Run.objects.get(pk=run.pk).error == WRITER_DIED


def test_a_stopped_run_whose_writer_dies_is_stopped(run: Run) -> None:
    attempt = Attempt(run)
    attempt.begin()
    attempt.coalescer.add("a")
    attempt.step()
    assert run.stop()
    expire(run)
    assert [each.pk for each in Run.objects.expire()] == [run.pk]
    run.refresh_from_db()
    assert (run.status, run.error, run.text) == (Status.STOPPED, "", "a")
    assert sent(run)[-1]["event"] == "stopped"


async def test_who_is_not_the_owner_is_rejected(run: Run, settings: Any) -> None:
    # The streams of runs are not public, even if all streams are.
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "PUBLIC_STREAMS": ["*", "run:*", "durable:*"]}
    other = await User.objects.acreate(username="bob")
    for user in (other, None):
        async with Client(scope={"user": user}) as client:
            for name in (str(run.pk), "x", None, 1):
                await client.send("subscribe", identifier("RunChannel", id=name))
                assert (await client.receive())["type"] == "reject_subscription"
            for stream in (run.stream, "durable:x"):
                await client.send("subscribe", identifier("$pubsub", stream_name=stream))
                assert (await client.receive())["type"] == "reject_subscription"
            await client.subscribe(identifier("$pubsub", stream_name="runs"))


async def test_a_reader_stops_a_run(run: Run, owner: User) -> None:
    async with Client(scope={"user": owner}) as client, asyncio.timeout(30):
        await client.subscribe(identifier("RunChannel", id=str(run.pk)))
        async with awriting(run.pk) as out:
            out.write("a")
            await client.perform(identifier("RunChannel", id=str(run.pk)), "stop")
            await asyncio.Event().wait()
        reader = RunReader()
        await reader.read(client.receive, lambda reader: reader.status == "stopped")
    assert reader.text == "a"


async def test_readers_are_told_that_the_writer_died(
    run: Run, owner: User, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr(watching, "INTERVAL", 0.05)
    attempt = Attempt(run)
    await sync_to_async(attempt.begin)()
    attempt.coalescer.add("a")
    await sync_to_async(attempt.step)()
    reader = RunReader()
    async with Client(scope={"user": owner}) as client:
        await client.send("subscribe", identifier("RunChannel", id=str(run.pk)), history={"since": 1})
        await reader.read(client.receive, lambda reader: reader.text == "a")
        await sync_to_async(expire)(run)
        await reader.read(client.receive, lambda reader: reader.status == "failed")
    failed = await Run.objects.aget(pk=run.pk)
    assert (failed.text, failed.error) == (reader.text, WRITER_DIED) == ("a", WRITER_DIED)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "forgotten"])
def test_a_run_whose_writer_died_has_what_was_broadcast_if_all_of_it_is_kept(run: Run, kept: bool) -> None:
    attempt = Attempt(run)
    attempt.begin()
    for item in ("a", {"type": "reasoning", "text": "b"}, {"type": "reasoning", "text": "c"}, "d"):
        attempt.coalescer.add(item)
        attempt._flush()
    if not kept:
        forget(run.stream)
    expire(run)
    assert Run.objects.expire() == [run]
    run.refresh_from_db()
    reasoning = {"type": "reasoning", "text": "bc", "at": 1}
    assert (run.text, run.parts) == (("ad", [reasoning]) if kept else ("", []))


async def test_readers_are_told_of_an_end_that_the_writer_could_not_broadcast(
    run: Run, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "INTERVAL", 0.05)
    reader = RunReader()
    async with Client(scope={"user": owner}) as client:
        await client.send("subscribe", identifier("RunChannel", id=str(run.pk)), history={"since": 1})
        await reader.read(client.receive, lambda reader: reader.status == "queued")
        with monkeypatch.context() as broken:
            broken.setattr(Run, "announce_end", lambda run: None)
            async with awriting(run.pk) as out:
                out.write("a")
        await reader.read(client.receive, lambda reader: reader.status == "completed")
    assert reader.text == "a"


class Everyone(RunPermissions):
    def may_read(self, user: Any, run: Run) -> bool:
        return True

    def may_stop(self, user: Any, run: Run) -> bool:
        return False


async def test_a_project_decides_who_may_read_and_stop(run: Run, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "RUN_PERMISSIONS": f"{__name__}.Everyone"}
    async with Client() as client:
        await client.subscribe(identifier("RunChannel", id=str(run.pk)))
        await client.perform(identifier("RunChannel", id=str(run.pk)), "stop")
        assert (await client.receive())["message"]["event"] == "snapshot"
        assert await client.quiet()
    assert not (await Run.objects.aget(pk=run.pk)).stop_requested


def test_a_long_text_is_written_at_once(run: Run) -> None:
    """The text is longer than a broadcast may be. In JSON, each of its characters is an escape sequence."""
    text = 300_000 * "\x01"
    with writing(run.pk) as out:
        out.write(text)
        out.reason(text)
    run.refresh_from_db()
    assert (run.text, [part["text"] for part in run.parts]) == (text, [text])
    assert text_of(sent(run)) == text
