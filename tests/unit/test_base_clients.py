"""A process logs once that clients of the base protocol lose messages while they are disconnected."""

from __future__ import annotations

import pytest

from reliable_cable.protocol.constants import Subprotocol

from .wire import Client

pytestmark = pytest.mark.usefixtures("memory_engine")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


async def test_the_first_client_of_the_base_protocol_is_logged_with_the_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Client(protocol=Subprotocol.EXTENDED_JSON):
        pass
    assert warnings(caplog) == []
    for _ in range(3):
        async with Client(protocol=Subprotocol.BASE_JSON):
            pass
    (warning,) = warnings(caplog)
    assert warning.startswith("A client speaks the base protocol (actioncable-v1-json). It loses the messages")
    assert 'createCable({protocol: "actioncable-v1-ext-json"})' in warning
