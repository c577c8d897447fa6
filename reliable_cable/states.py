"""`state`, which declares attributes of channels. Their values are restored with the session."""

from __future__ import annotations

import copy
from typing import Any, Generic, Protocol, TypeVar, overload

T = TypeVar("T")


class HasState(Protocol):
    """The part of a channel that `state` uses."""

    #: The values of the state, by the names of the attributes; None if no attribute was used.
    _state: dict[str, Any] | None


class state(Generic[T]):  # noqa: N801 - declares an attribute, as model fields do
    """Declares an attribute of a channel, as in `count = state(default=0)`. Its value is restored with the session.

    The value must be a JSON value.
    """

    def __init__(self, *, default: T) -> None:
        self.default = default
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, channel: None, owner: type) -> state[T]: ...
    @overload
    def __get__(self, channel: HasState, owner: type) -> T: ...
    def __get__(self, channel: HasState | None, owner: type) -> state[T] | T:
        if channel is None:
            return self
        values = channel._state = channel._state or {}
        if self.name not in values:
            values[self.name] = copy.deepcopy(self.default)
        value: T = values[self.name]
        return value

    def __set__(self, channel: HasState, value: T) -> None:
        values = channel._state = channel._state or {}
        values[self.name] = value
