"""A separate process that broadcasts from several threads, on a database as `startproject` configures it.

The argument is JSON with the parameters of `main`. The process prints the errors of its broadcasts as a JSON list.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any


def main(path: str, writers: int, count: int, poll: bool, sessions: bool, history_size: int, young_time: float) -> None:
    """Broadcast to the stream `a`.

    Args:
        path: the file of the SQLite database.
        writers: the number of threads.
        count: the number of broadcasts of each thread.
        poll: whether a subscriber polls at the same time.
        sessions: whether session records are written at the same time, as when many clients reconnect.
        history_size: the number of messages that the stream keeps.
        young_time: how long, in seconds, the stream keeps every message.
    """
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": path}},
        INSTALLED_APPS=["reliable_cable"],
        SECRET_KEY="stock",
        USE_TZ=True,
        RELIABLE_CABLE={"HISTORY_SIZE": history_size},
    )
    import django

    django.setup()
    from django.db import connection

    from reliable_cable import broadcast
    from reliable_cable.concurrency.threads import end_threads
    from reliable_cable.stores.streams import model_retention

    model_retention.YOUNG_TIME = young_time  # type: ignore[attr-defined]
    errors: list[str] = []

    def write(writer: int) -> None:
        for number in range(count):
            try:
                broadcast("a", [os.getpid(), writer, number])
            except Exception as error:
                errors.append(repr(error))
        connection.close()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()

    def busy() -> bool:
        return any(thread.is_alive() for thread in threads)

    asyncio.run(_meanwhile(busy, poll, sessions))
    for thread in threads:
        thread.join()
    end_threads(30)
    sys.stdout.write(json.dumps(errors))


async def _meanwhile(busy: Callable[[], bool], poll: bool, sessions: bool) -> None:
    from reliable_cable.stores.engine import get_engine
    from reliable_cable.stores.sessions.base import SessionRecord

    engine = get_engine()
    listener = engine.streams.listen(lambda event: None)
    if poll:
        await listener.subscribe("a")
    number = 0
    while busy():
        await asyncio.sleep(0.01)
        if sessions:
            number += 1
            identity: dict[str, Any] = {"user": str(number)}
            sids = [f"{os.getpid()}-{number}-{index}" for index in range(5)]
            await engine.sessions.asave({sid: SessionRecord(identity, 0.0) for sid in sids})
            assert await engine.sessions.atouch(sids) == set()
            assert await engine.sessions.aload_many([(sids[0], identity)]) != [None]
            await engine.sessions.adelete(sids)
    await listener.close()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
