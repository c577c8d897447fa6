"""Redis as the stores use it: calls as data, run by one sync client a process and one async client an event loop.

A command is sent once. What was sent and not answered may have been done or not: only calls that do no harm twice are
run again, and the caller says which these are.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import redis
import redis.asyncio
from django.core.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, NoScriptError, RedisError, ResponseError
from redis.retry import Retry

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError

#: What a connection's options are unless `REDIS_OPTIONS` says otherwise; times in seconds. All are explicit, since the
#: defaults of redis-py's versions differ.
DEFAULTS: Final = {
    "socket_timeout": 5.0,
    "socket_connect_timeout": 2.0,
    "socket_keepalive": True,
    "health_check_interval": 0,
    "protocol": 2,
    "max_connections": 64,
}
#: Options that a Unix socket's connection does not take.
TCP_ONLY: Final = ("socket_keepalive",)

#: What says that an event loop's connection is broken; uvloop raises RuntimeError where that was closed meanwhile.
BROKEN: Final = (RedisError, OSError, RuntimeError)

LUA = Path(__file__).parent / "lua"


class _RunId:
    """Stands among a script's arguments for the `run_id` of the Redis that runs it."""


RUN_ID: Final = _RunId()

Argument = str | int | float | bytes | _RunId


@dataclass(frozen=True, slots=True)
class Call:
    """One command, or one Lua script.

    Args:
        name: a command in capitals, or the name of a file in `lua/`.
        keys: the keys that it is about.
        args: whatever else it takes.
    """

    name: str
    keys: Sequence[str] = ()
    args: Sequence[Argument] = ()

    @property
    def is_script(self) -> bool:
        """Whether it is a Lua script."""
        return self.name.islower()


