"""The channel for readers of runs."""

from reliable_cable.actions import action
from reliable_cable.broadcasting import aposition
from reliable_cable.channel import Channel
from reliable_cable.concurrency.threads import run_handler
from reliable_cable.protocol.positions import PagePosition
from reliable_cable.reply import Snapshot

from .access import readable_run, stoppable_run
from .models import Run
from .watching import Reader, watcher


class RunChannel(Channel):
    """Streams the events of one run. Its parameter is `id`, the id of the run.

    A client gets the answer so far as the event `snapshot`, and then the events that follow. Who may not read the run
    is rejected, as if there were no such run.
    """

    async def subscribed(self) -> None:
        """Stream from the run."""
        run = await run_handler(readable_run, self.params.get("id"), self.connection.user)
        self._reader = Reader(run.pk)
        watcher().add(self._reader)
        self.stream_from(run.stream)

    async def snapshot(self, stream: str) -> Snapshot | None:
        """Return the answer as it was saved last."""
        return await snapshot_of(stream)

    @action
    def stop(self) -> None:
        """Stop the run. What was written stays."""
        stoppable_run(self.params.get("id"), self.connection.user).stop()


async def snapshot_of(stream: str) -> Snapshot | None:
    """Return the snapshot of the run with a stream, with its position; None if the run was deleted.

    Args:
        stream: the name of the stream.
    """
    # Whatever follows this position is not needed if the run is not being written: nothing is written then, or an end
    # that the row has.
    at = await aposition(stream)
    run = await Run.objects.filter(pk=stream.rpartition(":")[2]).afirst()
    if run is None:
        return None
    saved = None if run.ended else PagePosition.parse(run.position, at.stream)
    return Snapshot(saved or at, run.snapshot())
