"""The pytest plugin `reliable_cable`. It isolates each test, and has fixtures. `-p no:reliable_cable` turns it off."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from django.apps import apps

from .broadcasts import CapturedBroadcast, captured_broadcasts
from .channel_tester import ChannelTester
from .communicator import CableCommunicator
from .isolation import isolated_cable

#: The fixtures of pytest-django with which a test may use the database.
_DATABASE_FIXTURES = {"db", "transactional_db", "django_db_reset_sequences", "django_db_serialized_rollback"}


@pytest.fixture
def cable_settings() -> Mapping[str, Any]:
    """Return settings for tests, which have precedence over `RELIABLE_CABLE`. Override this fixture to change them."""
    return {}


@pytest.fixture(autouse=True)
def _isolated_cable(request: pytest.FixtureRequest, cable_settings: Mapping[str, Any]) -> Iterator[None]:
    """Run each test in `isolated_cable()`, if the project uses this package."""
    if not (apps.ready and apps.is_installed("reliable_cable")):
        yield
        return
    if request.node.get_closest_marker("django_db") or not _DATABASE_FIXTURES.isdisjoint(request.fixturenames):
        # Channels are closed while the test may still use the database.
        request.getfixturevalue("db")
    with isolated_cable(**cable_settings):
        yield


@pytest.fixture
def broadcasts(_isolated_cable: None) -> Iterator[list[CapturedBroadcast]]:
    """Return the list of everything that the test broadcasts. This calls no `on_commit` hooks."""
    with captured_broadcasts() as captured:
        yield captured


@pytest.fixture
def channel_tester(_isolated_cable: None) -> type[ChannelTester]:
    """Return the class `ChannelTester`."""
    return ChannelTester


@pytest.fixture
def cable_communicator(_isolated_cable: None) -> type[CableCommunicator]:
    """Return the class `CableCommunicator`, for async tests."""
    return CableCommunicator
