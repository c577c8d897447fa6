"""Checks of channel classes (E002, W007)."""

from typing import Any

from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name

from .valid_settings import TAG

#: The handler of each command of a client.
HANDLERS = {"subscribe": "subscribed", "unsubscribe": "unsubscribed"}
#: The methods of channels that are called if a subclass has them.
HOOKS = (*HANDLERS.values(), "resubscribed", "before_subscribe", "before_action", "handle_error", "authorize_presence")


@register(TAG)
def check_channel_names(**kwargs: Any) -> list[CheckMessage]:
    """Report channel classes with the same name (E002)."""
    # Importing this module reads the settings. If they are invalid, E001 must be reported in place of an error here.
    from reliable_cable.channel import registry

    return [
        Error(
            f"{len(classes)} channels have the name {name!r}: "
            f"{', '.join(f'{cls.__module__}.{cls.__qualname__}' for cls in classes)}. Clients reach only the first.",
            hint="Rename a class or set its `name`. Declare a base class with `abstract=True`.",
            id="reliable_cable.E002",
        )
        for name, classes in registry.items()
        if len(classes) > 1
    ]


@register(TAG)
def check_handler_names(**kwargs: Any) -> list[CheckMessage]:
    """Report methods that seem to be handlers, but have the name of a command, so that nothing calls them (W007)."""
    from reliable_cable.channel import Channel

    return [
        Warning(
            f"{cls.__module__}.{cls.__qualname__} has a method {command!r}, but no {handler!r}. Nothing calls it.",
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
    """Report hooks of base classes that stand after `Channel`, whose own methods hide them (W007)."""
    from reliable_cable.channel import Channel

    return [
        Warning(
            f"{cls.__module__}.{cls.__qualname__} has the base {base.__qualname__} after Channel. Nothing calls "
            f"{base.__qualname__}.{hook}, because Channel.{hook} hides it.",
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
