"""`RUN_MAX_READERS` limits how many readers over HTTP a client keeps open."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Group, User
from django.test import AsyncClient

from reliable_cable.http.core import Refusal
from reliable_cable.runs.http.limits import OpenReaders, open_readers
from reliable_cable.runs.http.requests import Visitor
from reliable_cable.runs.models import Run
from tests.unit.runs.chat_client import Reader, chat_settings, get, is_left, post
from tests.unit.runs.durable_client import Events, append, change, create, log_in, path

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("durable_streams")]


@pytest.fixture(autouse=True)
def _limit(settings: Any, durable_streams: None) -> None:
    change(settings, RUN_CHATS=chat_settings()["RUN_CHATS"], RUN_MAX_READERS=2)


@pytest.fixture
async def run(browser: AsyncClient) -> Run:
    return await Run.objects.astart(owner=await User.objects.aget(), subject=await Group.objects.aget())


async def is_counted(readers: int) -> None:
    """Wait until a number of readers is open."""
    async with asyncio.timeout(20):
        while sum(open_readers()._counts.values()) != readers:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)


async def test_a_user_with_too_many_readers_is_refused(browser: AsyncClient, run: Run) -> None:
    await create(browser)
    chat = Reader(await get(browser, "/runs/chat/ann/1/stream"))
    reading = asyncio.create_task(chat.read())
    events = Events(await browser.get(path(offset="now", live="sse")))
    await events.next()
    waiting = asyncio.create_task(events.next())
    await is_counted(2)
    for response in (
        await get(browser, "/runs/chat/ann/1/stream"),
        await post(browser, "/runs/ag-ui/connect", {"threadId": "ann/1", "messages": []}),
        await browser.get(f"/runs/{run.pk}/durable?offset=-1&live=sse"),
        await browser.get(path(offset="now", live="sse")),
        await browser.get(path(offset="now", live="long-poll")),
    ):
        assert (response.status_code, response.headers["Retry-After"]) == (429, "10")
        assert response.json()["error"].startswith("You read 2 answers or streams already.")
    # Requests that do not wait are not limited.
    assert (await browser.get(path(offset="-1", live="long-poll"))).status_code == 200
    assert (await get(browser, f"/runs/{run.pk}")).status_code == 200
    await append(browser)
    await waiting
    await events.close()
    await is_counted(1)
    response = await browser.get(path(offset="now", live="sse"))
    assert response.status_code == 200
    response.close()
    assert (await post(browser, f"/runs/{run.pk}/stop")).status_code == 204
    await reading
    await is_counted(0)
    await is_left()


async def test_a_question_that_is_refused_starts_no_run(browser: AsyncClient) -> None:
    visitor = _visitor(await User.objects.aget())
    with open_readers().opened(visitor), open_readers().opened(visitor):
        assert (await post(browser)).status_code == 429
    assert not await Run.objects.aexists()


async def test_the_readers_of_other_users_do_not_count(browser: AsyncClient, settings: Any) -> None:
    change(settings, RUN_MAX_READERS=1)
    await create(browser, "ann/open")
    other = await log_in("bob")
    with open_readers().opened(_visitor(await User.objects.aget(username="ann"))):
        assert (await browser.get(path("ann/open", "now", "sse"))).status_code == 429
        assert (await other.get(path("ann/open", "now", "sse"))).status_code == 200


async def test_a_reader_that_begins_late_is_refused(browser: AsyncClient, run: Run, settings: Any) -> None:
    """The response has begun, so its status can no longer report the refusal."""
    change(settings, RUN_MAX_READERS=1)
    await create(browser)
    chat = Reader(await get(browser, "/runs/chat/ann/1/stream"))
    events = Events(await browser.get(path(offset="now", live="sse")))
    with open_readers().opened(_visitor(await User.objects.aget())):
        await chat.read()
        await events.next()
        assert await events.ended()
    assert "You read 1 answers" in chat.chunks[-1]["errorText"]
    await is_left()


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ({"client": ("192.0.2.1", 1)}, {"client": ("192.0.2.1", 2)}, True),
        ({"client": ("192.0.2.1", 1)}, {"client": ("192.0.2.2", 1)}, False),
        ({"client": None}, {"client": None}, False),
    ],
)
def test_anonymous_users_are_counted_by_their_address(
    settings: Any, first: dict[str, Any], second: dict[str, Any], together: bool
) -> None:
    change(settings, RUN_MAX_READERS=1)
    readers = OpenReaders()
    with readers.opened(Visitor(first, "", AnonymousUser())):
        if together:
            with pytest.raises(Refusal):
                readers.check(Visitor(second, "", AnonymousUser()))
        else:
            readers.check(Visitor(second, "", AnonymousUser()))
        readers.check(Visitor(second, "other", AnonymousUser()))
    assert not readers._counts


def test_without_a_limit_any_number_may_be_open(settings: Any) -> None:
    change(settings, RUN_MAX_READERS=None)
    readers, visitor = OpenReaders(), _visitor(User(pk=1))
    for _ in range(1000):
        readers.opened(visitor).__enter__()
    readers.check(visitor)


def _visitor(user: User) -> Visitor:
    return Visitor({"client": ("127.0.0.1", 1)}, "", user)
