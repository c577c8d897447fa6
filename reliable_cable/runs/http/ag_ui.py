"""Translates the events of a run to the events of AG-UI, which `HttpAgent` of `@ag-ui/client` reads. It does no I/O.

See https://docs.ag-ui.com/concepts/events. The client builds a list of messages from the events. One run makes several
messages: the assistant's text with its tool calls, reasoning, and the results of tools. The id of each message consists
of the id of the run and a number. Every reader of a run gets the same ids.

The client works by these rules, which the protocol only implies:

- An event with text names the id of a message. The text is appended to this message, even if an earlier response
  began it. So a client that reads an answer again first needs a `MESSAGES_SNAPSHOT`, which replaces its messages.
- A snapshot removes the messages that it does not contain. So it contains the messages that the client has sent, too.
  A snapshot without reasoning does not remove reasoning. No snapshot changes the order of the messages that stay.
- An event with arguments names the id of a tool call. The arguments are appended to the first call with this id. So the
  id of a call must not occur twice.
- A result is inserted after the message of its call. The text after the result belongs to a new message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from reliable_cable.runs.models import Run, Status
from reliable_cable.runs.parts import REASONING

from .translating import Item, Message, Translator

#: The version of the protocol. This is the first version, which already has all events that this module uses.
VERSION: Final = "1.0"

#: The codes of errors: the run has failed, or the client may connect again to read the rest.
FAILED: Final = "failed"
INTERRUPTED: Final = "interrupted"

_TEXT: Final = "text"
#: The types of events whose content is not in a snapshot.
_NOT_IN_SNAPSHOTS: Final = ("CUSTOM", "RUN_FINISHED", "RUN_ERROR")
#: For each count of the protocol, the paths at which models report it. The first path that exists is used.
_USAGE: Final = {
    "inputTokens": ("input_tokens", "prompt_tokens"),
    "outputTokens": ("output_tokens", "completion_tokens"),
    "reasoningTokens": ("output_tokens_details.reasoning_tokens", "completion_tokens_details.reasoning_tokens"),
    "cachedInputTokens": (
        "input_tokens_details.cached_tokens",
        "prompt_tokens_details.cached_tokens",
        "cache_read_input_tokens",
    ),
    "cacheWriteInputTokens": ("cache_creation_input_tokens",),
}
#: The counts that Anthropic does not include in `input_tokens`. The protocol includes them in `inputTokens`.
_BESIDE_INPUT: Final = ("cache_read_input_tokens", "cache_creation_input_tokens")
#: The largest integer that the clients can read.
_MAX_COUNT: Final = 2**53 - 1


class AgUiEvents(Translator):
    """Translates the events of one run to events of AG-UI.

    Args:
        run: the id of the run.
        thread: the id of the thread, as the client sent it.
        messages: the messages that the client has, if it may already have read a part of the answer. The client is then
            sent a snapshot with the answer so far. None if the client has just started the run.
    """

    def __init__(self, run: str, thread: str, messages: Sequence[Message] | None = None) -> None:
        super().__init__()
        self._run = run
        self._thread = thread
        #: The messages that the client has. None after the snapshot was sent, or if no snapshot is needed.
        self._messages = messages
        #: The events that were translated before the snapshot was sent.
        self._held: list[Message] = []
        #: The number of messages in the answer.
        self._count = 0
        #: The type and the id of the message to which text or reasoning is appended.
        self._kind: str | None = None
        self._id = ""
        #: Whether the message was opened in this response, and not closed.
        self._is_open = False
        #: The id of the assistant's message that takes text and tool calls, or "".
        self._assistant = ""
        #: The ids of tool calls without a result, as they were sent to the client, by their ids in the run.
        self._pending: dict[str, str] = {}
        #: The ids of all tool calls, as they were sent to the client.
        self._calls: set[str] = set()
        #: The number of parts other than reasoning, including those that are not translated.
        self._parts = 0

    def start(self) -> Sequence[Message]:
        """Return the events with which the response begins."""
        return [{"type": "RUN_STARTED", **self._ids(), "protocolVersion": VERSION}]

    def translate(self, event: Mapping[str, Any]) -> Sequence[Message]:
        """Return the events for an event of the run. The first events contain a snapshot if the client needs one."""
        events = super().translate(event)
        if self._messages is None:
            return events
        self._held += events
        answer = build_messages(self._held)
        if not answer and not any(is_of_run(message, self._run) for message in self._messages):
            self._messages = None  # the client cannot have read a part of the answer before
            return events
        if not (answer or self.ended):
            return []  # the client keeps its messages until there is something to replace them
        snapshots = [{"type": "MESSAGES_SNAPSHOT", "messages": each} for each in self._snapshots(answer)]
        rest = [each for each in self._held if each["type"] in _NOT_IN_SNAPSHOTS]
        self._messages, self._held = None, []
        # The snapshot contains the beginning of the last message. The message must be opened again to append more text.
        self._is_open = False
        return [*snapshots, *rest]

    def _snapshots(self, answer: Sequence[Message]) -> Iterator[list[Message]]:
        """Yield one or two snapshots. They give the client the answer so far, after the messages that precede it."""
        messages = self._messages or ()
        at = next((index for index, message in enumerate(messages) if is_of_run(message, self._run)), len(messages))
        before, after = messages[:at], [message for message in messages[at:] if not is_of_run(message, self._run)]
        if answer and at < len(messages):
            # This snapshot removes all later messages, including reasoning. So the next snapshot determines the order.
            yield [*before, {"id": answer[0]["id"], "role": "reasoning", "content": ""}]
        yield [*before, *answer, *after]

    # -- content ------------------------------------------------------------------------------------------------------

    def _add(self, item: Item) -> Iterator[Message]:
        if isinstance(item, str):
            if item:
                yield from self._extend(_TEXT, item)
            return
        self._parts += item["type"] != REASONING
        match item:
            case {"type": "reasoning", "text": str(text)}:
                if text:
                    yield from self._extend(REASONING, text)
            case {"type": "tool-call", "id": str(id_), "name": str(name)}:
                yield from self._close()
                yield from self._call(id_, name, item.get("input"))
            case {"type": "tool-result", "id": str(id_)} if id_ in self._pending:
                yield from self._close()
                self._assistant = ""
                yield {
                    "type": "TOOL_CALL_RESULT",
                    "messageId": self._next_id(),
                    "toolCallId": self._pending.pop(id_),
                    "content": _text_of(item.get("output")),
                    "role": "tool",
                }
            case {"type": "source", "url": str(url)}:
                title = item.get("title")
                yield self._custom("source", {"url": url, **({"title": title} if isinstance(title, str) else {})})
            case {"type": "data", "name": str(name)} if name:
                key = {"id": item["id"]} if isinstance(item.get("id"), str) else {}
                yield self._custom("data", {"name": name, **key, "data": item.get("data")})

    def _extend(self, kind: str, text: str) -> Iterator[Message]:
        """Append to the text or the reasoning. Begin a new message if the last message is of another type."""
        if self._kind != kind:
            yield from self._close()
            self._kind = kind
            if kind == _TEXT:
                self._assistant = self._assistant or self._next_id()
                self._id = self._assistant
            else:
                self._assistant = ""
                self._id = self._next_id()
        if not self._is_open:
            self._is_open = True
            if kind == _TEXT:
                yield {"type": "TEXT_MESSAGE_START", "messageId": self._id, "role": "assistant"}
            else:
                yield {"type": "REASONING_START", "messageId": self._id}
                yield {"type": "REASONING_MESSAGE_START", "messageId": self._id, "role": "reasoning"}
        name = "TEXT_MESSAGE_CONTENT" if kind == _TEXT else "REASONING_MESSAGE_CONTENT"
        yield {"type": name, "messageId": self._id, "delta": text}

    def _call(self, id_: str, name: str, value: Any) -> Iterator[Message]:
        """Translate a tool call, whose arguments are complete."""
        sent, count = id_, 1
        while sent in self._calls:
            count += 1
            sent = f"{id_}-{count}"
        self._calls.add(sent)
        self._pending[id_] = sent
        self._assistant = self._assistant or self._next_id()
        yield {
            "type": "TOOL_CALL_START",
            "toolCallId": sent,
            "toolCallName": name,
            "parentMessageId": self._assistant,
        }
        yield {"type": "TOOL_CALL_ARGS", "toolCallId": sent, "delta": "{}" if value is None else _text_of(value)}
        yield {"type": "TOOL_CALL_END", "toolCallId": sent}

    def _close(self) -> Iterator[Message]:
        """Close the open message. The next text or reasoning opens a message."""
        if self._is_open and self._kind == _TEXT:
            yield {"type": "TEXT_MESSAGE_END", "messageId": self._id}
        elif self._is_open:
            yield {"type": "REASONING_MESSAGE_END", "messageId": self._id}
            yield {"type": "REASONING_END", "messageId": self._id}
        self._kind, self._is_open = None, False

    def _custom(self, name: str, value: Mapping[str, Any]) -> Message:
        # A client that reads the answer again recognizes the event by the number of the part.
        return {"type": "CUSTOM", "name": name, "value": value, "metadata": {"id": f"{self._run}-part-{self._parts}"}}

    def _next_id(self) -> str:
        self._count += 1
        return f"{self._run}-{self._count}"

    def _ids(self) -> Message:
        return {"threadId": self._thread, "runId": self._run}

    # -- end ----------------------------------------------------------------------------------------------------------

    def _end(self, status: str, usage: Mapping[str, Any], error: str) -> Iterator[Message]:
        self.ended = True
        yield from self._close()
        counts = _usage(usage)
        rest: dict[str, Any] = {"usage": [counts]} if counts else {}
        if status == Status.FAILED:
            yield {"type": "RUN_ERROR", "message": error, "code": FAILED, **rest}
            return
        if status == Status.STOPPED:
            rest["outcome"] = {"type": "cancelled"}
        yield {"type": "RUN_FINISHED", **self._ids(), **rest}

    def _fail(self, message: str) -> Iterator[Message]:
        self.ended = True
        yield from self._close()
        yield {"type": "RUN_ERROR", "message": message, "code": INTERRUPTED}


def _text_of(value: Any) -> str:
    """Return a JSON value as JSON text. A string is returned unchanged."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _usage(usage: Mapping[str, Any]) -> dict[str, int]:
    """Convert the token usage of a model to AG-UI's counts. Return no counts if one is too large for clients."""
    counts: dict[str, int] = {}
    for name, keys in _USAGE.items():
        found = [count for key in keys if (count := _count(usage, key)) is not None]
        if found:
            counts[name] = found[0]
    if "inputTokens" in counts:
        counts["inputTokens"] += sum(_count(usage, key) or 0 for key in _BESIDE_INPUT)
        if "outputTokens" in counts:
            counts["totalTokens"] = counts["inputTokens"] + counts["outputTokens"]
    return counts if all(count <= _MAX_COUNT for count in counts.values()) else {}


