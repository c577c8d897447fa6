"""Reports broadcasts that were made in a transaction, and failed after its commit."""

from collections.abc import Iterable

from reliable_cable.exceptions import CableError
from reliable_cable.logs import logger
from reliable_cable.namespaces import split_namespace
from reliable_cable.signals import broadcast_failed


def report_failure(store: type, streams: Iterable[str], error: Exception) -> None:
    """Log a broadcast that failed after the commit, and send `broadcast_failed` for each of its streams.

    Args:
        store: the class of the store that failed. It is the `sender` of the signal.
        streams: the names of the streams. A name may occur several times.
        error: the error that the store raised.
    """
    names = list(dict.fromkeys(streams))
    # An error that is not from this package is a bug, so its traceback is logged.
    traceback = None if isinstance(error, CableError) else error
    logger.error(
        "A broadcast to %s failed after the commit: %s", ", ".join(map(repr, names)), error, exc_info=traceback
    )
    for name in names:
        namespace, stream = split_namespace(name)
        broadcast_failed.send_robust(store, stream=stream, namespace=namespace, error=error)
