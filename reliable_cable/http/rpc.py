"""The endpoints `POST /_anycable/connect`, `/command` and `/disconnect`, which answer the calls of anycable-go."""

import json
from collections.abc import Mapping
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, Final

from reliable_cable.connection.anycable.service import METHODS, RPCService, load_service
from reliable_cable.exceptions import ProtocolError
from reliable_cable.protocol.commands import refuse_constant
from reliable_cable.protocol.messages import dumps
from reliable_cable.protocol.nesting import TOO_DEEP, is_too_deep

from .core import POST, RPC_KEY, Call, Endpoint, Refusal, Request, Response, Steps, read_body

#: The header in which anycable-go passes on the session id of a client.
SID_HEADER: Final = b"x-anycable-meta-sid"


def make_endpoints() -> dict[str, Endpoint]:
    """Return the endpoints, keyed by the last part of their paths. They require the RPC key.

    The consumer is imported at the first call, because the module of the consumer may import the module that makes the
    endpoints.
    """
    service = lru_cache(load_service)
    # The namespace is that of the client's handshake, and not that of anycable-go's request.
    return {
        method: Endpoint(POST, RPC_KEY, partial(_answer, service, method), in_namespace=False) for method in METHODS
    }


def _answer(service: Any, method: str, request: Request) -> Steps[Response]:
    body = yield from read_body(request)
    found: RPCService = service()
    try:
        answer: dict[str, Any] = yield Call(partial(found.call, method, _parse(body), request.sid))
    except ProtocolError as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The call is not valid: {error}.") from error
    return Response.json(HTTPStatus.OK, dumps(answer))


def _parse(body: bytes) -> Mapping[str, Any]:
    try:
        text = body.decode()
        if is_too_deep(text):
            raise ProtocolError(f"the body has {TOO_DEEP}")
        values = json.loads(text, parse_constant=refuse_constant)
    except ValueError:
        raise ProtocolError("the body is not JSON") from None
    if not isinstance(values, dict):
        raise ProtocolError("the body is not a JSON object")
    return values