def _count(usage: Mapping[str, Any], path: str) -> int | None:
    value: Any = usage
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


# -- messages ---------------------------------------------------------------------------------------------------------


def is_of_run(message: Message, run: str) -> bool:
    """Return whether a message of a client is a part of the answer of a run.

    Args:
        message: the message, which has an `id`.
        run: the id of the run.
    """
    return str(message["id"]).startswith(f"{run}-")


def ag_ui_messages(run: Run) -> list[Message]:
    """Return the answer of a run as messages of AG-UI, for the option `initialMessages` of an agent.

    These are the messages that a client builds when it reads the run.
    """
    return build_messages(AgUiEvents(str(run.pk), "").translate(run.snapshot()))


def build_messages(events: Iterable[Message], messages: Iterable[Message] = ()) -> list[Message]:
    """Return the messages of a client that has processed events of `AgUiEvents`.

    Args:
        events: the events.
        messages: the messages that the client had before. They are not changed.
    """
    built = [dict(message) for message in messages]
    for event in events:
        match event:
            case {"type": "MESSAGES_SNAPSHOT", "messages": sent}:
                built = _apply_snapshot(built, sent)
            case {"type": "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START", "messageId": id_, "role": role}:
                if not any(message["id"] == id_ for message in built):
                    built.append({"id": id_, "role": role, "content": ""})
            case {"type": "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT", "messageId": id_, "delta": delta}:
                message = _find(built, id_)
                message["content"] = message.get("content", "") + delta
            case {"type": "TOOL_CALL_START", "parentMessageId": id_}:
                if not any(message["id"] == id_ for message in built):
                    built.append({"id": id_, "role": "assistant"})
                function = {"name": event["toolCallName"], "arguments": ""}
                call = {"id": event["toolCallId"], "type": "function", "function": function}
                message = _find(built, id_)
                message["toolCalls"] = [*message.get("toolCalls", ()), call]
            case {"type": "TOOL_CALL_ARGS", "toolCallId": id_, "delta": delta}:
                _put_arguments(built, id_, delta)
            case {"type": "TOOL_CALL_RESULT"}:
                _put_result(built, event)
    return built


