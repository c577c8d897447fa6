"""Adds the streaming events of the client libraries `openai` and `anthropic` to an answer.

The libraries are not imported. Events are recognised by their attributes `type` and `object`. So the events of
compatible libraries work, too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol

from .exceptions import RunFailed

_UNDERSTOOD: Final = (
    "feed() takes a str, an event of the Responses API or a chunk of the Chat Completions API (openai), or an event of "
    "the Messages API (anthropic), as the client yields it with stream=True."
)

# The messages that the user reads if the model fails, or does not finish its answer.
_FAILED: Final = "The model could not answer. Please try again."
_BUSY: Final = "The model is busy. Please try again in a moment."
_INTERRUPTED: Final = "The answer was interrupted. Please try again."
_TOO_LONG: Final = "The answer was cut off at its maximum length."
_FILTERED: Final = "The answer was ended by a content filter."
_CONVERSATION_TOO_LONG: Final = "The conversation is too long for the model."

#: The messages by error code, or by the reason why the model stopped before its answer was complete.
_MESSAGES: Final[Mapping[str, str]] = {
    "rate_limit_exceeded": _BUSY,
    "rate_limit_error": _BUSY,
    "overloaded_error": _BUSY,
    "max_output_tokens": _TOO_LONG,
    "max_tokens": _TOO_LONG,
    "length": _TOO_LONG,
    "content_filter": _FILTERED,
    "refusal": _FILTERED,
    "context_length_exceeded": _CONVERSATION_TOO_LONG,
    "model_context_window_exceeded": _CONVERSATION_TOO_LONG,
}


class Output(Protocol):
    """The methods that a `Feeder` calls to add to an answer. `Writer` has them."""

    def write(self, text: str) -> None: ...
    def reason(self, text: str) -> None: ...
    def tool_call(self, id: str, name: str, input: Any) -> None: ...  # noqa: A002
    def source(self, url: str, title: str = "") -> None: ...
    def count(self, usage: Mapping[str, Any]) -> None: ...


@dataclass(slots=True)
class _Call:
    """A tool call whose arguments arrive in pieces."""

    index: int
    id: str
    name: str
    pieces: list[str] = field(default_factory=list)


class Feeder:
    """Adds the content of events to an output. It accepts the events of several answers, one answer after another.

    Args:
        out: receives the content, usually a `Writer`.
    """

    def __init__(self, out: Output) -> None:
        self._out = out
        self._calls: list[_Call] = []
        #: The id of the answer in the last chunk of the Chat Completions API.
        self._chat = ""
        #: Whether the last answer has begun, but has not ended.
        self._unfinished = False
        #: Whether the last answer has added something to the output.
        self._has_content = False
        #: The reason why the last answer is not complete. The run does not fail at once, because a chunk with the usage
        #: may follow.
        self._cut_off: str | None = None
        self._usage: dict[str, Any] = {}
        self._former_usage: dict[str, Any] = {}

    def feed(self, event: Any) -> None:
        """Add the content of an event to the output. Events of unknown types are ignored.

        Raises:
            RunFailed: the event reports an error, or an answer that will stay incomplete.
            TypeError: the object is not an event of one of the libraries.
        """
        type_ = getattr(event, "type", None)
        if not isinstance(type_, str):
            # The first chunk of a stream from Azure has an empty `object`.
            if getattr(event, "object", None) not in ("chat.completion.chunk", "") or not hasattr(event, "choices"):
                raise TypeError(f"{_UNDERSTOOD} This is of the type {type(event).__name__}.")
            self._chunk(event)
        elif type_.startswith("response."):
            self._response(type_, event)
        elif type_.startswith(("message_", "content_block_")):
            self._message(type_, event)
        elif type_ == "error":
            error = getattr(event, "error", None) or event
            self._fail(getattr(error, "code", None) or error.type, error.message)
        elif not _is_event(type(event)):
            raise TypeError(f"{_UNDERSTOOD} This is of the type {type(event).__name__}.")
        elif type_ == "chunk":  # an event of `chat.completions.stream()`, which contains a chunk
            self._chunk(event.chunk)

    def end(self) -> None:
        """Check that the last answer is complete. Call this after the last event.

        Raises:
            RunFailed: the answer is not complete, for example because the connection ended early.
        """
        if self._cut_off is not None:
            self._fail(self._cut_off)
        if self._unfinished:
            raise RunFailed(_INTERRUPTED)

    def _response(self, type_: str, event: Any) -> None:
        """Add the content of an event of OpenAI's Responses API."""
        match type_.removeprefix("response."):
            case "created":
                self._begin()
            case "output_text.delta" | "refusal.delta":
                self._answer.write(event.delta)
            case "reasoning_text.delta" | "reasoning_summary_text.delta":
                self._answer.reason(event.delta)
            case "reasoning_summary_part.added" if event.summary_index:
                self._answer.reason("\n\n")
            case "output_text.annotation.added":
                self._cite(event.annotation)
            case "output_item.done" if event.item.type == "function_call" and event.item.status != "incomplete":
                self._call(_Call(0, event.item.call_id, event.item.name, [event.item.arguments]))
            case "output_item.done" if event.item.type == "custom_tool_call":
                self._answer.tool_call(event.item.call_id, event.item.name, event.item.input)
            case "completed" | "incomplete" | "failed":
                self._unfinished = False
                self._count(event.response.usage)
                if cause := event.response.error or event.response.incomplete_details:
                    self._fail(getattr(cause, "code", None) or cause.reason, getattr(cause, "message", ""))

    def _chunk(self, chunk: Any) -> None:
        """Add the content of a chunk of OpenAI's Chat Completions API."""
        if chunk.id and chunk.id != self._chat:
            self._chat = chunk.id
            # Some servers give each chunk a different id. Only the first chunk of an answer has a role.
            if not self._unfinished or any(getattr(choice.delta, "role", None) for choice in chunk.choices):
                self._begin()
        for choice in chunk.choices:
            if choice.index == 0:
                self._delta(choice.delta)
                if choice.finish_reason:
                    self._finish(choice.finish_reason)
        self._count(getattr(chunk, "usage", None))

    def _delta(self, delta: Any) -> None:
        # OpenAI's API has no reasoning here. Servers with a compatible API stream it under one of these names.
        reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
        if isinstance(reasoning, str):
            self._answer.reason(reasoning)
        if text := getattr(delta, "content", None) or getattr(delta, "refusal", None):
            self._answer.write(text)
        for piece in getattr(delta, "tool_calls", None) or ():
            call = self._open_call(piece.index)
            if call is None or piece.id not in ("", None, call.id):
                call = _Call(piece.index, piece.id, piece.function.name)
                self._calls.append(call)
            call.pieces.append(piece.function.arguments or "")

    def _finish(self, reason: str) -> None:
        self._unfinished = False
        if reason in _MESSAGES:
            self._cut_off = reason
        else:
            for call in self._calls:
                self._call(call)
        self._calls.clear()

    def _message(self, type_: str, event: Any) -> None:
        """Add the content of an event of Anthropic's Messages API."""
        match type_:
            case "message_start":
                self._begin()
                self._count(event.message.usage)
            case "content_block_start" if event.content_block.type == "tool_use":
                self._calls.append(_Call(event.index, event.content_block.id, event.content_block.name))
            case "content_block_delta":
                self._block_delta(event.index, event.delta)
            case "content_block_stop":
                if call := self._open_call(event.index):
                    self._calls.remove(call)
                    self._call(call)
            case "message_delta":
                self._count(event.usage)
                if event.delta.stop_reason in _MESSAGES:
                    self._fail(event.delta.stop_reason)
            case "message_stop":
                self._unfinished = False

    def _block_delta(self, index: int, delta: Any) -> None:
        match delta.type:
            case "text_delta":
                self._answer.write(delta.text)
            case "thinking_delta":
                self._answer.reason(delta.thinking)
            case "citations_delta":
                self._cite(delta.citation)
            case "input_json_delta":
                if call := self._open_call(index):
                    call.pieces.append(delta.partial_json)

    def _begin(self) -> None:
        """Begin the next answer. Fail if the previous one has content but no end, because content cannot be removed."""
        if self._cut_off is not None:
            self._fail(self._cut_off)
        if self._unfinished and self._has_content:
            self._unfinished = False
            failure = RunFailed(_INTERRUPTED)
            failure.add_note("The next answer has begun before the previous one was fed to its end.")
            raise failure
        self._unfinished, self._has_content = True, False
        self._calls.clear()
        self._former_usage, self._usage = _sum(self._former_usage, self._usage), {}

    def _fail(self, code: str, detail: str = "") -> NoReturn:
        """Raise `RunFailed` with the message for a code, and with the server's description as a note for developers.

        Args:
            code: the error code, or the reason why the model stopped.
            detail: the description that the server sent.
        """
        self._unfinished, self._cut_off = False, None
        failure = RunFailed(_MESSAGES.get(code, _FAILED))
        failure.add_note(f"The model's server reported {code}{detail and ': '}{detail}")
        raise failure

    def _count(self, usage: Any) -> None:
        """Record the total usage: that of the current answer so far, plus that of the answers before it."""
        if usage is not None:
            self._usage |= usage.model_dump(mode="json", exclude_none=True, warnings=False)
            self._out.count(_sum(self._former_usage, self._usage))

    @property
    def _answer(self) -> Output:
        """The output. Each access records that the last answer has content."""
        self._has_content = True
        return self._out

    def _open_call(self, index: int) -> _Call | None:
        return next((call for call in reversed(self._calls) if call.index == index), None)

    def _call(self, call: _Call) -> None:
        arguments = "".join(call.pieces)
        try:
            self._answer.tool_call(call.id, call.name, json.loads(arguments or "{}"))
        except (ValueError, RecursionError):
            # A model may write invalid JSON. In this case, the text is stored unchanged.
            self._answer.tool_call(call.id, call.name, arguments)

    def _cite(self, citation: Any) -> None:
        # In version 2 of `openai`, an annotation is a dict.
        values = citation if isinstance(citation, dict) else vars(citation)
        if url := values.get("url"):
            self._answer.source(url, values.get("title") or "")


def _is_event(cls: type) -> bool:
    """Return whether a class is an event class of one of the libraries, and not another class, such as a message."""
    return cls.__module__.partition(".")[0] in ("openai", "anthropic") and "Event" in cls.__name__


def _sum(former: Mapping[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sum of two usages. Numbers are added, even inside nested dicts. Other values come from `usage`."""
    total = {**former, **usage}
    for name in former.keys() & usage.keys():
        if isinstance(former[name], dict) and isinstance(usage[name], dict):
            total[name] = _sum(former[name], usage[name])
        elif isinstance(former[name], int | float) and isinstance(usage[name], int | float):
            total[name] = former[name] + usage[name]
    return total
