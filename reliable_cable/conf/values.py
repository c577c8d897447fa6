"""Functions that check the values of single settings. They raise `ImproperlyConfigured` if a value is not allowed."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from .rates import RateLimit
from .redis_urls import SENTINEL_SCHEMES, SERVER_SCHEMES, ContradictingURLs, split_redis_url

NAME = "RELIABLE_CABLE"
ENGINES = ("memory", "database", "redis")
#: The adapters that broadcast through anycable-go, by their names in AnyCable.
BROADCAST_ADAPTERS = ("redisx", "redis", "nats", "http")
#: The adapters that need `REDIS_URL`.
REDIS_ADAPTERS = ("redisx", "redis")
#: The name of the engine if `BROADCAST_ADAPTER` is set. The setting `ENGINE` cannot have this value.
ANYCABLE: Final = "anycable"
NATS_SCHEMES = ("nats://", "tls://", "ws://", "wss://")
REDIS_SCHEMES = (*SERVER_SCHEMES, *SENTINEL_SCHEMES)
ENGINE_PARTS = ("streams", "presence", "sessions")
#: The minimum of `history_meta_ttl`, in seconds. An append that got no response is retried for several seconds, and the
#: epoch and offset of its stream must be kept during this time.
MIN_META_TTL: Final = 60


def setting_error(key: str | tuple[str, ...], value: object, allowed: str) -> ImproperlyConfigured:
    """Return the error for a setting with an invalid value.

    Args:
        key: the key of the setting. A tuple is the path to a value inside a nested setting.
        value: the invalid value.
        allowed: the end of the sentence "it must be …".
    """
    keys = (key,) if isinstance(key, str) else key
    path = "".join(f"[{part!r}]" for part in keys)
    return ImproperlyConfigured(f"{NAME}{path} is {value!r}; it must be {allowed}.")


Check = Callable[[str | tuple[str, ...], Any], None]


def number(low: float, *, whole: bool = False, exclusive: bool = False, optional: bool = False) -> Check:
    kind = "a whole number" if whole else "a number"
    allowed = f"{kind} {'greater than' if exclusive else 'of at least'} {low}{' or None' if optional else ''}"
    types = (int,) if whole else (int, float)

    def check(key: str | tuple[str, ...], value: Any) -> None:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, types) or value in (math.inf, -math.inf):
            raise setting_error(key, value, allowed)
        if not (value > low if exclusive else value >= low):
            raise setting_error(key, value, allowed)

    return check


def instance(kind: type, allowed: str, *, not_empty: bool = False) -> Check:
    def check(key: str | tuple[str, ...], value: Any) -> None:
        if not isinstance(value, kind) or (not_empty and not value):
            raise setting_error(key, value, allowed)

    return check


def check_notify(key: str | tuple[str, ...], value: Any) -> None:
    if not isinstance(value, bool) and (not isinstance(value, str) or not value):
        raise setting_error(key, value, "True, False or the alias of a database")


def check_secret(key: str | tuple[str, ...], value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ImproperlyConfigured(f"{NAME}[{key!r}] is <{type(value).__name__}>; it must be a non-empty string.")


def secret_instance(kind: type, allowed: str) -> Check:
    """Return a function that checks the type of a setting. Its error does not show the value, which may be secret."""

    def check(key: str | tuple[str, ...], value: Any) -> None:
        if not isinstance(value, kind):
            raise ImproperlyConfigured(f"{NAME}[{key!r}] is <{type(value).__name__}>; it must be {allowed}.")

    return check


_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def _without_password(url: str) -> str:
    """Return a URL without the parts that may contain a password. The URL may be invalid."""
    scheme = _SCHEME.match(url)
    _, at, place = url.rpartition("@")
    place = place.partition("?")[0]
    return f"{scheme[0] if scheme is not None else ''}***@{place}" if at else place


def check_redis_url(key: str | tuple[str, ...], value: Any) -> None:
    if value is None:
        return
    allowed = f"None or a URL that begins with {', '.join(map(repr, REDIS_SCHEMES))}"
    secret_instance(str, allowed)(key, value)
    if not value.startswith(REDIS_SCHEMES):
        raise setting_error(key, _without_password(value), allowed)
    if not value.startswith("unix://"):
        _check_redis_address(value)


def _check_redis_address(url: str) -> None:
    """Check the addresses, the service and the database in a URL of Redis.

    For an invalid port, redis-py raises an error that does not name the setting. It ignores an invalid database.
    """
    sentinels = url.startswith(SENTINEL_SCHEMES)
    example = (
        "redis+sentinel://sentinel1:26379,sentinel2:26379/myservice/0" if sentinels else "redis://localhost:6379/0"
    )
    try:
        parts = split_redis_url(url)
    except ContradictingURLs as error:
        raise ImproperlyConfigured(f"{NAME}['REDIS_URL'] has {error}.") from None
    except ValueError:
        # urllib's own error is not shown, because it may contain a part of the password.
        place = "addresses and a service" if sentinels else "a host and a port"
        example = example if sentinels else "redis://:password@localhost:6379/0"
        raise ImproperlyConfigured(
            f"{NAME}['REDIS_URL'] is not a URL with {place}, as in {example}. "
            "Encode the characters / ? # [ ] @ : of the password, for example / as %2F."
        ) from None
    if sentinels and not parts.service:
        raise ImproperlyConfigured(
            f"{NAME}['REDIS_URL'] has no name of the Sentinels' service; write it as in {example}."
        )
    if parts.database and not parts.database.isdecimal():
        raise ImproperlyConfigured(
            f"{NAME}['REDIS_URL'] has the database {parts.database!r}; it must be a number, as in {example}."
        )


def check_cluster(url: str | None, cluster: bool, key_prefix: str) -> None:
    """Check that `REDIS_URL` and `KEY_PREFIX` can be used with a Redis Cluster.

    Args:
        url: `REDIS_URL`, which `check_redis_url` has checked.
        cluster: whether the URL is that of a cluster: `REDIS_CLUSTER` is True, or the URL has several addresses.
        key_prefix: `KEY_PREFIX`.

    Raises:
        ImproperlyConfigured: the settings contradict each other.
    """
    if not cluster:
        return
    if url is None or not url.startswith(("redis://", "rediss://")):
        given = "no REDIS_URL" if url is None else f"a REDIS_URL that begins with {url.partition('://')[0]}://"
        raise ImproperlyConfigured(
            f"{NAME}['REDIS_CLUSTER'] is True with {given}; it needs the address of at least one node of the cluster, "
            "as in redis://node1:6379,node2:6379. Sentinels (redis+sentinel://) manage one primary, and no cluster."
        )
    database = split_redis_url(url).database
    if database and int(database):
        raise ImproperlyConfigured(
            f"{NAME}['REDIS_URL'] has the database {database}, but a Redis Cluster has only the database 0: remove the "
            "number, and let each project have its own KEY_PREFIX."
        )
    if "{" in key_prefix or "}" in key_prefix:
        allowed = "a string without braces, since braces in keys determine the node of a Redis Cluster"
        raise setting_error("KEY_PREFIX", key_prefix, allowed)


def check_broadcast_adapter(key: str | tuple[str, ...], value: Any) -> None:
    if value is not None and not (isinstance(value, str) and value in BROADCAST_ADAPTERS):
        raise setting_error(key, value, f"None or one of {', '.join(map(repr, BROADCAST_ADAPTERS))}")


def check_nats_url(key: str | tuple[str, ...], value: Any) -> None:
    allowed = f"one or more URLs, separated by commas, that begin with {', '.join(map(repr, NATS_SCHEMES))}"
    secret_instance(str, allowed)(key, value)
    for url in value.split(","):
        _check_server_url(key, url.strip(), NATS_SCHEMES, allowed)


def check_broadcast_url(key: str | tuple[str, ...], value: Any) -> None:
    _check_http_url(key, value, "a URL that begins with 'http://' or 'https://'")


def check_api_url(key: str | tuple[str, ...], value: Any) -> None:
    if value is not None:
        _check_http_url(key, value, "None or a URL that begins with 'http://' or 'https://'")


def _check_http_url(key: str | tuple[str, ...], value: Any, allowed: str) -> None:
    secret_instance(str, allowed)(key, value)
    _check_server_url(key, value, ("http://", "https://"), allowed)


def _check_server_url(key: str | tuple[str, ...], url: str, schemes: tuple[str, ...], allowed: str) -> None:
    """Check that a URL has one of the schemes, a host and, if there is a port, a valid port."""
    try:
        address = urlsplit(url)
        address.port  # noqa: B018 - this raises an error if the port is not a number
        valid = url.startswith(schemes) and bool(address.hostname) and "@" not in address.path + address.fragment
    except ValueError:
        valid = False
    if not valid:
        # urllib's own error is not shown, because it may contain a part of the password.
        raise setting_error(key, _without_password(url), f"{allowed}, with a host and a valid port") from None


def unknown_key(key: object, allowed: Iterable[str]) -> str:
    """Return the end of an error message for an unknown key, with a similar key and all allowed keys."""
    names = list(allowed)
    similar = get_close_matches(str(key).upper(), [name.upper() for name in names], n=1)
    meant = [name for name in names if [name.upper()] == similar]
    guess = f"; did you mean {meant[0]!r}?" if meant else "."
    return f"the unknown key {key!r}{guess} Allowed: {', '.join(names)}."


def check_namespace(key: str | tuple[str, ...], value: Any) -> None:
    if value is not None and not (isinstance(value, str) and "." in value):
        raise setting_error(key, value, "None or the dotted path of a callable")


def check_engine(key: str | tuple[str, ...], value: Any) -> None:
    allowed = (
        f"one of {', '.join(map(repr, ENGINES))}, or a dict that gives a dotted path for each of "
        f"{', '.join(map(repr, ENGINE_PARTS))}"
    )
    if isinstance(value, Mapping) and set(value) == set(ENGINE_PARTS):
        valid = all(isinstance(path, str) and "." in path for path in value.values())
    else:
        valid = isinstance(value, str) and value in ENGINES
    if not valid:
        raise setting_error(key, value, allowed)


STREAM_OPTIONS: Mapping[str, Check] = {
    "history_size": number(0, whole=True),
    "history_ttl": number(0, exclusive=True),
    "history_meta_ttl": number(MIN_META_TTL),
    "durable": instance(bool, "True or False"),
}


def check_streams(key: str | tuple[str, ...], value: Any) -> None:
    if not isinstance(value, Mapping):
        raise setting_error(key, value, "a dict of stream patterns")
    for pattern, options in value.items():
        if not isinstance(pattern, str) or not pattern:
            raise ImproperlyConfigured(f"{NAME}[{key!r}] has the key {pattern!r}; keys are patterns such as 'chat:*'.")
        if not isinstance(options, Mapping):
            raise setting_error(("STREAMS", pattern), options, f"a dict with any of {', '.join(STREAM_OPTIONS)}")
        for name, option in options.items():
            if name not in STREAM_OPTIONS:
                raise ImproperlyConfigured(f"{NAME}[{key!r}][{pattern!r}] has {unknown_key(name, STREAM_OPTIONS)}")
            STREAM_OPTIONS[name](("STREAMS", pattern, name), option)


#: The keys that `RATE_LIMITS` may have.
LIMITED: Final = ("connect", "command", "whisper")


def check_rate_limits(key: str | tuple[str, ...], value: Any) -> None:
    if not isinstance(value, Mapping):
        raise setting_error(key, value, f"a dict with any of {', '.join(map(repr, LIMITED))}")
    for name, text in value.items():
        if name not in LIMITED:
            raise ImproperlyConfigured(f"{NAME}[{key!r}] has {unknown_key(name, LIMITED)}")
        try:
            RateLimit.parse(text)
        except ValueError as error:
            allowed = "a number and a time in seconds, minutes or hours, such as '50/s', '20/10s', '600/5m' or '1000/h'"
            raise setting_error(("RATE_LIMITS", name), text, allowed) from error


def check_public_streams(key: str | tuple[str, ...], value: Any) -> None:
    patterns = isinstance(value, list | tuple) and all(isinstance(pattern, str) and pattern for pattern in value)
    if not patterns and not isinstance(value, bool):
        raise setting_error(key, value, "a list of patterns such as 'news:*', or True or False")


_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(\*\.)?[^/\s*]+", re.ASCII)


def check_origins(key: str | tuple[str, ...], value: Any) -> None:
    texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
    if value != "*" and not (texts and all(map(_ORIGIN.fullmatch, value))):
        raise setting_error(key, value, "a list of origins such as 'https://example.com', without a path, or '*'")


#: The algorithms of tokens whose signatures are made and verified with the same secret.
HMAC_ALGORITHMS: Final = ("HS256", "HS384", "HS512")
#: The algorithms of tokens that are verified with a public key (`JWT_JWKS`).
PUBLIC_KEY_ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)


def check_algorithms(key: str | tuple[str, ...], value: Any) -> None:
    allowed = (*HMAC_ALGORITHMS, *PUBLIC_KEY_ALGORITHMS)
    if not isinstance(value, list | tuple) or not value or not all(name in allowed for name in value):
        raise setting_error(key, value, f"a list of any of {', '.join(map(repr, allowed))}")


def check_optional_text(key: str | tuple[str, ...], value: Any) -> None:
    if value is not None and not (isinstance(value, str) and value):
        raise setting_error(key, value, "None or a non-empty string")


def check_key_set(key: str | tuple[str, ...], value: Any) -> None:
    if value is not None:
        # The error must not show the value, because a URL may contain a password.
        secret_instance(str, "None or a non-empty string")(key, value)
        check_optional_text(key, value)


def check_texts(key: str | tuple[str, ...], value: Any) -> None:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise setting_error(key, value, "a non-empty string, or a list of them")


def check_paths(key: str | tuple[str, ...], value: Any) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(path, str) and "." in path for path in value):
        raise setting_error(key, value, "a list of dotted paths of functions")


def check_path(key: str | tuple[str, ...], value: Any) -> None:
    if not isinstance(value, str) or "." not in value:
        raise setting_error(key, value, "the dotted path of a class")


def check_optional_path(key: str | tuple[str, ...], value: Any) -> None:
    if value is not None and (not isinstance(value, str) or "." not in value):
        raise setting_error(key, value, "the dotted path of a class, or None")


check_switch = instance(bool, "True or False")
