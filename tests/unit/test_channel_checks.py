"""System checks report problems with the names of channels (E002) and of their handlers (W007)."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest

from reliable_cable import Channel, action, checks
from reliable_cable.channel import registry


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    with mock.patch.dict(registry, clear=True):
        yield


class TestChannelNames:
    def test_two_channels_with_the_same_name_are_reported(self) -> None:
        class FirstChannel(Channel):
            name = "Chat"

        class SecondChannel(Channel):
            name = "Chat"

        (message,) = checks.check_channel_names()
        assert message.id == "reliable_cable.E002"
        for word in ("'Chat'", f"{__name__}.{FirstChannel.__qualname__}", f"{__name__}.{SecondChannel.__qualname__}"):
            assert word in message.msg

    def test_channels_with_different_names_are_not_reported(self) -> None:
        class FirstChannel(Channel):
            pass

        class SecondChannel(FirstChannel):
            pass

        assert set(registry) == {FirstChannel.name, SecondChannel.name}
        assert checks.check_channel_names() == []


class TestHandlerNames:
    def test_handlers_with_the_name_of_a_command_are_reported(self) -> None:
        class MistakenChannel(Channel):
            def subscribe(self) -> None:
                pass

            async def unsubscribe(self) -> None:
                pass

        first, second = checks.check_handler_names()
        assert first.id == second.id == "reliable_cable.W007"
        assert f"{__name__}.{MistakenChannel.__qualname__} has a method 'subscribe', which is never called" in first.msg
        assert "'unsubscribe', which is never called, and no 'unsubscribed'" in second.msg

    def test_methods_and_actions_beside_the_handlers_are_not_reported(self) -> None:
        class HelperChannel(Channel):
            def subscribed(self) -> None:
                self.subscribe()

            def subscribe(self) -> None:
                pass

            @action
            def unsubscribe(self) -> None:
                pass

        class BaseChannel(Channel, abstract=True):
            subscribe = None

        assert set(registry) == {HelperChannel.name}
        assert checks.check_handler_names() == []


class Guard:
    def before_subscribe(self) -> bool:
        return False


class TestOrderOfBases:
    def test_checks_of_a_base_class_after_channel_are_reported(self) -> None:
        class OpenChannel(Channel, Guard):
            pass

        (message,) = checks.check_order_of_bases()
        assert message.id == "reliable_cable.W007"
        assert f"{OpenChannel.__qualname__} has the base Guard after Channel. So Guard.before_" in message.msg
        assert message.hint == "Write the base first: class OpenChannel(Guard, Channel)."

    def test_snapshots_of_a_base_class_after_channel_are_reported(self) -> None:
        class Snapshots:
            def snapshot(self, stream: str) -> str:
                return stream

        class ListChannel(Channel, Snapshots):
            pass

        (message,) = checks.check_order_of_bases()
        assert f"{ListChannel.__qualname__} has the base" in message.msg
        assert "Snapshots.snapshot is never called" in message.msg

    def test_checks_that_are_called_are_not_reported(self) -> None:
        class GuardedChannel(Guard, Channel):
            pass

        class AskingChannel(Channel, Guard):
            def before_subscribe(self) -> bool:
                return Guard.before_subscribe(self)

        assert checks.check_order_of_bases() == []
