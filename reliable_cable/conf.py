"""The settings: one dict, `RELIABLE_CABLE`, read once, typed and frozen."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.crypto import salted_hmac

NAME = "RELIABLE_CABLE"
ENGINES = ("memory", "database", "redis")
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
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


#: What the processes tell each other (control.py). No stream of a user's can have a control character in its name.
CONTROL_STREAM: Final = "\x01control"
CONTROL_POLICY: Final = StreamPolicy(history_size=1000, history_ttl=300)


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
        if stream == CONTROL_STREAM:
            return CONTROL_POLICY
        for pattern in self.streams:
            if fnmatchcase(stream, pattern):
                return self.policy_of(pattern)
        return StreamPolicy(self.history_size, self.history_ttl)

    def policy_of(self, pattern: str) -> StreamPolicy:
        """Return what a pattern of `STREAMS` says; what it leaves out is as for all streams."""
        options = self.streams[pattern]
        return StreamPolicy(
            options.get("history_size", self.history_size),
            options.get("history_ttl", self.history_ttl),
            options.get("durable", False),
        )


def derived_secret(secret_key: str | bytes) -> str:
    """Return the application secret that a `SECRET_KEY` stands for, where none is set."""
    return salted_hmac("reliable_cable", "secret", secret=secret_key, algorithm="sha256").hexdigest()


def _fail(key: str | tuple[str, ...], value: object, allowed: str) -> ImproperlyConfigured:
    """Make the error; a tuple of keys leads to a value inside the one that the first names."""
    keys = (key,) if isinstance(key, str) else key
    path = "".join(f"[{part!r}]" for part in keys)
    return ImproperlyConfigured(f"{NAME}{path} is {value!r}; it must be {allowed}.")


Check = Callable[[str | tuple[str, ...], Any], None]


def _number(low: float, *, whole: bool = False, above: bool = False, none: bool = False) -> Check:
    kind = "a whole number" if whole else "a number"
    allowed = f"{kind} {'greater than' if above else 'of at least'} {low}{' or None' if none else ''}"
    types = (int,) if whole else (int, float)

    def check(key: str | tuple[str, ...], value: Any) -> None:
        if none and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, types) or value in (math.inf, -math.inf):
            raise _fail(key, value, allowed)
        if not (value > low if above else value >= low):
            raise _fail(key, value, allowed)

    return check


def _instance(kind: type, allowed: str, *, filled: bool = False) -> Check:
    def check(key: str | tuple[str, ...], value: Any) -> None:
        if not isinstance(value, kind) or (filled and not value):
            raise _fail(key, value, allowed)

    return check


def _check_redis_url(key: str | tuple[str, ...], value: Any) -> None:
    if value is not None and not (isinstance(value, str) and value.startswith(REDIS_SCHEMES)):
        raise _fail(key, value, f"None or a URL that begins with {', '.join(map(repr, REDIS_SCHEMES))}")


def _check_engine(key: str | tuple[str, ...], value: Any) -> None:
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


def _check_streams(key: str | tuple[str, ...], value: Any) -> None:
    if not isinstance(value, Mapping):
        raise _fail(key, value, "a dict of stream patterns")
    for pattern, options in value.items():
        if not isinstance(pattern, str) or not pattern:
            raise ImproperlyConfigured(f"{NAME}[{key!r}] has the key {pattern!r}; keys are patterns such as 'chat:*'.")
        if not isinstance(options, Mapping):
            raise _fail(("STREAMS", pattern), options, f"a dict with any of {', '.join(STREAM_OPTIONS)}")
        for name, option in options.items():
            if name not in STREAM_OPTIONS:
                raise ImproperlyConfigured(
                    f"{NAME}[{key!r}][{pattern!r}] has the unknown key {name!r}; allowed: {', '.join(STREAM_OPTIONS)}."
                )
            STREAM_OPTIONS[name](("STREAMS", pattern, name), option)


_TEXT = "a non-empty string"
_SWITCH = _instance(bool, "True or False")
CHECKS: Mapping[str, Check] = {
    "REDIS_URL": _check_redis_url,
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
    if given["engine"] == "database" or "database" in given:
        alias = given.get("database", "default")
        if alias not in django_settings.DATABASES:
            raise _fail("DATABASE", alias, f"one of {', '.join(map(repr, django_settings.DATABASES))}")
    if "secret" not in given:
        given["secret"] = derived_secret(django_settings.SECRET_KEY)
    given.setdefault("streams_secret", given["secret"])
    settings = CableSettings(**{key: _frozen(value) for key, value in given.items()})
    for pattern in settings.streams:
        policy = settings.policy_of(pattern)
        if policy.durable and policy.history_size == 0:
            raise _fail(("STREAMS", pattern, "history_size"), 0, "at least 1, since the streams are durable")
    return settings


def _frozen(value: Any) -> Any:
    """Return a dict's copy that nobody can change, all the way down; other values as they are."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(inner) for key, inner in value.items()})
    return value


_current: CableSettings | None = None
_lock = threading.Lock()


def get_settings() -> CableSettings:
    """Return the settings in force; they are read at the first call, and again after a change in a test."""
    global _current
    settings = _current
    if settings is None:
        # One object for all threads: the engine knows by it whether it is still the right one.
        with _lock:
            settings = _current
            if settings is None:
                settings = _current = read_settings(getattr(django_settings, NAME, {}))
    return settings


def _reset(*, setting: str, **kwargs: Any) -> None:
    global _current
    if setting in (NAME, "SECRET_KEY", "DATABASES"):
        _current = None


setting_changed.connect(_reset, dispatch_uid="reliable_cable.conf")
