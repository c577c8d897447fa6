"""The fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model

from tests.support.virtual_loop import VirtualLoop
from tests.unit.sites import make_site

__all__ = ["make_site"]


@pytest.fixture
async def user() -> Any:
    """A user in the database."""
    return await sync_to_async(get_user_model().objects.create_user)("ann", password="secret")


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    """An event loop with virtual time. The code in it must not leave an error uncaught."""
    loop = VirtualLoop()
    yield loop
    loop.finish()
    assert loop.errors == []
