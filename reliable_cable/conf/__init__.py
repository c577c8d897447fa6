"""The settings of this package. The dict `RELIABLE_CABLE` is read once, checked, and made into an immutable object."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, TypeVar

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.crypto import salted_hmac

from .rates import RateLimit as RateLimit
from .redis_urls import SENTINEL_SCHEMES, split_redis_url
from .values import ANYCABLE as ANYCABLE
from .values import BROADCAST_ADAPTERS as BROADCAST_ADAPTERS
from .values import ENGINE_PARTS as ENGINE_PARTS
from .values import ENGINES as ENGINES
from .values import HMAC_ALGORITHMS as HMAC_ALGORITHMS
from .values import MIN_META_TTL as MIN_META_TTL
from .values import NAME as NAME
from .values import PUBLIC_KEY_ALGORITHMS as PUBLIC_KEY_ALGORITHMS
from .values import REDIS_ADAPTERS as REDIS_ADAPTERS
from .values import STREAM_OPTIONS as STREAM_OPTIONS
from .values import (
    Check,
    check_algorithms,
    check_api_url,
    check_broadcast_adapter,
    check_broadcast_url,
    check_cluster,
    check_engine,
    check_key_set,
    check_namespace,
    check_nats_url,
    check_notify,
    check_optional_path,
    check_optional_text,
    check_origins,
    check_path,
    check_paths,
    check_public_streams,
    check_rate_limits,
    check_redis_url,
    check_secret,
    check_streams,
    check_switch,
    check_texts,
    instance,
    number,
    secret_instance,
    setting_error,
    unknown_key,
)

T = TypeVar("T")


#: How long, in seconds, a stream's epoch and offset are kept after its newest message, by default (see Protocol:
#: History).
IDLE_STREAM_TTL: Final = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """The limits of a stream's history, and the kind of storage.

    Args:
        history_size: the maximum number of messages to keep. If it is 0, the messages of the stream are transient.
        history_ttl: how long, in seconds, to keep a message.
        durable: whether the stream is stored in the database although the engine is Redis.
        history_meta_ttl: how long, in seconds, to keep the stream's epoch and offset after its newest message.
    """

    history_size: int
    history_ttl: float
    durable: bool = False
    history_meta_ttl: float = IDLE_STREAM_TTL


#: The reserved stream for messages between server processes (hub/control_bus.py). Its name contains a control
#: character, so that `broadcast` refuses this stream.
CONTROL_STREAM: Final = "\x01control"
CONTROL_POLICY: Final = StreamPolicy(history_size=1000, history_ttl=300)

#: The character between a namespace and the name of a stream. Neither of them may contain this character.
NAMESPACE_SEPARATOR: Final = "\x1f"


def derived_secret(secret_key: str | bytes) -> str:
    """Derive an application secret from a `SECRET_KEY`. This is the default of the setting `SECRET`."""
    return salted_hmac("reliable_cable", "secret", secret=secret_key, algorithm="sha256").hexdigest()


def _setting(default: T, check: Check, *, shown: bool = True) -> T:
    """Return a dataclass field for a setting.

    Args:
        default: the default value.
        check: a function that raises `ImproperlyConfigured` if a value is not allowed.
        shown: whether the `repr` of the settings shows the value.
    """
    setting: T = field(default_factory=lambda: default, metadata={"check": check}, repr=shown)
    return setting


@dataclass(frozen=True, kw_only=True)
class CableSettings:
    """The settings of this package. The name of a field is the key of the setting in lower case. Times are in seconds.

    The page "Settings" in `docs/` explains each setting.
    """

    redis_url: str | None = _setting(None, check_redis_url, shown=False)
    redis_cluster: bool = _setting(False, check_switch)
    redis_options: Mapping[str, Any] = _setting({}, secret_instance(Mapping, "a dict"), shown=False)
    engine: str | Mapping[str, str] = _setting("", check_engine)
    broadcast_adapter: str | None = _setting(None, check_broadcast_adapter)
    broadcast_channel: str = _setting("__anycable__", instance(str, "a non-empty string", not_empty=True))
    http_broadcast_url: str = _setting("http://localhost:8080/_broadcast", check_broadcast_url, shown=False)
    api_url: str | None = _setting(None, check_api_url, shown=False)
    nats_url: str = _setting("nats://localhost:4222", check_nats_url, shown=False)
    nats_options: Mapping[str, Any] = _setting({}, secret_instance(Mapping, "a dict"), shown=False)
    history_size: int = _setting(100, number(0, whole=True))
    history_ttl: float = _setting(300, number(0, exclusive=True))
    history_meta_ttl: float = _setting(IDLE_STREAM_TTL, number(MIN_META_TTL))
    streams: Mapping[str, Mapping[str, Any]] = _setting({}, check_streams)
    sessions_ttl: float = _setting(300, number(0))
    presence_ttl: float = _setting(15, number(0, exclusive=True))
    presence_grace: float = _setting(3, number(0))
    secret: str = _setting("", check_secret, shown=False)
    streams_secret: str = _setting("", check_secret, shown=False)
    #: The patterns of public streams. `True` means `"*"`, and `False` means no patterns.
    public_streams: tuple[str, ...] = _setting((), check_public_streams)
    signed_streams_whisper: bool = _setting(False, check_switch)
    reauthenticate_interval: float | None = _setting(60, number(0, optional=True))
    ping_interval: float = _setting(3, number(0, exclusive=True))
    pong_timeout: float | None = _setting(None, number(0, exclusive=True, optional=True))
    max_message_size: int = _setting(64 * 1024, number(1024, whole=True))
    max_identifier_size: int = _setting(2048, number(64, whole=True))
    max_pending_size: int = _setting(1024 * 1024, number(1024, whole=True))
    max_frame_rate: float | None = _setting(500, number(1, optional=True))
    rate_limits: Mapping[str, str] = _setting({}, check_rate_limits)
    max_subscriptions: int = _setting(100, number(1, whole=True))
    max_broadcast_size: int = _setting(256 * 1024, number(1024, whole=True))
    poll_interval: float = _setting(0.1, number(0, exclusive=True))
    notify: bool | str = _setting(True, check_notify)
    broadcast_key: str = _setting("", check_secret, shown=False)
    #: The origins of web pages that may read HTTP responses. The setting `"*"` becomes `("*",)`.
    cors_origins: tuple[str, ...] = _setting((), check_origins)
    api_key: str = _setting("", check_secret, shown=False)
    rpc_key: str = _setting("", check_secret, shown=False)
    rpc_consumer: str | None = _setting(None, check_optional_path)
    rpc_presence: bool = _setting(False, check_switch)
    key_prefix: str = _setting("cable", instance(str, "a non-empty string", not_empty=True))
    jwt_secret: str = _setting("", check_secret, shown=False)
    jwt_algorithms: tuple[str, ...] = _setting(("HS256",), check_algorithms)
    jwt_jwks: str | None = _setting(None, check_key_set, shown=False)
    jwt_required: bool = _setting(False, check_switch)
    jwt_leeway: float = _setting(5, number(0))
    jwt_user_claim: str | None = _setting(None, check_optional_text)
    #: The allowed audiences and issuers of tokens. In the project's settings, each of these may also be a single
    #: string.
    jwt_audience: tuple[str, ...] = _setting((), check_texts)
    jwt_issuer: tuple[str, ...] = _setting((), check_texts)
    authenticators: tuple[str, ...] = _setting((), check_paths)
    namespace: str | None = _setting(None, check_namespace)
    run_permissions: str = _setting("reliable_cable.runs.access.RunPermissions", check_path)
    run_chats: str | None = _setting(None, check_optional_path)
    run_durable_streams: str | None = _setting(None, check_optional_path)
    run_broadcast_interval: float = _setting(0.03, number(0))
    run_broadcast_size: int = _setting(2048, number(1, whole=True))
    run_lease: float = _setting(15, number(3))
    run_max_readers: int | None = _setting(100, number(1, whole=True, optional=True))
    database: str = _setting("default", instance(str, "the alias of a database", not_empty=True))
    handler_threads: int = _setting(8, number(0, whole=True))
    #: Whether `RELIABLE_CABLE` contains a setting for tokens, which is `AUTHENTICATORS` or begins with `JWT_`. This
    #: field is not a setting itself.
    reads_tokens: bool = False

    @property
    def uses_cluster(self) -> bool:
        """Whether Redis is a cluster: `REDIS_CLUSTER` is True, or `REDIS_URL` has several addresses."""
        url = self.redis_url
        if self.redis_cluster or url is None or url.startswith(("unix://", *SENTINEL_SCHEMES)):
            return self.redis_cluster
        return len(split_redis_url(url).addresses) > 1

    def policy(self, stream: str) -> StreamPolicy:
        """Return the policy of a stream.

        The first pattern in `STREAMS` that matches the stream's name, without its namespace, determines the policy.
        """
        if stream == CONTROL_STREAM:
            return CONTROL_POLICY
        stream = stream.rpartition(NAMESPACE_SEPARATOR)[2]
        for pattern in self.streams:
            if fnmatchcase(stream, pattern):
                return self.policy_of(pattern)
        return StreamPolicy(self.history_size, self.history_ttl, history_meta_ttl=self.history_meta_ttl)

    def rate_limit(self, name: str) -> RateLimit | None:
        """Return the rate limit for `"connect"`, `"command"` or `"whisper"`; None if the rate is not limited."""
        return RateLimit.parse(self.rate_limits[name]) if name in self.rate_limits else None

    def policy_of(self, pattern: str) -> StreamPolicy:
        """Return the policy for a pattern in `STREAMS`.

        Missing options are taken from `HISTORY_SIZE`, `HISTORY_TTL` and `HISTORY_META_TTL`. If `HISTORY_META_TTL` is
        less than the pattern's `history_ttl`, the latter is used instead. By default, `durable` is False.
        """
        options = self.streams[pattern]
        history_ttl = options.get("history_ttl", self.history_ttl)
        return StreamPolicy(
            options.get("history_size", self.history_size),
            history_ttl,
            options.get("durable", False),
            options.get("history_meta_ttl", max(self.history_meta_ttl, history_ttl)),
        )


CHECKS: Mapping[str, Check] = {
    each.name.upper(): each.metadata["check"] for each in fields(CableSettings) if "check" in each.metadata
}


def read_settings(values: Any) -> CableSettings:
    """Check the value of `RELIABLE_CABLE`, add the defaults, and return the settings.

    Raises:
        ImproperlyConfigured: a key is unknown, or a value is not allowed. The message says what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ImproperlyConfigured(f"{NAME} is <{type(values).__name__}>; it must be a dict.")
    for key, value in values.items():
        if key not in CHECKS:
            raise ImproperlyConfigured(f"{NAME} has {unknown_key(key, CHECKS)}")
        CHECKS[key](key, value)
    given: dict[str, Any] = {key.lower(): value for key, value in values.items()}
    _choose_engine(given)
    if given["engine"] == "database" or "database" in given:
        alias = given.get("database", "default")
        if alias not in django_settings.DATABASES:
            raise setting_error("DATABASE", alias, f"one of {', '.join(map(repr, django_settings.DATABASES))}")
    notify = given.get("notify")
    if isinstance(notify, str) and notify not in django_settings.DATABASES:
        allowed = f"True, False or one of {', '.join(map(repr, django_settings.DATABASES))}"
        raise setting_error("NOTIFY", notify, allowed)
    if "secret" not in given:
        given["secret"] = derived_secret(django_settings.SECRET_KEY)
    given.setdefault("streams_secret", given["secret"])
    given.setdefault(
        "history_meta_ttl", max(IDLE_STREAM_TTL, given.get("history_ttl", 0), given.get("sessions_ttl", 0))
    )
    if given.get("cors_origins") == "*":
        given["cors_origins"] = ("*",)
    if isinstance(public := given.get("public_streams"), bool):
        given["public_streams"] = ("*",) if public else ()
    _complete_token_settings(given)
    settings = CableSettings(**{key: _frozen(value) for key, value in given.items()})
    check_cluster(settings.redis_url, settings.uses_cluster, settings.key_prefix)
    least = max(settings.history_ttl, settings.sessions_ttl)
    if settings.history_meta_ttl < least:
        allowed = (
            f"at least {least}, since HISTORY_TTL is {settings.history_ttl} and SESSIONS_TTL is {settings.sessions_ttl}"
        )
        raise setting_error("HISTORY_META_TTL", settings.history_meta_ttl, allowed)
    for pattern in settings.streams:
        policy = settings.policy_of(pattern)
        least = max(policy.history_ttl, settings.sessions_ttl)
        if policy.history_meta_ttl < least:
            allowed = (
                f"at least {least}, since history_ttl is {policy.history_ttl} and SESSIONS_TTL {settings.sessions_ttl}"
            )
            raise setting_error(("STREAMS", pattern, "history_meta_ttl"), policy.history_meta_ttl, allowed)
        if policy.durable and policy.history_size == 0:
            raise setting_error(("STREAMS", pattern, "history_size"), 0, "at least 1, since the streams are durable")
    return settings


