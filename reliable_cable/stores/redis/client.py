"""The Redis client of the stores. It runs calls from sync code in any thread, and from any event loop.

A call that gets no response may or may not have been executed. It is sent again only if the caller has marked it as
idempotent. A call that was certainly not executed may be sent again in any case.
"""

import asyncio
import secrets
import time
import weakref
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, cast

import redis
import redis.asyncio
from django.core.exceptions import ImproperlyConfigured
from redis.exceptions import NoScriptError, RedisError

from reliable_cable.concurrency.per_loop import PerLoop
from reliable_cable.conf import CableSettings
from reliable_cable.conf.redis_urls import SENTINEL_SCHEMES
from reliable_cable.exceptions import reason

from .calls import CONNECTION_ERRORS as CONNECTION_ERRORS
from .calls import LINEAGE as LINEAGE
from .calls import NEW_TOKEN as NEW_TOKEN
from .calls import Argument as Argument
from .calls import Call as Call
from .calls import RedisRefused as RedisRefused
from .calls import RedisUnavailable as RedisUnavailable
from .calls import checked, is_unavailable, unavailable
from .exchange import Command, Exchange, arun_exchange, finish, run_exchange, send
from .idle import IdleQueue, release
from .keys import KeyNames, lineage_key
from .lineage import LineageTracker
from .options import pool_options
from .scripts import script_sha, script_text
from .sentinel import Sentinels

#: The maximum number of calls in one round trip of `arun_all`.
CALLS_PER_ROUND_TRIP: Final = 500


class BaseClient:
    """Base class of the clients of one server and of a cluster.

    Args:
        settings: the settings; `redis_url`, `redis_options` and `key_prefix` are used.
    """

    names: KeyNames

    def __init__(self, settings: CableSettings) -> None:
        self.settings = settings
        self.options = pool_options(settings)
        #: How long, in seconds, opening a connection may take.
        self.connect_timeout: float = self.options["socket_connect_timeout"]
        #: The pub/sub connections of each event loop (see pubsub.py).
        self.pubsubs: PerLoop[Any] = PerLoop()

    @property
    @abstractmethod
    def place(self) -> str:
        """The addresses of the servers and the number of the database, for messages. It contains no password."""

    @abstractmethod
    def blocking(self) -> "BaseClient":
        """Return a client whose async methods block, instead of suspending their caller, for code without a loop."""

    @abstractmethod
    async def arun(self, *calls: Call, idempotent: bool = False) -> list[Any]:
        """Async version of `run`, over connections of the running event loop."""

    @abstractmethod
    async def alineages(self, partitions: Collection[str]) -> dict[str, str]:
        """Return the lineages of the data of partitions, as this process last saw them; `""` if one is unknown.

        This seldom takes a round trip.

        Args:
            partitions: some of `names.partitions()`.
        """

    @abstractmethod
    async def aservers(self) -> "Sequence[BaseClient]":
        """Return a client for each primary server. It runs its calls on that server only."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections of sync code."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections of the running event loop."""

    def run(self, *calls: Call, idempotent: bool = False) -> list[Any]:
        """Run calls in one round trip for each server, and return their replies.

        If the server currently accepts none of the calls, they are sent again over another connection. After a
        failover, that is a connection to the new primary.

        Args:
            calls: one or more calls.
            idempotent: whether the calls may be executed twice. If so, they are sent again after a lost response.

        Raises:
            RedisUnavailable: Redis could not be reached, did not respond, or currently does not accept the calls.
            RedisRefused: the reply to a call was an error. Other calls may have been executed.
        """
        return finish(self.blocking().arun(*calls, idempotent=idempotent))

    def servers(self) -> "Sequence[BaseClient]":
        """Sync version of `aservers`."""
        return finish(self.blocking().aservers())

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


