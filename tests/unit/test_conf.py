"""`RELIABLE_CABLE` accepts valid values, and other values raise an error that names the setting."""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from unittest import mock

import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from reliable_cable.conf import (
    CHECKS,
    CONTROL_POLICY,
    CONTROL_STREAM,
    CableSettings,
    StreamPolicy,
    derived_secret,
    get_settings,
    read_settings,
)

PATHS = {"streams": "a.B", "presence": "a.C", "sessions": "a.D"}

VALID: dict[str, list[Any]] = {
    "REDIS_URL": [
        None,
        "redis://localhost:6379/0",
        "rediss://cache",
        "unix:///run/redis.sock",
        "redis://user:secret@a:7000,b:7001,[::1]:7002",
        "redis://a:7000,redis://b:7001",
        "redis+sentinel://:secret@a,b:26380/service/1?sentinel_password=x",
        "rediss+sentinel://a/service",
    ],
    "REDIS_CLUSTER": [False],
    "REDIS_OPTIONS": [{}, {"socket_timeout": 1}],
    "ENGINE": ["memory", "database", PATHS],
    "BROADCAST_ADAPTER": [None, "nats", "http"],
    "BROADCAST_CHANNEL": ["__anycable__", "cable"],
    "HTTP_BROADCAST_URL": ["http://ws:8080/_broadcast", "https://example.com/_broadcast", "http://[::1]:8090/"],
    "API_URL": [None, "http://ws:8080/api", "https://example.com/api/"],
    "NATS_URL": ["nats://localhost", "tls://user:password@a:4222,nats://b:4222", "nats://a:1, nats://b:2", "ws://a:80"],
    "NATS_OPTIONS": [{}, {"user_credentials": "/run/secrets/nats.creds"}],
    "HISTORY_SIZE": [0, 1, 10_000],
    "HISTORY_TTL": [0.5, 86400],
    "HISTORY_META_TTL": [300, 86400.0],
    "STREAMS": [{}, {"chat:*": {}}, {"chat:*": {"history_size": 0}, "x": {"history_ttl": 1.5, "durable": True}}],
    "SESSIONS_TTL": [0, 0.5, 300],
    "PRESENCE_TTL": [0.5, 15],
    "PRESENCE_GRACE": [0, 0.5, 3],
    "SECRET": ["s"],
    "STREAMS_SECRET": ["s"],
    "CORS_ORIGINS": [(), ("https://example.com", "http://*.a.com:8000", "capacitor://localhost")],
    "PUBLIC_STREAMS": [(), ("news:*", "status")],
    "SIGNED_STREAMS_WHISPER": [True, False],
    "PING_INTERVAL": [0.5, 3],
    "REAUTHENTICATE_INTERVAL": [None, 0, 0.5, 60],
    "PONG_TIMEOUT": [None, 6],
    "MAX_MESSAGE_SIZE": [1024, 65536],
    "MAX_IDENTIFIER_SIZE": [64, 2048],
    "MAX_PENDING_SIZE": [1024, 65536],
    "MAX_FRAME_RATE": [None, 1, 500],
    "MAX_SUBSCRIPTIONS": [1, 100],
    "RATE_LIMITS": [{}, {"connect": "20/10s", "command": "50/s", "whisper": "600/5m"}, {"connect": "1000/h"}],
    "MAX_BROADCAST_SIZE": [1024, 65536],
    "POLL_INTERVAL": [0.01, 1],
    "NOTIFY": [True, False, "default"],
    "BROADCAST_KEY": ["k"],
    "API_KEY": ["k"],
    "RPC_KEY": ["k"],
    "RPC_CONSUMER": [None, "project.consumers.AppConsumer"],
    "RPC_PRESENCE": [True, False],
    "KEY_PREFIX": ["cable"],
    "JWT_SECRET": ["s"],
    "JWT_ALGORITHMS": [("HS256",), ("HS512", "HS256")],
    "JWT_JWKS": [None],
    "JWT_REQUIRED": [True, False],
    "JWT_LEEWAY": [0, 0.5, 60],
    "JWT_USER_CLAIM": [None, "sub"],
    "JWT_AUDIENCE": [("web",), ("web", "app"), ()],
    "JWT_ISSUER": [("https://login.example.com",)],
    "AUTHENTICATORS": [(), ("project.auth.authenticate",)],
    "NAMESPACE": [None, "project.tenants.namespace"],
    "DATABASE": ["default"],
    "HANDLER_THREADS": [0, 8],
    "RUN_LEASE": [3, 15, 60.5],
    "RUN_MAX_READERS": [None, 1, 100],
    "RUN_BROADCAST_INTERVAL": [0, 0.03, 1],
    "RUN_BROADCAST_SIZE": [1, 2048],
    "RUN_PERMISSIONS": ["project.access.TeamPermissions"],
    "RUN_CHATS": [None, "project.chats.Chats"],
    "RUN_DURABLE_STREAMS": [None, "project.streams.Streams"],
}

