"""Redis as the stores use it: calls as data, run by one sync client a process and one async client an event loop.

A command is sent once. What was sent and not answered may have been done or not: only calls that do no harm twice are
run again, and the caller says which these are.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
import redis.asyncio
from django.core.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError

from .exchange import Command, Exchange, arun_exchange, run_exchange
from .keys import lineage_key
from .lineage import LineageTracker
from .scripts import script_text

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

#: Errors of a server that accepts no commands or no writes at present, and has done nothing: a replica, a server that
#: is loading its data, or a primary that has lost its replicas. An error of a script has such a code in its text.
UNAVAILABLE: Final = (BusyLoadingError, ReadOnlyError, ClusterDownError)
UNAVAILABLE_CODES: Final = re.compile(r"(?:^|[ -])(?:READONLY|MASTERDOWN|LOADING|CLUSTERDOWN|NOREPLICAS|DATAMOVED) ")


class _Lineage:
    """A placeholder for a script's first argument: the lineage of the connection's data (lineage.py)."""


LINEAGE: Final = _Lineage()

Argument = str | int | float | bytes | _Lineage


@dataclass(frozen=True, slots=True)
class Call:
    """One command, or one Lua script.

    Args:
        name: a command in capitals, or the name of a file in `lua/`.
        keys: its keys. If the first argument of a script is `LINEAGE`, the key of the lineage record is added at the
            end.
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
    """Redis could not be reached, did not answer, or accepts no commands at present.

    Args:
        message: the error message.
        sent: whether any of the calls may have been executed.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class RedisRefused(StoreError):
    """Redis answered with an error: the call did nothing."""


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
        #: The server and the lineage that the connections lead to.
        self.lineage = LineageTracker(lineage_key(settings.key_prefix))
        self._pool: redis.ConnectionPool = redis.BlockingConnectionPool.from_url(
            self.url, **self.options, timeout=self.options["socket_timeout"], redis_connect_func=self.lineage.greet
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

    def time(self) -> float:
        """Return the present time by Redis's clock, in seconds since 1970."""
        return _seconds(self.run(Call("TIME"), again=True)[0])

    async def atime(self) -> float:
        """Async twin of `time`."""
        return _seconds((await self.arun(Call("TIME"), again=True))[0])

    # -- sync ---------------------------------------------------------------------------------------------------------

    def run(self, *calls: Call, again: bool = False) -> list[Any]:
        """Run calls, in one round trip; return their answers.

        If the server accepts none of them at present, they are run once more over another connection. After a failover,
        that connection leads to the new primary.

        Args:
            calls: at least one.
            again: run them once more also if the answer is lost. Use this only for calls that may be executed twice.

        Raises:
            RedisUnavailable: Redis could not be reached, accepts no such calls at present, or its answer was lost.
            RedisRefused: the answer to a call was an error; of several calls the others were done.
        """
        try:
            return self._run(calls)
        except RedisUnavailable:
            if not again:
                raise
        return self._run(calls)

    def _run(self, calls: Sequence[Call]) -> list[Any]:
        answers = self._try(calls)
        if all(map(_is_unavailable, answers)):
            # Nothing was done. The address may lead to another server by now.
            answers = self._try(calls)
        return _checked(answers)

    def _try(self, calls: Sequence[Call]) -> list[Any]:
        """Run calls over one connection; return their answers, which may be errors."""
        connection = self._connection()
        try:
            answers = run_exchange(connection, self._exchange(calls, connection.identity.lineage))
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise RedisUnavailable(f"Redis did not answer: {error}.", sent=True) from error
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)
        self._judge(connection, answers)
        return answers

    def _connection(self) -> Any:
        """Take a connection from the pool, and reopen it if it is stale."""
        try:
            connection: Any = self._pool.get_connection()
        except (RedisError, OSError) as error:
            raise RedisUnavailable(f"Redis cannot be reached: {error}.", sent=False) from error
        try:
            if self.lineage.is_stale(connection):
                connection.disconnect()
                connection.connect()
        except BaseException as error:
            connection.disconnect()
            self._pool.release(connection)
            if isinstance(error, (RedisError, OSError)):
                raise RedisUnavailable(f"Redis cannot be reached: {error}.", sent=False) from error
            raise
        return connection

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
        answers = await self._atry(calls)
        if all(map(_is_unavailable, answers)):
            answers = await self._atry(calls)
        return _checked(answers)

    async def _atry(self, calls: Sequence[Call]) -> list[Any]:
        pool: Any = self._async_pool()
        connection = await self._aconnection(pool)
        try:
            answers = await arun_exchange(connection, self._exchange(calls, connection.identity.lineage))
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
        self._judge(connection, answers)
        return answers

    async def _aconnection(self, pool: Any) -> Any:
        try:
            connection: Any = await pool.get_connection()
        except BROKEN as error:
            raise RedisUnavailable(f"Redis cannot be reached: {error}.", sent=False) from error
        try:
            if self.lineage.is_stale(connection):
                await connection.disconnect(nowait=True)
                await connection.connect()
        except BaseException as error:
            await connection.disconnect(nowait=True)
            await pool.release(connection)
            if isinstance(error, BROKEN):
                raise RedisUnavailable(f"Redis cannot be reached: {error}.", sent=False) from error
            raise
        return connection

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
                    self.url,
                    **self.options,
                    timeout=self.options["socket_timeout"],
                    redis_connect_func=self.lineage.agreet,
                )
        return pool

    # -- both ---------------------------------------------------------------------------------------------------------

    def _exchange(self, calls: Sequence[Call], lineage: str) -> Exchange[list[Any]]:
        """Run calls over a connection to data of this lineage."""
        commands = [self._command(call, lineage) for call in calls]
        answers = yield commands
        missing = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:
            known = dict.fromkeys(calls[number].name for number in missing)
            yield [("SCRIPT", "LOAD", script_text(name)) for name in known]
            found = yield [commands[number] for number in missing]
            for number, answer in zip(missing, found, strict=True):
                answers[number] = answer
        return answers

    def _command(self, call: Call, lineage: str) -> Command:
        keys, args = call.keys, call.args
        if not call.is_script:
            return (call.name, *keys, *cast("Command", args))
        sha = self._shas.get(call.name)
        if sha is None:
            sha = self._shas[call.name] = self._scripts.register_script(script_text(call.name)).sha
        if args and args[0] is LINEAGE:
            keys, args = (*keys, self.lineage.key), (lineage, *args[1:])
        return ("EVALSHA", sha, len(keys), *keys, *cast("Command", args))

    def _judge(self, connection: Any, answers: Sequence[Any]) -> None:
        refusals = [str(answer) for answer in answers if _is_unavailable(answer)]
        if refusals:
            self.lineage.leave(connection, moved=any("DATAMOVED" in refusal for refusal in refusals))


def _seconds(answer: Any) -> float:
    """Return the answer to TIME as a number of seconds."""
    seconds, microseconds = answer
    return int(seconds) + int(microseconds) / 1e6


def _is_unavailable(answer: Any) -> bool:
    """Return whether an answer is the error of a server that accepts no such command at present."""
    if isinstance(answer, UNAVAILABLE):
        return True
    return isinstance(answer, ResponseError) and UNAVAILABLE_CODES.search(str(answer)) is not None


def _checked(answers: list[Any]) -> list[Any]:
    errors = [answer for answer in answers if _is_unavailable(answer)]
    if errors:
        message = f"Redis accepts no such command at present: {str(errors[0]).rstrip('.')}."
        raise RedisUnavailable(message, sent=len(errors) < len(answers)) from errors[0]
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
