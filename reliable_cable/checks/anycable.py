"""Checks of projects that set `RPC_CONSUMER` to answer the calls of anycable-go (E009, W012, W013, W015)."""

import dis
from collections.abc import Collection, Iterator
from itertools import pairwise
from types import CodeType, FunctionType
from typing import Any, Final

from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name
from django.core.exceptions import ImproperlyConfigured

from reliable_cable.conf import BROADCAST_ADAPTERS, NAME, CableSettings

from .valid_settings import TAG, valid_settings

#: The methods of channels that have no effect behind anycable-go, each with the reason.
_UNSUPPORTED: Final = {
    "resubscribed": "anycable-go restores a session without a call, so resubscribed() is never called",
    "snapshot": "anycable-go sends the history by itself, so snapshot() is never called",
}
_PRESENCE: Final = f"presence has no effect, because {NAME}['RPC_PRESENCE'] is off"
#: The methods of channels that start a stream.
_STARTS: Final = ("stream_from", "stream_for")
_AFTER: Final = "anycable-go sends the history by itself, so `after` of stream_from() and stream_for() has no effect"
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
def check_missing_adapter(**kwargs: Any) -> list[CheckMessage]:
    """Report an `RPC_CONSUMER` without a `BROADCAST_ADAPTER` (W015)."""
    settings = _rpc_settings()
    if settings is None or settings.broadcast_adapter is not None:
        return []
    return [
        Warning(
            f"{NAME}['RPC_CONSUMER'] is set without {NAME}['BROADCAST_ADAPTER'], so no broadcast reaches the clients "
            "that are connected to anycable-go.",
            hint=f"Set {NAME}['BROADCAST_ADAPTER'] to {', '.join(map(repr, BROADCAST_ADAPTERS[:-1]))} or "
            f"{BROADCAST_ADAPTERS[-1]!r}, and start anycable-go with the same --broadcast_adapter.",
            id="reliable_cable.W015",
        )
    ]


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
    codes = [code for base in cls.__mro__ if base.__module__ != Channel.__module__ for code in _codes_of(base)]
    if any("after" in _keywords_in(code, _STARTS) for code in codes):
        yield _AFTER
    if hasattr(cls, "authorize_presence"):
        yield _AUTHORIZE if settings.rpc_presence else _PRESENCE
    elif not settings.rpc_presence and any("presence" in (*code.co_names, *_keywords_in(code)) for code in codes):
        yield _PRESENCE


def _codes_of(cls: type) -> Iterator[CodeType]:
    """Yield the code of the methods and properties of a class, and of the functions and comprehensions in them."""
    functions = [member.fget if isinstance(member, property) else member for member in vars(cls).values()]
    codes = [getattr(getattr(function, "__wrapped__", function), "__code__", None) for function in functions]
    while codes:
        code = codes.pop(0)
        if isinstance(code, CodeType):
            yield code
            codes += code.co_consts


def _keywords_in(code: CodeType, functions: Collection[str] = ()) -> set[str]:
    """Return the names of the keyword arguments of the calls that a function makes.

    Args:
        code: the code of the function.
        functions: the names of the functions and methods whose calls count. If it is empty, all calls count.
    """
    instructions = list(dis.get_instructions(code))
    # A call and the lookup of its function begin at the same place in the source.
    places = {_start_of(each) for each in instructions if each.argval in functions}
    names: set[str] = set()
    for before, each in pairwise(instructions):
        if functions and _start_of(each) not in places:
            continue
        if each.opname == "KW_NAMES":  # until Python 3.12
            names.update(code.co_consts[each.arg or 0])
        elif each.opname == "CALL_KW":  # since Python 3.13
            names.update(before.argval)
    return names


def _start_of(instruction: dis.Instruction) -> tuple[int | None, int | None]:
    """Return the line and the column at which the source of an instruction begins."""
    positions = instruction.positions
    return (None, None) if positions is None else (positions.lineno, positions.col_offset)


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
