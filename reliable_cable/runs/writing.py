"""The context managers `writing` and `awriting`, in which a task writes a run, and the `Writer` that they yield."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from reliable_cable.concurrency.threads import run_store_write, sync_only

from .attempt import Attempt, begin_attempt
from .exceptions import RunFailed, RunLost, RunStopped
from .feeding import Feeder
from .inline import AsyncInlinePump, InlinePump
from .models import Run, Status
from .parts import check_part, clean_dict, clean_text
from .pump import Pump, pump

logger = logging.getLogger("reliable_cable")

#: The message that the user reads if a task raises an error other than `RunFailed`.
FAILED: Final = "Something went wrong. Please try again."


class Writer:
    """Adds content to the answer of a run. The methods do not wait: a thread broadcasts and saves the content."""

    def __init__(self, attempt: Attempt, pump: Pump | InlinePump | AsyncInlinePump) -> None:
        self._attempt = attempt
        self._pump = pump
        self._feeder: Feeder | None = None

    @property
    def run(self) -> Run:
        """The run, as it was when the attempt began."""
        return self._attempt.run

    @property
    def stopped(self) -> bool:
        """Whether the run was stopped. A task can check this while it is waiting for a slow tool."""
        return self._attempt.stopped

    def write(self, text: str) -> None:
        """Add text to the answer.

        Raises:
            RunStopped: the run was stopped. Do not catch this error: `writing` catches it, and ends the run.
            RunLost: the run no longer belongs to this writer.
            TypeError: the text is not a `str`.
        """
        if self._has_text("write", text):
            self._add(clean_text(text))

    def write_all(self, texts: Iterable[str]) -> None:
        """Add several pieces of text to the answer, such as those of an iterator.

        Each piece is added as soon as the iterator yields it.
        """
        for text in texts:
            self.write(text)

    def feed(self, event: object) -> None:
        """Add the content of an event from the client library of a language model.

        Text, reasoning, complete calls to your tools, cited web pages and usage are added. Other events are ignored.
        If the block of `writing` ends before the last answer of the model is complete, the run fails. To end the block
        early, raise `RunStopped`.

        Args:
            event: an event of the Responses API or a chunk of the Chat Completions API, as the library `openai` yields
                it; an event of the Messages API, as the library `anthropic` yields it; or a `str`.

        Raises:
            RunFailed: the model has failed, or its answer is not complete.
            TypeError: the object is not such an event.
            RunError: the run was stopped, or no longer belongs to this writer, as for `write`.
        """
        if isinstance(event, str):
            self.write(event)
            return
        self._check()
        if self._feeder is None:
            self._feeder = Feeder(self)
        self._feeder.feed(event)

    def reason(self, text: str) -> None:
        """Add text to the model's reasoning, which is not a part of the answer's text. Raises the errors of `write`."""
        if self._has_text("reason", text):
            self._add({"type": "reasoning", "text": clean_text(text)})

    def tool_call(self, id: str, name: str, input: Any) -> None:  # noqa: A002 - the names in the part
        """Add a tool call.

        Args:
            id: the id of the call, which the model has chosen.
            name: the name of the tool.
            input: the arguments of the call, as JSON values.

        Raises:
            TypeError, ValueError: the part cannot be stored (see `parts.check_part`).
            RunError: the run was stopped, or no longer belongs to this writer, as for `write`.
        """
        self.part({"type": "tool-call", "id": id, "name": name, "input": input})

    def tool_result(self, id: str, output: Any) -> None:  # noqa: A002 - the name in the part
        """Add the result of a tool call. Raises the errors of `tool_call`.

        Args:
            id: the id of the call.
            output: the result, as JSON values.
        """
        self.part({"type": "tool-result", "id": id, "output": output})

    def source(self, url: str, title: str = "") -> None:
        """Add a source that the answer cites, such as a web page. Raises the errors of `tool_call`."""
        self.part({"type": "source", "url": url, "title": title})

    def data(self, name: str, data: Any) -> None:
        """Add data that the application shows in the answer, such as a chart. Raises the errors of `tool_call`."""
        self.part({"type": "data", "name": name, "data": data})

    def part(self, part: Mapping[str, Any]) -> None:
        """Add a part of any type (see the module `parts`). Raises the errors of `tool_call`."""
        self._add(check_part(part))

    def count(self, usage: Mapping[str, Any]) -> None:
        """Record numbers that the model reports, such as its count of tokens. Later values replace earlier ones.

        Raises:
            TypeError, ValueError: the values are not JSON values.
        """
        self._attempt.usage.update(clean_dict(usage))

    def _end(self) -> None:
        if self._feeder is not None and not self._attempt.stopped:
            self._feeder.end()

    def _has_text(self, method: str, text: str) -> bool:
        """Return whether there is text to add. Empty text only makes the writer check that it may go on."""
        if not isinstance(text, str):
            raise TypeError(f"{method}() takes a str, not {type(text).__name__}.")
        if not text:
            self._check()
        return bool(text)

    def _add(self, item: str | Mapping[str, Any]) -> None:
        self._check()
        if self._attempt.coalescer.add(item):
            self._pump.wake()

    def _check(self) -> None:
        if self._attempt.lost:
            raise _lost(self._attempt)
        if self._attempt.stopped:
            raise RunStopped(f"The run {self.run.pk} was stopped.")


class InlineWriter(Writer):
    """A writer in a transaction. Its methods also broadcast and save the answer when this is due."""

    _pump: InlinePump

    @property
    def stopped(self) -> bool:
        """Whether the run was stopped."""
        self._pump.check()
        return self._attempt.stopped

    def _check(self) -> None:
        self._pump.check()
        super()._check()


@contextmanager
@sync_only("awriting")
def writing(run: uuid.UUID | str) -> Iterator[Writer]:
    """Write a queued run in a `with` block. At the end of the block, the answer is saved, and the run is completed.

    If the run is stopped, the next `write` raises `RunStopped`, which ends the block and the run without an error. Any
    other error fails the run, and is raised again. The user reads the message of a `RunFailed`. After other errors, the
    user reads only that something went wrong.

    Do not call this in a transaction, except in tests. Readers would receive the answer only after the commit.

    Args:
        run: the id of the run.

    Raises:
        Run.DoesNotExist: there is no such run.
        RunNotQueued: another task is writing the run, or the run is completed or failed. If the run was stopped before,
            the first `write` raises `RunStopped` instead.
        RunLost: at the end of the block, the run no longer belonged to this writer, or was deleted.
    """
    attempt = begin_attempt(run)
    out: Writer
    if attempt.in_transaction:
        out = InlineWriter(attempt, InlinePump(attempt))
    else:
        out = Writer(attempt, pump())
        if not attempt.stopped:
            pump().add(attempt, lambda: None)
    try:
        yield out
        out._end()
    except BaseException as error:
        pump().remove(attempt)
        attempt.end(*_outcome(error))
        if not isinstance(error, RunStopped):
            raise
    else:
        pump().remove(attempt)
        attempt.end(Status.STOPPED if attempt.stopped else Status.COMPLETED)
        if attempt.lost:
            raise _lost(attempt)


@asynccontextmanager
async def awriting(run: uuid.UUID | str) -> AsyncIterator[Writer]:
    """Async version of `writing`. If the run is stopped, the block is cancelled, even while it awaits the model."""
    attempt = await run_store_write(begin_attempt, run)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - for the type checker: async code runs in a task
    cancellation = _Cancellation(task)
    inline = AsyncInlinePump(attempt, cancellation.cancel) if attempt.in_transaction else None
    if not attempt.stopped and inline is None:
        pump().add(attempt, lambda: loop.call_soon_threadsafe(cancellation.cancel))
    out = Writer(attempt, inline or pump())
    try:
        yield out
        out._end()
    except BaseException as error:
        pump().remove(attempt)
        if inline is not None:
            inline.close()
        caught: BaseException = error
        if cancellation.end() and isinstance(error, asyncio.CancelledError) and task.uncancel() == 0:
            caught = RunLost("") if attempt.lost else RunStopped("")
        await asyncio.shield(run_store_write(attempt.end, *_outcome(caught)))
        if isinstance(caught, RunStopped):
            return
        if caught is not error:
            raise _lost(attempt) from None
        raise
    else:
        pump().remove(attempt)
        if inline is not None:
            inline.close()
        cancellation.end()
        await run_store_write(attempt.end, Status.STOPPED if attempt.stopped else Status.COMPLETED)
        if attempt.lost:
            raise _lost(attempt)


class _Cancellation:
    """Cancels the task that executes a block, at most once, and only before the block ends.

    Args:
        task: the asyncio task that executes the block.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task: asyncio.Task[Any] | None = task
        self._cancelled = False

    def cancel(self) -> None:
        """Cancel the task. Call this in the event loop of the task."""
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def end(self) -> bool:
        """Prevent later cancellations, because the block has ended. Return whether `cancel` has cancelled the task."""
        self._task = None
        return self._cancelled


def _lost(attempt: Attempt) -> RunLost:
    return RunLost(f"The run {attempt.run.pk} no longer belongs to this writer.")


def _outcome(error: BaseException) -> tuple[Status, str]:
    """Return the final status of an attempt whose block raised an error, and the message that the user reads."""
    if isinstance(error, RunStopped):
        return Status.STOPPED, ""
    return Status.FAILED, clean_text(str(error)) if isinstance(error, RunFailed) else FAILED
