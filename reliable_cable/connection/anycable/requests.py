"""The calls of anycable-go and their answers, in a form that HTTP and gRPC share.

A call is a mapping whose keys are the field names of AnyCable's service `anycable.RPC`. HTTP transports it as JSON, and
gRPC as a protobuf message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Self

from reliable_cable.exceptions import ProtocolError


class Status(IntEnum):
    """The status of an answer, with the numbers that AnyCable's service defines."""

    #: The call failed. anycable-go logs it, and the client gets no answer.
    ERROR = 0
    SUCCESS = 1
    #: The client was refused.
    FAILURE = 2


@dataclass(frozen=True, slots=True)
class Env:
    """The data about a connection that anycable-go sends with each call.

    Args:
        url: the URL of the handshake.
        headers: the headers of the handshake that anycable-go passes on (its option `--headers`), and `REMOTE_ADDR`.
        connection_state: the state that answers to earlier calls have set for the connection.
        channel_state: the state that answers to earlier calls have set for the subscription. In a `disconnect` call,
            the state of each subscription as JSON text, by identifier.
    """

    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    connection_state: Mapping[str, str] = field(default_factory=dict)
    channel_state: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Read the field `env` of a call.

        Raises:
            ProtocolError: a field has a wrong type.
        """
        env = _read_object(values, "env")
        return cls(read_text(env, "url"), *(_read_texts(env, name) for name in ("headers", "cstate", "istate")))


@dataclass(slots=True)
class Answer:
    """The answer to a call. The fields have the names of AnyCable's messages. Empty fields are left out on the wire."""

    status: Status
    error_msg: str = ""
    identifiers: str = ""
    transmissions: list[str] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)
    stopped_streams: list[str] = field(default_factory=list)
    stop_streams: bool = False
    disconnect: bool = False
    #: Changes of the connection's state and of the subscription's state. An empty value removes a key.
    cstate: dict[str, str] = field(default_factory=dict)
    istate: dict[str, str] = field(default_factory=dict)
    #: A join or leave that anycable-go applies. Versions before 1.6 ignore it.
    presence: dict[str, Any] | None = None

    def dump(self) -> dict[str, Any]:
        """Return the answer as a mapping."""
        values: dict[str, Any] = {"status": int(self.status)}
        for name in ("error_msg", "identifiers", "transmissions", "streams", "stopped_streams", "presence"):
            if value := getattr(self, name):
                values[name] = value
        for name in ("stop_streams", "disconnect"):
            if getattr(self, name):
                values[name] = True
        if env := {name: getattr(self, name) for name in ("cstate", "istate") if getattr(self, name)}:
            values["env"] = env
        return values


def read_text(values: Mapping[str, Any], name: str) -> str:
    """Return a field that is a string. A missing field and null are read as `""`.

    Raises:
        ProtocolError: the field is not a string, or contains a character that UTF-8 cannot represent.
    """
    value = values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ProtocolError(f"the field {name!r} is not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ProtocolError(f"the field {name!r} is not Unicode text") from None
    return value


def read_list(values: Mapping[str, Any], name: str) -> list[str]:
    """Return a field that is a list of strings. A missing field and null are read as an empty list.

    Raises:
        ProtocolError: the field is not a list of strings.
    """
    value = values.get(name)
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ProtocolError(f"the field {name!r} is not a list of strings")
    return list(value)


def _read_texts(values: Mapping[str, Any], name: str) -> dict[str, str]:
    value = _read_object(values, name)
    return {str(key): read_text(value, key) for key in value}


def _read_object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a field that is an object. A missing field and null are read as an empty object.

    Raises:
        ProtocolError: the field is not an object.
    """
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ProtocolError(f"the field {name!r} is not an object")
    return value