def _choose_engine(given: dict[str, Any]) -> None:
    """Add the default of `ENGINE`, which depends on `BROADCAST_ADAPTER` and `REDIS_URL`.

    Raises:
        ImproperlyConfigured: `ENGINE` and `BROADCAST_ADAPTER` are both given, or `REDIS_URL` is missing.
    """
    adapter = given.get("broadcast_adapter")
    if adapter is not None:
        if "engine" in given:
            raise setting_error("ENGINE", given["engine"], "omitted, because BROADCAST_ADAPTER replaces the engine")
        if adapter in REDIS_ADAPTERS and not given.get("redis_url"):
            raise setting_error("BROADCAST_ADAPTER", adapter, "used with REDIS_URL")
        given["engine"] = ANYCABLE
    given.setdefault("engine", "redis" if given.get("redis_url") else "database")
    if given["engine"] == "redis" and not given.get("redis_url"):
        raise setting_error("ENGINE", "redis", "used with REDIS_URL")


def _complete_token_settings(given: dict[str, Any]) -> None:
    """Check that the settings for tokens are consistent, and add `reads_tokens`.

    Raises:
        ImproperlyConfigured: an algorithm has no key, or a key has no algorithm.
    """
    given["reads_tokens"] = "authenticators" in given or any(key.startswith("jwt_") for key in given)
    for key in ("jwt_audience", "jwt_issuer"):
        if isinstance(given.get(key), str):
            given[key] = (given[key],)
    algorithms = given.get("jwt_algorithms", ("HS256",))
    public = [name for name in algorithms if name in PUBLIC_KEY_ALGORITHMS]
    if public and not given.get("jwt_jwks"):
        raise setting_error("JWT_ALGORITHMS", algorithms, f"used with JWT_JWKS, which has the keys for {public[0]}")
    if given.get("jwt_jwks") and not public:
        raise setting_error(
            "JWT_ALGORITHMS", algorithms, "a list with the algorithms of the keys in JWT_JWKS, for example ['RS256']"
        )
    if "jwt_secret" in given and len(public) == len(algorithms):
        raise setting_error(
            "JWT_ALGORITHMS", algorithms, "a list with the algorithm of JWT_SECRET, for example 'HS256'"
        )


