"""Checks of projects that set `RPC_CONSUMER` to answer the calls of anycable-go (E009, W012, W013)."""

import dis
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, Final

from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name
from django.core.exceptions import ImproperlyConfigured

from reliable_cable.conf import NAME, CableSettings

from .valid_settings import TAG, valid_settings

#: The methods of channels that have no effect behind anycable-go, each with the reason.
_UNSUPPORTED: Final = {
    "resubscribed": "anycable-go restores a session without a call, so resubscribed() is never called",
    "snapshot": "anycable-go sends the history by itself, so snapshot() is never called",
}
_PRESENCE: Final = f"presence has no effect, because {NAME}['RPC_PRESENCE'] is off"
_AUTHORIZE: Final = "anycable-go lets every subscriber join presence, so authorize_presence() is never called"


@register(TAG)
def check_rpc_consumer(**kwargs: Any) -> list[CheckMessage]:
    """Report an `RPC_CONSUMER` that cannot be used (E009)."""
    if _rpc_settings() is None:
        return []
    from reliable_cable.connection.anycable.service import load_service

    try:
        load_service()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="reliable_cable.E009")]
    return []


@register(TAG)
def check_remote_channels(**kwargs: Any) -> list[CheckMessage]:
    """Report parts of channels that have no effect behind anycable-go (W012)."""
    settings = _rpc_settings()
    if settings is None:
        return []
    from reliable_cable.channel import registry

    return [
        Warning(
            f"{cls.__module__}.{cls.__qualname__}: {problem}.",
            hint="See the page AnyCable. If only clients without anycable-go use the channel, silence this check.",
            id="reliable_cable.W012",
        )
        for same in registry.values()
        for cls in same
        if not cls.__module__.startswith("reliable_cable.")
        for problem in _problems_of(cls, settings)
    ]


@register(TAG)
def check_remote_attributes(**kwargs: Any) -> list[CheckMessage]:
    """Report attributes that are set by `connect` of a consumer but missing in later calls of anycable-go (W013)."""
    if _rpc_settings() is None:
        return []
    from channels.consumer import AsyncConsumer

    return [
        Warning(
            f"{cls.__module__}.{cls.__qualname__}.connect sets self.{name}, which later calls of anycable-go lack, "
            "because `identified_by` does not name it.",
            hint=f"Add {name!r} to `identified_by`, or compute it in a property.",
            id="reliable_cable.W013",
        )
        for cls in _subclasses(AsyncConsumer)
        if hasattr(cls, "identified_by") and isinstance(connect := cls.__dict__.get("connect"), FunctionType)
        for name in _attributes_set_in(connect.__code__)
        if name not in (*cls.identified_by, "user")
    ]


def _rpc_settings() -> CableSettings | None:
    """Return the settings if they are valid and name an `RPC_CONSUMER`, otherwise None."""
    settings = valid_settings()
    return settings if settings is not None and settings.rpc_consumer is not None else None


def _problems_of(cls: Any, settings: CableSettings) -> Iterator[str]:
    from reliable_cable.channel import Channel

    for name, problem in _UNSUPPORTED.items():
        if getattr(cls, name) is not getattr(Channel, name):
            yield problem
    own = [base for base in cls.__mro__ if base.__module__ != Channel.__module__]
    if hasattr(cls, "authorize_presence"):
        yield _AUTHORIZE if settings.rpc_presence else _PRESENCE
    elif not settings.rpc_presence and any("presence" in _names_in(base) for base in own):
        yield _PRESENCE


def _names_in(cls: type) -> set[str]:
    """Return the names of attributes, globals and keyword arguments that the methods of a class use."""
    names: set[str] = set()
    for function in vars(cls).values():
        code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
        if isinstance(code, CodeType):
            names.update(code.co_names, _keywords_in(code))
    return names


def _keywords_in(code: CodeType) -> Iterator[str]:
    """Yield the names of the keyword arguments of the calls that a function makes."""
    before: Any = ()
    for instruction in dis.get_instructions(code):
        if instruction.opname == "KW_NAMES":  # until Python 3.12
            yield from code.co_consts[instruction.arg or 0]
        elif instruction.opname == "CALL_KW":  # since Python 3.13
            yield from before
        before = instruction.argval


def _attributes_set_in(code: CodeType) -> list[str]:
    """Return the names of the attributes that a function sets on its first argument, without repetitions."""
    if not code.co_argcount:
        return []
    names: dict[str, None] = {}
    before = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_ATTR" and before == code.co_varnames[0]:
            names[instruction.argval] = None
        before = str(instruction.argval) if instruction.opname.startswith("LOAD_FAST") else ""
    return list(names)


def _subclasses(cls: Any) -> Iterator[Any]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)
