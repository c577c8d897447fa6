"""Finds the actions and states that a channel class declares, and checks their names."""

import inspect
from typing import Final

from .actions import ACTION
from .exceptions import ChannelError
from .states import state

#: The handlers that a subclass may define, although `Channel` does not define them.
_OPTIONAL_HOOKS: Final = frozenset({"authorize_presence"})


def declared_actions(cls: type, base: type) -> dict[str, tuple[str, bool]]:
    """Return the actions of a channel class, by their names for clients.

    Args:
        cls: the class.
        base: `Channel`. Actions and states must not replace its attributes.

    Returns:
        For each action, the name of its method, and whether the method takes the client's data.

    Raises:
        ChannelError: an action or a state replaces an attribute of `base`, or two actions have the same name.
    """
    actions: dict[str, tuple[str, bool]] = {}
    for attribute in dir(cls):
        method = inspect.getattr_static(cls, attribute, None)
        public = getattr(method, ACTION, None)
        if isinstance(method, state):
            _check_attribute(cls, base, attribute, "a state")
        elif callable(method) and public is not None:
            _check_attribute(cls, base, attribute, f"the action {public!r}")
            former, _ = actions.get(public, (attribute, False))
            if inspect.getattr_static(cls, former) is not method:
                raise ChannelError(f"{cls.__qualname__}: {former} and {attribute} are both the action {public!r}.")
            actions[public] = (attribute, len(inspect.signature(method).parameters) > 1)
    return actions


def _check_attribute(cls: type, base: type, name: str, declared: str) -> None:
    """Raise `ChannelError` if an action or a state has the name of an attribute or handler of `base`."""
    if hasattr(base, name) or name in _OPTIONAL_HOOKS:
        raise ChannelError(
            f"{cls.__qualname__}: {declared} replaces the attribute or hook {name!r} of Channel. Rename it. Clients "
            f"can still call an action {name!r} if it is marked with @action(name={name!r})."
        )
