"""Reads pages of entries for the model store. Streams share the queries for their rows, but not for their entries."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from django.db.models import OuterRef, QuerySet, RowRange, Subquery, Sum, Window
from django.db.models.functions import Coalesce, Length

from reliable_cable import models
from reliable_cable.conf import CableSettings
from reliable_cable.protocol.recovery import Entry, StreamPage
from reliable_cable.stores.database.database import Database
from reliable_cable.stores.database.server import DatabaseServer

from .model_lineage import Lineages
from .model_retention import EXISTS

#: The maximum number of attempts to read a page. A page is read again if entries are missing, because the stream may
#: have changed between the queries: entries were trimmed, a backup was restored, or a standby that lacks the newest
#: messages was promoted.
READ_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for a page of entries. It has the arguments of `StreamStore.read`, except for `known`."""

    stream: str
    after: int
    limit: int
    max_size: int | None
    following: bool


@dataclass(frozen=True, slots=True)
class _MissingStream:
    """Stands in for the row of a stream that does not exist. The stream is read like one whose epoch has ended.

    Args:
        present: the id of the database's current data set (the lineage).
        ended: whether the epoch has ended, which is always True.
    """

    present: str
    ended: bool = True


class PageReader:
    """Reads pages of entries.

    Args:
        database: the database with the streams.
        settings: the settings; the history settings of the streams are used.
        server: the server of the database, which reports the time and the current lineage.
        lineages: the lineages that the database has had.
    """

    def __init__(self, database: Database, settings: CableSettings, server: DatabaseServer, lineages: Lineages) -> None:
        self._database = database
        self._settings = settings
        self._server = server
        self._lineages = lineages

    def read(self, requests: Sequence[PageRequest]) -> list[StreamPage]:
        """Return a page for each request. The rows of all streams are read together, then the entries of each stream.

        Raises:
            StoreError: the database could not be read.
        """
        names = f"The stream {requests[0].stream!r}" if len(requests) == 1 else f"{len(requests)} streams"
        with self._database.store_errors(f"{names} cannot be read"):
            rows = self._rows(requests)
            return [self._page(request, rows) for request in requests]

    def _page(self, request: PageRequest, rows: Mapping[str, Any]) -> StreamPage:
        """Return the page for a request. If entries are missing, read the stream's row and its entries again."""
        for attempt in range(READ_ATTEMPTS):
            if attempt:
                rows = self._rows([request])
            page = self._entries_after(request, rows[request.stream])
            start = max(request.after + 1, page.low)
            expected: Sequence[int] = range(start, page.tail + 1)[: max(request.limit, 0)]
            if request.max_size is not None and sum(len(entry.data) for entry in page.entries) > request.max_size:
                expected = expected[: len(page.entries)]
            if len(page.entries) == len(expected) and (not expected or page.entries[-1].offset == expected[-1]):
                return page
        # Entries were trimmed during the last attempt, or were deleted by hand. The page begins with the oldest entry
        # that was found.
        first = page.entries[0].offset if page.entries else page.tail + 1
        return page if first == start else replace(page, low=first)

    def _rows(self, requests: Sequence[PageRequest]) -> dict[str, Any]:
        """Return the rows of the requested streams, by the name of the stream."""
        by_ttl: dict[float, set[str]] = defaultdict(set)
        for request in requests:
            by_ttl[self._settings.policy(request.stream).history_ttl].add(request.stream)
        rows: dict[str, Any] = {}
        for ttl, names in by_ttl.items():
            alive = self.entries(OuterRef("pk")).filter(created__gt=self._server.ago(ttl))
            oldest = Subquery(alive.order_by("created", "offset").values("offset")[:1])
            streams = self._database.rows(models.Stream).filter(EXISTS, name__in=names)
            for row in streams.annotate(oldest=oldest, ended=self._lineages.ended(), present=self._server.lineage()):
                rows[row.name] = row
        missing = {request.stream for request in requests} - rows.keys()
        if missing:
            rows |= dict.fromkeys(missing, _MissingStream(self._server.read_lineage()))
        return rows

    def _entries_after(self, request: PageRequest, row: Any) -> StreamPage:
        """Read the entries of a stream. Entries may be missing if the stream has changed since its row was read."""
        if row.ended:
            return StreamPage("", 0, 1, lineage=row.present)
        policy = self._settings.policy(request.stream)
        low = row.low
        if not request.following:
            low = max(low, row.tail - policy.history_size + 1, row.tail + 1 if row.oldest is None else row.oldest)
        start = max(request.after + 1, low)
        if request.limit <= 0 or start > row.tail:
            return StreamPage(row.epoch, row.tail, low, lineage=row.present)
        kept = self.entries(row.pk).filter(offset__gte=start, offset__lte=row.tail)
        if request.max_size is not None:
            kept = kept.filter(offset__lt=start + request.limit)
            earlier = Window(Sum(Length("data")), order_by="offset", frame=RowRange(end=-1))
            kept = kept.alias(size=Coalesce(earlier, 0)).filter(size__lte=request.max_size)
        values = kept.order_by("offset").values_list("offset", "data", "exclude")[: request.limit]
        return StreamPage(row.epoch, row.tail, low, [Entry(*each) for each in values], row.present)

    def entries(self, stream: int | OuterRef) -> QuerySet[models.StreamEntry]:
        """Return a query for all entries of a stream.

        Args:
            stream: the primary key of the stream.
        """
        return self._database.rows(models.StreamEntry).filter(stream=stream)
