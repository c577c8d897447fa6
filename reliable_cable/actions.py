"""The decorator `action`, which marks the methods of a channel that clients may call."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])

#: The attribute of a decorated method that contains the name by which clients call the action.
ACTION: Final = "_cable_action"


@overload
def action(method: F, /) -> F: ...
@overload
def action(*, name: str) -> Callable[[F], F]: ...
def action(method: F | None = None, /, *, name: str = "") -> F | Callable[[F], F]:
    """Allow clients to call a method of a channel, and to receive its return value.

    Args:
        method: a sync or async method. It is called with the client's data as a dict, or without arguments if it has
            no parameter. Its name must differ from the names of all attributes and handlers of `Channel`.
        name: the name by which clients call the action. The default is the method's name.
    """

    def mark(target: F) -> F:
        setattr(target, ACTION, name or target.__name__)
        return target

    return mark if method is None else mark(method)
