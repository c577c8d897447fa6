"""The assistant: a background task writes an answer and broadcasts it piece by piece.

The task does not depend on a connection, so an answer continues while the user is offline. The task broadcasts these
events to the user's stream, each with an `answer_id`:

    {"type": "started", "prompt": …}
    {"type": "chunk", "index": 0, "text": …}
    {"type": "complete", "chunks": 12, "status": "complete" | "stopped"}
    {"type": "error", "message": …}
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from typing import Any

from channels.db import database_sync_to_async
from django.contrib.auth.models import User
from django.utils import timezone

from reliable_cable import abroadcast

from . import background
from .generators import GeneratorError, get_generator
from .models import Answer

logger = logging.getLogger(__name__)

#: The interval, in seconds, at which a running answer is saved.
SAVE_INTERVAL = 0.5
#: How long, in seconds, a running answer may go without a save before its task counts as dead.
DEAD_AFTER = 10.0
#: The longest time, in seconds, that an answer may take.
TIME_LIMIT = 120.0

SERVER_STOPPED = "The server stopped while it was answering."


def stream_of(user: User) -> str:
    """Return the name of the stream to which a user's answers are broadcast."""
    return f"assistant:{user.pk}"


async def ask(user: User, prompt: str) -> bool:
    """Start an answer. Return False if another answer to this user is still being written."""
    answer = await database_sync_to_async(_create)(user, prompt)
    if answer is None:
        return False
    await background.start(write, answer.pk)
    return True


async def stop(user: User, answer_id: Any) -> None:
    """Stop an answer. Its task may run in another process. The task detects the stop when it next saves the answer."""
    await fail_if_dead(user, answer_id)
    await database_sync_to_async(_request_stop)(user, answer_id)


async def fail_if_dead(user: User, answer_id: Any) -> None:
    """If the task of an answer is dead, mark the answer as failed, and broadcast the error."""
    if await database_sync_to_async(_fail_dead)(user, answer_id):
        await abroadcast(stream_of(user), _error(answer_id, SERVER_STOPPED))


async def write(answer_id: int) -> None:
    """Write an answer: broadcast its pieces, and save the text and the status, even after an error."""
    answer = await database_sync_to_async(_unless_failed)(answer_id)
    if answer is None:
        return
    stream = stream_of(answer.user)
    chunks: list[str] = []
    status, error = Answer.Status.COMPLETE, ""
    await abroadcast(stream, {"type": "started", "answer_id": answer.pk, "prompt": answer.prompt})
    try:
        async with asyncio.timeout(TIME_LIMIT):
            if not await _write_chunks(answer, stream, chunks):
                status = Answer.Status.STOPPED
    except TimeoutError:
        status, error = Answer.Status.ERROR, "The answer took too long."
    except GeneratorError as failure:
        status, error = Answer.Status.ERROR, str(failure)
    except Exception:
        logger.exception("The assistant failed.")
        status, error = Answer.Status.ERROR, "Something went wrong."
    await database_sync_to_async(_finish)(answer, "".join(chunks), status, error)
    if status == Answer.Status.ERROR:
        await abroadcast(stream, _error(answer.pk, error))
    else:
        await abroadcast(
            stream, {"type": "complete", "answer_id": answer.pk, "chunks": len(chunks), "status": str(status)}
        )


async def _write_chunks(answer: Answer, stream: str, chunks: list[str]) -> bool:
    """Broadcast each piece of an answer, and save the text regularly. Return False if the answer was stopped.

    Args:
        answer: the answer to write.
        stream: the name of the stream.
        chunks: the list to which each piece is appended after its broadcast.
    """
    pieces = aiter(get_generator().generate(answer.prompt))
    piece = asyncio.ensure_future(anext(pieces, None))
    saved = time.monotonic()
    try:
        while True:
            # A model may take long for a piece. The saves meanwhile show that this task is alive, and detect a stop.
            await asyncio.wait([piece], timeout=SAVE_INTERVAL)
            if time.monotonic() - saved >= SAVE_INTERVAL:
                if not await database_sync_to_async(_save)(answer, "".join(chunks)):
                    return False
                saved = time.monotonic()
            if piece.done():
                text = piece.result()
                if text is None:
                    return True
                await abroadcast(stream, {"type": "chunk", "answer_id": answer.pk, "index": len(chunks), "text": text})
                chunks.append(text)
                piece = asyncio.ensure_future(anext(pieces, None))
    finally:
        piece.cancel()


def _error(answer_id: int, message: str) -> dict[str, Any]:
    return {"type": "error", "answer_id": answer_id, "message": message}


def _running(user: User) -> Any:
    return Answer.objects.filter(user=user, status=Answer.Status.RUNNING)


def _create(user: User, prompt: str) -> Answer | None:
    alive = timezone.now() - timedelta(seconds=DEAD_AFTER)
    if _running(user).filter(updated__gte=alive).exists():
        return None
    return Answer.objects.create(user=user, prompt=prompt)


def _unless_failed(answer_id: int) -> Answer | None:
    """Return an answer with its user; None if it was marked as failed before its task started."""
    return Answer.objects.select_related("user").exclude(status=Answer.Status.ERROR).filter(pk=answer_id).first()


def _save(answer: Answer, text: str) -> bool:
    """Save the text of a running answer. Return False if the answer was stopped."""
    return bool(
        Answer.objects.filter(pk=answer.pk, status=Answer.Status.RUNNING).update(text=text, updated=timezone.now())
    )


def _finish(answer: Answer, text: str, status: str, error: str) -> None:
    Answer.objects.filter(pk=answer.pk).update(text=text, status=status, error=error, updated=timezone.now())


def _request_stop(user: User, answer_id: Any) -> None:
    if isinstance(answer_id, int):
        _running(user).filter(pk=answer_id).update(status=Answer.Status.STOPPED)


def _fail_dead(user: User, answer_id: Any) -> bool:
    if not isinstance(answer_id, int):
        return False
    dead = timezone.now() - timedelta(seconds=DEAD_AFTER)
    ended = _running(user).filter(pk=answer_id, updated__lt=dead)
    return bool(ended.update(status=Answer.Status.ERROR, error=SERVER_STOPPED))
