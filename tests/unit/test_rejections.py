"""A consumer's `connect` can reject a connection, and its client is told the reason."""

from __future__ import annotations

from typing import Any

import pytest

from reliable_cable import CableConsumer, Channel
from reliable_cable.channel import registry
from tests.unit.wire import Client, identifier

pytestmark = pytest.mark.usefixtures("memory_engine")


class Guarded(CableConsumer):
    """Rejects all clients, for the reason in the scope if there is one."""

    async def connect(self) -> None:
        """Reject the client."""
        if "reason" in self.scope:
            self.reject_connection(reason=self.scope["reason"])
        else:
            self.reject_connection()


@pytest.mark.parametrize(
    ("scope", "reason"),
    [
        ({}, "unauthorized"),
        ({"reason": "unauthorized"}, "unauthorized"),
        ({"reason": "token_expired"}, "token_expired"),
    ],
)
async def test_a_rejected_client_is_sent_the_reason_and_does_not_reconnect(scope: dict[str, Any], reason: str) -> None:
    client = Client(consumer=Guarded, scope=scope)
    await client.communicator.connect()
    assert await client.receive() == {"type": "disconnect", "reason": reason, "reconnect": False}
    assert (await client.communicator.receive_output(5))["type"] == "websocket.close"


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("verdict", [False, 0, True, None])
async def test_connect_can_refuse_a_client_by_its_result(sync: bool, verdict: Any) -> None:
    class AppConsumer(CableConsumer):
        def connect(self) -> Any:
            return verdict

    class AsyncConsumer(CableConsumer):
        async def connect(self) -> Any:
            return verdict

    client = Client(consumer=AppConsumer if sync else AsyncConsumer)
    await client.communicator.connect()
    expected = "welcome" if verdict in (True, None) else "disconnect"
    assert (await client.receive())["type"] == expected
    await client.communicator.disconnect()


async def test_the_reason_of_reject_connection_stays_if_connect_returns_false() -> None:
    class AppConsumer(CableConsumer):
        async def connect(self) -> bool:
            self.reject_connection("token_expired")
            return False

    client = Client(consumer=AppConsumer)
    await client.communicator.connect()
    assert (await client.receive())["reason"] == "token_expired"


@pytest.mark.parametrize("reason", ["remote", "server_restart", "expired", "", None])
def test_the_error_for_another_reason_lists_the_allowed_ones(reason: Any) -> None:
    with pytest.raises(ValueError, match=r"Guarded.*; it must be 'unauthorized' or 'token_expired'\.$") as error:
        Guarded().reject_connection(reason)
    assert repr(reason) in str(error.value)


async def test_a_channel_that_calls_it_gets_an_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without an error, the client would silently stay connected and subscribed.
    class Late(Channel, abstract=True):
        async def subscribed(self) -> None:
            self.connection.reject_connection()

    monkeypatch.setitem(registry, "Late", [Late])
    async with Client() as client:
        await client.send("subscribe", identifier("Late"))
        assert (await client.receive())["type"] == "reject_subscription"
    assert "CableConsumer.reject_connection: call this in `connect`" in caplog.text
