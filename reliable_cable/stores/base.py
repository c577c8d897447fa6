"""The base classes of all stores and listeners, for streams, presence and sessions."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from reliable_cable.conf import CableSettings

P = ParamSpec("P")
T = TypeVar("T")


def async_twin(
    method: Callable[Concatenate[Any, P], T], *, writes: bool = False
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Return the async twin of a store's sync method.

    The twin runs the method with `_run`, or with `_run_write` if `writes` is True.
    """

    @wraps(method, updated=())  # the twin of an abstract method is not abstract
    async def twin(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        # `getattr` finds the sync method of a subclass that overrides it.
        call = partial(getattr(self, method.__name__), *args, **kwargs)
        result: T = await (self._run_write(call) if writes else self._run(call))
        return result

    twin.__doc__ = f"Async twin of `{method.__name__}`."
    return twin


class Listener(ABC):
    """Receives the events of streams from a store, for one hub. All its methods are called on one event loop."""

    @abstractmethod
    async def subscribe(self, stream: str) -> None:
        """Start to announce the events of a stream.

        Every event that happens after this method has returned is announced. If one may have been missed, another event
        tells the receiver to read the stream.
        """

    @abstractmethod
    async def unsubscribe(self, stream: str) -> None:
        """Stop announcing the events of a stream, pending events included."""

    @abstractmethod
    async def close(self) -> None:
        """Unsubscribe from all streams, and release all resources of this listener, such as tasks and connections."""


class Store(ABC):
    """Base class of the three store interfaces.

    Sync methods may be called from any thread. Their async twins, which have an `a` prefix, may be called from any
    event loop. A subclass provides the sync methods and `_run`, or overrides the twins so that they need no threads.

    Args:
        settings: the settings of this package.
        clock: this host's clock, in seconds since 1970. A store on a server uses the server's clock instead (see
            `time`).
    """

    #: Whether the store needs the tables in `settings.database`.
    uses_database: bool = False
    #: Whether the store is on a server of its own. Its sync methods block for seconds while that server hangs.
    is_remote: bool = False

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock

    @property
    def place(self) -> str:
        """Where the data are, in words for a developer. It contains no password."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def time(self) -> float:
        """Return the current time by the store's clock, in seconds since 1970.

        Raises:
            StoreError: the store could not be reached.
        """
        return self.clock()

    atime = async_twin(time)

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clocks of the store's servers, by the name of the server.

        Each clock is a function that asks its server for the current time, in seconds since 1970. The mapping is empty
        if the store uses this host's clock.
        """
        return {}

    async def aclose(self) -> None:
        """Release the store's resources on the running event loop. The store may be used again."""

    @abstractmethod
    async def _run(self, call: Callable[[], T]) -> T:
        """Run a sync method of this store without blocking the event loop."""

    async def _run_write(self, call: Callable[[], T]) -> T:
        """Run a sync method that writes, and may have to wait for other writers, without blocking the event loop."""
        return await self._run(call)
