"""Builds the JSON texts of the frames that the server sends.

Payloads are passed as JSON texts, and are inserted without being decoded.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from .constants import ANSWER, REVOKED, CallFailure, DisconnectReason, MessageType

#: One encoder for all calls, because `json.dumps` creates a new one for each call with options.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def dumps(value: Any) -> str:
    """Encode a value as compact JSON text."""
    return _ENCODER.encode(value)


def welcome(sid: str, restored_ids: Sequence[str] | None = None) -> str:
    """Return the first message on a connection.

    Args:
        sid: the id of the new session.
        restored_ids: the identifiers of the restored subscriptions; None if no session was restored. An empty list is
            sent as well, because a client that receives no list assumes that all its subscriptions were restored.
    """
    message: dict[str, Any] = {"type": MessageType.WELCOME, "sid": sid}
    if restored_ids is not None:
        message |= {"restored": True, "restored_ids": list(restored_ids)}
    return dumps(message)


def ping(now: float) -> str:
    """Return a ping that contains the time `now`, in whole seconds since 1970."""
    return f'{{"type":"ping","message":{int(now)}}}'


def pong() -> str:
    """Return the answer to a `ping` of the client."""
    return dumps({"type": MessageType.PONG})


def acknowledgement(type_: MessageType, identifier: str) -> str:
    """Return a message that confirms or rejects a subscription or a history request."""
    return f'{{"type":"{type_}","identifier":{dumps(identifier)}}}'


def transmission(identifier: str, data: str) -> str:
    """Return a message without a position in a stream: a transmission, a whisper or a transient broadcast.

    Args:
        identifier: the identifier of the subscription.
        data: the message as JSON text.
    """
    return f'{{"identifier":{dumps(identifier)},"message":{data}}}'


def revoked(identifier: str, reason: str) -> str:
    """Return the transmission that tells a client that a subscription was revoked, see Protocol: Revocations."""
    return transmission(identifier, dumps({"type": REVOKED, "reason": reason}))


def answer(call: str, result: str) -> str:
    """Return the answer to a call, which is sent as a transmission, see Protocol: Calls.

    Args:
        call: the id of the call.
        result: the result of the action as JSON text.
    """
    return f'{{"{ANSWER}":{dumps(call)},"result":{result}}}'


def failed_answer(call: str, failure: CallFailure) -> str:
    """Return the answer to a call that has no result."""
    return dumps({ANSWER: call, "error": failure})


def broadcast_encoder(identifier: str, stream_id: str, epoch: str) -> Callable[[int, str], str]:
    """Return a function that encodes a stream's broadcasts for one subscription.

    The function takes the offset and the JSON text of a broadcast.

    Args:
        identifier: the identifier of the subscription.
        stream_id: the stream id of the stream in this subscription, see Protocol: Stream ids.
        epoch: the stream's epoch.
    """
    head = f'{{"identifier":{dumps(identifier)},"message":'
    tail = f',"stream_id":{dumps(stream_id)},"epoch":{dumps(epoch)},"offset":'

    def encode(offset: int, data: str) -> str:
        return f"{head}{data}{tail}{offset}}}"

    return encode


def presence_event(identifier: str, message: str) -> str:
    """Return a presence message for one subscription.

    Args:
        identifier: the identifier of the subscription.
        message: the JSON text from one of the `presence_…` functions below.
    """
    return f'{{"type":"presence","identifier":{dumps(identifier)},"message":{message}}}'


def presence_join(id_: str, info: Any) -> str:
    """Return the event for a member who has joined."""
    return dumps({"type": "join", "id": id_, "info": info})


def presence_leave(id_: str) -> str:
    """Return the event for a member who has left."""
    return dumps({"type": "leave", "id": id_})


def presence_info(total: int, records: Sequence[tuple[str, Any]] | None) -> str:
    """Return the answer to a `presence` command.

    Args:
        total: the number of members.
        records: the id and info of each member; None if the client requested only the number.
    """
    message: dict[str, Any] = {"type": "info", "total": total}
    if records is not None:
        message["records"] = [{"id": id_, "info": info} for id_, info in records]
    return dumps(message)


def presence_error() -> str:
    """Return the message for a client whose list of members cannot be read, or whose join was refused."""
    return dumps({"type": "error"})


def disconnect(reason: DisconnectReason, *, reconnect: bool) -> str:
    """Return a `disconnect` message, after which the client discards its session (see Protocol: Disconnects)."""
    return dumps({"type": MessageType.DISCONNECT, "reason": reason, "reconnect": reconnect})
