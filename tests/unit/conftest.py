"""The fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model

from tests.support.virtual_loop import VirtualLoop
from tests.unit.sites import make_site
from tests.unit.token_clients import TokenConsumer
from tests.unit.tokens import SECRET

__all__ = ["make_site"]


@pytest.fixture
async def user() -> Any:
    """A user in the database."""
    return await sync_to_async(get_user_model().objects.create_user)("ann", password="secret")


@pytest.fixture
def memory_engine(settings: Any) -> None:
    """Keep streams, sessions and members in memory, without other settings."""
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}


@pytest.fixture
def token_settings(settings: Any) -> None:
    """Keep streams, sessions and members in memory, and accept tokens that are signed with `SECRET`."""
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "JWT_SECRET": SECRET, "JWT_LEEWAY": 0, "PING_INTERVAL": 60}
    TokenConsumer.seen = None


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """An event loop with virtual time. The code in it must not leave an error uncaught."""
    loop = VirtualLoop()
    yield loop
    loop.finish()
    assert loop.errors == []
