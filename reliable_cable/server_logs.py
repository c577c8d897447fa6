"""Reports mistakes in a project that servers hide, or log without a remedy."""

import sys
from collections.abc import Mapping
from typing import Any

from .logs import logger


def install() -> None:
    """Report the mistakes in this process. Repeated calls change nothing."""
    # daphne imports this module before it can hide a warning.
    twisted = sys.modules.get("twisted.logger")
    if twisted is not None:
        twisted.globalLogPublisher.addObserver(log_unawaited)


def log_unawaited(event: Mapping[str, Any]) -> None:
    """Log Python's warning of a coroutine that was never awaited.

    Twisted redirects Python's warnings to its own log, and daphne discards that log, unless its verbosity is 2 or more.

    Args:
        event: an event of Twisted's log.
    """
    text = str(event.get("warning", "")).partition("\n")[0]
    if text.startswith("coroutine ") and text.endswith(" was never awaited"):
        logger.warning(
            "%s:%s: %s, so it did nothing. Write `await` before the call, or call the sync function in sync code.",
            event["filename"],
            event["lineno"],
            text,
        )
