"""Fixtures for the tests of runs: the engines, and the settings and clients of the HTTP endpoints."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import AsyncClient

from tests.unit.runs import chat_client, durable_client


@pytest.fixture(params=["memory", "database"])
def each_engine(request: pytest.FixtureRequest, settings: Any) -> None:
    """Run the test with the engine in memory, and with the engine in the database."""
    settings.RELIABLE_CABLE = {"ENGINE": request.param}


@pytest.fixture
def chats(settings: Any) -> None:
    """Serve the chats of chat_client.py."""
    settings.RELIABLE_CABLE = chat_client.chat_settings()
    settings.ROOT_URLCONF = chat_client.__name__


@pytest.fixture
def member() -> User:
    """A user with a chat."""
    Group.objects.create(name="ann/1")
    return User.objects.create(username="ann")


@pytest.fixture
async def browser(member: User) -> AsyncClient:
    """A browser in which the user is logged in."""
    browser = AsyncClient()
    await browser.aforce_login(member)
    return browser


@pytest.fixture
def durable_streams(settings: Any) -> None:
    """Serve durable streams by the rules of durable_client.py."""
    settings.RELIABLE_CABLE = {
        "RUN_DURABLE_STREAMS": f"{durable_client.__name__}.Rules",
        "STREAMS": {"durable:*": durable_client.POLICY},
    }
    settings.ROOT_URLCONF = chat_client.__name__