#: Values that are invalid for every setting with a number.
NOT_NUMBERS: list[Any] = ["3", None, True, -1, [], math.nan, math.inf, -math.inf, {}]
NOT_INTEGERS: list[Any] = [*NOT_NUMBERS, 1.5, 3.0]
NOT_TEXT: list[Any] = ["", None, 3, b"secret", ["x"]]
NOT_BOOLEANS: list[Any] = ["yes", 1, 0, None, ""]

INVALID: dict[str, list[Any]] = {
    "REDIS_URL": ["", "localhost:6379", "http://localhost", 6379, b"redis://localhost"],
    "REDIS_CLUSTER": NOT_BOOLEANS,
    "REDIS_OPTIONS": [None, "", [("socket_timeout", 1)]],
    "ENGINE": [
        "",
        None,
        "Memory",
        "a.B",
        {},
        {"streams": "a.B"},
        {**PATHS, "more": "a.E"},
        {**PATHS, "streams": "B"},
        {**PATHS, "streams": None},
    ],
    "BROADCAST_ADAPTER": ["", "redis", "redisx", "Nats", 1, ["http"]],
    "BROADCAST_CHANNEL": NOT_TEXT,
    "HTTP_BROADCAST_URL": [*NOT_TEXT, "localhost:8080", "ftp://localhost", "http://", "http://localhost:port"],
    "API_URL": [1, "", "localhost:8080", "ftp://localhost", "http://", "http://localhost:port"],
    "NATS_URL": [*NOT_TEXT, "localhost:4222", "redis://localhost", "nats://", "nats://a:99999", "nats://a,b"],
    "NATS_OPTIONS": [None, "", [("user", "u")]],
    "HISTORY_SIZE": NOT_INTEGERS,
    "HISTORY_TTL": [*NOT_NUMBERS, 0],
    "HISTORY_META_TTL": [*NOT_NUMBERS, 59, 299],
    "STREAMS": [None, [], "chat:*", {"": {}}, {1: {}}, {"chat:*": None}, {"chat:*": 100}],
    "SESSIONS_TTL": NOT_NUMBERS,
    "PRESENCE_TTL": [*NOT_NUMBERS, 0],
    "PRESENCE_GRACE": NOT_NUMBERS,
    "SECRET": NOT_TEXT,
    "STREAMS_SECRET": NOT_TEXT,
    "CORS_ORIGINS": ["https://example.com", ["example.com"], ["https://a.com/"], [1], ["*"], [""], None, True],
    "PUBLIC_STREAMS": [*NOT_BOOLEANS, "news:*", {"news:*": True}, [""], [1], [None], ["news:*", b"x"], {"news:*"}],
    "SIGNED_STREAMS_WHISPER": NOT_BOOLEANS,
    "PING_INTERVAL": [*NOT_NUMBERS, 0],
    "REAUTHENTICATE_INTERVAL": [value for value in NOT_NUMBERS if value is not None],
    "PONG_TIMEOUT": [*(value for value in NOT_NUMBERS if value is not None), 0],
    "MAX_MESSAGE_SIZE": [*NOT_INTEGERS, 1023],
    "MAX_IDENTIFIER_SIZE": [*NOT_INTEGERS, 63],
    "MAX_PENDING_SIZE": [*NOT_INTEGERS, 1023],
    "MAX_FRAME_RATE": [*(value for value in NOT_NUMBERS if value is not None), 0],
    "MAX_SUBSCRIPTIONS": [*NOT_INTEGERS, 0],
    "RATE_LIMITS": [None, "50/s", [], {"command": 50}, {"command": None}, {"command": ""}, {"connect": "20/10"}],
    "MAX_BROADCAST_SIZE": [*NOT_INTEGERS, 1023],
    "POLL_INTERVAL": [*NOT_NUMBERS, 0],
    "NOTIFY": [None, "", 1, ["default"], "unknown"],
    "BROADCAST_KEY": NOT_TEXT,
    "API_KEY": NOT_TEXT,
    "RPC_KEY": NOT_TEXT,
    "RPC_CONSUMER": ["", "AppConsumer", len, 1],
    "RPC_PRESENCE": NOT_BOOLEANS,
    "KEY_PREFIX": NOT_TEXT,
    "JWT_SECRET": NOT_TEXT,
    "JWT_ALGORITHMS": [None, "HS256", [], ["none"], ["HS256", "None"], ["hs256"], ["RS256"], ["HS256", "ES256"]],
    "JWT_JWKS": ["", 1, b"keys.json"],
    "JWT_REQUIRED": NOT_BOOLEANS,
    "JWT_LEEWAY": NOT_NUMBERS,
    "JWT_USER_CLAIM": ["", 1, ["sub"]],
    "JWT_AUDIENCE": [None, "", [""], [1], {"web": 1}],
    "JWT_ISSUER": [None, "", [""], [1], {"web": 1}],
    "AUTHENTICATORS": [None, "project.auth.authenticate", ["authenticate"], [len], [""]],
    "NAMESPACE": ["", "namespace", 1, len],
    "DATABASE": [*NOT_TEXT, "nowhere"],
    "HANDLER_THREADS": NOT_INTEGERS,
    "RUN_LEASE": [*NOT_NUMBERS, 2.9],
    "RUN_MAX_READERS": [*(value for value in NOT_INTEGERS if value is not None), 0],
    "RUN_BROADCAST_INTERVAL": NOT_NUMBERS,
    "RUN_BROADCAST_SIZE": [*NOT_INTEGERS, 0],
    "RUN_PERMISSIONS": [None, "", "TeamPermissions", len],
    "RUN_CHATS": ["", "Chats", len, 1],
    "RUN_DURABLE_STREAMS": ["", "Streams", len, 1],
}


