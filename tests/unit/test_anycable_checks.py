"""The system checks of a project behind anycable-go (E009, W012, W013, W015)."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings

from reliable_cable import CableConsumer, Channel
from reliable_cable.channel import registry
from reliable_cable.checks.anycable import (
    check_missing_adapter,
    check_remote_attributes,
    check_remote_channels,
    check_rpc_consumer,
)

PATH = "tests.unit.test_anycable_checks.CheckedConsumer"


class CheckedConsumer(CableConsumer):
    identified_by = ("user", "team")

    def connect(self) -> None:
        self.team = "red"
        self.language = "en"
        self.scope["seen"] = True
        other: Any = object()
        other.unrelated = 1


class Resubscribing(Channel, abstract=True):
    def resubscribed(self) -> None: ...


class Joining(Channel, abstract=True):
    def subscribed(self) -> None:
        self.presence.join(1)


class Present(Channel, abstract=True):
    def subscribed(self) -> None:
        self.stream_from("simple")
        self.stream_from("present", presence=True)


class AfterPage(Channel, abstract=True):
    def subscribed(self) -> None:
        self.stream_from("page", after=self.params.get("after") if self.params else None)


class AfterPages(Channel, abstract=True):
    def subscribed(self) -> None:
        def start(target: Any) -> None:
            self.stream_for(target, after=self.params["after"])

        start("page")


class AfterInherited(AfterPage, abstract=True):
    pass


class Authorizing(Channel, abstract=True):
    def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the wire's name
        return True


def stream_named(name: str, after: int) -> str:
    return name


class Simple(Channel, abstract=True):
    def subscribed(self) -> None:
        self.stream_from(stream_named("simple", after=1))
        if self.params["kind"] in ("chat", "presence"):
            self.transmit({"presence": self.params["kind"], "other": ("presence",)})


CHANNELS = (Resubscribing, Joining, Present, AfterPage, AfterPages, AfterInherited, Authorizing, Simple)


@pytest.fixture(autouse=True)
def _channels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(registry):
        monkeypatch.delitem(registry, name)
    for cls in CHANNELS:
        monkeypatch.setitem(registry, cls.__name__, [cls])


def reported() -> list[str]:
    """Return the name of the class in each warning about channels."""
    return [str(warning.msg).partition(":")[0].rpartition(".")[2] for warning in check_remote_channels()]


def test_nothing_is_reported_without_the_setting() -> None:
    checks = (check_rpc_consumer, check_missing_adapter, check_remote_channels, check_remote_attributes)
    assert [message for check in checks for message in check()] == []


def test_parts_without_effect_are_reported() -> None:
    with override_settings(RELIABLE_CABLE={"RPC_CONSUMER": PATH}):
        assert reported() == [
            *("Resubscribing", "Joining", "Present", "AfterPage", "AfterPages", "AfterInherited", "Authorizing")
        ]
    with override_settings(RELIABLE_CABLE={"RPC_CONSUMER": PATH, "RPC_PRESENCE": True}):
        assert reported() == ["Resubscribing", "AfterPage", "AfterPages", "AfterInherited", "Authorizing"]


def test_attributes_that_later_calls_lack_are_reported() -> None:
    with override_settings(RELIABLE_CABLE={"RPC_CONSUMER": PATH}):
        found = [str(warning.msg) for warning in check_remote_attributes() if "CheckedConsumer" in str(warning.msg)]
    assert len(found) == 1
    assert "self.language" in found[0]


@pytest.mark.parametrize(("path", "count"), [(PATH, 0), ("no.such.Consumer", 1)])
def test_a_consumer_that_cannot_be_used_is_reported(path: str, count: int) -> None:
    with override_settings(RELIABLE_CABLE={"RPC_CONSUMER": path}):
        assert [error.id for error in check_rpc_consumer()] == ["reliable_cable.E009"] * count


@pytest.mark.parametrize(("adapter", "expected"), [(None, ["reliable_cable.W015"]), ("http", [])])
def test_an_answer_to_calls_without_a_way_for_broadcasts_is_reported(adapter: str | None, expected: list[str]) -> None:
    with override_settings(RELIABLE_CABLE={"RPC_CONSUMER": PATH, "BROADCAST_ADAPTER": adapter}):
        assert [warning.id for warning in check_missing_adapter()] == expected
