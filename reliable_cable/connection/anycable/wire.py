"""The protobuf messages of AnyCable's service `anycable.RPC` and of gRPC's health service.

The messages are described here, so that the package has no generated code. They are in a pool of their own, so that
a project may also import generated code for them.
"""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

#: The names of the services.
RPC: Final = "anycable.RPC"
HEALTH: Final = "grpc.health.v1.Health"

#: The types of fields that are neither lists nor maps.
_TEXT: Final = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_FLAG: Final = descriptor_pb2.FieldDescriptorProto.TYPE_BOOL
_NUMBER: Final = descriptor_pb2.FieldDescriptorProto.TYPE_UINT32
_ENUM: Final = descriptor_pb2.FieldDescriptorProto.TYPE_ENUM
_MESSAGE: Final = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
#: A list of strings, and a map of strings to strings.
_TEXTS: Final = "repeated string"
_MAP: Final = "map<string, string>"

_Fields = Mapping[str, tuple[int, Any]]

#: The number and the type of each field of AnyCable's messages. A message or an enum type is given by its name.
_RPC_MESSAGES: Final[Mapping[str, _Fields]] = {
    "Env": {"url": (1, _TEXT), "headers": (2, _MAP), "cstate": (3, _MAP), "istate": (4, _MAP)},
    "EnvResponse": {"cstate": (1, _MAP), "istate": (2, _MAP)},
    "ConnectionRequest": {"env": (3, "Env")},
    "ConnectionResponse": {
        "status": (1, "Status"),
        "identifiers": (2, _TEXT),
        "transmissions": (3, _TEXTS),
        "error_msg": (4, _TEXT),
        "env": (5, "EnvResponse"),
    },
    "CommandMessage": {
        "command": (1, _TEXT),
        "identifier": (2, _TEXT),
        "connection_identifiers": (3, _TEXT),
        "data": (4, _TEXT),
        "env": (5, "Env"),
    },
    "PresenceResponse": {"type": (1, _TEXT), "id": (2, _TEXT), "info": (3, _TEXT), "ttl": (4, _NUMBER)},
    "CommandResponse": {
        "status": (1, "Status"),
        "disconnect": (2, _FLAG),
        "stop_streams": (3, _FLAG),
        "streams": (4, _TEXTS),
        "transmissions": (5, _TEXTS),
        "error_msg": (6, _TEXT),
        "env": (7, "EnvResponse"),
        "stopped_streams": (8, _TEXTS),
        "presence": (9, "PresenceResponse"),
    },
    "DisconnectRequest": {"identifiers": (1, _TEXT), "subscriptions": (2, _TEXTS), "env": (5, "Env")},
    "DisconnectResponse": {"status": (1, "Status"), "error_msg": (2, _TEXT)},
}
_RPC_STATUS: Final = {"Status": ("ERROR", "SUCCESS", "FAILURE")}

_HEALTH_MESSAGES: Final[Mapping[str, _Fields]] = {
    "HealthCheckRequest": {"service": (1, _TEXT)},
    "HealthCheckResponse": {"status": (1, "ServingStatus")},
}
_HEALTH_STATUS: Final = {"ServingStatus": ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")}


def _describe(
    package: str, messages: Mapping[str, _Fields], enums: Mapping[str, tuple[str, ...]]
) -> descriptor_pb2.FileDescriptorProto:
    """Return the description of a `.proto` file with these messages and enums. Enum values are numbered from 0."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, values in enums.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, f".{package}", field, number, kind, enums)
    return file


def _add_field(message: Any, package: str, name: str, number: int, kind: Any, enums: Mapping[str, Any]) -> None:
    field = message.field.add(name=name, number=number, label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL)
    if kind in (_TEXTS, _MAP):
        field.label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    if kind == _MAP:
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        for key, position in (("key", 1), ("value", 2)):
            entry.field.add(name=key, number=position, type=_TEXT, label=field.LABEL_OPTIONAL)
        field.type, field.type_name = _MESSAGE, f"{package}.{message.name}.{entry.name}"
    elif kind == _TEXTS:
        field.type = _TEXT
    elif isinstance(kind, str):
        field.type, field.type_name = (_ENUM if kind in enums else _MESSAGE), f"{package}.{kind}"
    else:
        field.type = kind


_pool: Final = DescriptorPool()
for _file in (
    _describe("anycable", _RPC_MESSAGES, _RPC_STATUS),
    _describe("grpc.health.v1", _HEALTH_MESSAGES, _HEALTH_STATUS),
):
    _pool.AddSerializedFile(_file.SerializeToString())


def message_class(name: str) -> Any:
    """Return the class of a message, such as `anycable.CommandMessage`."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


def as_mapping(message: Any) -> dict[str, Any]:
    """Return the fields that are set in a message."""
    fields: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return fields


def as_message(name: str, fields: Mapping[str, Any]) -> Any:
    """Return a message with these fields. The name is that of its class, such as `anycable.CommandResponse`."""
    return json_format.ParseDict(fields, message_class(name)())
