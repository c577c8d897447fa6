"""The patterns of `PUBLIC_STREAMS` decide which streams `$pubsub` opens without a signature."""

from __future__ import annotations

from typing import Any

import pytest

from reliable_cable import Channel
from reliable_cable.channel import channel_prefix
from reliable_cable.pubsub_channel import PubSubChannel, is_public
from reliable_cable.reply import StreamStart


class VaultChannel(Channel):
    """A channel of an application."""


class DeepVault(VaultChannel):
    """A channel whose name begins with the name of another one and a colon."""

    name = "VaultChannel:deep"


class SharedVault(Channel, abstract=True):
    """An abstract channel. An application can broadcast to the streams of its name, too."""


@pytest.mark.parametrize(
    ("patterns", "stream", "public"),
    [
        ([], "news:1", False),
        (False, "news:1", False),
        (["news:*"], "news:1", True),
        (["news:*"], "news:", True),
        (["news:*"], "news", False),
        (["news:*"], "News:1", False),
        (["news:*"], "old news:1", False),
        (["status", "news:[ab]"], "status", True),
        (["status", "news:[ab]"], "news:b", True),
        (["status", "news:[ab]"], "news:c", False),
        (["*"], "chat/1", True),
        (True, "chat/1", True),
    ],
)
def test_a_stream_is_public_if_a_pattern_matches_its_name(
    settings: Any, patterns: Any, stream: str, public: bool
) -> None:
    settings.RELIABLE_CABLE = {"PUBLIC_STREAMS": patterns}
    assert is_public(stream) is public


@pytest.mark.parametrize("patterns", [True, ["*"], ["V*"], ["[V]aultChannel:*"], ["?aultChannel:*"], ["*:7"]])
@pytest.mark.parametrize("cls", [VaultChannel, DeepVault, SharedVault, PubSubChannel])
def test_a_pattern_without_the_name_of_a_channel_does_not_open_its_streams(
    settings: Any, patterns: Any, cls: type[Channel]
) -> None:
    settings.RELIABLE_CABLE = {"PUBLIC_STREAMS": patterns}
    assert not is_public(cls.broadcasting_for(7))


def test_a_pattern_with_the_name_of_a_channel_opens_its_streams(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"PUBLIC_STREAMS": ["VaultChannel:7", "SharedVault:*"]}
    assert is_public(VaultChannel.broadcasting_for(7))
    assert not is_public(VaultChannel.broadcasting_for(8))
    assert is_public(SharedVault.broadcasting_for(8))


def test_a_pattern_for_one_channel_does_not_open_a_channel_with_a_longer_name(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"PUBLIC_STREAMS": ["VaultChannel:*"]}
    assert is_public(VaultChannel.broadcasting_for(7))
    assert not is_public(DeepVault.broadcasting_for(7))


@pytest.mark.parametrize(
    ("stream", "prefix"),
    [
        ("VaultChannel:7", "VaultChannel:"),
        ("VaultChannel:deep:7", "VaultChannel:deep:"),
        ("VaultChannel", ""),
        ("VaultChannels:7", ""),
        ("news:VaultChannel:7", ""),
    ],
)
def test_the_streams_of_a_channel_are_recognised_by_how_their_names_begin(stream: str, prefix: str) -> None:
    assert channel_prefix(stream) == prefix


@pytest.mark.parametrize(
    ("params", "started"),
    [
        ({"stream_name": "news:1"}, ["news:1"]),
        ({"stream_name": "VaultChannel:7"}, None),
        ({"stream_name": "chat/1"}, None),
        ({"stream_name": ["news:1"]}, None),
        ({"stream_name": None}, None),
        ({}, None),
    ],
)
async def test_a_subscription_to_a_stream_that_is_not_public_is_rejected(
    settings: Any, params: dict[str, Any], started: list[str] | None
) -> None:
    settings.RELIABLE_CABLE = {"PUBLIC_STREAMS": ["news:*"]}
    channel = PubSubChannel(None, params)
    await channel.subscribed()
    assert channel.reply.rejected is (started is None)
    assert channel.reply.streams == [StreamStart(name, whisper=True, presence=True) for name in started or []]
