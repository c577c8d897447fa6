"""Turns the reply of a handler into the fields of an answer, which anycable-go applies."""

import json
from collections.abc import Mapping
from typing import Any, Final

from reliable_cable.channel import Channel
from reliable_cable.client_log import ClientLog
from reliable_cable.conf import NAME, get_settings
from reliable_cable.protocol import messages
from reliable_cable.reply import PresenceJoin, Reply, StreamStart

from .requests import Answer

#: The keys of a subscription's state with which anycable-go finds the streams for whispers and for presence.
WHISPER_STREAM: Final = "$w"
PRESENCE_STREAM: Final = "$p"

_presence_log: Final = ClientLog("presence through anycable-go")


def load_state(channel: Channel, state: Mapping[str, str]) -> None:
    """Set the state of a channel to the values that anycable-go has kept.

    Values that are not JSON, and keys with the prefix `$`, are left out.
    """
    values = {}
    for name, text in state.items():
        if not name.startswith("$"):
            try:
                values[name] = json.loads(text)
            except (ValueError, RecursionError):
                continue
    channel.load_state(values)


def add_reply(answer: Answer, channel: Channel, reply: Reply, state: Mapping[str, str]) -> None:
    """Add the messages and changes of a reply to an answer.

    Args:
        answer: the answer to the call.
        channel: the channel, after its handler has returned.
        reply: the reply of the handler, which does not reject the subscription.
        state: the state that anycable-go has sent for the subscription, with the call.
    """
    answer.transmissions += [messages.transmission(channel.identifier, text) for text in reply.transmissions]
    _add_streams(answer, reply, state)
    new = {name: messages.dumps(value) for name, value in channel.dump_state().items()}
    answer.istate |= {name: text for name, text in new.items() if state.get(name) != text}
    # anycable-go removes a key if its new value is empty.
    answer.istate |= {name: "" for name in state if not name.startswith("$") and name not in new}
    if reply.presence:
        _add_presence(answer, channel, reply)


def _add_streams(answer: Answer, reply: Reply, state: Mapping[str, str]) -> None:
    """Add the streams to start and to stop. anycable-go stops streams before it starts any."""
    started: dict[str, StreamStart] = {}
    stopped: dict[str, None] = {}
    for operation in reply.streams:
        if isinstance(operation, StreamStart):
            started[operation.name] = operation
        elif operation.name is None:
            answer.stop_streams = True
            started.clear()
        else:
            started.pop(operation.name, None)
            stopped[operation.name] = None
    answer.streams, answer.stopped_streams = list(started), list(stopped)
    whisper = next((name for name, start in started.items() if start.whisper), None)
    marked = next((name for name, start in started.items() if start.presence), None)
    chosen = {WHISPER_STREAM: whisper, PRESENCE_STREAM: marked}
    if PRESENCE_STREAM not in state and marked is None:
        chosen[PRESENCE_STREAM] = next(iter(started), None)
    if not get_settings().rpc_presence:
        del chosen[PRESENCE_STREAM]
    for key, name in chosen.items():
        known = state.get(key)
        is_known_ended = answer.stop_streams or known in stopped
        if name is not None and (not known or is_known_ended or key == PRESENCE_STREAM):
            answer.istate[key] = name
        elif known and is_known_ended and known not in started:
            answer.istate[key] = ""


def _add_presence(answer: Answer, channel: Channel, reply: Reply) -> None:
    if not get_settings().rpc_presence:
        _presence_log.warning(
            "%s: presence.join() and presence.leave() have no effect through anycable-go, because %s['RPC_PRESENCE'] "
            "is off. Set it if anycable-go has the version 1.6 or later.",
            type(channel).__name__,
            NAME,
        )
        return
    last: Any = reply.presence[-1]
    if isinstance(last, PresenceJoin):
        answer.presence = {"type": "join", "id": last.id, "info": messages.dumps(last.info)}
    else:
        answer.presence = {"type": "leave"}
