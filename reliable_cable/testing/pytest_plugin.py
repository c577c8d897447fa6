"""The pytest plugin `reliable_cable`: it isolates each test, and provides fixtures.

To disable the plugin, use the option `-p no:reliable_cable`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from django.apps import apps

from .broadcasts import CapturedBroadcast, captured_broadcasts
from .channel_tester import ChannelTester
from .communicator import CableCommunicator
from .isolation import isolated_cable

#: The fixtures of pytest-django that give a test access to the database.
_DATABASE_FIXTURES = {"db", "transactional_db", "django_db_reset_sequences", "django_db_serialized_rollback"}


@pytest.fixture
def cable_settings() -> Mapping[str, Any]:
    """Return the keys of `RELIABLE_CABLE` that tests override. Define a fixture of the same name to set them."""
    return {}


@pytest.fixture(autouse=True)
def _isolated_cable(request: pytest.FixtureRequest, cable_settings: Mapping[str, Any]) -> Iterator[None]:
    """Run each test in `isolated_cable()`, if the project uses this package."""
    if not (apps.ready and apps.is_installed("reliable_cable")):
        yield
        return
    if request.node.get_closest_marker("django_db") or not _DATABASE_FIXTURES.isdisjoint(request.fixturenames):
        # This sets up the database before the isolation begins. So the database is still available at the end of the
        # isolation, when the client connections are closed.
        request.getfixturevalue("db")
    with isolated_cable(**cable_settings):
        yield


@pytest.fixture
def broadcasts(_isolated_cable: None) -> Iterator[list[CapturedBroadcast]]:
    """Return a list to which each broadcast of the test is added when it is sent. `on_commit` hooks are not called."""
    with captured_broadcasts() as captured:
        yield captured


@pytest.fixture
def channel_tester(_isolated_cable: None) -> type[ChannelTester]:
    """Return the class `ChannelTester`, so that tests need not import it."""
    return ChannelTester


@pytest.fixture
def cable_communicator(_isolated_cable: None) -> type[CableCommunicator]:
    """Return the class `CableCommunicator`, so that async tests need not import it."""
    return CableCommunicator
