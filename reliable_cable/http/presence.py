"""The endpoint `GET /api/presence/<stream>/users`, which lists the members of a stream in AnyCable's format."""

from http import HTTPStatus

from reliable_cable.exceptions import InvalidStreamName, NotSupported, StoreError
from reliable_cable.logs import logger
from reliable_cable.presence import presence_for
from reliable_cable.protocol import messages
from reliable_cable.stores.presence.base import PresenceInfo

from .core import API_KEY, GET, Call, Endpoint, Refusal, Request, Response, Steps


def list_users(request: Request) -> Steps[Response]:
    """Return the members of a stream in the format of the protocol's `info` message."""
    try:
        presence = presence_for(request.stream)
        info: PresenceInfo = yield Call(presence.ainfo, presence.info)
    except InvalidStreamName as error:
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    except NotSupported as error:
        raise Refusal(HTTPStatus.NOT_IMPLEMENTED, str(error)) from error
    except StoreError as error:
        logger.exception("The presence of the stream %r could not be read.", request.stream)
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Presence cannot be read now. Try again.") from error
    records = list((info.records or {}).items())
    return Response.json(HTTPStatus.OK, messages.presence_info(info.total, records))


USERS = Endpoint(GET, API_KEY, list_users)