class RedisClient(BaseClient):
    """Runs calls on one server, from sync code in any thread (`run`) and from any event loop (`arun`).

    Args:
        settings: the settings; `redis_url`, `redis_options` and `key_prefix` are used.
        url: the URL of the server, if it is not `redis_url`.

    Raises:
        ImproperlyConfigured: `redis_options` has an option that connections do not accept.
    """

    def __init__(self, settings: CableSettings, url: str | None = None) -> None:
        super().__init__(settings)
        assert settings.redis_url is not None  # noqa: S101 - for the type checker; `read_settings` ensures this
        self.url = url or settings.redis_url
        #: The Sentinels that know the address of the primary; None if the address is in the URL.
        self.sentinels: Sentinels | None = None
        if self.url.startswith(SENTINEL_SCHEMES):
            self.sentinels = Sentinels(self.url, self.options)
            self.url = self.sentinels.server_url
        #: The tracker of the server behind `url`, which a failover may change, and of the lineage of its data.
        self.lineage = self._new_tracker()
        self._pool: redis.ConnectionPool = redis.BlockingConnectionPool.from_url(
            self.url,
            **self.options,
            **(self.sentinels.sync_options() if self.sentinels else {}),
            timeout=self.options["socket_timeout"],
            redis_connect_func=self.lineage.handshake,
            queue_class=IdleQueue,
        )
        try:
            self._pool.connection_class(**self._pool.connection_kwargs)
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"RELIABLE_CABLE['REDIS_OPTIONS'] cannot be used: {reason(error)}.") from error
        # If the garbage collector finds an unused client, it may finalize a socket before redis-py can close it. Python
        # then warns. The garbage collector runs this callback first.
        weakref.finalize(self, self._pool.disconnect).atexit = False
        #: The number of the Redis database.
        self.database = int(self._pool.connection_kwargs.get("db") or 0)
        self.names = KeyNames(settings.key_prefix, cluster=settings.uses_cluster, database=self.database)
        self._async_pools: PerLoop[redis.asyncio.ConnectionPool] = PerLoop()

    def _new_tracker(self) -> LineageTracker:
        return LineageTracker(lineage_key(self.settings.key_prefix))

    @property
    def place(self) -> str:
        """The address of the server and the number of the database."""
        if self.sentinels is not None:
            return f"Redis by {self.sentinels.place}, database {self.database}"
        options = self._pool.connection_kwargs
        address = options["path"] if "path" in options else f"{options['host']}:{options['port']}"
        return f"Redis at {address}, database {self.database}"

    def blocking(self) -> "BlockingClient":
        """Return a client whose async methods block, instead of suspending their caller, for code without a loop."""
        return BlockingClient(self)

    async def aservers(self) -> Sequence[BaseClient]:
        """Return this client, because there is one server."""
        return [self]

    async def alineages(self, partitions: Collection[str]) -> dict[str, str]:
        """Return the lineage of the data, as this process last saw it. This seldom takes a round trip."""
        if self.lineage.identity is None:
            await self.arun(Call("PING"), idempotent=True)
        identity = self.lineage.identity
        return dict.fromkeys(partitions, "" if identity is None else identity.lineage)

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

    def _attempt(self, calls: Sequence[Call], *, asking: bool = False) -> list[Any]:
        """Run calls over one connection, and return their replies, which may be errors.

        Args:
            calls: the calls.
            asking: whether to send ASKING before each call (see cluster.py).
        """
        connection: Any = None
        sent = False
        try:
            connection = self._pool.get_connection()
            if self.lineage.is_stale(connection):
                connection.disconnect()
                connection.connect()
            sent = True
            replies = run_exchange(connection, self._exchange(calls, connection, asking=asking))
        except BaseException as error:
            if connection is not None:
                connection.disconnect()
            if isinstance(error, (RedisError, OSError)):
                raise unavailable(error, sent) from error
            raise
        finally:
            if connection is not None:
                self._pool.release(connection)
        self._note_refusals(connection, replies)
        return replies

    # -- async --------------------------------------------------------------------------------------------------------

    async def arun(self, *calls: Call, idempotent: bool = False) -> list[Any]:
        """Async version of `run`, over connections of the running event loop."""
        try:
            return await self._arun(calls)
        except RedisUnavailable:
            if not idempotent:
                raise
        return await self._arun(calls)

    async def _arun(self, calls: Sequence[Call]) -> list[Any]:
        replies = await self._aattempt(calls)
        if all(map(is_unavailable, replies)):
            # No call was executed. The address may now be that of another server.
            replies = await self._aattempt(calls)
        return checked(replies)

    async def _aattempt(self, calls: Sequence[Call], *, asking: bool = False) -> list[Any]:
        """Async version of `_attempt`."""
        pool: Any = self._async_pools.get(self._new_pool)
        connection: Any = None
        sent = False
        try:
            connection = await pool.get_connection()
            if self.lineage.is_stale(connection):
                await connection.disconnect(nowait=True)
                await connection.connect()
            sent = True
            replies = await arun_exchange(connection, self._exchange(calls, connection, asking=asking))
        except BaseException as error:
            # A late reply, for example after a cancellation, must not be read as the reply to another call.
            if connection is not None:
                await connection.disconnect(nowait=True)
            if isinstance(error, CONNECTION_ERRORS):
                raise unavailable(error, sent) from error
            raise
        finally:
            if connection is not None:
                await release(pool, connection)
            if self._async_pools.peek() is not pool:
                # The pool was closed during the call. If `get_connection` was cancelled, it has put an open connection
                # back into the pool.
                await pool.disconnect(inuse_connections=False)
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
            **(self.sentinels.async_options() if self.sentinels else {}),
            redis_connect_func=self.lineage.ahandshake,
        )

    # -- sync and async -----------------------------------------------------------------------------------------------

    def _exchange(self, calls: Sequence[Call], connection: Any, *, asking: bool = False) -> Exchange[list[Any]]:
        """Run calls over a connection. If the server does not have a script, load it, and run its calls again.

        Args:
            calls: the calls.
            connection: the open connection.
            asking: whether to send ASKING before each call (see cluster.py).
        """
        records = [self.names.lineage_of(call) for call in calls]
        lineages = yield from self._lineages(records, connection, asking)
        commands: dict[int, Command] = {}
        replies: list[Any] = [None] * len(calls)
        for number, (call, record) in enumerate(zip(calls, records, strict=True)):
            lineage = lineages[record] if record else ""
            if isinstance(lineage, str):
                commands[number] = self._command(call, record, lineage)
            else:
                replies[number] = lineage
        for number, reply in zip(commands, (yield from send(list(commands.values()), asking)), strict=True):
            replies[number] = reply
        missing = [number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            scripts = dict.fromkeys(calls[number].name for number in missing)
            yield [("SCRIPT", "LOAD", script_text(name)) for name in scripts]
            missing_replies = yield from send([commands[number] for number in missing], asking)
            for number, reply in zip(missing, missing_replies, strict=True):
                replies[number] = reply
        return replies

    def _lineages(self, records: Sequence[str], connection: Any, asking: bool) -> Exchange[Mapping[str, Any]]:
        """Return the lineage arguments of scripts, by the key of their lineage record.

        The value is an error if the lineage could not be determined. The scripts are then not sent.

        Args:
            records: the key of each call's lineage record; `""` if the call checks no lineage.
            connection: the open connection.
            asking: whether to send ASKING before each command.
        """
        return {self.lineage.key: self.lineage.argument(connection)} if any(records) else {}
        yield  # this function must be a generator, like those of subclasses

    def _command(self, call: Call, record: str, lineage: str) -> Command:
        keys, args = call.keys, call.args
        if not call.name.islower():  # this is a command, not a script
            return (*call.name.split(" "), *keys, *cast("Command", args))
        if record:
            keys, args = (*keys, record), (lineage, *args[1:])
        if len(args) > 1 and args[1] is NEW_TOKEN:
            args = (args[0], secrets.token_hex(8), *args[2:])
        return ("EVALSHA", script_sha(call.name), len(keys), *keys, *cast("Command", args))

    def _note_refusals(self, connection: Any, replies: Sequence[Any]) -> None:
        refusals = [str(reply) for reply in replies if is_unavailable(reply)]
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

    async def _aattempt(self, calls: Sequence[Call], *, asking: bool = False) -> list[Any]:
        return self._client._attempt(calls, asking=asking)