class RedisUnavailable(StoreError):
    """Redis could not be reached, or did not answer.

    Args:
        message: what happened.
        sent: whether the calls may have reached Redis; if not, nothing was done.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class RedisRefused(StoreError):
    """Redis answered with an error: the call did nothing."""


@cache
def script_text(name: str) -> str:
    """Return a Lua script, with what all of them share before it, and what those of its family do."""
    family = ["presence_prelude"] if name.startswith("presence_") else []
    return "".join((LUA / f"{part}.lua").read_text() for part in ("prelude", *family, name))


class RedisClient:
    """Runs calls, from sync code in any thread (`run`) and from any event loop (`arun`).

    Args:
        settings: `redis_url` and `redis_options`.

    Raises:
        ImproperlyConfigured: an option is not one that connections take.
    """

    def __init__(self, settings: CableSettings) -> None:
        assert settings.redis_url is not None  # noqa: S101 - for the type checker; read_settings sees to it
        self.settings = settings
        self.url = settings.redis_url
        self.options = _options(settings)
        #: Seconds after which a connection is given up that does not open.
        self.connect_timeout: float = self.options["socket_connect_timeout"]
        self._pool: redis.ConnectionPool = redis.BlockingConnectionPool.from_url(
            self.url, **self.options, timeout=self.options["socket_timeout"], redis_connect_func=_greet
        )
        try:
            self._pool.connection_class(**self._pool.connection_kwargs)
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"RELIABLE_CABLE['REDIS_OPTIONS'] cannot be used: {error}.") from error
        self._scripts = redis.Redis(connection_pool=self._pool)
        self._shas: dict[str, str] = {}
        self._async_pools: dict[asyncio.AbstractEventLoop, redis.asyncio.ConnectionPool] = {}
        self._lock = threading.Lock()
        #: The pub/sub connection of each event loop (pubsub.py).
        self.pubsubs: dict[asyncio.AbstractEventLoop, Any] = {}

    def close(self) -> None:
        """Close the connections of sync code."""
        self._pool.disconnect()

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        pool = self._async_pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            # What is in use is closed by whoever uses it.
            await pool.disconnect(inuse_connections=False)

    # -- sync ---------------------------------------------------------------------------------------------------------

    def run(self, *calls: Call, again: bool = False) -> list[Any]:
        """Run calls, in one round trip; return their answers.

        Args:
            calls: at least one.
            again: run them once more on another connection if the answer is lost: they do no harm twice.

        Raises:
            RedisUnavailable: Redis could not be reached, or its answer was lost.
            RedisRefused: the answer to a call was an error; of several calls the others were done.
        """
        try:
            return self._run(calls)
        except RedisUnavailable:
            if not again:
                raise
        return self._run(calls)

    def _run(self, calls: Sequence[Call]) -> list[Any]:
        try:
            connection: Any = self._pool.get_connection()
        except (RedisError, OSError) as error:
            raise RedisUnavailable(f"Redis cannot be reached: {error}.", sent=False) from error
        try:
            answers = self._exchange(connection, calls)
            missing = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if missing:
                known = dict.fromkeys(calls[number].name for number in missing)
                self._exchange(connection, [Call("SCRIPT", (), ("LOAD", script_text(name))) for name in known])
                for number, answer in zip(
                    missing, self._exchange(connection, [calls[number] for number in missing]), strict=True
                ):
                    answers[number] = answer
        except BusyLoadingError as error:
            raise RedisUnavailable(f"Redis is loading its data: {error}.", sent=False) from error
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise RedisUnavailable(f"Redis did not answer: {error}.", sent=True) from error
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)
        return _checked(answers)

    def _exchange(self, connection: Any, calls: Sequence[Call]) -> list[Any]:
        connection.send_packed_command(
            connection.pack_commands([self._words(call, connection.run_id) for call in calls]), check_health=False
        )
        answers: list[Any] = []
        for _ in calls:
            try:
                answers.append(connection.read_response())
            except ResponseError as error:
                answers.append(error)
        return answers

    # -- async --------------------------------------------------------------------------------------------------------

    async def arun(self, *calls: Call, again: bool = False) -> list[Any]:
        """Async twin of `run`, over connections of the running event loop."""
        try:
            return await self._arun(calls)
        except RedisUnavailable:
            if not again:
                raise
        return await self._arun(calls)

    async def _arun(self, calls: Sequence[Call]) -> list[Any]:
        pool: Any = self._async_pool()
        try:
            connection: Any = await pool.get_connection()
        except BROKEN as error:
            raise RedisUnavailable(f"Redis cannot be reached: {error}.", sent=False) from error
        try:
            answers = await self._aexchange(connection, calls)
            missing = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if missing:
                known = dict.fromkeys(calls[number].name for number in missing)
                await self._aexchange(connection, [Call("SCRIPT", (), ("LOAD", script_text(name))) for name in known])
                for number, answer in zip(
                    missing, await self._aexchange(connection, [calls[number] for number in missing]), strict=True
                ):
                    answers[number] = answer
        except BusyLoadingError as error:
            raise RedisUnavailable(f"Redis is loading its data: {error}.", sent=False) from error
        except BROKEN as error:
            await connection.disconnect(nowait=True)
            raise RedisUnavailable(f"Redis did not answer: {error}.", sent=True) from error
        except BaseException:
            # Cancelled, say: the answer is still to come, and must not be taken for another one's.
            await connection.disconnect(nowait=True)
            raise
        finally:
            if self._async_pools.get(asyncio.get_running_loop()) is not pool:
                await connection.disconnect(nowait=True)  # closed meanwhile
            await pool.release(connection)
        return _checked(answers)

    async def _aexchange(self, connection: Any, calls: Sequence[Call]) -> list[Any]:
        await connection.send_packed_command(
            connection.pack_commands([self._words(call, connection.run_id) for call in calls]), check_health=False
        )
        answers: list[Any] = []
        for _ in calls:
            try:
                answers.append(await connection.read_response())
            except ResponseError as error:
                answers.append(error)
        return answers

    def new_connection(self) -> Any:
        """Return a connection of the running event loop, not opened, that waits for answers without end."""
        pool = self._async_pool()
        return pool.connection_class(**{**pool.connection_kwargs, "socket_timeout": None})

    def _async_pool(self) -> redis.asyncio.ConnectionPool:
        loop = asyncio.get_running_loop()
        pool = self._async_pools.get(loop)
        if pool is None:
            with self._lock:
                for other in [other for other in self._async_pools if other.is_closed()]:
                    del self._async_pools[other]
                pool = self._async_pools[loop] = redis.asyncio.BlockingConnectionPool.from_url(
                    self.url, **self.options, timeout=self.options["socket_timeout"], redis_connect_func=_agreet
                )
        return pool

    # -- both ---------------------------------------------------------------------------------------------------------

    def _words(self, call: Call, run_id: str) -> tuple[Argument, ...]:
        if not call.is_script:
            return (call.name, *call.keys, *call.args)
        sha = self._shas.get(call.name)
        if sha is None:
            sha = self._shas[call.name] = self._scripts.register_script(script_text(call.name)).sha
        args = [run_id if argument is RUN_ID else argument for argument in call.args]
        return ("EVALSHA", sha, len(call.keys), *call.keys, *args)


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise RedisRefused(f"Redis refused a command: {answer}.") from answer
    return answers


def _options(settings: CableSettings) -> dict[str, Any]:
    """Return the arguments of a connection pool."""
    options: dict[str, Any] = {**DEFAULTS, **settings.redis_options}
    if settings.redis_url is not None and settings.redis_url.startswith("unix://"):
        for name in TCP_ONLY:
            options.pop(name, None)
    # These are not for the user: answers are bytes, and nothing is sent twice unasked.
    return {**options, "decode_responses": False, "retry": Retry(NoBackoff(), 0), "retry_on_timeout": False}


def _greet(connection: Any) -> None:
    """Open a connection and learn which Redis it leads to: another one has other data (DESIGN.md, Engines)."""
    connection.on_connect()
    connection.send_command("INFO", "server", check_health=False)
    connection.run_id = _run_id(connection.read_response())


async def _agreet(connection: Any) -> None:
    await connection.on_connect()
    await connection.send_command("INFO", "server", check_health=False)
    connection.run_id = _run_id(await connection.read_response())


def _run_id(info: Any) -> str:
    for line in bytes(info).splitlines():
        name, _, value = line.partition(b":")
        if name == b"run_id":
            return value.decode()
    raise redis.ConnectionError("the answer to INFO has no run_id")


_clients: weakref.WeakValueDictionary[tuple[int, int], RedisClient] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def client_for(settings: CableSettings) -> RedisClient:
    """Return the client that the stores of one engine share; a forked child gets its own."""
    with _lock:
        # The client refers to its settings, so that their id is not given to others while it lives.
        key = (os.getpid(), id(settings))
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = RedisClient(settings)
        return client
