"""The settings: the dict `RELIABLE_CABLE`, which is read once, checked, typed and frozen."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.crypto import salted_hmac

T = TypeVar("T")

NAME = "RELIABLE_CABLE"
ENGINES = ("memory", "database", "redis")
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
ENGINE_PARTS = ("streams", "presence", "sessions")


#: How long, in seconds, to keep the epoch and the offset of a stream after its newest message, unless settings say
#: otherwise (see Protocol: History).
IDLE_STREAM_TTL: Final = 30 * 86400.0
#: The shortest `history_meta_ttl`, in seconds. The retries of an append that got no response need its stream meanwhile.
MIN_META_TTL: Final = 60


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """How much of a stream's history is kept, and how safely.

    Args:
        history_size: the number of messages to keep. A stream with 0 is transient.
        history_ttl: how long, in seconds, to keep a message.
        durable: whether the stream survives the loss of Redis.
        history_meta_ttl: how long, in seconds, to keep the stream's epoch and offset after its newest message.
    """

    history_size: int
    history_ttl: float
    durable: bool = False
    history_meta_ttl: float = IDLE_STREAM_TTL


#: The stream of the control bus (hub/control_bus.py). Its name contains a control character, which `broadcast` refuses.
CONTROL_STREAM: Final = "\x01control"
CONTROL_POLICY: Final = StreamPolicy(history_size=1000, history_ttl=300)

#: The character between the namespace and the name of a stream. Neither of them can contain it.
NAMESPACE_SEPARATOR: Final = "\x1f"


def derived_secret(secret_key: str | bytes) -> str:
    """Return the application secret that is derived from a `SECRET_KEY`. It is the default of `SECRET`."""
    return salted_hmac("reliable_cable", "secret", secret=secret_key, algorithm="sha256").hexdigest()


def _error(key: str | tuple[str, ...], value: object, allowed: str) -> ImproperlyConfigured:
    """Return the error for an invalid value of a setting. A tuple is the path to a value inside a nested setting."""
    keys = (key,) if isinstance(key, str) else key
    path = "".join(f"[{part!r}]" for part in keys)
    return ImproperlyConfigured(f"{NAME}{path} is {value!r}; it must be {allowed}.")


Check = Callable[[str | tuple[str, ...], Any], None]


def _number(low: float, *, whole: bool = False, exclusive: bool = False, optional: bool = False) -> Check:
    kind = "a whole number" if whole else "a number"
    allowed = f"{kind} {'greater than' if exclusive else 'of at least'} {low}{' or None' if optional else ''}"
    types = (int,) if whole else (int, float)

    def check(key: str | tuple[str, ...], value: Any) -> None:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, types) or value in (math.inf, -math.inf):
            raise _error(key, value, allowed)
        if not (value > low if exclusive else value >= low):
            raise _error(key, value, allowed)

    return check


def _instance(kind: type, allowed: str, *, not_empty: bool = False) -> Check:
    def check(key: str | tuple[str, ...], value: Any) -> None:
        if not isinstance(value, kind) or (not_empty and not value):
            raise _error(key, value, allowed)

    return check


def _check_secret(key: str | tuple[str, ...], value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ImproperlyConfigured(f"{NAME}[{key!r}] is <{type(value).__name__}>; it must be a non-empty string.")


def _check_redis_url(key: str | tuple[str, ...], value: Any) -> None:
    if value is not None and not (isinstance(value, str) and value.startswith(REDIS_SCHEMES)):
        raise _error(key, value, f"None or a URL that begins with {', '.join(map(repr, REDIS_SCHEMES))}")
    if value is not None and not value.startswith("unix://"):
        _check_redis_address(value)


def _check_redis_address(url: str) -> None:
    """Check the port and the database of a URL. redis-py raises an error without a name, or ignores the database."""
    try:
        address = urlsplit(url)
        address.port  # noqa: B018 - raises an error if it is not a number
    except ValueError as error:
        raise ImproperlyConfigured(f"{NAME}['REDIS_URL'] is not a URL with a host and a port: {error}.") from error
    database = address.path.removeprefix("/")
    if database and not database.isdecimal():
        raise ImproperlyConfigured(
            f"{NAME}['REDIS_URL'] has the database {database!r}; it must be a number, as in redis://localhost:6379/0."
        )


def _unknown(key: object, allowed: Iterable[str]) -> str:
    """Return the end of the error message for an unknown key."""
    names = list(allowed)
    similar = get_close_matches(str(key).upper(), [name.upper() for name in names], n=1)
    meant = [name for name in names if [name.upper()] == similar]
    guess = f"; did you mean {meant[0]!r}?" if meant else "."
    return f"the unknown key {key!r}{guess} Allowed: {', '.join(names)}."


def _check_namespace(key: str | tuple[str, ...], value: Any) -> None:
    if value is not None and not (isinstance(value, str) and "." in value):
        raise _error(key, value, "None or the dotted path of a callable")


def _check_engine(key: str | tuple[str, ...], value: Any) -> None:
    allowed = (
        f"one of {', '.join(map(repr, ENGINES))}, or a dict that gives a dotted path for each of "
        f"{', '.join(map(repr, ENGINE_PARTS))}"
    )
    if isinstance(value, Mapping) and set(value) == set(ENGINE_PARTS):
        valid = all(isinstance(path, str) and "." in path for path in value.values())
    else:
        valid = isinstance(value, str) and value in ENGINES
    if not valid:
        raise _error(key, value, allowed)


STREAM_OPTIONS: Mapping[str, Check] = {
    "history_size": _number(0, whole=True),
    "history_ttl": _number(0, exclusive=True),
    "history_meta_ttl": _number(MIN_META_TTL),
    "durable": _instance(bool, "True or False"),
}


def _check_streams(key: str | tuple[str, ...], value: Any) -> None:
    if not isinstance(value, Mapping):
        raise _error(key, value, "a dict of stream patterns")
    for pattern, options in value.items():
        if not isinstance(pattern, str) or not pattern:
            raise ImproperlyConfigured(f"{NAME}[{key!r}] has the key {pattern!r}; keys are patterns such as 'chat:*'.")
        if not isinstance(options, Mapping):
            raise _error(("STREAMS", pattern), options, f"a dict with any of {', '.join(STREAM_OPTIONS)}")
        for name, option in options.items():
            if name not in STREAM_OPTIONS:
                raise ImproperlyConfigured(f"{NAME}[{key!r}][{pattern!r}] has {_unknown(name, STREAM_OPTIONS)}")
            STREAM_OPTIONS[name](("STREAMS", pattern, name), option)


def _check_public_streams(key: str | tuple[str, ...], value: Any) -> None:
    patterns = isinstance(value, list | tuple) and all(isinstance(pattern, str) and pattern for pattern in value)
    if not patterns and not isinstance(value, bool):
        raise _error(key, value, "a list of patterns such as 'news:*', or True or False")


#: The algorithms of tokens whose signatures are made and verified with the same secret.
HMAC_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
#: The algorithms of tokens that are verified with a public key (`JWT_JWKS`).
PUBLIC_KEY_ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)


def _check_algorithms(key: str | tuple[str, ...], value: Any) -> None:
    allowed = (*HMAC_ALGORITHMS, *PUBLIC_KEY_ALGORITHMS)
    if not isinstance(value, list | tuple) or not value or not all(name in allowed for name in value):
        raise _error(key, value, f"a list of any of {', '.join(map(repr, allowed))}")


def _check_optional_text(key: str | tuple[str, ...], value: Any) -> None:
    if value is not None and not (isinstance(value, str) and value):
        raise _error(key, value, "None or a non-empty string")


def _check_texts(key: str | tuple[str, ...], value: Any) -> None:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise _error(key, value, "a non-empty string, or a list of them")


def _check_paths(key: str | tuple[str, ...], value: Any) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(path, str) and "." in path for path in value):
        raise _error(key, value, "a list of dotted paths of functions")


_SWITCH = _instance(bool, "True or False")


def _setting(default: T, check: Check, *, shown: bool = True) -> T:
    """Return the field of a setting. The check raises `ImproperlyConfigured` if a value is not allowed."""
    setting: T = field(default_factory=lambda: default, metadata={"check": check}, repr=shown)
    return setting


@dataclass(frozen=True, kw_only=True)
class CableSettings:
    """The settings of this package. The key of a setting is the name of its field in capitals. Times are in seconds."""

    redis_url: str | None = _setting(None, _check_redis_url, shown=False)
    redis_options: Mapping[str, Any] = _setting({}, _instance(Mapping, "a dict"), shown=False)
    engine: str | Mapping[str, str] = _setting("", _check_engine)
    history_size: int = _setting(100, _number(0, whole=True))
    history_ttl: float = _setting(300, _number(0, exclusive=True))
    history_meta_ttl: float = _setting(IDLE_STREAM_TTL, _number(MIN_META_TTL))
    streams: Mapping[str, Mapping[str, Any]] = _setting({}, _check_streams)
    sessions_ttl: float = _setting(300, _number(0))
    presence_ttl: float = _setting(15, _number(0, exclusive=True))
    presence_grace: float = _setting(3, _number(0))
    secret: str = _setting("", _check_secret, shown=False)
    streams_secret: str = _setting("", _check_secret, shown=False)
    #: Patterns. `True` is read as `"*"`, and `False` as no patterns.
    public_streams: tuple[str, ...] = _setting((), _check_public_streams)
    signed_streams_whisper: bool = _setting(False, _SWITCH)
    reauthenticate_interval: float | None = _setting(60, _number(0, optional=True))
    ping_interval: float = _setting(3, _number(0, exclusive=True))
    pong_timeout: float | None = _setting(None, _number(0, exclusive=True, optional=True))
    max_message_size: int = _setting(64 * 1024, _number(1024, whole=True))
    max_identifier_size: int = _setting(2048, _number(64, whole=True))
    max_pending_size: int = _setting(1024 * 1024, _number(1024, whole=True))
    max_frame_rate: float | None = _setting(500, _number(1, optional=True))
    max_subscriptions: int = _setting(100, _number(1, whole=True))
    max_broadcast_size: int = _setting(256 * 1024, _number(1024, whole=True))
    poll_interval: float = _setting(0.1, _number(0, exclusive=True))
    broadcast_key: str = _setting("", _check_secret, shown=False)
    api_key: str = _setting("", _check_secret, shown=False)
    key_prefix: str = _setting("cable", _instance(str, "a non-empty string", not_empty=True))
    jwt_secret: str = _setting("", _check_secret, shown=False)
    jwt_algorithms: tuple[str, ...] = _setting(("HS256",), _check_algorithms)
    jwt_jwks: str | None = _setting(None, _check_optional_text, shown=False)
    jwt_required: bool = _setting(False, _SWITCH)
    jwt_leeway: float = _setting(5, _number(0))
    jwt_user_claim: str | None = _setting(None, _check_optional_text)
    #: Texts. A single one is read as a tuple.
    jwt_audience: tuple[str, ...] = _setting((), _check_texts)
    jwt_issuer: tuple[str, ...] = _setting((), _check_texts)
    authenticators: tuple[str, ...] = _setting((), _check_paths)
    namespace: str | None = _setting(None, _check_namespace)
    database: str = _setting("default", _instance(str, "the alias of a database", not_empty=True))
    handler_threads: int = _setting(8, _number(0, whole=True))
    #: Whether a setting of tokens is given: `AUTHENTICATORS`, or one whose name begins with `JWT_`. This is no setting.
    reads_tokens: bool = False

    def policy(self, stream: str) -> StreamPolicy:
        """Return the policy of a stream. The first pattern of `STREAMS` that matches the stream's name decides.

        Patterns match the name without its namespace.
        """
        if stream == CONTROL_STREAM:
            return CONTROL_POLICY
        stream = stream.rpartition(NAMESPACE_SEPARATOR)[2]
        for pattern in self.streams:
            if fnmatchcase(stream, pattern):
                return self.policy_of(pattern)
        return StreamPolicy(self.history_size, self.history_ttl, history_meta_ttl=self.history_meta_ttl)

    def policy_of(self, pattern: str) -> StreamPolicy:
        """Return the policy of a pattern of `STREAMS`. Options that it does not set have the values for all streams."""
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
    """Check the dict of settings, add the defaults, and return the settings.

    Raises:
        ImproperlyConfigured: a key is unknown, or its value is not allowed. The message says what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ImproperlyConfigured(f"{NAME} is {values!r}; it must be a dict.")
    for key, value in values.items():
        if key not in CHECKS:
            raise ImproperlyConfigured(f"{NAME} has {_unknown(key, CHECKS)}")
        CHECKS[key](key, value)
    given: dict[str, Any] = {key.lower(): value for key, value in values.items()}
    given.setdefault("engine", "redis" if given.get("redis_url") else "database")
    if given["engine"] == "redis" and not given.get("redis_url"):
        raise _error("ENGINE", "redis", "used with REDIS_URL")
    if given["engine"] == "database" or "database" in given:
        alias = given.get("database", "default")
        if alias not in django_settings.DATABASES:
            raise _error("DATABASE", alias, f"one of {', '.join(map(repr, django_settings.DATABASES))}")
    if "secret" not in given:
        given["secret"] = derived_secret(django_settings.SECRET_KEY)
    given.setdefault("streams_secret", given["secret"])
    given.setdefault(
        "history_meta_ttl", max(IDLE_STREAM_TTL, given.get("history_ttl", 0), given.get("sessions_ttl", 0))
    )
    if isinstance(public := given.get("public_streams"), bool):
        given["public_streams"] = ("*",) if public else ()
    _complete_token_settings(given)
    settings = CableSettings(**{key: _frozen(value) for key, value in given.items()})
    least = max(settings.history_ttl, settings.sessions_ttl)
    if settings.history_meta_ttl < least:
        allowed = (
            f"at least {least}, since HISTORY_TTL is {settings.history_ttl} and SESSIONS_TTL {settings.sessions_ttl}"
        )
        raise _error("HISTORY_META_TTL", settings.history_meta_ttl, allowed)
    for pattern in settings.streams:
        policy = settings.policy_of(pattern)
        least = max(policy.history_ttl, settings.sessions_ttl)
        if policy.history_meta_ttl < least:
            allowed = (
                f"at least {least}, since history_ttl is {policy.history_ttl} and SESSIONS_TTL {settings.sessions_ttl}"
            )
            raise _error(("STREAMS", pattern, "history_meta_ttl"), policy.history_meta_ttl, allowed)
        if policy.durable and policy.history_size == 0:
            raise _error(("STREAMS", pattern, "history_size"), 0, "at least 1, since the streams are durable")
    return settings


