"""Tests of the project with pytest. tests/integration/test_kit.py runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import AsyncClient

from reliable_cable import abroadcast, broadcast, history
from reliable_cable.conf import get_settings
from reliable_cable.testing import CableCommunicator, CapturedBroadcast, ChannelTester

from .cable import RoomChannel
from .settings import KIT_ENGINE


@pytest.fixture
def cable_settings() -> Mapping[str, Any]:
    return {"ENGINE": KIT_ENGINE}


@pytest.fixture
def on_database(request: pytest.FixtureRequest) -> None:
    """Allow access to the database if the engine needs it."""
    if KIT_ENGINE == "database":
        request.getfixturevalue("transactional_db")


@pytest.mark.parametrize("number", range(3))
def test_tests_are_isolated(number: int, on_database: None, broadcasts: list[CapturedBroadcast]) -> None:
    assert get_settings().engine == KIT_ENGINE
    assert history("room") == []
    broadcast("room", number + 1)
    assert len(history("room")) == 1
    assert broadcasts == [CapturedBroadcast("room", number + 1)]


@pytest.mark.django_db
def test_a_channel(channel_tester: type[ChannelTester], broadcasts: list[CapturedBroadcast]) -> None:
    ann = User.objects.create(username="ann")
    room = channel_tester(RoomChannel, user=ann, params={"room": 1})
    assert room.subscribe()
    assert room.streams == ["RoomChannel:1"]
    assert room.presence == (str(ann.pk), None)
    assert room.perform("speak", {"text": "hello"}) == 1
    assert room.state == {"count": 1}
    assert [each.data for each in broadcasts] == ["hello"]
    assert User.objects.filter(username="hello").exists()
    assert channel_tester(RoomChannel, params={"room": 1}).subscribe() is False


@pytest.mark.django_db
def test_the_fixture_calls_no_hooks(broadcasts: list[CapturedBroadcast]) -> None:
    transaction.on_commit(lambda: 1 / 0)
    assert broadcasts == []


@pytest.mark.django_db(transaction=True)
async def test_a_connection(cable_communicator: type[CableCommunicator]) -> None:
    ann = await User.objects.acreate(username="ann")
    client = AsyncClient()
    await client.aforce_login(ann)
    async with cable_communicator(client=client) as cable:
        room = await cable.subscribe(RoomChannel, {"room": 1})
        assert room.confirmed
        await room.perform("speak", {"text": "hello"})
        assert await cable.receive() == "hello"
        await cable.disconnect()
        await abroadcast("RoomChannel:1", "missed")
        assert await cable.reconnect()
        assert await cable.received() == ["missed"]


@pytest.mark.django_db(transaction=True)
async def test_a_channel_in_async_code(channel_tester: type[ChannelTester]) -> None:
    ann = await User.objects.acreate(username="ann")
    async with channel_tester(RoomChannel, user=ann, params={"room": 1}) as room:
        assert await room.asubscribe()
        assert await room.aperform("speak", {"text": "hello"}) == 1
