"""A process with members in its own memory logs once that another process has members, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from reliable_cable import BroadcastError
from reliable_cable.concurrency.tasks import BackgroundTasks
from reliable_cable.concurrency.threads import end_threads
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.hub.unshared_presence import UnsharedPresenceNotice
from reliable_cable.protocol.control import UnsharedPresence, decode, encode_unshared_presence
from reliable_cable.stores.engine import Engine, get_engine
from reliable_cable.stores.streams.model import ModelStreamStore

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    yield
    assert end_threads(30)


@pytest.fixture
def engine(settings: Any) -> Engine:
    settings.RELIABLE_CABLE = {"ENGINE": "database"}
    return get_engine()


class Process:
    """What one process knows of the members of others."""

    def __init__(self) -> None:
        self.engine = get_engine()
        self.tasks = BackgroundTasks()
        self.notice = UnsharedPresenceNotice(self.engine, self.tasks)

    async def join(self) -> None:
        """Tell the notice that a member joined, and wait for the tasks that this starts."""
        self.notice.member_joined()
        for task in list(self.tasks.pending):
            await task

    async def announcements(self) -> list[dict[str, Any]]:
        """Return the control messages of all processes."""
        page = await self.engine.streams.aread(CONTROL_STREAM, after=0, limit=100)
        return [json.loads(entry.data) for entry in page.entries]

    def receive(self, incarnation: str = "other", *, age: float = 0.0) -> None:
        """Receive an announcement."""
        self.notice.receive(UnsharedPresence(incarnation, self.engine.session_clock.now() - age))


@pytest.mark.usefixtures("engine")
async def test_the_first_member_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    process = Process()
    for _ in range(2):
        await process.join()
    (message,) = await process.announcements()
    incarnation = process.engine.presence.info("room").incarnation
    assert message["unshared_presence"] == incarnation
    (announced,) = decode(encode_unshared_presence(UnsharedPresence(incarnation, message["at"])))
    assert isinstance(announced, UnsharedPresence)
    process.notice.receive(announced)
    assert caplog.messages == [], "it is the announcement of this process"


@pytest.mark.usefixtures("engine")
async def test_members_of_another_process_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    process = Process()
    process.receive()
    await process.join()
    process.receive(age=60)
    assert caplog.messages == [], "there were no members in both processes at a time"
    process.receive()
    process.receive("third")
    (line,) = caplog.messages
    assert "clients see only the members of their own process. Set RELIABLE_CABLE['REDIS_URL']" in line


async def test_a_failed_announcement_is_repeated_for_the_next_member(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: ModelStreamStore, items: Any) -> Any:
        raise BroadcastError("the database is down")

    process = Process()
    with monkeypatch.context() as patch:
        patch.setattr(type(engine.streams), "aappend", fail)
        await process.join()
    assert await process.announcements() == []
    await process.join()
    assert len(await process.announcements()) == 1


@pytest.mark.parametrize("options", [{"ENGINE": "memory"}, {"ENGINE": "database", "HANDLER_THREADS": 0}])
async def test_nothing_is_announced_in_memory_and_in_transactions_of_tests(
    settings: Any, options: dict[str, Any]
) -> None:
    settings.RELIABLE_CABLE = options
    process = Process()
    await process.join()
    assert await process.announcements() == []
