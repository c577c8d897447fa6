"""What servers send (PROTOCOL.md, Server to client). Payloads come as JSON text and are never encoded again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from .constants import DisconnectReason, MessageType

#: Made once: `json.dumps` makes a new one for each call that has options.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def dumps(value: Any) -> str:
    """Return compact JSON text."""
    return _ENCODER.encode(value)


def welcome(sid: str, restored_ids: Sequence[str] | None = None) -> str:
    """Greet a client; `restored_ids` where a session was restored, also when empty (6)."""
    message: dict[str, Any] = {"type": MessageType.WELCOME, "sid": sid}
    if restored_ids is not None:
        message |= {"restored": True, "restored_ids": list(restored_ids)}
    return dumps(message)


def ping(now: float) -> str:
    """A heartbeat with the server's time in whole seconds."""
    return f'{{"type":"ping","message":{int(now)}}}'


def pong() -> str:
    """The answer to a client's ping."""
    return dumps({"type": MessageType.PONG})


def acknowledgement(type_: MessageType, identifier: str) -> str:
    """`confirm_…` or `reject_…` for an identifier."""
    return f'{{"type":"{type_}","identifier":{dumps(identifier)}}}'


def transmission(identifier: str, data: str) -> str:
    """A message without a position; `data` is JSON text."""
    return f'{{"identifier":{dumps(identifier)},"message":{data}}}'


def broadcast_encoder(identifier: str, stream_id: str, epoch: str) -> Callable[[int, str], str]:
    """Return what encodes a stream's numbered messages for an identifier, from offset and JSON text."""
    head = f'{{"identifier":{dumps(identifier)},"message":'
    tail = f',"stream_id":{dumps(stream_id)},"epoch":{dumps(epoch)},"offset":'

    def encode(offset: int, data: str) -> str:
        return f"{head}{data}{tail}{offset}}}"

    return encode


def presence_event(identifier: str, message: str) -> str:
    """A presence message; `message` is JSON text made by one of the functions below."""
    return f'{{"type":"presence","identifier":{dumps(identifier)},"message":{message}}}'


def presence_join(id_: str, info: Any) -> str:
    """Someone came."""
    return dumps({"type": "join", "id": id_, "info": info})


def presence_leave(id_: str) -> str:
    """Someone left."""
    return dumps({"type": "leave", "id": id_})


def presence_info(total: int, records: Sequence[tuple[str, Any]] | None) -> str:
    """Who is there, or only how many."""
    message: dict[str, Any] = {"type": "info", "total": total}
    if records is not None:
        message["records"] = [{"id": id_, "info": info} for id_, info in records]
    return dumps(message)


def presence_error() -> str:
    """Who is there cannot be said."""
    return dumps({"type": "error"})


def disconnect(reason: DisconnectReason, *, reconnect: bool) -> str:
    """The last words on a connection whose session must not be resumed (12)."""
    return dumps({"type": MessageType.DISCONNECT, "reason": reason, "reconnect": reconnect})
