"""The decorator of actions: the methods of a channel that clients may call."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])

#: The attribute of a method that has the name by which clients call it.
ACTION: Final = "_cable_action"


@overload
def action(method: F, /) -> F: ...
@overload
def action(*, name: str) -> Callable[[F], F]: ...
def action(method: F | None = None, /, *, name: str = "") -> F | Callable[[F], F]:
    """Allow clients to call a method of a channel, and to get what it returns.

    Args:
        method: the method, sync or async. It takes the dict of data that the client sends, or no argument. Its
            name must differ from the names of the attributes and hooks of `Channel`.
        name: the name that clients use. The default is the method's name.
    """

    def mark(target: F) -> F:
        setattr(target, ACTION, name or target.__name__)
        return target

    return mark if method is None else mark(method)
