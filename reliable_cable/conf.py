"""The settings: one dict, `RELIABLE_CABLE`, read once, typed and frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.crypto import salted_hmac

NAME = "RELIABLE_CABLE"
ENGINES = ("memory", "database", "redis")
ENGINE_PARTS = ("streams", "presence", "sessions")


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """How much of a stream is kept.

    Args:
        history_size: messages; 0: the stream is transient.
        history_ttl: seconds.
        durable: the stream survives the loss of Redis.
    """

    history_size: int
    history_ttl: float
    durable: bool = False


@dataclass(frozen=True, kw_only=True)
class CableSettings:
    """The settings of this package; each field is the key of the same name in capitals. Times are in seconds."""

    redis_url: str | None = None
    redis_options: Mapping[str, Any] = field(default_factory=dict)
    engine: str | Mapping[str, str] = ""
    history_size: int = 100
    history_ttl: float = 300
    streams: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sessions_ttl: float = 300
    presence_ttl: float = 15
    secret: str = ""
    streams_secret: str = ""
    public_streams: bool = False
    signed_streams_whisper: bool = False
    ping_interval: float = 3
    pong_timeout: float | None = None
    max_message_size: int = 64 * 1024
    max_pending_size: int = 1024 * 1024
    max_subscriptions: int = 100
    max_broadcast_size: int = 256 * 1024
    poll_interval: float = 0.1
    broadcast_key: str = ""
    api_key: str = ""
    key_prefix: str = "cable"
    database: str = "default"
    handler_threads: int = 8

    def policy(self, stream: str) -> StreamPolicy:
        """Return how much of a stream is kept: the first pattern of `STREAMS` that matches its name decides."""
        for pattern, options in self.streams.items():
            if fnmatchcase(stream, pattern):
                return StreamPolicy(
                    options.get("history_size", self.history_size),
                    options.get("history_ttl", self.history_ttl),
                    options.get("durable", False),
                )
        return StreamPolicy(self.history_size, self.history_ttl)


def _fail(key: str, value: object, allowed: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{NAME}[{key!r}] is {value!r}; it must be {allowed}.")


Check = Callable[[str, Any], None]


def _number(low: float, *, whole: bool = False, above: bool = False, none: bool = False) -> Check:
    kind = "a whole number" if whole else "a number"
    allowed = f"{kind} {'greater than' if above else 'of at least'} {low}{' or None' if none else ''}"
    types = (int,) if whole else (int, float)

    def check(key: str, value: Any) -> None:
        if none and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, types) or not (value > low if above else value >= low):
            raise _fail(key, value, allowed)

    return check


def _instance(kind: type, allowed: str, *, none: bool = False, filled: bool = False) -> Check:
    def check(key: str, value: Any) -> None:
        if none and value is None:
            return
        if not isinstance(value, kind) or (filled and not value):
            raise _fail(key, value, allowed)

    return check


def _check_engine(key: str, value: Any) -> None:
    allowed = (
        f"one of {', '.join(map(repr, ENGINES))}, or a dict that gives a dotted path for each of "
        f"{', '.join(map(repr, ENGINE_PARTS))}"
    )
    if isinstance(value, str):
        if value not in ENGINES:
            raise _fail(key, value, allowed)
    elif not isinstance(value, Mapping) or set(value) != set(ENGINE_PARTS):
        raise _fail(key, value, allowed)
    elif not all(isinstance(path, str) and "." in path for path in value.values()):
        raise _fail(key, value, allowed)


STREAM_OPTIONS: Mapping[str, Check] = {
    "history_size": _number(0, whole=True),
    "history_ttl": _number(0, above=True),
    "durable": _instance(bool, "True or False"),
}


def _check_streams(key: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise _fail(key, value, "a dict of stream patterns")
    for pattern, options in value.items():
        if not isinstance(pattern, str) or not pattern:
            raise _fail(key, pattern, "keyed by stream patterns such as 'chat:*'")
        if not isinstance(options, Mapping):
            raise ImproperlyConfigured(
                f"{NAME}[{key!r}][{pattern!r}] is {options!r}; it must be a dict with {', '.join(STREAM_OPTIONS)}."
            )
        for name, option in options.items():
            if name not in STREAM_OPTIONS:
                raise ImproperlyConfigured(
                    f"{NAME}[{key!r}][{pattern!r}] has the unknown key {name!r}; allowed: {', '.join(STREAM_OPTIONS)}."
                )
            STREAM_OPTIONS[name](f"{key}[{pattern}].{name}", option)


_TEXT = "a non-empty string"
_SWITCH = _instance(bool, "True or False")
CHECKS: Mapping[str, Check] = {
    "REDIS_URL": _instance(str, "a URL (redis://, rediss://, unix://) or None", none=True, filled=True),
    "REDIS_OPTIONS": _instance(Mapping, "a dict"),
    "ENGINE": _check_engine,
    "HISTORY_SIZE": _number(0, whole=True),
    "HISTORY_TTL": _number(0, above=True),
    "STREAMS": _check_streams,
    "SESSIONS_TTL": _number(0),
    "PRESENCE_TTL": _number(0, above=True),
    "SECRET": _instance(str, _TEXT, filled=True),
    "STREAMS_SECRET": _instance(str, _TEXT, filled=True),
    "PUBLIC_STREAMS": _SWITCH,
    "SIGNED_STREAMS_WHISPER": _SWITCH,
    "PING_INTERVAL": _number(0, above=True),
    "PONG_TIMEOUT": _number(0, above=True, none=True),
    "MAX_MESSAGE_SIZE": _number(1024, whole=True),
    "MAX_PENDING_SIZE": _number(1024, whole=True),
    "MAX_SUBSCRIPTIONS": _number(1, whole=True),
    "MAX_BROADCAST_SIZE": _number(1024, whole=True),
    "POLL_INTERVAL": _number(0, above=True),
    "BROADCAST_KEY": _instance(str, _TEXT, filled=True),
    "API_KEY": _instance(str, _TEXT, filled=True),
    "KEY_PREFIX": _instance(str, _TEXT, filled=True),
    "DATABASE": _instance(str, "the alias of a database", filled=True),
    "HANDLER_THREADS": _number(0, whole=True),
}


def read_settings(values: Any) -> CableSettings:
    """Check `values`, fill in the defaults, and return the settings.

    Raises:
        ImproperlyConfigured: names the key that is unknown, of a wrong type or impossible, and what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ImproperlyConfigured(f"{NAME} is {values!r}; it must be a dict.")
    for key, value in values.items():
        if key not in CHECKS:
            raise ImproperlyConfigured(f"{NAME} has the unknown key {key!r}; allowed: {', '.join(CHECKS)}.")
        CHECKS[key](key, value)
    given: dict[str, Any] = {key.lower(): value for key, value in values.items()}
    given.setdefault("engine", "redis" if given.get("redis_url") else "database")
    if given["engine"] == "redis" and not given.get("redis_url"):
        raise _fail("ENGINE", "redis", "used with REDIS_URL")
    if given["engine"] == "database" or isinstance(given["engine"], Mapping):
        alias = given.get("database", "default")
        if alias not in django_settings.DATABASES:
            raise _fail("DATABASE", alias, f"one of {', '.join(map(repr, django_settings.DATABASES))}")
    if "secret" not in given:
        given["secret"] = salted_hmac("reliable_cable", "secret", algorithm="sha256").hexdigest()
    given.setdefault("streams_secret", given["secret"])
    assert set(given) <= {f.name for f in fields(CableSettings)}  # noqa: S101 - CHECKS and the fields are kept in step
    return CableSettings(**given)


@lru_cache(maxsize=1)
def get_settings() -> CableSettings:
    """Return the settings in force; they are read at the first call, and again after a change in a test."""
    return read_settings(getattr(django_settings, NAME, {}))


def _reset(*, setting: str, **kwargs: Any) -> None:
    if setting in (NAME, "SECRET_KEY", "DATABASES"):
        get_settings.cache_clear()


setting_changed.connect(_reset, dispatch_uid="reliable_cable.conf")
