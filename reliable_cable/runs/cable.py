"""The channel to which the readers of a run subscribe."""

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
    """A channel that streams the events of one run. The parameter `id` is the id of the run.

    A client first receives the event `snapshot` with the answer so far, and then the later events. A user who may not
    read the run is rejected, as if there were no such run.
    """

    async def subscribed(self) -> None:
        """Stream the events of the run, or reject the subscription if the user may not read the run."""
        run = await run_handler(readable_run, self.params.get("id"), self.connection.user)
        self._reader = Reader(run.pk)
        watcher().add(self._reader)
        self.stream_from(run.stream)

    async def snapshot(self, stream: str) -> Snapshot | None:
        """Return the answer as it was last saved, with its position; None if the run was deleted."""
        return await snapshot_of(stream)

    @action
    def stop(self) -> None:
        """Stop the run. The text that has been written so far is kept."""
        stoppable_run(self.params.get("id"), self.connection.user).stop()


async def snapshot_of(stream: str) -> Snapshot | None:
    """Return the snapshot of a run and its position in the stream of the run; None if the run was deleted.

    Args:
        stream: the name of the stream, which ends with the id of the run.
    """
    # This position is read before the row, and is used unless the run is being written. In the stream of a queued run,
    # the next attempt has no events before it. In the stream of an ended run, readers ignore the events after it.
    at = await aposition(stream)
    run = await run_handler(Run.objects.filter(pk=stream.rpartition(":")[2]).first)
    if run is None:
        return None
    saved = None if run.ended else PagePosition.parse(run.position, at.stream)
    return Snapshot(saved or at, run.snapshot())