def _apply_snapshot(messages: Sequence[Message], sent: Sequence[Message]) -> list[Message]:
    """Return the messages of a client after a snapshot, in the order that the client gives them."""
    by_id = {message["id"]: message for message in sent}
    has_reasoning = any(message["role"] == "reasoning" for message in sent)
    stay = [
        message
        for message in messages
        if message["id"] in by_id or (message["role"] == "reasoning" and not has_reasoning)
    ]
    ids = {message["id"] for message in stay}
    return [dict(by_id.get(message["id"], message)) for message in stay] + [
        dict(message) for message in sent if message["id"] not in ids
    ]


def _find(messages: Sequence[Message], id_: str) -> Message:
    return next(message for message in reversed(messages) if message["id"] == id_)


def _owner(messages: Sequence[Message], call: str) -> int:
    """Return the index of the message that contains a tool call."""
    return next(
        index
        for index, message in enumerate(messages)
        if any(other["id"] == call for other in message.get("toolCalls") or ())
    )


def _put_arguments(messages: list[Message], call: str, delta: str) -> None:
    message = messages[_owner(messages, call)]
    message["toolCalls"] = [
        {**other, "function": {**other["function"], "arguments": other["function"]["arguments"] + delta}}
        if other["id"] == call
        else other
        for other in message["toolCalls"]
    ]


def _put_result(messages: list[Message], event: Message) -> None:
    """Insert the result of a tool after the message that contains the call, and after the results that follow it."""
    at = _owner(messages, event["toolCallId"]) + 1
    while at < len(messages) and messages[at]["role"] == "tool":
        at += 1
    message = {"id": event["messageId"], "toolCallId": event["toolCallId"], "role": "tool", "content": event["content"]}
    messages.insert(at, message)
