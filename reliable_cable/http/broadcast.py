"""The endpoints `POST /_broadcast` and `POST /api/publish`, which accept messages or a command in AnyCable's format."""

import json
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from reliable_cable.broadcasting import abroadcast_batch, broadcast_batch
from reliable_cable.exceptions import (
    BroadcastError,
    BroadcastUncertain,
    InvalidOption,
    InvalidPayload,
    InvalidStreamName,
    PayloadTooLarge,
)
from reliable_cable.logs import logger
from reliable_cable.protocol.commands import refuse_constant
from reliable_cable.protocol.nesting import TOO_DEEP, is_too_deep
from reliable_cable.validation import PER_ITERATION, BatchItem, ItemOptions, check_stream_name

from .commands import FORMAT as COMMAND
from .commands import run_command
from .core import API_KEY, BROADCAST_KEY, PAUSE, POST, Call, Endpoint, Refusal, Request, Response, Steps, read_body

#: The maximum number of messages in one array. The number is limited because other broadcasts have to wait while an
#: array is being stored.
MAX_MESSAGES = 1000

FORMAT = '{"stream": "<name>", "data": "<JSON text>", "meta": {"exclude_socket": "<session id>", "transient": true}}'

#: The keys of `meta` that are used, with the types of their values. Other keys are ignored, as in AnyCable.
META: Mapping[str, type] = {"exclude_socket": str, "transient": bool, "idempotency_key": str}


def receive(request: Request) -> Steps[Response]:
    """Broadcast the messages in the body, or run the command in the body. Return a response with the status 201."""
    body = yield from read_body(request)
    try:
        parsed = _parse(body)
        if isinstance(parsed, dict) and "command" in parsed and "stream" not in parsed:
            yield from run_command(parsed)
        else:
            items = yield from _read_items(parsed)
            yield Call(partial(abroadcast_batch, items), partial(broadcast_batch, items))
    except PayloadTooLarge as error:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from error
    except (InvalidPayload, InvalidStreamName, InvalidOption) as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    except BroadcastUncertain as error:
        logger.exception("It is not known whether the messages posted to %r were stored.", request.path)
        raise Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            'It is unknown whether the messages were stored. It is safe to post them again if the "meta" of each '
            'message has the same "idempotency_key" both times.',
            stored=None,
        ) from error
    except BroadcastError as error:
        logger.exception("The messages posted to %r could not be broadcast.", request.path)
        raise Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE, "Nothing was broadcast: the store failed. Try again.", stored=False
        ) from error
    return Response(HTTPStatus.CREATED)


#: The endpoint `POST /_broadcast`, which requires the broadcast key.
BROADCAST = Endpoint(POST, BROADCAST_KEY, receive)
#: The endpoint `POST /api/publish`, which requires the API key.
PUBLISH = Endpoint(POST, API_KEY, receive)


def _parse(body: bytes) -> Any:
    try:
        text = body.decode()
        if is_too_deep(text):
            raise _invalid(f"The body has {TOO_DEEP}")
        return json.loads(text)
    except ValueError as error:
        raise _invalid(f"The body is not JSON ({error})") from error


def _read_items(parsed: Any) -> Steps[list[BatchItem]]:
    if not isinstance(parsed, list):
        return [_read_item(parsed, "The body")]
    if not parsed:
        raise _invalid("The array is empty")
    if len(parsed) > MAX_MESSAGES:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The array has {len(parsed)} messages; {MAX_MESSAGES} are allowed.",
        )
    items = []
    for number, value in enumerate(parsed, 1):
        if number % PER_ITERATION == 0:
            yield PAUSE
        items.append(_read_item(value, f"Message {number} of {len(parsed)}"))
    return items


def _read_item(value: Any, what: str) -> BatchItem:
    if not isinstance(value, dict):
        raise _invalid(f"{what} is not an object")
    for key in ("stream", "data"):
        if not isinstance(value.get(key), str):
            raise _invalid(f'{what} has no "{key}" that is a string')
    meta = value.get("meta")
    if meta is None:
        meta = {}
    if not isinstance(meta, dict):
        raise _invalid(f'{what} has a "meta" that is not an object')
    options = ItemOptions()
    for key, kind in META.items():
        given = meta.get(key)
        if given is None:
            continue
        if not isinstance(given, kind):
            raise _invalid(f'{what} has a "{key}" that is not {"a string" if kind is str else "true or false"}')
        options[key] = given  # type: ignore[literal-required]
    stream = check_stream_name(value["stream"])
    return stream, _decode(stream, value["data"]), options


def _decode(stream: str, text: str) -> Any:
    """Decode a string that may be JSON. If the string is not JSON, return the string itself."""
    if is_too_deep(text):
        raise InvalidPayload(f"The payload for {stream!r} has {TOO_DEEP}.")
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except ValueError:
        return text


def _invalid(problem: str) -> Refusal:
    return Refusal(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        f'{problem}. Send {FORMAT} ("meta" is optional), an array of such objects, or {COMMAND}.',
    )
