"""A separate process that ends an epoch and appends a message. Its arguments are a file, a stream and an epoch."""

from __future__ import annotations

import json
import sys


def main(path: str, stream: str, epoch: str) -> None:
    """Write "ready", and wait for a line on standard input. Then end the epoch, and append a message.

    Write the position of the message to standard output.
    """
    from django.conf import settings

    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": path,
                "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
            }
        },
        INSTALLED_APPS=["reliable_cable"],
        SECRET_KEY="worker",
        USE_TZ=True,
    )
    import django

    django.setup()

    from django.db import connections

    from reliable_cable.conf import CableSettings
    from reliable_cable.stores.streams.base import Message
    from reliable_cable.stores.streams.model import ModelStreamStore

    store = ModelStreamStore(CableSettings())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    store.forget(stream, epoch=epoch)
    (position,) = store.append([(stream, Message("1"))])
    sys.stdout.write(json.dumps([position.epoch, position.offset]))
    connections.close_all()


if __name__ == "__main__":
    main(*sys.argv[1:])
