"""`POST /_broadcast` and `POST /api/publish`: a message, an array of them, or a command, in AnyCable's format."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_POST

from reliable_cable.broadcasting import broadcast_batch
from reliable_cable.exceptions import (
    BroadcastError,
    BroadcastUncertain,
    InvalidOption,
    InvalidPayload,
    InvalidStreamName,
    PayloadTooLarge,
)
from reliable_cable.validation import BatchItem, ItemOptions, check_stream_name

from .commands import FORMAT as COMMAND
from .commands import run_command
from .endpoints import Refusal, endpoint, read_body

logger = logging.getLogger("reliable_cable")

#: Messages in one array: they are stored all at once, and nobody else's meanwhile.
MAX_MESSAGES = 1000

FORMAT = '{"stream": "<name>", "data": "<JSON text>", "meta": {"exclude_socket": "<session id>", "transient": true}}'

#: What `meta` may have, and what that must be; what else it has is ignored, as AnyCable does.
META: Mapping[str, type] = {"exclude_socket": str, "transient": bool, "idempotency_key": str}


@require_POST
@endpoint("broadcast-cable", "broadcast_key")
def broadcast(request: HttpRequest) -> HttpResponse:
    """Broadcast, or do, what the body says: 201 means stored, or done."""
    return _broadcast(request)


@require_POST
@endpoint("api-cable", "api_key")
def publish(request: HttpRequest) -> HttpResponse:
    """Do the same, for who has the API's key."""
    return _broadcast(request)


def _broadcast(request: HttpRequest) -> HttpResponse:
    try:
        parsed = _parse(read_body(request))
        if isinstance(parsed, dict) and "command" in parsed and "stream" not in parsed:
            run_command(parsed)
        else:
            broadcast_batch(_items(parsed))
    except PayloadTooLarge as error:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error
    except (InvalidPayload, InvalidStreamName, InvalidOption) as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    except BroadcastUncertain as error:
        logger.exception("Whether what was posted to %s is stored is unknown.", request.path)
        raise Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Whether the messages were stored is unknown. Posting them again is safe if each has had an "
            '"idempotency_key" in its "meta", and has the same one again.',
            stored=None,
        ) from error
    except BroadcastError as error:
        logger.exception("What was posted to %s could not be broadcast.", request.path)
        raise Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE, "Nothing was broadcast: the store failed. Try again.", stored=False
        ) from error
    return HttpResponse(status=HTTPStatus.CREATED)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise _nonsense(f"The body is not JSON ({error})") from error


def _items(parsed: Any) -> list[BatchItem]:
    if not isinstance(parsed, list):
        return [_item(parsed, "The body")]
    if not parsed:
        raise _nonsense("The array is empty")
    if len(parsed) > MAX_MESSAGES:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The array has {len(parsed)} messages; {MAX_MESSAGES} are allowed.",
        )
    return [_item(value, f"Message {number} of {len(parsed)}") for number, value in enumerate(parsed, 1)]


def _item(value: Any, what: str) -> BatchItem:
    if not isinstance(value, dict):
        raise _nonsense(f"{what} is no object")
    for key in ("stream", "data"):
        if not isinstance(value.get(key), str):
            raise _nonsense(f'{what} has no "{key}" that is a string')
    meta = value.get("meta")
    if meta is None:
        meta = {}
    if not isinstance(meta, dict):
        raise _nonsense(f'{what} has a "meta" that is no object')
    options = ItemOptions()
    for key, kind in META.items():
        given = meta.get(key)
        if given is None:
            continue
        if not isinstance(given, kind):
            raise _nonsense(f'{what} has a "{key}" that is no {"string" if kind is str else "true or false"}')
        options[key] = given  # type: ignore[literal-required]
    stream = check_stream_name(value["stream"])
    return stream, _decode(stream, value["data"]), options


def _decode(stream: str, text: str) -> Any:
    """Return what a JSON text says; the text itself, if it is none."""
    try:
        return json.loads(text, parse_constant=_no_json)
    except ValueError:
        return text
    except RecursionError as error:
        raise InvalidPayload(f"The payload for {stream!r} is nested too deeply.") from error


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _nonsense(problem: str) -> Refusal:
    return Refusal(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f'{problem}. Allowed is {FORMAT}, "meta" being optional, or an array of these; or, alone, {COMMAND}.',
    )
