"""The Redis client of the stores. It runs calls from sync code in any thread, and from any event loop.

A call that gets no response may or may not have been executed. It is sent again only if the caller has marked it as
idempotent. A call that was certainly not executed may be sent again in any case.
"""

import asyncio
import os
import re
import secrets
import threading
import time
import weakref
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
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

from reliable_cable.concurrency.per_loop import PerLoop
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError, reason

from .exchange import Command, Exchange, arun_exchange, finish, run_exchange
from .idle import IdleQueue, release
from .keys import lineage_key
from .lineage import LineageTracker
from .scripts import script_sha, script_text

#: The default options of a connection, which `REDIS_OPTIONS` overrides. Times are in seconds. All options are explicit,
#: because the defaults of redis-py differ between its versions.
DEFAULT_OPTIONS: Final = {
    "socket_timeout": 5.0,
    "socket_connect_timeout": 2.0,
    "socket_keepalive": True,
    "health_check_interval": 0,
    "protocol": 2,
    "max_connections": 64,
}
#: The errors of a broken async connection. uvloop raises RuntimeError if the connection has been closed.
CONNECTION_ERRORS: Final = (RedisError, OSError, RuntimeError)

#: The maximum number of calls in one round trip of `arun_all`.
CALLS_PER_ROUND_TRIP: Final = 500

#: The errors of a server that currently accepts no commands or no writes. It may be a replica, a server that is loading
#: its data, or a primary that has lost its replicas. The command was not executed. If the command was a script, the
#: error has another class, and its text contains one of `UNAVAILABLE_CODES`.
UNAVAILABLE_ERRORS: Final = (BusyLoadingError, ReadOnlyError, ClusterDownError)
UNAVAILABLE_CODES: Final = re.compile(r"(?:^|[ -])(?:READONLY|MASTERDOWN|LOADING|CLUSTERDOWN|NOREPLICAS|DATAMOVED) ")


class _Placeholder:
    """An argument of a script whose value is unknown until the script is sent."""


#: A placeholder for the lineage of the connection's data (see lineage.py). It can only be the first argument.
LINEAGE: Final = _Placeholder()
#: A placeholder for a random token. It can only be the second argument, after `LINEAGE`. Each attempt gets a new token,
#: because a former attempt whose reply was lost may have used its token for data that a failover has replaced.
NEW_TOKEN: Final = _Placeholder()

Argument = str | int | float | bytes | _Placeholder


@dataclass(frozen=True, slots=True)
class Call:
    """A Redis command or a Lua script to run, with its keys and arguments.

    Args:
        name: the name of a command in capitals, or the name of a script in `lua/`.
        keys: the keys that the call uses. If the first argument of a script is `LINEAGE`, the key of the lineage record
            is added at the end.
        args: the arguments after the keys.
    """

    name: str
    keys: Sequence[str] = ()
    args: Sequence[Argument] = ()


