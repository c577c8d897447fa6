"""`PerLoop`, which stores an object for each event loop."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Stores one object for each event loop, and creates the object when it is first used.

    Several threads may run event loops. The objects of closed event loops are dropped when another object is created. A
    forked child cannot get objects of its parent, because the child runs other event loops.
    """

    __slots__ = ("_objects",)

    def __init__(self) -> None:
        self._objects: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def get(self, create: Callable[[], T], is_current: Callable[[T], bool] = lambda _: True) -> T:
        """Return the object of the running event loop.

        Args:
            create: a function that creates the object if necessary.
            is_current: a function that returns whether the existing object may still be used. If it returns False, for
                example after a change of settings, a new object replaces the existing one.

        Raises:
            RuntimeError: no event loop is running.
        """
        held = self.peek()
        if held is not None and is_current(held):
            return held
        created = create()
        for reference in self._objects.keyrefs():
            # No thread runs a closed event loop. So no other thread can be using its object now.
            if (loop := reference()) is not None and loop.is_closed():
                self._objects.pop(loop, None)
        self._objects[asyncio.get_running_loop()] = created
        return created

    def peek(self) -> T | None:
        """Return the object of the running event loop, without calling `is_current`; None if there is no object."""
        return self._objects.get(asyncio.get_running_loop())

    def pop(self) -> T | None:
        """Remove the object of the running event loop, and return it; None if there is no object."""
        return self._objects.pop(asyncio.get_running_loop(), None)

    def __len__(self) -> int:
        return len(self._objects)