def _frozen(value: Any) -> Any:
    """Return a read-only copy of a dict or list, and of all dicts and lists in it. Return any other value unchanged."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(inner) for key, inner in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


_current: CableSettings | None = None
_lock = threading.Lock()
#: Settings of the running test, which override the settings of the project.
_overrides: Mapping[str, Any] = {}


def get_settings() -> CableSettings:
    """Return the settings. They are read at the first call, and again after a test has changed them."""
    global _current
    settings = _current
    if settings is None:
        # All threads must get the same object. The engine compares it by identity to find out whether settings have
        # changed.
        with _lock:
            settings = _current
            if settings is None:
                values = getattr(django_settings, NAME, {})
                settings = _current = read_settings({**values, **_overrides} if _overrides else values)
    return settings


@contextmanager
def overridden(values: Mapping[str, Any]) -> Iterator[None]:
    """Override settings of the project during a `with` block, for all threads. Only tests use this.

    The stores are created again with the new settings. Settings that are not overridden here can still be changed by
    Django's `override_settings`.

    Args:
        values: the settings, by their keys in `RELIABLE_CABLE`.
    """
    global _current, _overrides
    before = _overrides
    _overrides, _current = {**before, **values}, None
    try:
        yield
    finally:
        _overrides, _current = before, None


def _reset(*, setting: str, **kwargs: Any) -> None:
    global _current
    if setting in (NAME, "SECRET_KEY", "DATABASES"):
        _current = None


setting_changed.connect(_reset, dispatch_uid="reliable_cable.conf")
