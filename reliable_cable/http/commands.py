"""Runs the command in a request that contains no messages.

The format is AnyCable's. The only command is `disconnect`.
"""

import json
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from reliable_cable.disconnecting import adisconnect_identity, check_names, disconnect_identity
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, InvalidIdentifier, StoreError
from reliable_cable.identity import Identity, parse_identifier
from reliable_cable.logs import logger
from reliable_cable.protocol.nesting import TOO_DEEP, is_too_deep

from .core import Call, Refusal, Steps

FORMAT = r'{"command": "disconnect", "payload": {"identifier": "{\"user\": \"auth.user:42\"}", "reconnect": false}}'


def run_command(command: Mapping[str, Any]) -> Steps[None]:
    """Run a posted command.

    Args:
        command: the posted JSON object, which has the key `command`.

    Raises:
        Refusal: the command is not valid, or a store failed.
    """
    if command["command"] != "disconnect":
        raise _invalid(f"There is no command {command['command']!r:.80}")
    payload = command.get("payload")
    if not isinstance(payload, dict):
        raise _invalid('The command has no "payload" that is an object')
    reconnect = payload.get("reconnect")
    if not isinstance(reconnect, bool | None):
        raise _invalid('The payload has a "reconnect" that is not true or false')
    condition = _condition(payload.get("identifier"))
    try:
        yield Call(
            partial(adisconnect_identity, condition, reconnect=bool(reconnect)),
            partial(disconnect_identity, condition, reconnect=bool(reconnect)),
        )
    except BroadcastUncertain as error:
        logger.exception("It is not known whether a posted command closed any connections.")
        raise Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "It is unknown whether any connection was closed. Post the command again.",
            stored=None,
        ) from error
    except (BroadcastError, StoreError) as error:
        logger.exception("A posted command could not close connections.")
        raise Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE, "No connection was closed: the store failed. Try again.", stored=False
        ) from error


def _condition(text: Any) -> Identity:
    """Return the identifiers that select the connections to close.

    Args:
        text: the value of `identifier` in the payload, which must be a JSON text, as in AnyCable.
    """
    if not isinstance(text, str):
        raise _invalid('The payload has no "identifier" that is a string')
    if is_too_deep(text):
        raise _invalid(f"The identifier has {TOO_DEEP}")
    try:
        identifiers = json.loads(text)
    except ValueError as error:
        raise _invalid(f"The identifier is not JSON ({error})") from error
    if not isinstance(identifiers, dict) or not identifiers:
        raise _invalid("The identifier is not a JSON object with at least one name")
    condition = {}
    for name, value in identifiers.items():
        try:
            condition[name] = parse_identifier(name, value)
        except ValueError as error:
            raise _invalid(f"The identifier has a {name!r} that {error}") from error
    try:
        check_names(condition)
    except InvalidIdentifier as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    return condition


def _invalid(problem: str) -> Refusal:
    return Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"{problem}. Send {FORMAT}.")
