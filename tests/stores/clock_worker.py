"""A separate process that uses the stream `a`. Its argument is the database settings as JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main(database: dict[str, Any]) -> None:
    """Read and write the stream, and write the results to standard output as JSON."""
    from django.conf import settings

    settings.configure(
        DATABASES={"default": database}, INSTALLED_APPS=["reliable_cable"], SECRET_KEY="worker", USE_TZ=True
    )
    import django

    django.setup()

    from django.db import connections

    from reliable_cable.conf import CableSettings
    from reliable_cable.stores.streams.base import Message
    from reliable_cable.stores.streams.model import ModelStreamStore

    store = ModelStreamStore(CableSettings())
    found = {
        "host time": time.time(),
        "store time": store.time(),
        "offsets": [entry.offset for entry in store.read("a", after=0, limit=100).entries],
        "since an hour ago": store.offset_since("a", store.time() - 3600),
        "pruned": store.prune(),
    }
    store.append([("a", Message("1"))])
    connections.close_all()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
