"""Which settings have no effect on the clients of anycable-go (`BROADCAST_ADAPTER`), and are reported (W011)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import pytest
from django.core.checks import CheckMessage

from reliable_cable import checks
from reliable_cable.checks.adapters import HISTORY, UNUSED, USED, USED_BY, USED_BY_CALLS
from reliable_cable.conf import BROADCAST_ADAPTERS, CHECKS, NAME, REDIS_ADAPTERS
from tests.unit.test_checks import configured, ids

#: The settings without which the adapters report something else.
COMPLETE: Mapping[str, Any] = {"BROADCAST_ADAPTER": "http", "SECRET": "a secret of at least thirty-two bytes"}


def warnings(**values: Any) -> list[CheckMessage]:
    with configured(**{**COMPLETE, **values}):
        return checks.check_unused_settings()


def reported(**values: Any) -> list[str]:
    """Return the path of the setting in each warning, such as `['STREAMS']['a']['history_ttl']`."""
    messages = warnings(**values)
    assert set(ids(messages)) <= {"W011"}
    return [message.msg.partition(" has no effect")[0].removeprefix(NAME) for message in messages]


def test_each_setting_is_classified_once() -> None:
    groups = (USED, USED_BY, USED_BY_CALLS, HISTORY, UNUSED, {"STREAMS"})
    known = sorted(chain.from_iterable(groups))
    # `ENGINE` cannot be set with an adapter (E001).
    assert known == sorted(CHECKS.keys() - {"ENGINE"})


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"PING_INTERVAL": 10}, "--ping_interval"),
        ({"SESSIONS_TTL": 0}, "--sessions_ttl"),
        ({"HISTORY_TTL": 60}, "--history_ttl"),
        ({"HISTORY_SIZE": 50}, "--history_limit"),
        ({"PUBLIC_STREAMS": ["news:*"]}, "--public_streams"),
        ({"RATE_LIMITS": {"command": "50/s"}}, ""),
        ({"MAX_SUBSCRIPTIONS": 5}, ""),
        ({"MAX_FRAME_RATE": 100}, ""),
        ({"MAX_PENDING_SIZE": 65536}, ""),
        ({"REAUTHENTICATE_INTERVAL": 30}, ""),
        ({"HISTORY_META_TTL": 86400}, ""),
    ],
)
def test_a_setting_of_own_servers_is_reported_with_the_option_of_anycable_go(
    values: dict[str, Any], option: str
) -> None:
    (warning,) = warnings(**values)
    assert f"{NAME}[{next(iter(values))!r}] has no effect" in warning.msg
    assert option in (warning.hint or "")
    assert ("--" in (warning.hint or "")) == bool(option)


def test_nothing_is_reported_without_an_adapter() -> None:
    assert reported(BROADCAST_ADAPTER=None, HISTORY_TTL=60, MAX_SUBSCRIPTIONS=5, JWT_REQUIRED=True) == []


def test_a_setting_that_turns_something_off_is_not_reported() -> None:
    off: dict[str, Any] = {"PUBLIC_STREAMS": [], "RATE_LIMITS": {}, "MAX_FRAME_RATE": None, "NOTIFY": False}
    assert reported(**off) == []


@pytest.mark.parametrize(
    "values",
    [
        {"JWT_REQUIRED": True},
        {"JWT_ISSUER": "https://id.example.com"},
        {"AUTHENTICATORS": ["project.tokens.authenticate"]},
        {"MAX_MESSAGE_SIZE": 2048},
        {"MAX_IDENTIFIER_SIZE": 1024},
        {"RPC_KEY": "key"},
        {"RPC_PRESENCE": True},
    ],
)
def test_a_setting_that_calls_use_is_reported_if_nothing_answers_them(values: dict[str, Any]) -> None:
    assert reported(**values) == [f"[{next(iter(values))!r}]"]
    assert reported(**values, RPC_CONSUMER="project.consumers.AppConsumer") == []


@pytest.mark.parametrize(
    ("values", "adapters"),
    [
        ({"REDIS_URL": "redis://localhost"}, set(REDIS_ADAPTERS)),
        ({"BROADCAST_CHANNEL": "news"}, {*REDIS_ADAPTERS, "nats"}),
        ({"NATS_URL": "nats://localhost"}, {"nats"}),
        ({"HTTP_BROADCAST_URL": "http://ws:8080/_broadcast"}, {"http"}),
    ],
)
def test_a_setting_of_another_adapter_is_reported(values: dict[str, Any], adapters: set[str]) -> None:
    using = set()
    for adapter in BROADCAST_ADAPTERS:
        needed = {"REDIS_URL": "redis://localhost"} if adapter in REDIS_ADAPTERS else {}
        if not reported(**{**needed, **values}, BROADCAST_ADAPTER=adapter):
            using.add(adapter)
    assert using == adapters


def test_a_history_size_of_0_has_an_effect() -> None:
    assert reported(HISTORY_SIZE=0) == []
    assert reported(STREAMS={"typing:*": {"history_size": 0}}) == []
    # Only the streams of the pattern keep their messages.
    assert reported(HISTORY_SIZE=0, STREAMS={"chat:*": {"history_size": 50}}) == []


def test_other_options_of_streams_are_reported() -> None:
    assert reported(STREAMS={"chat:*": {"history_size": 50, "history_ttl": 60, "history_meta_ttl": 3600}}) == [
        *("['STREAMS']['chat:*']['history_size']", "['STREAMS']['chat:*']['history_ttl']"),
        "['STREAMS']['chat:*']['history_meta_ttl']",
    ]
    assert reported(HISTORY_SIZE=50, STREAMS={"typing:*": {"history_size": 0, "history_ttl": 60}}) == [
        *("['HISTORY_SIZE']", "['STREAMS']['typing:*']['history_ttl']")
    ]


def test_settings_of_runs_are_reported() -> None:
    assert reported(RUN_LEASE=30, RUN_CHATS="project.chats.Chats") == ["['RUN_LEASE']", "['RUN_CHATS']"]
