"""Each system check reports its problem, and reports nothing if there is no problem."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
from channels_redis.core import RedisChannelLayer
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Tags, run_checks
from django.core.checks.registry import registry as checks_registry
from django.core.management import call_command, get_commands
from django.core.management.base import SystemCheckError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings
from pytest_django import DjangoDbBlocker

from reliable_cable import checks
from reliable_cable.runs import checks as runs_checks

PACKAGE = "reliable_cable"
MEMORY = {
    "streams": f"{PACKAGE}.streams.memory.MemoryStreamStore",
    "presence": f"{PACKAGE}.presence.memory.MemoryPresenceStore",
    "sessions": f"{PACKAGE}.sessions.memory.MemorySessionStore",
}
SESSIONS_IN_MODELS = {**MEMORY, "sessions": f"{PACKAGE}.sessions.model.ModelSessionStore"}
SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "x.sqlite3", "OPTIONS": {"transaction_mode": "IMMEDIATE"}}


def ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("reliable_cable.") for message in messages]


def configured(**values: Any) -> override_settings:
    return override_settings(RELIABLE_CABLE=values)


@contextmanager
def database(**values: Any) -> Iterator[str]:
    """Add a SQLite database to DATABASES. The checks report nothing about its settings, unless `values` change them."""
    alias = "extra"
    connections.settings[alias] = {**SQLITE, **values}
    connections.configure_settings(connections.settings)
    try:
        with mock.patch.object(django_settings, "DATABASES", connections.settings):
            yield alias
    finally:
        for connection in connections.all(initialized_only=True):
            if connection.alias == alias:
                # Django's `close` does not close SQLite databases in memory.
                BaseDatabaseWrapper.close(connection)
                del connections[alias]
        del connections.settings[alias]


def forget_commands() -> None:
    get_commands.cache_clear()  # type: ignore[attr-defined]


def test_the_checks_are_registered() -> None:
    registered = checks_registry.get_checks(include_deployment_checks=False)
    assert {checks.check_settings, checks.check_journal_mode} <= set(registered)
    with configured(HISTORY_SIZE=-1):
        assert ids(run_checks(tags=["reliable_cable"])) == ["E001"]


def test_the_settings_of_the_tests_have_no_problems() -> None:
    assert run_checks(tags=["reliable_cable"]) == []


class TestSettings:
    def test_an_invalid_setting_is_reported(self) -> None:
        with configured(HISTORY_SIZ=1):
            (message,) = checks.check_settings()
        assert ids([message]) == ["E001"]
        assert "unknown key 'HISTORY_SIZ'" in message.msg

    def test_valid_settings_are_not_reported(self) -> None:
        with configured(HISTORY_SIZE=1):
            assert checks.check_settings() == []

    def test_other_checks_are_skipped_after_an_invalid_setting(self) -> None:
        with configured(HISTORY_SIZE=-1, PUBLIC_STREAMS=True, STREAMS={"a": {"durable": True}}, ENGINE="memory"):
            assert ids(run_checks(tags=["reliable_cable"])) == ["E001"]
            assert checks.check_journal_mode(databases=["default"]) == []


class TestEngine:
    def test_redis_supports_durable_streams(self) -> None:
        with configured(REDIS_URL="redis://localhost", STREAMS={"chat:*": {"durable": True}}):
            assert checks.check_engine() == []

    def test_an_unknown_option_of_redis_connections_is_reported(self) -> None:
        with configured(REDIS_URL="redis://localhost", REDIS_OPTIONS={"socket_timout": 3}):
            (message,) = checks.check_engine()
        assert ids([message]) == ["E003"]
        assert "REDIS_OPTIONS" in message.msg
        assert "socket_timout" in message.msg

    @pytest.mark.parametrize(
        "path", ["nowhere.Store", f"{PACKAGE}.presence.memory.Nothing", f"{PACKAGE}.sessions.memory.MemorySessionStore"]
    )
    def test_a_store_that_is_missing_or_of_another_kind_is_reported(self, path: str) -> None:
        with configured(ENGINE={**MEMORY, "presence": path}):
            (message,) = checks.check_engine()
        assert ids([message]) == ["E003"]
        assert "'presence'" in message.msg

    @pytest.mark.parametrize("engine", ["memory", MEMORY])
    def test_durable_streams_without_support_of_the_engine_are_reported(self, engine: Any) -> None:
        streams = {"chat:*": {"durable": True}, "cursor:*": {"durable": False}, "log:*": {}}
        with configured(ENGINE=engine, STREAMS=streams):
            (message,) = checks.check_engine()
        assert ids([message]) == ["E003"]
        assert "'chat:*'" in message.msg

    def test_supported_engines_are_not_reported(self) -> None:
        for values in (
            {"ENGINE": "memory"},
            {"ENGINE": MEMORY, "STREAMS": {"chat:*": {"durable": False}}},
            {"ENGINE": "database", "STREAMS": {"chat:*": {"durable": True}}},
        ):
            with configured(**values):
                assert checks.check_engine() == []


class TestDatabase:
    def test_a_supported_database_is_not_reported(self) -> None:
        with database() as alias, configured(DATABASE=alias):
            assert checks.check_database() == []

    def test_an_unknown_alias_is_reported(self) -> None:
        with (
            mock.patch.object(connections, "settings", {"main": SQLITE}),
            configured(ENGINE=SESSIONS_IN_MODELS),
        ):
            (message,) = checks.check_database()
        assert ids([message]) == ["E004"]
        assert "'default'" in message.msg

    def test_an_unsupported_kind_of_database_is_reported(self) -> None:
        with database() as alias, configured(DATABASE=alias):
            with mock.patch.object(connections[alias], "vendor", "mysql"):
                (message,) = checks.check_database()
        assert ids([message]) == ["E004"]
        assert "mysql" in message.msg

    def test_a_database_without_a_driver_is_reported(self) -> None:
        with database(ENGINE="nowhere.backend") as alias, configured(DATABASE=alias):
            (message,) = checks.check_database()
        assert ids([message]) == ["E004"]
        assert "cannot be used" in message.msg

    def test_a_database_in_memory_is_reported(self) -> None:
        with database(NAME=":memory:") as alias, configured(DATABASE=alias):
            assert ids(checks.check_database()) == ["E004"]

    def test_a_database_in_memory_that_threads_share_is_not_reported(self) -> None:
        with database(NAME="file:x?mode=memory&cache=shared") as alias, configured(DATABASE=alias):
            assert checks.check_database() == []

    def test_routers_that_forbid_the_tables_are_reported(self) -> None:
        class Router:
            def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
                return db != "extra"

        with (
            database() as alias,
            configured(DATABASE=alias),
            mock.patch("reliable_cable.checks.databases.router.routers", [Router()]),
        ):
            (message,) = checks.check_database()
        assert ids([message]) == ["E004"]
        assert "DATABASE_ROUTERS" in message.msg

    def test_an_unused_database_is_not_checked(self) -> None:
        with database(NAME=":memory:") as alias, configured(ENGINE="memory", DATABASE=alias):
            assert checks.check_database() == []


class TestSqlite:
    @pytest.mark.parametrize("options", [{}, {"transaction_mode": None}, {"transaction_mode": "deferred"}])
    def test_deferred_transactions_are_reported(self, options: dict[str, Any]) -> None:
        with database(OPTIONS=options) as alias, configured(DATABASE=alias):
            (message,) = checks.check_database()
        assert ids([message]) == ["W001"]
        assert "If a transaction of your code reads before it writes, its first write fails" in message.msg
        assert "'transaction_mode': 'IMMEDIATE'" in str(message.hint)
        assert "Broadcasts outside of transactions work without this" in str(message.hint)
        assert "DATABASES['extra']" in str(message.hint)

    @pytest.mark.parametrize("mode", ["IMMEDIATE", "immediate", "EXCLUSIVE"])
    def test_other_transaction_modes_are_not_reported(self, mode: str) -> None:
        with database(OPTIONS={"transaction_mode": mode}) as alias, configured(DATABASE=alias):
            assert checks.check_database() == []

    def test_postgresql_is_not_checked_for_a_transaction_mode(self) -> None:
        with database(ENGINE="django.db.backends.postgresql", OPTIONS={}) as alias, configured(DATABASE=alias):
            assert checks.check_database() == []

    @pytest.mark.parametrize(("mode", "expected"), [("wal", []), ("delete", ["W001"]), ("truncate", ["W001"])])
    def test_another_journal_mode_than_wal_is_reported(
        self, mode: str, expected: list[str], tmp_path: Path, django_db_blocker: DjangoDbBlocker
    ) -> None:
        options = {"init_command": f"PRAGMA journal_mode={mode};"}
        extra = database(NAME=str(tmp_path / "x.sqlite3"), OPTIONS=options)
        with extra as alias, configured(DATABASE=alias), django_db_blocker.unblock():
            assert ids(checks.check_journal_mode(databases=[alias])) == expected
            assert ids(run_checks(tags=[Tags.database], databases=[alias])) == expected

    def test_the_journal_mode_is_read_only_from_the_used_database_with_database_checks(self, tmp_path: Path) -> None:
        # This test has no access to databases, so a connection would raise an error.
        with database(NAME=str(tmp_path / "x.sqlite3")) as alias:
            with configured(DATABASE=alias):
                assert checks.check_journal_mode(databases=["default"]) == []
                assert checks.check_journal_mode(databases=None) == []
            with configured(DATABASE=alias, ENGINE="memory"):
                assert checks.check_journal_mode(databases=[alias]) == []

    def test_a_database_in_memory_needs_no_wal(self, django_db_blocker: DjangoDbBlocker) -> None:
        with (
            database(NAME="file:y?mode=memory&cache=shared") as alias,
            configured(DATABASE=alias),
            django_db_blocker.unblock(),
        ):
            assert checks.check_journal_mode(databases=[alias]) == []


class TestRunserver:
    @pytest.fixture(autouse=True)
    def fresh_commands(self) -> Iterator[None]:
        forget_commands()
        yield
        forget_commands()

    @staticmethod
    def apps(*first: str, without: tuple[str, ...] = ()) -> list[str]:
        return [*first, *(app for app in django_settings.INSTALLED_APPS if app not in (*first, *without))]

    def test_runserver_of_daphne_is_not_reported(self) -> None:
        with override_settings(DEBUG=True, ASGI_APPLICATION="project.asgi.application"):
            assert checks.check_runserver() == []

    def test_runserver_of_daphne_without_an_application_is_reported(self) -> None:
        with override_settings(DEBUG=True, ASGI_APPLICATION=None):
            (message,) = checks.check_runserver()
        assert ids([message]) == ["W002"]
        assert "ASGI_APPLICATION" in str(message.hint)

    def test_runserver_of_django_is_reported(self) -> None:
        for without in (("daphne",), ("daphne", "django.contrib.staticfiles")):
            with override_settings(
                DEBUG=True,
                ASGI_APPLICATION="project.asgi.application",
                INSTALLED_APPS=self.apps(without=without),
            ):
                forget_commands()
                (message,) = checks.check_runserver()
            assert ids([message]) == ["W002"]
            assert "'daphne'" in str(message.hint)

    def test_daphne_after_staticfiles_is_reported(self) -> None:
        with override_settings(
            DEBUG=True,
            ASGI_APPLICATION="project.asgi.application",
            INSTALLED_APPS=self.apps("django.contrib.staticfiles", "daphne"),
        ):
            assert ids(checks.check_runserver()) == ["W002"]

    def test_runserver_is_not_checked_without_debug(self) -> None:
        with override_settings(DEBUG=False, INSTALLED_APPS=self.apps(without=("daphne",))):
            assert checks.check_runserver() == []


class TestPublicStreams:
    EVERY_STREAM = pytest.mark.parametrize("value", [True, ["*"], ["news:*", "**"], ["?*"]])

    @EVERY_STREAM
    def test_a_setting_that_opens_every_stream_is_reported_without_debug(self, value: Any) -> None:
        with override_settings(DEBUG=False), configured(PUBLIC_STREAMS=value):
            assert ids(checks.check_public_streams()) == ["W003"]
        with override_settings(DEBUG=True), configured(PUBLIC_STREAMS=value):
            assert checks.check_public_streams() == []

    @EVERY_STREAM
    def test_a_setting_that_opens_every_stream_is_one_error_in_a_deployment(
        self, value: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ["check", "--tag", checks.TAG]
        with override_settings(DEBUG=False), configured(PUBLIC_STREAMS=value):
            call_command(*arguments)
            monkeypatch.setattr(sys, "argv", ["manage.py", *arguments, "--deploy"])
            with pytest.raises(SystemCheckError, match="E005") as error:
                call_command(*arguments, "--deploy")
            assert "W003" not in str(error.value)

    @pytest.mark.parametrize("value", [False, [], ["news:*"], ["ChatChannel:*"], ["?"]])
    def test_patterns_that_name_streams_are_not_reported(self, value: Any) -> None:
        with override_settings(DEBUG=False), configured(PUBLIC_STREAMS=value):
            assert checks.check_public_streams() == []
            assert checks.check_public_streams_of_deployments() == []


def test_the_table_of_ids_is_complete() -> None:
    paths = [*Path(checks.__file__).parent.glob("*.py"), Path(runs_checks.__file__)]
    source = "".join(path.read_text() for path in paths)
    used = {part.partition('"')[0] for part in source.split('id="')[1:]}
    assert used
    assert used == set(re.findall(r"`(reliable_cable\.[EW]\d+)`", checks.__doc__ or ""))


class TestChannelLayers:
    CORE = "channels_redis.core.RedisChannelLayer"
    PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"
    URL = "redis://localhost:6379"
    SENTINEL: ClassVar = {"sentinels": [("localhost", 26379)], "master_name": "main"}

    def check(
        self, backend: Any, config: dict[str, Any] | None = None, *, layer: str = "4.3.0", client: str = "8.1.0"
    ) -> list[CheckMessage]:
        installed = {"channels-redis": layer, "redis": client}
        options = {"BACKEND": backend} if config is None else {"BACKEND": backend, "CONFIG": config}
        with (
            override_settings(CHANNEL_LAYERS={"default": options}),
            mock.patch.object(checks.channel_layers, "version", installed.__getitem__),
        ):
            return checks.check_channel_layers()

    @pytest.mark.parametrize(
        "config",
        [
            None,
            {},
            {"hosts": [URL]},
            {"hosts": [("localhost", 6379)]},
            {"hosts": [{"address": URL}]},
            {"hosts": [{"address": URL, "socket_timeout": 5}]},
            {"hosts": [f"{URL}?socket_timeout=5"]},
            {"hosts": [SENTINEL]},
            {"hosts": [{"address": URL, "socket_timeout": None}, URL]},
        ],
    )
    def test_the_core_layer_with_the_default_timeout_is_reported(self, config: dict[str, Any] | None) -> None:
        (message,) = self.check(self.CORE, config)
        assert ids([message]) == ["W004"]
        assert "CHANNEL_LAYERS['default']" in message.msg
        assert '"socket_timeout": 30' in str(message.hint)

    @pytest.mark.parametrize(
        "host",
        [
            {"address": URL, "socket_timeout": None},
            {"address": URL, "socket_timeout": 5.5},
            {"host": "localhost", "port": 6379, "socket_timeout": 30},
            {**SENTINEL, "socket_timeout": 30},
            f"{URL}?socket_timeout=30",
            f"{URL}/0?db=1&socket_timeout=30",
        ],
    )
    def test_the_recommended_configurations_are_not_reported(self, host: Any) -> None:
        assert self.check(self.CORE, {"hosts": [host]}) == []

    def test_other_versions_and_other_layers_are_not_reported(self) -> None:
        assert self.check(self.CORE, client="7.4.0") == []
        assert self.check(self.CORE, layer="4.4.0") == []
        for backend in (self.PUBSUB, "channels.layers.InMemoryChannelLayer", "nowhere.Layer", None):
            assert self.check(backend) == []

    def test_a_subclass_of_the_core_layer_is_reported(self) -> None:
        assert ids(self.check(f"{__name__}.OwnLayer")) == ["W004"]

    def test_invalid_hosts_are_left_to_the_layer(self) -> None:
        assert self.check(self.CORE, {"hosts": self.URL}) == []

    def test_settings_without_channel_layers_are_not_reported(self) -> None:
        with override_settings(CHANNEL_LAYERS={}):
            assert checks.check_channel_layers() == []


class OwnLayer(RedisChannelLayer):  # type: ignore[misc]  # channels-redis is untyped
    """A channel layer of a project."""
