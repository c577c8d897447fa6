"""A separate process that broadcasts like a command or a Celery worker. Its argument is JSON."""

from __future__ import annotations

import json
import sys
from typing import Any


def main(databases: dict[str, Any], alias: str, streams: list[str], count: int, on_commit: bool) -> None:
    """Broadcast `count` messages with the id of this process to each stream.

    If `on_commit` is true, every other message is broadcast in a transaction.
    """
    from django.conf import settings

    settings.configure(DATABASES=databases, INSTALLED_APPS=["reliable_cable"], SECRET_KEY="worker", USE_TZ=True)
    import django

    django.setup()
    import os

    from django.db import connections, transaction

    from reliable_cable.conf import CableSettings
    from reliable_cable.stores.streams.base import Message
    from reliable_cable.stores.streams.model import ModelStreamStore

    store = ModelStreamStore(CableSettings(database=alias, history_size=100_000))
    for number in range(count):
        for stream in streams:
            item = (stream, Message(json.dumps([os.getpid(), number])))
            if on_commit and number % 2:
                with transaction.atomic(using=alias):
                    store.append_on_commit([item], using=alias)
            else:
                store.append([item])
    connections.close_all()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
