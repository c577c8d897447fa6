"""The meaning of the results of handlers and checks.

If `before_subscribe`, `before_action`, `subscribed` or `connect` returns a false value other than None, the request is
refused. A coroutine or a generator as a result is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest
from channels.db import database_sync_to_async

from reliable_cable import CableConsumer, Channel, action
from reliable_cable.channel import registry
from reliable_cable.stores.engine import get_engine

from .wire import Client, identifier


def logged(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a handler with a sync wrapper, as decorators often do."""

    @wraps(handler)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    return wrapper


async def refuse(*args: Any) -> bool:
    """Refuse, but only when the returned coroutine is awaited."""
    return False


async def pass_on(*args: Any) -> Any:
    """Return the coroutine of `refuse` without awaiting it, by mistake."""
    return refuse()


def generate(*args: Any) -> Iterator[bool]:
    """Refuse, but only when the returned generator is iterated."""
    yield False


async def agenerate(*args: Any) -> Any:
    """Refuse, but only when the returned async generator is iterated."""
    yield False


UNFINISHED = pytest.mark.parametrize("check", [logged(refuse), pass_on, generate, agenerate])


@pytest.fixture
def channel(settings: Any) -> Iterator[type[Channel]]:
    """A channel whose handlers allow everything."""

    class Guarded(Channel, abstract=True):
        async def subscribed(self) -> None:
            self.stream_from("secret")

        @action
        async def read(self) -> str:
            return "secret"

    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    registry["Guarded"] = [Guarded]
    yield Guarded
    del registry["Guarded"]


GUARDED = identifier("Guarded")


@UNFINISHED
@pytest.mark.parametrize("hook", ["before_subscribe", "subscribed", "before_action", "read", "authorize_presence"])
async def test_what_has_not_run_allows_nothing(
    channel: type[Channel], hook: str, check: Any, caplog: pytest.LogCaptureFixture
) -> None:
    setattr(channel, hook, check)
    async with Client() as client:
        await client.send("subscribe", GUARDED, presence={"id": "1", "info": {}})
        if hook in ("before_subscribe", "subscribed"):
            assert (await client.receive())["type"] == "reject_subscription"
        else:
            assert (await client.receive())["type"] == "confirm_subscription"
            await client.perform(GUARDED, "read", **{"$call": "1"})
            expected = {"result": "secret"} if hook == "authorize_presence" else {"error": "failed"}
            assert (await client.receive())["message"] == {"$answer": "1", **expected}
    assert "so its code has not run" in caplog.text
    assert get_engine().presence.info("secret").total == 0


@UNFINISHED
async def test_connect_that_has_not_run_accepts_nobody(channel: type[Channel], check: Any) -> None:
    consumer = type("AppConsumer", (CableConsumer,), {"connect": check})
    with pytest.raises(TypeError, match="so its code has not run"):
        async with Client(consumer=consumer):
            pass


@pytest.mark.parametrize("verdict", [False, 0, "", [], {}])
@pytest.mark.parametrize("hook", ["before_subscribe", "before_action", "subscribed"])
async def test_every_false_value_of_a_check_but_none_refuses(channel: type[Channel], hook: str, verdict: Any) -> None:
    setattr(channel, hook, lambda *args: verdict)
    async with Client() as client:
        await client.send("subscribe", GUARDED)
        expected = "confirm_subscription" if hook == "before_action" else "reject_subscription"
        assert (await client.receive())["type"] == expected
        if hook == "before_action":
            await client.perform(GUARDED, "read", **{"$call": "1"})
            assert (await client.receive())["message"] == {"$answer": "1", "error": "refused"}


def reject(channel: Channel, *args: Any) -> None:
    """Refuse by calling `Channel.reject`, which is meant for `subscribed`."""
    channel.reject()


async def areject(channel: Channel, *args: Any) -> None:
    """Refuse by calling `Channel.reject` in an async check."""
    channel.reject()


@pytest.mark.parametrize("check", [reject, areject])
@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("hook", ["before_subscribe", "before_action"])
async def test_a_check_that_calls_reject_refuses(channel: type[Channel], hook: str, sync: bool, check: Any) -> None:
    called = []
    if sync:
        setattr(channel, "subscribed" if hook == "before_subscribe" else "read", lambda self: called.append(hook))
    setattr(channel, hook, check)
    async with Client() as client:
        await client.send("subscribe", GUARDED)
        if hook == "before_subscribe":
            assert await client.receive() == {"type": "reject_subscription", "identifier": GUARDED}
        else:
            assert (await client.receive())["type"] == "confirm_subscription"
            await client.perform(GUARDED, "read", **{"$call": "1"})
            assert (await client.receive())["message"] == {"$answer": "1", "error": "refused"}
            assert (await client.receive())["message"] == {"type": "revoked", "reason": "revoked"}
    assert called == []


@pytest.mark.parametrize("check", [reject, areject])
async def test_a_check_that_rejects_decides_for_a_channel_without_subscribed(
    channel: type[Channel], check: Any
) -> None:
    del channel.subscribed
    channel.before_subscribe = check  # type: ignore[method-assign]
    async with Client() as client:
        await client.send("subscribe", GUARDED)
        assert await client.receive() == {"type": "reject_subscription", "identifier": GUARDED}


@pytest.mark.parametrize("hook", ["before_subscribe", "before_action", "subscribed", "read", "connect"])
async def test_handlers_with_the_decorator_of_channels_refuse_too(channel: type[Channel], hook: str) -> None:
    # Each access to a method with this decorator returns another object.
    refusal = database_sync_to_async(lambda *args: False)
    consumer = type("AppConsumer", (CableConsumer,), {"connect": refusal} if hook == "connect" else {})
    if hook != "connect":
        setattr(channel, hook, action(name="read")(refusal) if hook == "read" else refusal)
    client = Client(consumer=consumer)
    await client.communicator.connect()
    if hook == "connect":
        assert (await client.receive())["type"] == "disconnect"
        return
    await client.receive()
    await client.send("subscribe", GUARDED)
    expected = "reject_subscription" if hook in ("before_subscribe", "subscribed") else "confirm_subscription"
    assert (await client.receive())["type"] == expected
    if expected == "confirm_subscription":
        await client.perform(GUARDED, "read", **{"$call": "1"})
        outcome = {"result": False} if hook == "read" else {"error": "refused"}
        assert (await client.receive())["message"] == {"$answer": "1", **outcome}
    await client.communicator.disconnect()


@pytest.mark.parametrize("hook", ["subscribed", "resubscribed"])
async def test_a_subscription_is_not_restored_if_its_handler_returns_false(channel: type[Channel], hook: str) -> None:
    async with Client() as former:
        await former.subscribe(GUARDED)
    setattr(channel, hook, lambda *args: False)
    async with Client(former.sid) as client:
        assert client.welcome["restored_ids"] == []