def items(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(key, value) for key, values in table.items() for value in values]


def test_these_tables_have_every_key() -> None:
    names = {field.name.upper() for field in dataclasses.fields(CableSettings)} - {"READS_TOKENS"}
    assert names == set(CHECKS) == set(VALID) == set(INVALID)


@pytest.mark.parametrize(("key", "value"), items(VALID))
def test_valid_values_are_accepted_unchanged(key: str, value: Any) -> None:
    assert getattr(read_settings({key: value}), key.lower()) == value


@pytest.mark.parametrize(("key", "value"), items(INVALID))
def test_the_error_for_an_invalid_value_names_the_key_and_the_valid_values(key: str, value: Any) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        read_settings({key: value})
    text = str(caught.value)
    assert text.startswith(f"RELIABLE_CABLE['{key}']")
    assert "must be" in text or "keys are" in text


@pytest.mark.parametrize("values", [None, [], "redis://localhost", 1])
def test_a_setting_that_is_not_a_dict_is_an_error(values: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"RELIABLE_CABLE is .*; it must be a dict"):
        read_settings(values)


@pytest.mark.parametrize(("key", "guess"), [("HISTORY_SIZ", "HISTORY_SIZE"), ("redis_url", "REDIS_URL"), ("X", None)])
def test_the_error_for_an_unknown_key_guesses_what_was_meant(key: str, guess: str | None) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        read_settings({key: 1})
    expected = f"the unknown key {key!r}; did you mean {guess!r}? Allowed: " if guess else f"the unknown key {key!r}. "
    assert expected in str(caught.value)


@pytest.mark.parametrize("key", ["HISTORY_SIZ", "history_size", "", 1, None])
def test_the_error_for_an_unknown_key_lists_the_known_keys(key: Any) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        read_settings({key: 1})
    assert f"unknown key {key!r}" in str(caught.value)
    assert "HISTORY_SIZE" in str(caught.value)


def test_every_key_has_a_default() -> None:
    settings = read_settings({})
    assert settings == CableSettings(engine="database", secret=settings.secret, streams_secret=settings.secret)