class RedisUnavailable(StoreError):
    """Raised if Redis could not be reached, did not respond, or currently accepts no commands.

    Args:
        message: the error message.
        sent: whether at least one of the calls may have been executed.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class RedisRefused(StoreError):
    """Raised if Redis responded with an error. The call did nothing."""

    sent = False


class RedisClient:
    """Runs calls, from sync code in any thread (`run`) and from any event loop (`arun`).

    Args:
        settings: the settings; `redis_url`, `redis_options` and `key_prefix` are used.

    Raises:
        ImproperlyConfigured: `redis_options` has an option that connections do not accept.
    """

    def __init__(self, settings: CableSettings) -> None:
        assert settings.redis_url is not None  # noqa: S101 - for the type checker; `read_settings` ensures this
        self.settings = settings
        self.url = settings.redis_url
        self.options = _options(settings)
        #: How long, in seconds, opening a connection may take.
        self.connect_timeout: float = self.options["socket_connect_timeout"]
        #: Keeps track of the server behind `url`, which a failover may change, and of the lineage of its data.
        self.lineage = LineageTracker(lineage_key(settings.key_prefix))
        self._pool: redis.ConnectionPool = redis.BlockingConnectionPool.from_url(
            self.url,
            **self.options,
            timeout=self.options["socket_timeout"],
            redis_connect_func=self.lineage.handshake,
            queue_class=IdleQueue,
        )
        try:
            self._pool.connection_class(**self._pool.connection_kwargs)
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"RELIABLE_CABLE['REDIS_OPTIONS'] cannot be used: {reason(error)}.") from error
        #: The number of the Redis database.
        self.database = int(self._pool.connection_kwargs.get("db") or 0)
        self._async_pools: PerLoop[redis.asyncio.ConnectionPool] = PerLoop()
        #: The pub/sub connection of each event loop (see pubsub.py).
        self.pubsubs: PerLoop[Any] = PerLoop()

    @property
    def place(self) -> str:
        """The address of the server and the number of the database."""
        options = self._pool.connection_kwargs
        address = options["path"] if "path" in options else f"{options['host']}:{options['port']}"
        return f"Redis at {address}, database {self.database}"

    def close(self) -> None:
        """Close the connections of sync code."""
        self._pool.disconnect()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        pool = self._async_pools.pop()
        if pool is not None:
            # A connection that is in use is closed by the task that uses it.
            await pool.disconnect(inuse_connections=False)

    # -- sync ---------------------------------------------------------------------------------------------------------

    def run(self, *calls: Call, idempotent: bool = False) -> list[Any]:
        """Run calls in one round trip, and return their replies.

        If the server currently accepts none of the calls, they are sent again over another connection. After a
        failover, that is a connection to the new primary.

        Args:
            calls: one or more calls.
            idempotent: whether the calls may be executed twice. If so, they are sent again after a lost response.

        Raises:
            RedisUnavailable: Redis could not be reached, did not respond, or currently does not accept the calls.
            RedisRefused: the reply to a call was an error. The other calls were executed.
        """
        return finish(BlockingClient(self).arun(*calls, idempotent=idempotent))

    def _attempt(self, calls: Sequence[Call]) -> list[Any]:
        """Run calls over one connection, and return their replies, which may be errors."""
        connection: Any = None
        sent = False
        try:
            connection = self._pool.get_connection()
            if self.lineage.is_stale(connection):
                connection.disconnect()
                connection.connect()
            sent = True
            replies = run_exchange(connection, self._exchange(calls, connection))
        except BaseException as error:
            if connection is not None:
                connection.disconnect()
            if isinstance(error, (RedisError, OSError)):
                raise _unavailable(error, sent) from error
            raise
        finally:
            if connection is not None:
                self._pool.release(connection)
        self._note_refusals(connection, replies)
        return replies

    # -- async --------------------------------------------------------------------------------------------------------

    async def arun(self, *calls: Call, idempotent: bool = False) -> list[Any]:
        """Async twin of `run`, over connections of the running event loop."""
        try:
            return await self._arun(calls)
        except RedisUnavailable:
            if not idempotent:
                raise
        return await self._arun(calls)

    async def arun_all(self, calls: Collection[Call], *, size: int = CALLS_PER_ROUND_TRIP) -> list[Any]:
        """Run any number of idempotent calls, and return their replies. A round trip contains up to `size` calls.

        Raises:
            StoreError: see `run`.
        """
        calls = list(calls)
        batches = (calls[start : start + size] for start in range(0, len(calls), size))
        return [reply for batch in batches for reply in await self.arun(*batch, idempotent=True)]

    async def sleep(self, seconds: float) -> None:
        """Suspend the running task for `seconds` seconds."""
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Return a context manager that raises `TimeoutError` if its block takes longer than `seconds`."""
        return asyncio.timeout(seconds)

    async def _arun(self, calls: Sequence[Call]) -> list[Any]:
        replies = await self._aattempt(calls)
        if all(map(_is_unavailable, replies)):
            # No call was executed. The address may now be that of another server.
            replies = await self._aattempt(calls)
        return _checked(replies)

    async def _aattempt(self, calls: Sequence[Call]) -> list[Any]:
        pool: Any = self._async_pools.get(self._new_pool)
        connection: Any = None
        sent = False
        try:
            connection = await pool.get_connection()
            if self.lineage.is_stale(connection):
                await connection.disconnect(nowait=True)
                await connection.connect()
            sent = True
            replies = await arun_exchange(connection, self._exchange(calls, connection))
        except BaseException as error:
            # A late reply, for example after a cancellation, must not be read as the reply to another call.
            if connection is not None:
                await connection.disconnect(nowait=True)
            if isinstance(error, CONNECTION_ERRORS):
                raise _unavailable(error, sent) from error
            raise
        finally:
            if connection is not None:
                if self._async_pools.peek() is not pool:
                    await connection.disconnect(nowait=True)  # the pool was closed during the call
                await release(pool, connection)
        self._note_refusals(connection, replies)
        return replies

    def new_connection(self) -> Any:
        """Return a new connection for the running event loop. It is not open yet, and reads without a timeout."""
        pool = self._async_pools.get(self._new_pool)
        return pool.connection_class(**{**pool.connection_kwargs, "socket_timeout": None})

    def _new_pool(self) -> redis.asyncio.ConnectionPool:
        return redis.asyncio.BlockingConnectionPool.from_url(
            self.url,
            **self.options,
            timeout=self.options["socket_timeout"],
            redis_connect_func=self.lineage.ahandshake,
        )

    # -- sync and async -----------------------------------------------------------------------------------------------

    def _exchange(self, calls: Sequence[Call], connection: Any) -> Exchange[list[Any]]:
        """Run calls over a connection. If the server does not have a script, load it, and run its calls again."""
        needs_lineage = any(call.args and call.args[0] is LINEAGE for call in calls)
        lineage = self.lineage.argument(connection) if needs_lineage else ""
        commands = [self._command(call, lineage) for call in calls]
        replies = yield commands
        missing = [number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            scripts = dict.fromkeys(calls[number].name for number in missing)
            yield [("SCRIPT", "LOAD", script_text(name)) for name in scripts]
            missing_replies = yield [commands[number] for number in missing]
            for number, reply in zip(missing, missing_replies, strict=True):
                replies[number] = reply
        return replies

    def _command(self, call: Call, lineage: str) -> Command:
        keys, args = call.keys, call.args
        if not call.name.islower():  # this is a command, not a script
            return (call.name, *keys, *cast("Command", args))
        if args and args[0] is LINEAGE:
            keys, args = (*keys, self.lineage.key), (lineage, *args[1:])
        if len(args) > 1 and args[1] is NEW_TOKEN:
            args = (args[0], secrets.token_hex(8), *args[2:])
        return ("EVALSHA", script_sha(call.name), len(keys), *keys, *cast("Command", args))

    def _note_refusals(self, connection: Any, replies: Sequence[Any]) -> None:
        refusals = [str(reply) for reply in replies if _is_unavailable(reply)]
        if refusals:
            self.lineage.reopen_all(connection, moved=any("DATAMOVED" in refusal for refusal in refusals))


class BlockingClient(RedisClient):
    """A client whose async methods block, instead of suspending their caller, for code without an event loop.

    Args:
        client: the client whose sync connections are used.
    """

    def __init__(self, client: RedisClient) -> None:
        vars(self).update(vars(client))
        self._client = client

    async def sleep(self, seconds: float) -> None:
        """Block the calling thread for `seconds` seconds, because it has no event loop."""
        time.sleep(seconds)  # noqa: ASYNC251 - no event loop is running

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Return a context manager that does nothing, because each call has the timeout of its connection."""
        return nullcontext()

    async def _aattempt(self, calls: Sequence[Call]) -> list[Any]:
        return self._client._attempt(calls)


def _unavailable(error: BaseException, sent: bool) -> RedisUnavailable:
    problem = "did not respond" if sent else "cannot be reached"
    if isinstance(error, redis.AuthenticationError):
        problem = "refused the user or the password in REDIS_URL"
    return RedisUnavailable(f"Redis {problem}: {reason(error)}.", sent=sent)


def _is_unavailable(reply: Any) -> bool:
    """Return whether a reply is an error of a server that currently does not accept the command."""
    if isinstance(reply, UNAVAILABLE_ERRORS):
        return True
    return isinstance(reply, ResponseError) and UNAVAILABLE_CODES.search(str(reply)) is not None


def _checked(replies: list[Any]) -> list[Any]:
    errors = [reply for reply in replies if _is_unavailable(reply)]
    if errors:
        message = f"Redis currently does not accept the command: {reason(errors[0])}."
        raise RedisUnavailable(message, sent=len(errors) < len(replies)) from errors[0]
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise RedisRefused(f"Redis refused a command: {reason(reply)}.") from reply
    return replies


def _options(settings: CableSettings) -> dict[str, Any]:
    """Return the arguments of a connection pool."""
    options: dict[str, Any] = {**DEFAULT_OPTIONS, **settings.redis_options}
    if settings.redis_url is not None and settings.redis_url.startswith("unix://"):
        options.pop("socket_keepalive", None)  # this option is only for TCP
    # REDIS_OPTIONS cannot change these options, because this module expects bytes, and retries calls itself.
    return {**options, "decode_responses": False, "retry": Retry(NoBackoff(), 0), "retry_on_timeout": False}


_clients: weakref.WeakValueDictionary[tuple[int, int], RedisClient] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def client_for(settings: CableSettings) -> RedisClient:
    """Return the client that the stores of one engine share. A forked child process gets a new client."""
    with _lock:
        # The id of the settings is a safe key, because each client keeps its settings alive. So no other settings can
        # get the same id.
        key = (os.getpid(), id(settings))
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = RedisClient(settings)
        return client
