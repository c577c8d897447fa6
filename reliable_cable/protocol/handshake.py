"""Reads the ping interval and the session that a client requests in its handshake."""

import math
from collections.abc import Iterable, Mapping

from . import constants


def requested_ping_interval(query: Mapping[str, list[str]], default: float) -> float:
    """Return the requested time between two pings, in seconds, within the limits; the default if none is requested.

    Args:
        query: the values in the query string, by their names.
        default: the setting `PING_INTERVAL`.
    """
    try:
        asked = float(query["pi"][0])
    except (KeyError, ValueError):
        asked = math.nan
    if math.isnan(asked):
        return default
    return min(max(asked, constants.PING_INTERVAL_MIN), constants.PING_INTERVAL_MAX)


def requested_session(headers: Iterable[tuple[bytes, bytes]], query: Mapping[str, list[str]]) -> str | None:
    """Return the id of the session to restore, from the headers or the query string; None if there is none."""
    for name, value in headers:
        if name.lower() == constants.SESSION_HEADER:
            return str(value.decode("latin1"))
    return query.get(constants.SESSION_PARAMETER, [""])[0] or None
