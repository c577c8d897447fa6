"""The channel to which the readers of durable streams subscribe."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import router

from reliable_cable.channel import Channel
from reliable_cable.concurrency.threads import run_handler
from reliable_cable.namespaces import current_namespace
from reliable_cable.runs.durable_models import DurableStream

from .access import durable_streams, is_admitted


class DurableStreamChannel(Channel):
    """A channel that streams the entries of one durable stream. The parameter `id` is the id of its row.

    A user who may not read the stream is rejected, as if there were no such stream.
    """

    async def subscribed(self) -> None:
        """Stream the entries, or reject the subscription if the user may not read the stream."""
        self.stream_from(await run_handler(_readable, self.params.get("id"), self.connection.user))


def _readable(id: object, user: Any) -> str:  # noqa: A002 - the name of the parameter
    """Return the name of the stream in the store.

    Raises:
        DurableStream.DoesNotExist: there is no such stream, or the user may not read it.
    """
    rules = durable_streams()
    try:
        # A read replica may not have the row of a new stream yet.
        rows = DurableStream.objects.using(router.db_for_write(DurableStream))
        row = rows.get(pk=uuid.UUID(str(id)), namespace=current_namespace(), deleted=False)
    except ValueError:
        raise DurableStream.DoesNotExist("There is no such stream.") from None
    if rules is None or not is_admitted(rules, user) or row.expired or not rules.may_read(user, row):
        raise DurableStream.DoesNotExist("There is no such stream.")
    return row.stream