class TestEngine:
    def test_the_default_with_a_redis_url_is_redis(self) -> None:
        assert read_settings({"REDIS_URL": "redis://localhost"}).engine == "redis"

    def test_the_default_without_a_redis_url_is_the_database(self) -> None:
        assert read_settings({"REDIS_URL": None}).engine == "database"

    def test_the_key_overrides_the_default(self) -> None:
        assert read_settings({"REDIS_URL": "redis://localhost", "ENGINE": "memory"}).engine == "memory"

    def test_the_redis_engine_requires_a_url(self) -> None:
        with pytest.raises(ImproperlyConfigured, match=r"'ENGINE'.*REDIS_URL"):
            read_settings({"ENGINE": "redis"})


class TestDatabase:
    @mock.patch.object(django_settings, "DATABASES", {})
    def test_engines_without_a_database_require_no_alias(self) -> None:
        assert read_settings({"ENGINE": "memory"}).engine == "memory"
        assert read_settings({"ENGINE": PATHS}).engine == PATHS

    @mock.patch.object(django_settings, "DATABASES", {"main": {}, "other": {}})
    def test_the_error_for_an_unknown_alias_lists_the_known_aliases(self) -> None:
        assert read_settings({"DATABASE": "other"}).database == "other"
        with pytest.raises(ImproperlyConfigured, match=r"'DATABASE'.*'default'.*'main', 'other'"):
            read_settings({})


class TestPublicStreams:
    @pytest.mark.parametrize(
        ("value", "patterns"), [(True, ("*",)), (False, ()), ([], ()), (["news:*", "status"], ("news:*", "status"))]
    )
    def test_the_value_is_read_as_patterns(self, value: Any, patterns: tuple[str, ...]) -> None:
        assert read_settings({"PUBLIC_STREAMS": value}).public_streams == patterns


class TestStreams:
    @pytest.mark.parametrize(
        ("option", "value"), [("history_size", -1), ("history_size", 1.0), ("history_ttl", 0), ("durable", 1)]
    )
    def test_the_error_for_an_invalid_option_names_the_pattern_and_the_option(self, option: str, value: Any) -> None:
        with pytest.raises(ImproperlyConfigured) as caught:
            read_settings({"STREAMS": {"chat:*": {option: value}}})
        assert str(caught.value).startswith(f"RELIABLE_CABLE['STREAMS']['chat:*']['{option}'] is {value!r}; it must be")

    def test_the_error_for_an_unknown_option_lists_the_known_options(self) -> None:
        with pytest.raises(ImproperlyConfigured) as caught:
            read_settings({"STREAMS": {"chat:*": {"size": 1}}})
        for word in ("chat:*", "'size'", "history_size", "history_ttl", "durable"):
            assert word in str(caught.value)

    @pytest.mark.parametrize(
        "values",
        [
            {"STREAMS": {"chat:*": {"history_size": 0, "durable": True}}},
            {"STREAMS": {"chat:*": {"durable": True}}, "HISTORY_SIZE": 0},
        ],
    )
    def test_a_durable_stream_without_history_is_an_error(self, values: dict[str, Any]) -> None:
        with pytest.raises(ImproperlyConfigured, match=r"\['STREAMS'\]\['chat:\*'\]\['history_size'\] is 0.*durable"):
            read_settings(values)

    def test_the_first_matching_pattern_applies(self) -> None:
        settings = read_settings(
            {
                "HISTORY_SIZE": 50,
                "HISTORY_TTL": 60,
                "STREAMS": {
                    "chat:vip:*": {"history_size": 1000},
                    "chat:*": {"history_ttl": 5, "durable": True},
                    "chat:vip:1": {"history_size": 1},
                },
            }
        )
        assert settings.policy("chat:vip:1") == StreamPolicy(1000, 60)
        assert settings.policy("chat:2") == StreamPolicy(50, 5, durable=True)
        assert settings.policy("other") == StreamPolicy(50, 60)

    @pytest.mark.parametrize(
        ("values", "key"),
        [
            ({"HISTORY_META_TTL": 400, "HISTORY_TTL": 401}, r"\['HISTORY_META_TTL'\] is 400"),
            ({"HISTORY_META_TTL": 400, "SESSIONS_TTL": 401}, r"\['HISTORY_META_TTL'\] is 400"),
            ({"STREAMS": {"a:*": {"history_meta_ttl": 299}}}, r"\['STREAMS'\]\['a:\*'\]\['history_meta_ttl'\] is 299"),
            ({"STREAMS": {"a:*": {"history_meta_ttl": 400, "history_ttl": 401}}}, "since history_ttl is 401"),
        ],
    )
    def test_a_stream_outlives_its_messages_and_the_sessions(self, values: dict[str, Any], key: str) -> None:
        with pytest.raises(ImproperlyConfigured, match=key):
            read_settings(values)

    def test_streams_outlive_long_histories_and_sessions_by_default(self) -> None:
        year = 365 * 86400
        assert read_settings({"SESSIONS_TTL": year}).policy("a").history_meta_ttl == year
        assert read_settings({"STREAMS": {"a": {"history_ttl": year}}}).policy("a").history_meta_ttl == year

    def test_no_pattern_applies_to_the_control_stream(self) -> None:
        for options in ({"history_size": 0}, {"history_size": 1, "durable": True}):
            settings = read_settings({"HISTORY_SIZE": 0, "STREAMS": {"*": options}})
            assert settings.policy(CONTROL_STREAM) == CONTROL_POLICY
        assert CONTROL_POLICY.history_size > 0
        assert not CONTROL_POLICY.durable

    def test_patterns_match_whole_names_and_are_case_sensitive(self) -> None:
        settings = read_settings({"STREAMS": {"Chat:?": {"history_size": 1}}})
        assert [settings.policy(name).history_size for name in ("Chat:1", "chat:1", "Chat:12", "xChat:1")] == [
            1,
            100,
            100,
            100,
        ]


