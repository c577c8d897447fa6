"""`GET /api/presence/<stream>/users`: the members of a stream, in AnyCable's format."""

from http import HTTPStatus

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from reliable_cable.exceptions import InvalidStreamName, StoreError
from reliable_cable.logs import logger
from reliable_cable.presence import presence_for
from reliable_cable.protocol import messages

from .endpoints import Refusal, endpoint


@require_safe
@endpoint("api-cable", "api_key")
def users(request: HttpRequest, stream: str) -> HttpResponse:
    """Return the members of a stream in the format of the protocol's `info` message."""
    try:
        info = presence_for(stream).info()
    except InvalidStreamName as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    except StoreError as error:
        logger.exception("The presence of the stream %r could not be read.", stream)
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Presence cannot be read now. Try again.") from error
    records = list((info.records or {}).items())
    return HttpResponse(messages.presence_info(info.total, records), content_type="application/json")
