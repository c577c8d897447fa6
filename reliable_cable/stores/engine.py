"""Chooses the stores according to the settings, and creates them once in each process."""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from reliable_cable.conf import ANYCABLE, ENGINE_PARTS, CableSettings, get_settings
from reliable_cable.exceptions import NotSupported
from reliable_cable.stores.buckets.base import Buckets
from reliable_cable.stores.presence.base import PresenceStore
from reliable_cable.stores.sessions.base import SessionStore
from reliable_cable.stores.streams.base import StreamStore

from .clock import StoreClock

_PACKAGE = __package__
ENGINE_CLASSES: Mapping[str, Mapping[str, str]] = {
    "memory": {
        "streams": f"{_PACKAGE}.streams.memory.MemoryStreamStore",
        "presence": f"{_PACKAGE}.presence.memory.MemoryPresenceStore",
        "sessions": f"{_PACKAGE}.sessions.memory.MemorySessionStore",
    },
    "database": {
        "streams": f"{_PACKAGE}.streams.model.ModelStreamStore",
        "presence": f"{_PACKAGE}.presence.model.ModelPresenceStore",
        "sessions": f"{_PACKAGE}.sessions.model.ModelSessionStore",
    },
    "redis": {
        "streams": f"{_PACKAGE}.streams.redis.RedisStreamStore",
        "presence": f"{_PACKAGE}.presence.redis.RedisPresenceStore",
        "sessions": f"{_PACKAGE}.sessions.redis.RedisSessionStore",
    },
    ANYCABLE: {
        "streams": f"{_PACKAGE}.adapters.streams.AdapterStreamStore",
        "presence": f"{_PACKAGE}.adapters.presence.AdapterPresenceStore",
        "sessions": f"{_PACKAGE}.adapters.sessions.AdapterSessionStore",
    },
}
_INTERFACES: Mapping[str, type] = {"streams": StreamStore, "presence": PresenceStore, "sessions": SessionStore}


@dataclass(frozen=True, slots=True)
class Engine:
    """The stores of streams, presence and sessions, and their clocks and shared token buckets."""

    streams: StreamStore
    presence: PresenceStore
    sessions: SessionStore
    stream_clock: StoreClock = field(init=False)
    session_clock: StoreClock = field(init=False)
    #: The token buckets that all processes share; None without Redis or without the rate limit `connect`.
    buckets: Buckets | None = field(init=False)

    def __post_init__(self) -> None:
        for name, store in (("stream_clock", self.streams), ("session_clock", self.sessions)):
            object.__setattr__(self, name, StoreClock(store, threads=store.settings.handler_threads > 0))
        object.__setattr__(self, "buckets", _shared_buckets(self.streams.settings))

    @property
    def may_block(self) -> bool:
        """Whether sync code should leave calls without a result to a thread, because they may block for seconds."""
        remote = self.streams.is_remote or self.sessions.is_remote
        return remote and self.streams.settings.handler_threads > 0

    async def aclose(self) -> None:
        """Release the stores' resources on the running event loop. The stores can still be used afterwards."""
        await self.streams.aclose()
        await self.presence.aclose()
        await self.sessions.aclose()
        if self.buckets is not None:
            await self.buckets.aclose()


def _shared_buckets(settings: CableSettings) -> Buckets | None:
    if settings.redis_url is None or settings.rate_limit("connect") is None:
        return None
    buckets: Buckets = import_string(f"{_PACKAGE}.buckets.redis.RedisBuckets")(settings)
    return buckets


def engine_paths(settings: CableSettings) -> Mapping[str, str]:
    """Return a mapping from `streams`, `presence` and `sessions` to the dotted paths of the store classes."""
    if isinstance(settings.engine, Mapping):
        return settings.engine
    paths = ENGINE_CLASSES[settings.engine]
    if settings.engine == "redis" and any(settings.policy_of(pattern).durable for pattern in settings.streams):
        return {**paths, "streams": f"{_PACKAGE}.streams.durable.DurableStreamStore"}
    return paths


def engine_classes(settings: CableSettings) -> dict[str, Any]:
    """Return a mapping from `streams`, `presence` and `sessions` to the store classes.

    Raises:
        ImproperlyConfigured: a class cannot be imported, or does not have the right base class.
    """
    classes: dict[str, Any] = {}
    paths = engine_paths(settings)
    for part in ENGINE_PARTS:
        try:
            cls = import_string(paths[part])
        except ImportError as error:
            raise ImproperlyConfigured(f"RELIABLE_CABLE['ENGINE'][{part!r}] cannot be imported: {error}.") from error
        interface = _INTERFACES[part]
        if not (isinstance(cls, type) and issubclass(cls, interface)):
            raise ImproperlyConfigured(
                f"RELIABLE_CABLE['ENGINE'][{part!r}] is {paths[part]!r}; it must be a subclass of "
                f"{interface.__module__}.{interface.__qualname__}."
            )
        classes[part] = cls
    return classes


def require_own_servers(function: str, remedy: str) -> None:
    """Raise an error if clients are connected to anycable-go, because a function needs servers of this package.

    Args:
        function: the name of the called function.
        remedy: what the caller can do instead, as a sentence.

    Raises:
        NotSupported: `BROADCAST_ADAPTER` is set.
    """
    adapter = get_settings().broadcast_adapter
    if adapter is not None:
        raise NotSupported(
            f"{function}() is not supported with RELIABLE_CABLE['BROADCAST_ADAPTER'] = {adapter!r}, because "
            f"anycable-go has no such function. {remedy}"
        )


_current: dict[int, tuple[CableSettings, Engine]] = {}
_lock = threading.Lock()


def get_engine() -> Engine:
    """Return the stores of this process. A forked child process gets new stores."""
    settings = get_settings()
    pid = os.getpid()
    current = _current.get(pid)
    if current is not None and current[0] is settings:
        return current[1]
    with _lock:
        current = _current.get(pid)
        if current is None or current[0] is not settings:
            parts = {part: cls(settings) for part, cls in engine_classes(settings).items()}
            current = (settings, Engine(**parts))
            _current.clear()
            _current[pid] = current
    return current[1]
