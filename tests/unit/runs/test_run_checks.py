"""The system checks of the app `reliable_cable.runs`."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.test import modify_settings, override_settings

from reliable_cable import checks
from reliable_cable.runs.chats import RunChats
from reliable_cable.runs.checks import check_classes, check_durable_streams, check_history, check_urls
from tests.unit.runs import chat_client, durable_client
from tests.unit.test_checks import ids

GOOD = f"{chat_client.__name__}.Chats"
RULES = f"{durable_client.__name__}.Rules"


class WithoutStart(RunChats):
    def subject(self, user: Any, chat: str) -> Any: ...


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"RUN_CHATS": "shop.missing.Chats"}, "'RUN_CHATS'] cannot be imported: No module named 'shop'"),
        ({"RUN_CHATS": f"{chat_client.__name__}.missing"}, "'RUN_CHATS'] cannot be imported"),
        ({"RUN_CHATS": f"{chat_client.__name__}.urlpatterns"}, "not a subclass of reliable_cable.runs.chats.RunChats."),
        ({"RUN_CHATS": f"{chat_client.__name__}.Readable"}, "not a subclass of reliable_cable.runs.chats.RunChats."),
        ({"RUN_CHATS": f"{__name__}.WithoutStart"}, "which does not define start()."),
        ({"RUN_CHATS": f"{chat_client.__name__}.RunChats"}, "which does not define subject() and start()."),
        ({"RUN_DURABLE_STREAMS": GOOD}, "not a subclass of reliable_cable.runs.durable.access.DurableStreams."),
        ({"RUN_DURABLE_STREAMS": f"{durable_client.__name__}.DurableStreams"}, "which does not define may_create()."),
        ({"RUN_PERMISSIONS": GOOD}, "not a subclass of reliable_cable.runs.access.RunPermissions."),
    ],
)
def test_classes_that_cannot_be_used(values: dict[str, str], problem: str) -> None:
    with override_settings(RELIABLE_CABLE=values):
        (message,) = check_classes()
    assert ids([message]) == ["E007"]
    assert problem in message.msg


@pytest.mark.parametrize(
    "values", [{}, {"RUN_CHATS": GOOD, "RUN_PERMISSIONS": f"{chat_client.__name__}.Readable"}, {"MISSPELT": 1}]
)
def test_classes_that_can_be_used(values: dict[str, Any]) -> None:
    with override_settings(RELIABLE_CABLE=values):
        assert check_classes() == []


@pytest.mark.parametrize(
    ("values", "urls"),
    [
        ({"RUN_CHATS": GOOD}, "tests.urls"),
        ({"RUN_DURABLE_STREAMS": RULES}, "tests.urls"),
        ({}, chat_client.__name__),
    ],
)
def test_only_one_of_the_setting_and_the_urls(values: dict[str, str], urls: str) -> None:
    with override_settings(RELIABLE_CABLE=values, ROOT_URLCONF=urls):
        (message,) = check_urls()
    assert ids([message]) == ["W009"]
    assert message.hint is not None
    assert "silence" in message.hint


@pytest.mark.parametrize(
    ("cable", "urls"),
    [
        ({}, "tests.urls"),
        ({"RUN_CHATS": GOOD}, chat_client.__name__),
        ({"RUN_DURABLE_STREAMS": RULES}, chat_client.__name__),
        ({"RUN_CHATS": GOOD}, "no.such.module"),
        ({"RUN_CHATS": GOOD}, None),
        ({"MISSPELT": 1}, chat_client.__name__),
    ],
)
def test_urls_without_a_problem(cable: dict[str, Any], urls: str | None) -> None:
    with override_settings(RELIABLE_CABLE=cable, ROOT_URLCONF=urls):
        assert check_urls() == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"RUN_DURABLE_STREAMS": RULES}, ["W010"]),
        ({"RUN_DURABLE_STREAMS": RULES, "STREAMS": {"durable:*": {"durable": True}}}, []),
        ({"RUN_DURABLE_STREAMS": RULES, "ENGINE": "memory"}, ["W010"]),
        ({"RUN_DURABLE_STREAMS": RULES, "ENGINE": {"streams": "no.such.Store"}}, []),
        ({"MISSPELT": 1}, []),
    ],
)
def test_streams_of_clients_that_would_not_be_durable(values: dict[str, Any], expected: list[str]) -> None:
    with override_settings(RELIABLE_CABLE=values):
        assert ids(check_durable_streams()) == expected


@pytest.mark.parametrize("values", [{"RUN_CHATS": GOOD}, {"RUN_DURABLE_STREAMS": RULES}])
def test_the_app_is_not_installed(values: dict[str, str]) -> None:
    with override_settings(RELIABLE_CABLE=values):
        assert checks.check_runs_app() == []
        with modify_settings(INSTALLED_APPS={"remove": "reliable_cable.runs"}):
            (message,) = checks.check_runs_app()
    assert ids([message]) == ["E007"]
    with (
        override_settings(RELIABLE_CABLE={}),
        modify_settings(INSTALLED_APPS={"remove": "reliable_cable.runs"}),
    ):
        assert checks.check_runs_app() == []


def test_the_app_needs_the_other_one() -> None:
    config = apps.get_app_config("reliable_cable_runs")
    with (
        modify_settings(INSTALLED_APPS={"remove": ["reliable_cable", "reliable_cable.runs"]}),
        pytest.raises(ImproperlyConfigured, match="needs 'reliable_cable' in INSTALLED_APPS"),
    ):
        config.ready()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, []),
        ({"HISTORY_SIZE": 0}, ["E010"]),
        ({"HISTORY_SIZE": 0, "STREAMS": {"run:*": {"history_size": 1}}}, []),
        ({"STREAMS": {"run:*": {"history_size": 0}}}, ["E010"]),
        ({"STREAMS": {"run": {"history_size": 0}}}, []),
        ({"MISSPELT": 1}, []),
    ],
)
def test_runs_need_a_history(values: dict[str, Any], found: list[str]) -> None:
    with override_settings(RELIABLE_CABLE=values):
        assert ids(check_history()) == found
