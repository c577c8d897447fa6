"""The fixtures of the unit tests."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model

from tests.unit.sites import make_site

__all__ = ["make_site"]


@pytest.fixture
async def user() -> Any:
    """A user in the database."""
    return await sync_to_async(get_user_model().objects.create_user)("ann", password="secret")
