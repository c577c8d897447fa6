"""Channels have names, actions and states. The requests of their handlers are recorded in a reply."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test.utils import isolate_apps

from reliable_cable import Channel, ChannelError, InvalidStreamName, action, state
from reliable_cable.channel import find_channel, registry
from reliable_cable.checks import check_channel_names
from reliable_cable.reply import PresenceJoin, PresenceLeave, StreamStart, StreamStop
from tests.protocol.test_nesting import nested
from tests.protocol.test_payloads import FALSY, TRUTHY


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, classes in list(registry.items()):
        monkeypatch.setitem(registry, name, list(classes))
    before = set(registry)
    yield
    for name in set(registry) - before:
        del registry[name]


class TestNames:
    def test_a_channel_is_found_by_its_class_name_or_by_its_own_name(self) -> None:
        class ForecastChannel(Channel):
            pass

        class RenamedChannel(Channel):
            name = "news.other"

        assert find_channel("ForecastChannel") is ForecastChannel
        assert find_channel("news.other") is RenamedChannel
        assert find_channel("RenamedChannel") is None

    @pytest.mark.parametrize("name", ["", None, 1, property(lambda self: "news")])
    def test_a_name_must_be_a_string(self, name: Any) -> None:
        with pytest.raises(ChannelError, match=r"^News\.name is .*; it must be a non-empty string\.$"):
            type("News", (Channel,), {"name": name, "__qualname__": "News"})

    def test_an_abstract_channel_is_not_found(self) -> None:
        class AbstractChannel(Channel, abstract=True):
            pass

        assert find_channel("AbstractChannel") is None

    def test_two_classes_with_the_same_name_are_reported(self) -> None:
        class First(Channel):
            name = "same"

        class Second(Channel):
            name = "same"

        path = f"{__name__}.TestNames.test_two_classes_with_the_same_name_are_reported.<locals>"
        problems = [problem.msg for problem in check_channel_names()]
        same = f"2 channels have the name 'same': {path}.First, {path}.Second. Clients can only subscribe to the first."
        assert same in problems

    def test_a_subclass_does_not_inherit_the_name(self) -> None:
        class Parent(Channel):
            name = "parent"

        class Child(Parent):
            pass

        assert Child.name == "Child"


class TestActions:
    def test_only_methods_marked_as_actions_can_be_called(self) -> None:
        class C(Channel, abstract=True):
            @action
            def speak(self, data: dict[str, Any]) -> None: ...

            @action(name="send")
            async def deliver(self) -> None: ...

            def private(self, data: dict[str, Any]) -> None: ...

        assert C.action_names() == ["send", "speak"]
        assert C.find_action("speak") == ("speak", True)
        assert C.find_action("send") == ("deliver", False)
        assert C.find_action("private") is None
        assert C.find_action("subscribed") is None

    def test_actions_are_inherited(self) -> None:
        class Parent(Channel, abstract=True):
            @action
            def speak(self) -> None: ...

        class Child(Parent, abstract=True):
            @action
            def shout(self) -> None: ...

        assert Child.action_names() == ["shout", "speak"]
        assert Parent.action_names() == ["speak"]

    def test_an_inherited_action_can_be_overridden(self) -> None:
        class Parent(Channel, abstract=True):
            @action(name="say")
            def speak(self) -> None: ...

        class Child(Parent, abstract=True):
            @action(name="say")
            def speak(self) -> None: ...

        class Silent(Parent, abstract=True):
            def speak(self) -> None: ...

        assert Child.find_action("say") == ("speak", False)
        assert Silent.action_names() == []

    def test_an_action_may_have_the_name_of_an_attribute_for_clients(self) -> None:
        class C(Channel, abstract=True):
            @action(name="name")
            def rename(self) -> None: ...

        assert C.find_action("name") == ("rename", False)
        assert C.name == "C"

    def test_two_methods_cannot_be_the_same_action(self) -> None:
        class Parent(Channel, abstract=True):
            @action
            def speak(self) -> None: ...

        with pytest.raises(ChannelError, match=r"Child: say and speak are both the action 'speak'\.$"):

            class Child(Parent):
                @action(name="speak")
                def say(self) -> None: ...

    def test_a_method_may_have_two_names(self) -> None:
        class Chat(Channel, abstract=True):
            @action
            def speak(self) -> None: ...

            say = speak

        assert Chat.action_names() == ["speak"]

    @pytest.mark.parametrize(
        "attribute",
        [name for name in dir(Channel) if not name.startswith("__")] + ["__init__", "authorize_presence"],
    )
    @pytest.mark.parametrize("declare", [action, action(name="other")], ids=["action", "renamed action"])
    def test_an_action_cannot_replace_an_attribute_or_a_hook_of_channel(
        self, attribute: str, declare: Callable[[Any], Any]
    ) -> None:
        def method(self: Channel, data: dict[str, Any]) -> None: ...

        method.__name__ = attribute
        method = declare(method)
        public = "other" if declare is not action else attribute
        with pytest.raises(
            ChannelError, match=f"^Chat: the action '{public}' replaces the attribute or hook '{attribute}'"
        ):
            type("Chat", (Channel,), {attribute: method, "__qualname__": "Chat"})
        assert find_channel("Chat") is None

    def test_an_action_of_a_mixin_cannot_replace_an_attribute_either(self) -> None:
        class Mixin:
            @action
            def user(self) -> None: ...

        with pytest.raises(ChannelError, match="Mixed: the action 'user'"):

            class Mixed(Mixin, Channel):
                pass

    def test_a_state_cannot_replace_an_attribute_of_channel(self) -> None:
        with pytest.raises(ChannelError, match="C: a state replaces the attribute or hook 'params'"):

            class C(Channel):
                params: Any = state(default={})


class TestReply:
    def test_streams_are_recorded_in_order(self) -> None:
        channel = Channel(None)
        channel.stream_from("a", whisper=True)
        channel.stop_stream_from("a")
        channel.stream_for("b", presence=True)
        channel.stop_all_streams()
        assert channel.reply.streams == [
            StreamStart("a", whisper=True),
            StreamStop("a"),
            StreamStart("Channel:b", presence=True),
            StreamStop(None),
        ]

    def test_stopping_a_stream_that_cannot_exist_is_no_error(self) -> None:
        channel = Channel(None)
        channel.stop_stream_from("")
        assert channel.reply.streams == [StreamStop("")]

    def test_transmissions_are_recorded_as_json(self) -> None:
        channel = Channel(None)
        channel.transmit({"é": [1, None]})
        channel.transmit([])
        assert channel.reply.transmissions == ['{"é":[1,null]}', "[]"]

    @pytest.mark.parametrize("text", FALSY)
    def test_payloads_that_clients_drop_are_refused(self, text: str) -> None:
        channel = Channel(None)
        with pytest.raises(ChannelError, match="clients drop falsy messages"):
            channel.transmit(json.loads(text))
        assert channel.reply.transmissions == []

    @pytest.mark.parametrize("text", TRUTHY)
    def test_all_other_payloads_are_accepted(self, text: str) -> None:
        channel = Channel(None)
        if text != "1e400":  # Python decodes this number as infinity, which JSON cannot encode
            channel.transmit(json.loads(text))
            assert len(channel.reply.transmissions) == 1

    @pytest.mark.parametrize("data", [object(), float("nan"), "\ud800"])
    def test_payloads_that_json_cannot_encode_are_refused(self, data: Any) -> None:
        with pytest.raises(ChannelError, match="cannot be encoded as JSON"):
            Channel(None).transmit(data)

    def test_payloads_and_infos_may_have_64_levels(self) -> None:
        channel = Channel(None)
        channel.transmit(json.loads(nested(64)))
        channel.presence.join("ann", json.loads(nested(64)))
        with pytest.raises(ChannelError, match="more than 64 levels"):
            channel.transmit(json.loads(nested(65)))
        with pytest.raises(ChannelError, match="more than 64 levels"):
            channel.presence.join("ann", json.loads(nested(65)))

    def test_presence_is_recorded_with_ids_as_strings(self) -> None:
        channel = Channel(None)
        channel.presence.join(42, info={"name": "x"})
        channel.presence.leave()
        assert channel.reply.presence == [PresenceJoin("42", {"name": "x"}), PresenceLeave()]
        with pytest.raises(ChannelError, match="needs an id"):
            channel.presence.join("")

    def test_an_invalid_stream_name_raises_at_the_call(self) -> None:
        with pytest.raises(InvalidStreamName):
            Channel(None).stream_from("")

    def test_undo_restores_the_state_and_drops_the_reply(self) -> None:
        class C(Channel, abstract=True):
            items: state[list[int]] = state(default=[])

        channel = C(None)
        channel.items.append(1)
        saved = channel.begin()
        channel.items.append(2)
        channel.reject()
        channel.undo(saved)
        assert channel.items == [1]
        assert not channel.reply.rejected


class TestState:
    def test_each_channel_object_has_its_own_state(self) -> None:
        class C(Channel, abstract=True):
            count = state(default=0)
            seen: state[list[str]] = state(default=[])

        first, second = C(None), C(None)
        first.count += 1
        first.seen.append("x")
        assert (first.count, second.count, second.seen) == (1, 0, [])
        second.load_state({**first.dump_state(), "removed": 1})
        assert second.dump_state() == {"count": 1, "seen": ["x"]}

    def test_state_that_json_cannot_encode_is_refused(self) -> None:
        class C(Channel, abstract=True):
            value = state(default=None)

        channel = C(None)
        for value in ({1, 2}, json.loads(nested(64)), json.loads(nested(500))):
            channel.value = value  # type: ignore[assignment]
            with pytest.raises(ChannelError, match="must consist of JSON values"):
                channel.dump_state()
        channel.value = json.loads(nested(63))
        assert channel.dump_state() == {"value": channel.value}


class TestBroadcastingFor:
    def test_the_name_has_the_channel_the_model_and_the_primary_key(self) -> None:
        class ChatChannel(Channel, abstract=True):
            pass

        assert ChatChannel.broadcasting_for(User(pk=7)) == "ChatChannel:auth.user:7"
        assert ChatChannel.broadcasting_for("lobby") == "ChatChannel:lobby"
        assert ChatChannel.broadcasting_for([User(pk=7), "x", 3]) == "ChatChannel:auth.user:7:x:3"

    @isolate_apps("tests")
    def test_instances_of_a_proxy_model_have_the_stream_of_the_model(self) -> None:
        class Staff(User):
            class Meta:
                app_label = "tests"
                proxy = True

        assert Channel.broadcasting_for(Staff(pk=7)) == Channel.broadcasting_for(User(pk=7)) == "Channel:auth.user:7"
        assert Channel.broadcasting_for([Staff(pk=7), "x"]) == Channel.broadcasting_for([User(pk=7), "x"])

    @isolate_apps("tests")
    def test_a_child_of_multi_table_inheritance_has_another_stream_than_its_parent(self) -> None:
        class Member(User):
            class Meta:
                app_label = "tests"

        assert Channel.broadcasting_for(Member(pk=7)) == "Channel:tests.member:7"
        assert Channel.broadcasting_for(User(pk=7)) == "Channel:auth.user:7"

    @pytest.mark.parametrize("target", [User(), None, "", [], True, object()])
    def test_targets_that_identify_no_stream_are_refused(self, target: Any) -> None:
        with pytest.raises(ChannelError):
            Channel.broadcasting_for(target)


def test_the_user_of_a_channel_is_that_of_its_connection() -> None:
    user = User(username="ada")
    assert Channel(SimpleNamespace(user=user)).user is user
    assert Channel(SimpleNamespace()).user is None
