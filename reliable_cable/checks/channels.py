"""Checks of channel classes (E002, W007)."""

from typing import Any

from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name

from .valid_settings import TAG

#: The handlers of `Channel`, by the name of the client's command. A developer may confuse the two names.
HANDLERS = {"subscribe": "subscribed", "unsubscribe": "unsubscribed"}
#: The methods of `Channel` that `check_order_of_bases` looks for in base classes.
HOOKS = (
    *HANDLERS.values(),
    "resubscribed",
    "before_subscribe",
    "before_action",
    "handle_error",
    "authorize_presence",
    "snapshot",
)


@register(TAG)
def check_channel_names(**kwargs: Any) -> list[CheckMessage]:
    """Report channel classes with the same name (E002)."""
    # The import reads the settings, and fails if they are invalid. At the top of the module, it would prevent the
    # report of E001.
    from reliable_cable.channel import registry

    return [
        Error(
            f"{len(classes)} channels have the name {name!r}: "
            f"{', '.join(f'{cls.__module__}.{cls.__qualname__}' for cls in classes)}. Clients can only subscribe to "
            "the first.",
            hint="Rename a class or set its `name`. Declare a base class with `abstract=True`.",
            id="reliable_cable.E002",
        )
        for name, classes in registry.items()
        if len(classes) > 1
    ]


@register(TAG)
def check_handler_names(**kwargs: Any) -> list[CheckMessage]:
    """Report methods named after a command, such as `subscribe` (W007). Only the handler `subscribed` is called."""
    from reliable_cable.channel import Channel

    return [
        Warning(
            f"{cls.__module__}.{cls.__qualname__} has a method {command!r}, which is never called, and no {handler!r}.",
            hint=f"Rename {command!r} to {handler!r}.",
            id="reliable_cable.W007",
        )
        for cls in _channel_classes()
        for command, handler in HANDLERS.items()
        if callable(getattr(cls, command, None))
        and command not in cls.action_names()
        and getattr(cls, handler) is getattr(Channel, handler)
    ]


@register(TAG)
def check_order_of_bases(**kwargs: Any) -> list[CheckMessage]:
    """Report handlers of a base class that are never called, because the base comes after `Channel` (W007)."""
    from reliable_cable.channel import Channel

    return [
        Warning(
            f"{cls.__module__}.{cls.__qualname__} has the base {base.__qualname__} after Channel. So "
            f"{base.__qualname__}.{hook} is never called, because Channel.{hook} overrides it.",
            hint=f"Write the base first: class {cls.__name__}({base.__name__}, Channel).",
            id="reliable_cable.W007",
        )
        for cls in _channel_classes()
        for base in cls.__mro__[cls.__mro__.index(Channel) + 1 :]
        for hook in HOOKS
        if hook in vars(base) and getattr(cls, hook) is getattr(Channel, hook, None)
    ]


def _channel_classes() -> list[Any]:
    """Return the channel classes that clients can subscribe to."""
    from reliable_cable.channel import registry

    return [cls for same in registry.values() for cls in same]