class TestSecrets:
    def test_the_default_secrets_are_derived_from_the_secret_key(self) -> None:
        settings = read_settings({})
        assert settings.secret == settings.streams_secret == derived_secret("tests")
        assert settings.secret != "tests"
        with override_settings(SECRET_KEY="another"):
            assert read_settings({}).secret not in ("another", settings.secret)

    def test_the_default_streams_secret_is_the_secret(self) -> None:
        assert read_settings({"SECRET": "a"}).streams_secret == "a"
        assert read_settings({"SECRET": "a", "STREAMS_SECRET": "b"}).streams_secret == "b"


class TestFrozen:
    def test_fields_cannot_be_set(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            get_settings().history_size = 1  # type: ignore[misc]

    def test_dicts_are_read_only_copies(self) -> None:
        given: dict[str, Any] = {
            "STREAMS": {"chat:*": {"history_size": 5}},
            "REDIS_OPTIONS": {"retry": {"attempts": 1}},
            "ENGINE": dict(PATHS),
        }
        settings = read_settings(given)
        given["STREAMS"]["chat:*"]["history_size"] = 6
        given["ENGINE"]["streams"] = "x.Y"
        assert settings.policy("chat:1").history_size == 5
        assert settings.engine == PATHS
        changing: list[Any] = [settings.streams, settings.streams["chat:*"], settings.redis_options["retry"]]
        for mapping in [*changing, settings.engine]:
            with pytest.raises(TypeError):
                mapping["x"] = 1


class TestGetSettings:
    @override_settings()
    def test_a_project_without_the_setting_has_the_defaults(self) -> None:
        if hasattr(django_settings, "RELIABLE_CABLE"):
            delattr(django_settings, "RELIABLE_CABLE")
        assert get_settings().history_size == 100

    def test_settings_are_read_once(self) -> None:
        assert get_settings() is get_settings()

    def test_settings_are_read_again_when_the_setting_changes(self) -> None:
        before = get_settings().history_size
        with override_settings(RELIABLE_CABLE={"HISTORY_SIZE": before + 1}):
            assert get_settings().history_size == before + 1
        assert get_settings().history_size == before

    def test_settings_are_read_again_when_the_secret_key_changes(self) -> None:
        with override_settings(RELIABLE_CABLE={}):
            before = get_settings().secret
            with override_settings(SECRET_KEY="another"):
                assert get_settings().secret != before
            assert get_settings().secret == before

    def test_settings_are_not_read_again_when_another_setting_changes(self) -> None:
        before = get_settings()
        with override_settings(LANGUAGE_CODE="de"):
            assert get_settings() is before

    def test_invalid_settings_raise_at_every_call(self) -> None:
        with override_settings(RELIABLE_CABLE={"HISTORY_SIZE": -1}):
            for _ in range(2):
                with pytest.raises(ImproperlyConfigured):
                    get_settings()