def _complete_token_settings(given: dict[str, Any]) -> None:
    """Check the settings of tokens together, and add what follows from them.

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
        raise _error("JWT_ALGORITHMS", algorithms, f"used with JWT_JWKS, which has the keys for {public[0]}")
    if given.get("jwt_jwks") and not public:
        raise _error(
            "JWT_ALGORITHMS", algorithms, "a list with the algorithms of the keys in JWT_JWKS, for example ['RS256']"
        )
    if "jwt_secret" in given and len(public) == len(algorithms):
        raise _error("JWT_ALGORITHMS", algorithms, "a list with the algorithm of JWT_SECRET, for example 'HS256'")


def _frozen(value: Any) -> Any:
    """Return a read-only copy of a dict or list, and of all dicts and lists in it. Return any other value unchanged."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(inner) for key, inner in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


_current: CableSettings | None = None
_lock = threading.Lock()
#: Settings of a test, which have precedence over those of the project.
_overrides: Mapping[str, Any] = {}


def get_settings() -> CableSettings:
    """Return the current settings. They are read at the first call, and again after a test has changed them."""
    global _current
    settings = _current
    if settings is None:
        # All threads get the same object: the engine compares it by identity to find out whether settings have changed.
        with _lock:
            settings = _current
            if settings is None:
                values = getattr(django_settings, NAME, {})
                settings = _current = read_settings({**values, **_overrides} if _overrides else values)
    return settings


@contextmanager
def overridden(values: Mapping[str, Any]) -> Iterator[None]:
    """Give settings precedence over those of the project, in all threads. Only tests use this.

    It begins with new stores. `override_settings` of Django still changes all other settings of this package.

    Args:
        values: the settings, by the keys that `RELIABLE_CABLE` has.
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
