"""Translates the events of a run to the UI message stream of the AI SDK, which `useChat` reads. It does no I/O.

See https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol. The stream consists of JSON objects, which are called chunks. The
client builds one message from them. The id of this message is the id of the run. So a client that reads the answer
again replaces the message, instead of adding a second one.

The client works by these rules, which the protocol only implies:

- A text or a piece of reasoning is a part with an id. It is opened, extended and closed by separate chunks.
- A result of a tool must follow the call. A result without a call makes the client fail.
- The metadata of a message has the status of the run only if the run has ended. So the client knows whether a message
  is the whole answer.
- A step ends after results of tools. Without steps, some clients request another answer to the last results.
- A tool that runs on the server is marked as executed by the provider. Without this mark, the client would run the
  tool, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from reliable_cable.runs.models import Run, Status
from reliable_cable.runs.parts import REASONING

from .translating import Item, Translator

#: A chunk of the stream, which is sent as JSON.
Chunk = dict[str, Any]

#: The line after the last chunk.
DONE: Final = b"data: [DONE]\n\n"
#: The reason why the answer ended, by the status of the run. The protocol defines the values.
_FINISH_REASONS: Final = {Status.COMPLETED: "stop", Status.STOPPED: "other", Status.FAILED: "error"}
_TEXT: Final = "text"


class UiMessages(Translator):
    """Translates the events of one run to chunks. Call `start`, then `translate` for each event until `ended`.

    Args:
        message: the id of the message that the client builds. It is the id of the run.
    """

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message
        #: The type of the part that is open: text or reasoning. None if no part is open.
        self._open: str | None = None
        self._counts: dict[str, int] = {}
        #: The ids of the tool calls that were sent.
        self._calls: set[str] = set()
        #: Whether the last part was the result of a tool.
        self._after_result = False

    def start(self) -> Sequence[Chunk]:
        """Return the chunks with which the message begins."""
        return [{"type": "start", "messageId": self._message}, {"type": "start-step"}]

    # -- content ------------------------------------------------------------------------------------------------------

    def _add(self, item: Item) -> Iterator[Chunk]:
        if isinstance(item, str):
            if item:
                yield from self._extend(_TEXT, item)
            return
        match item:
            case {"type": "reasoning", "text": str(text)}:
                if text:
                    yield from self._extend(REASONING, text)
            case {"type": "tool-call", "id": str(id_), "name": str(name)}:
                yield from self._begin_other()
                self._calls.add(id_)
                yield {
                    "type": "tool-input-available",
                    "toolCallId": id_,
                    "toolName": name,
                    "input": item.get("input"),
                    "providerExecuted": True,
                    **({"dynamic": True} if item.get("dynamic") is True else {}),
                }
            case {"type": "tool-result", "id": str(id_)} if id_ in self._calls:
                yield from self._close()
                self._after_result = True
                yield {
                    "type": "tool-output-available",
                    "toolCallId": id_,
                    "output": item.get("output"),
                    "providerExecuted": True,
                }
            case {"type": "source", "url": str(url)}:
                yield from self._begin_other()
                title = item.get("title")
                yield {
                    "type": "source-url",
                    "sourceId": self._next_id("source"),
                    "url": url,
                    **({"title": title} if title and isinstance(title, str) else {}),
                }
            case {"type": "data", "name": str(name), **rest} if name:
                yield from self._begin_other()
                key = {"id": rest["id"]} if isinstance(rest.get("id"), str) else {}
                yield {"type": f"data-{name}", **key, "data": item.get("data")}

    def _extend(self, kind: str, text: str) -> Iterator[Chunk]:
        """Extend the open text or reasoning. Open a new part if none of this type is open."""
        if self._open != kind:
            yield from self._begin_other()
            self._open = kind
            yield {"type": f"{kind}-start", "id": self._next_id(kind)}
        yield {"type": f"{kind}-delta", "id": self._id(kind), "delta": text}

    def _begin_other(self) -> Iterator[Chunk]:
        """Close the open part, and begin a step if the last part was the result of a tool."""
        yield from self._close()
        if self._after_result:
            self._after_result = False
            yield {"type": "finish-step"}
            yield {"type": "start-step"}

    def _close(self) -> Iterator[Chunk]:
        if self._open is not None:
            yield {"type": f"{self._open}-end", "id": self._id(self._open)}
            self._open = None

    def _next_id(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._id(kind)

    def _id(self, kind: str) -> str:
        return f"{kind}-{self._counts[kind]}"

    # -- end ----------------------------------------------------------------------------------------------------------

    def _end(self, status: str, usage: Mapping[str, Any], error: str) -> Iterator[Chunk]:
        metadata = {"status": str(status), **({"usage": usage} if usage else {})}
        if status == Status.FAILED:
            yield {"type": "message-metadata", "messageMetadata": metadata}
            yield from self._fail(error)
            return
        self.ended = True
        yield from self._close()
        yield {"type": "finish-step"}
        if status == Status.STOPPED:
            yield {"type": "abort", "reason": "stopped"}
        yield {"type": "finish", "finishReason": _FINISH_REASONS[Status(status)], "messageMetadata": metadata}

    def _fail(self, message: str) -> Iterator[Chunk]:
        self.ended = True
        yield from self._close()
        yield {"type": "error", "errorText": message}


def ui_message(run: Run) -> dict[str, Any]:
    """Return the answer of a run as a message of the AI SDK, for the option `messages` of `useChat`.

    It is the message that a client builds when it reads the run. If the run has ended, the metadata of the message has
    the `status` of the run.
    """
    translator = UiMessages(str(run.pk))
    return build_message([*translator.start(), *translator.translate(run.snapshot())])


def build_message(chunks: Iterable[Chunk]) -> dict[str, Any]:
    """Return the message that a client builds from chunks, as JSON values.

    Args:
        chunks: chunks that `UiMessages` has returned, from the first one.
    """
    message: dict[str, Any] = {"id": "", "role": "assistant", "parts": []}
    parts = message["parts"]
    for chunk in chunks:
        match chunk["type"].partition("-"):
            case ("start", "", ""):
                message["id"] = chunk["messageId"]
            case ("start", "-", "step"):
                parts.append({"type": "step-start"})
            case ("text" | "reasoning" as kind, "-", "start"):
                parts.append({"type": kind, "text": "", "state": "streaming"})
            case ("text" | "reasoning", "-", "delta"):
                parts[-1]["text"] += chunk["delta"]
            case ("text" | "reasoning", "-", "end"):
                parts[-1]["state"] = "done"
            case ("tool", "-", "input-available"):
                _put_call(parts, chunk)
            case ("tool", "-", "output-available"):
                call = next(part for part in reversed(parts) if part.get("toolCallId") == chunk["toolCallId"])
                call |= {"state": "output-available", "output": chunk["output"]}
            case ("source", "-", "url"):
                parts.append(chunk)
            case ("data", "-", _):
                _put_data(parts, chunk)
            case ("finish", "", "") | ("message", "-", "metadata"):
                message["metadata"] = chunk["messageMetadata"]
    return message


def _put_call(parts: list[dict[str, Any]], chunk: Chunk) -> None:
    """Add a tool call. A second call with the same id in the same step replaces the first call."""
    name = chunk["toolName"]
    own = {"type": "dynamic-tool", "toolName": name} if chunk.get("dynamic") else {"type": f"tool-{name}"}
    keys = ("toolCallId", "input", "providerExecuted")
    part = {**own, "state": "input-available", **{key: chunk[key] for key in keys}}
    for index in range(len(parts) - 1, -1, -1):
        former = parts[index]
        if former["type"] == "step-start":
            break
        is_dynamic = former["type"] == "dynamic-tool"
        if former.get("toolCallId") == chunk["toolCallId"] and is_dynamic == bool(chunk.get("dynamic")):
            parts[index] = part
            return
    parts.append(part)


def _put_data(parts: list[dict[str, Any]], chunk: Chunk) -> None:
    """Add data. Data of the same type and id replace former data."""
    for part in parts if "id" in chunk else ():
        if part["type"] == chunk["type"] and part.get("id") == chunk["id"]:
            part["data"] = chunk["data"]
            return
    parts.append(dict(chunk))
