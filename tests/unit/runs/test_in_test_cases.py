"""Tasks that write runs can be tested in a `TestCase`, which never commits its transaction, and in other test cases."""

from __future__ import annotations

import asyncio

import pytest
from django.db import models, transaction
from django.test import TestCase, TransactionTestCase, override_settings

from reliable_cable.runs.exceptions import RunFailed
from reliable_cable.runs.models import Run, Status
from reliable_cable.runs.writing import Writer, awriting, writing
from reliable_cable.testing import CableTestCase, capture_broadcasts


def wait_until_saved(run: Run, out: Writer) -> None:
    """Read `out.stopped` until the row of a run has a text. In a transaction, this also saves an answer that is due."""
    while not run.text:
        assert not out.stopped
        run.refresh_from_db()


class StopsAnAsyncTask:
    """A test that two of the classes below share."""

    async def test_a_stop_cancels_an_async_task(self) -> None:
        run = await Run.objects.astart()
        async with awriting(run.pk) as out:
            out.write("a")
            assert await run.astop()
            await asyncio.Event().wait()
        await run.arefresh_from_db()
        assert (run.status, run.text) == (Status.STOPPED, "a")


class WithTheTestKit(StopsAnAsyncTask, CableTestCase):
    def test_a_task_writes_a_run(self) -> None:
        run = Run.objects.start()
        with self.captureBroadcasts() as captured, writing(run.pk) as out:
            out.write("Hel")
            wait_until_saved(run, out)
            out.write("lo")
            assert (run.status, run.text) == (Status.RUNNING, "Hel")
            out.source("https://example.com/", "Example")
        run.refresh_from_db()
        assert (run.status, run.text, len(run.parts)) == (Status.COMPLETED, "Hello", 1)
        assert {each.stream for each in captured} == {run.stream}
        events = [each.data["event"] for each in captured]
        assert events == ["start", "chunk", "chunk", "part", "complete"]
        assert "".join(each.data.get("content", "") for each in captured) == "Hello"

    def test_a_task_fails(self) -> None:
        run = Run.objects.start()
        error = {"event": "error", "message": "The words have run out."}

        def task() -> None:
            with writing(run.pk) as out:
                out.write("Well")
                raise RunFailed(error["message"])

        with self.assertBroadcasts(run.stream, 1, matching=error), pytest.raises(RunFailed):
            task()
        run.refresh_from_db()
        assert (run.status, run.text) == (Status.FAILED, "Well")

    def test_a_stop_ends_the_next_write(self) -> None:
        run = Run.objects.start()
        reached = False
        with writing(run.pk) as out:
            out.write("a")
            assert not out.stopped
            assert run.stop()
            assert out.stopped
            out.write("b")
            reached = True
        run.refresh_from_db()
        assert (run.status, run.text, reached) == (Status.STOPPED, "a", False)

    async def test_an_async_task_writes_a_run(self) -> None:
        run = await Run.objects.astart()
        async with awriting(run.pk) as out:
            out.write("Hel")
            while not run.text:
                await run.arefresh_from_db()
            assert (run.status, run.text) == (Status.RUNNING, "Hel")
            out.write("lo")
        await run.arefresh_from_db()
        assert (run.status, run.text) == (Status.COMPLETED, "Hello")

    def test_events_wait_for_a_transaction_of_the_task(self) -> None:
        run = Run.objects.start()
        with self.captureBroadcasts() as captured:
            with (
                self.assertLogs("reliable_cable", "WARNING") as logs,
                transaction.atomic(using=run._state.db),
                writing(run.pk) as out,
            ):
                out.write("Hello")
                assert captured == []
            assert [each.data["event"] for each in captured] == ["start", "chunk", "complete"]
        assert "is written in a transaction" in logs.output[0]


class WithoutTheTestKit(TestCase):
    def test_a_task_writes_a_run(self) -> None:
        run = Run.objects.start()
        with self.assertLogs("reliable_cable", "WARNING") as logs, writing(run.pk) as out:
            out.write("Hel")
            wait_until_saved(run, out)
            out.write("lo")
        assert len(logs.output) == 1, logs.output
        run.refresh_from_db()
        assert (run.status, run.text) == (Status.COMPLETED, "Hello")

    def test_broadcasts_can_be_captured(self) -> None:
        run = Run.objects.start()
        with capture_broadcasts() as captured, writing(run.pk) as out:
            out.write("Hello")
        assert [each.data["event"] for each in captured] == ["start", "chunk", "complete"]


class WithoutATransaction(StopsAnAsyncTask, TransactionTestCase):
    def test_a_task_writes_a_run(self) -> None:
        run = Run.objects.start()
        with self.assertNoLogs("reliable_cable", "WARNING"), capture_broadcasts() as captured, writing(run.pk) as out:
            out.write("Hel")
            while not run.text:
                run.refresh_from_db()
            out.write("lo")
        run.refresh_from_db()
        assert (run.status, run.text) == (Status.COMPLETED, "Hello")
        assert [each.data["event"] for each in captured][::3] == ["start", "complete"]

    def test_a_stop_ends_a_later_write(self) -> None:
        run = Run.objects.start()
        with writing(run.pk) as out:
            out.write("a")
            assert run.stop()
            while True:
                out.write("")
        run.refresh_from_db()
        assert (run.status, run.text) == (Status.STOPPED, "a")


class RunsInPostgres:
    """A router that puts the runs and the streams into PostgreSQL."""

    def db_for_read(self, model: type[models.Model], **hints: object) -> str | None:
        return "postgres" if model._meta.app_label.startswith("reliable_cable") else None

    db_for_write = db_for_read


on_postgres = override_settings(
    DATABASE_ROUTERS=[f"{__name__}.RunsInPostgres"], RELIABLE_CABLE={"DATABASE": "postgres"}
)


@pytest.mark.postgres
@on_postgres
class WithTheTestKitOnPostgres(WithTheTestKit):
    databases = {"default", "postgres"}  # noqa: RUF012 - the stubs of Django allow no ClassVar


@pytest.mark.postgres
@on_postgres
class WithoutTheTestKitOnPostgres(WithoutTheTestKit):
    databases = {"default", "postgres"}  # noqa: RUF012 - the stubs of Django allow no ClassVar


@pytest.mark.postgres
@on_postgres
class WithoutATransactionOnPostgres(WithoutATransaction):
    databases = {"default", "postgres"}  # noqa: RUF012 - the stubs of Django allow no ClassVar
