"""The base classes of all stores and listeners, for streams, presence and sessions."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from reliable_cable.conf import CableSettings

P = ParamSpec("P")
T = TypeVar("T")


def async_twin(
    method: Callable[Concatenate[Any, P], T], *, writes: bool = False
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return the async version of a store's sync method.

    The async version runs the method with `_run`, or with `_run_write` if `writes` is True.
    """

    @wraps(method, updated=())  # `updated=()`, so that no async version is abstract
    async def twin(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        # If a subclass overrides the sync method, `getattr` finds the method of the subclass.
        call = partial(getattr(self, method.__name__), *args, **kwargs)
        result: T = await (self._run_write(call) if writes else self._run(call))
        return result

    twin.__doc__ = f"Async version of `{method.__name__}`."
    return twin


class Listener(ABC):
    """Receives the events of streams from a store, and passes them to the function that was given to `listen`.

    A listener belongs to a hub. Its methods must be called on the hub's event loop.
    """

    @abstractmethod
    async def subscribe(self, stream: str) -> None:
        """Start announcing the events of a stream.

        All events that happen after this method has returned are announced. If events may have been missed, the
        listener announces a special event, whose receiver must read the missed data from the store.
        """

    async def subscribe_many(self, streams: Collection[str]) -> None:
        """Start to announce the events of several streams.

        A subclass should override this method if it can subscribe to several streams in one round trip. If the method
        raises an error, the caller unsubscribes from all these streams.
        """
        for stream in streams:
            await self.subscribe(stream)

    @abstractmethod
    async def unsubscribe(self, stream: str) -> None:
        """Stop announcing the events of a stream. Pending events are dropped."""

    @abstractmethod
    async def close(self) -> None:
        """Unsubscribe from all streams, and release the resources of this listener, such as tasks and connections."""


class Store(ABC):
    """Base class of stream stores, presence stores and session stores.

    The sync methods may be called from any thread. Their async versions, whose names begin with `a`, may be called from
    any event loop. A subclass implements the sync methods and `_run`. It may also override the async versions so that
    they need no threads.

    Args:
        settings: the settings of this package.
        clock: this host's clock, in seconds since 1970. A store whose data are on a server uses that server's clock
            instead (see `time`).
    """

    #: Whether the store needs tables in the database `settings.database`.
    uses_database: bool = False
    #: Whether the data are on another server, so that the sync methods may block for seconds if that server hangs.
    is_remote: bool = False

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock

    @property
    def place(self) -> str:
        """Where the data are stored, as a string for error messages. The string contains no password."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def time(self) -> float:
        """Return the current time by the store's clock, in seconds since 1970.

        Raises:
            StoreError: the store could not be reached.
        """
        return self.clock()

    atime = async_twin(time)

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clocks of the store's servers, as a mapping from the name of a server to its clock.

        A clock is a function that returns the current time of its server, in seconds since 1970. The mapping is empty
        if the store uses this host's clock.
        """
        return {}

    async def aclose(self) -> None:
        """Release the store's resources on the running event loop. The store can still be used afterwards."""

    @abstractmethod
    async def _run(self, call: Callable[[], T]) -> T:
        """Run a sync method of this store without blocking the event loop."""

    async def _run_write(self, call: Callable[[], T]) -> T:
        """Run a sync method that writes, without blocking the event loop. The method may wait for other writers."""
        return await self._run(call)
