"""Reads requests: authenticates the user, checks the CSRF token, and parses the bodies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Final, cast

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, QueryDict
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.functional import LazyObject, empty

from reliable_cable import namespaces
from reliable_cable.auth.admission import admit
from reliable_cable.auth.middleware import with_token
from reliable_cable.auth.sessions import anonymous
from reliable_cable.auth.verification import SCOPE_KEY
from reliable_cable.concurrency.threads import run_handler
from reliable_cable.conf import get_settings
from reliable_cable.http.core import Refusal
from reliable_cable.protocol.commands import refuse_constant
from reliable_cable.runs.chats import ChatMessage
from reliable_cable.runs.parts import clean, clean_text

#: The maximum number of characters of the ids that a client chooses.
MAX_ID_LENGTH: Final = 255


# -- the user ---------------------------------------------------------------------------------------------------------


@dataclass
class Visitor:
    """The user who has sent a request, with the scope and the token by which the user was authenticated.

    Args:
        scope: the ASGI scope of the request, with the keys that the middlewares of WebSockets add.
        namespace: the namespace of the request.
    """

    identified_by: ClassVar[tuple[str, ...]] = ("user",)

    scope: dict[str, Any]
    namespace: str
    user: Any = None
    token: Any = None

    @property
    def has_token(self) -> bool:
        """Whether a token has authenticated the user.

        If so, no CSRF check is needed, because browsers do not send tokens by themselves, unlike cookies.
        """
        return self.scope.get(SCOPE_KEY) is not None


async def authenticate(request: HttpRequest) -> Visitor:
    """Return the user who has sent a request: the user of its token, or else `request.user`.

    Raises:
        Refusal: the token is not valid, or a token is required.
    """
    namespace = ""
    if get_settings().namespace is not None:
        # The middlewares may have stored the tenant on the database connection of the request's thread.
        namespace = await sync_to_async(namespaces.current_namespace)()
    scope = {**scope_of(request), namespaces.SCOPE_KEY: namespace}
    if get_settings().reads_tokens:
        scope = await with_token(scope)
    if scope.get(SCOPE_KEY) is None:
        scope["session"] = getattr(request, "session", None)
        scope["user"] = await run_handler(_user_of, request)
    visitor = Visitor(scope, namespace)
    refusal = admit(visitor).refusal
    if refusal is not None:
        raise Refusal(HTTPStatus.UNAUTHORIZED, "The token is missing or not valid.", reason=str(refusal))
    return visitor


def scope_of(request: HttpRequest) -> dict[str, Any]:
    """Return the ASGI scope of a request. For a request of a WSGI server, it has only the keys that are used."""
    if isinstance(request, ASGIRequest):
        return dict(request.scope)
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in request.headers.items()]
    query = request.META.get("QUERY_STRING", "").encode("latin-1")
    return {
        "type": "http",
        "scheme": request.scheme,
        "path": request.path,
        "headers": headers,
        "query_string": query,
    }


def _user_of(request: HttpRequest) -> Any:
    user: Any = getattr(request, "user", None)
    if isinstance(user, LazyObject):
        if user._wrapped is empty:
            user._setup()
        user = user._wrapped
    return anonymous() if user is None else user


class _CsrfCheck(CsrfViewMiddleware):
    """Checks the CSRF token. If it is not accepted, returns the reason instead of a response."""

    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason


def check_csrf(request: HttpRequest) -> None:
    """Check the CSRF token of a request that changes something.

    Raises:
        Refusal: the token is missing or wrong, or the request comes from another site.
    """
    # The token is only in the header. The middleware must not read the body as a form.
    cast(Any, request).POST = QueryDict()
    check = _CsrfCheck(lambda request: HttpResponse())
    check.process_request(request)
    reason: Any = check.process_view(request, lambda request: HttpResponse(), (), {})
    if reason is not None:
        raise Refusal(
            HTTPStatus.FORBIDDEN, f"{reason} Send the CSRF token in the header {csrf_header()}, as for other requests."
        )


def csrf_header() -> str:
    """Return the name of the header with the CSRF token."""
    return str(settings.CSRF_HEADER_NAME).removeprefix("HTTP_").replace("_", "-").title()


# -- the body ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed request to start a run.

    Args:
        chat: the id of the chat.
        message: the message to answer.
    """

    chat: str
    message: ChatMessage


def read_chat_request(request: HttpRequest) -> ChatRequest:
    """Read and parse the body of a request to start a run.

    Raises:
        Refusal: the body is too large or not valid.
    """
    return parse_chat_request(read_body(request, "Send only the last message."))


def read_body(request: HttpRequest, advice: str) -> bytes:
    """Read the body of a request.

    Args:
        request: the request.
        advice: a sentence for the client whose body is too large.

    Raises:
        Refusal: the body is too large, or was cut off.
    """
    limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    body = request.read() if limit is None else request.read(limit + 1)
    if limit is not None and len(body) > limit:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body has more than {limit} bytes (DATA_UPLOAD_MAX_MEMORY_SIZE). {advice}",
        )
    # A WSGI server ends the body early if the client has disconnected.
    try:
        length = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        length = 0
    if len(body) < length:
        raise invalid("The body is shorter than the header Content-Length says.")
    return body


def parse_object(body: bytes, keys: str) -> dict[str, Any]:
    """Parse a body that is a JSON object. Characters that cannot be stored become U+FFFD.

    Args:
        body: the body.
        keys: the keys that the object needs, for the message of the error.

    Raises:
        Refusal: the body is not valid.
    """
    try:
        values = json.loads(body, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        raise invalid("The body must be JSON.") from None
    if not isinstance(values, dict):
        raise invalid(f"The body must be a JSON object with the keys {keys}.")
    try:
        cleaned: dict[str, Any] = clean(values)
    except RecursionError:
        raise invalid("The body is nested too deeply.") from None
    return cleaned


def parse_chat_request(body: bytes) -> ChatRequest:
    """Parse a request body in the format of `DefaultChatTransport`. A key `message` may take the place of `messages`.

    Raises:
        Refusal: the body is not valid.
    """
    values = parse_object(body, "'id' and 'messages'")
    chat = text_of(values.pop("id", None), "id")
    if not chat:
        raise invalid("The key 'id' must be the id of the chat.")
    sent = values.pop("messages", None)
    message = values.pop("message", None)
    if message is None:
        if not isinstance(sent, list) or not sent:
            raise invalid("The key 'messages' must be a list with at least one message.")
        message = sent[-1]
    if not isinstance(message, dict):
        raise invalid("A message must be an object.")
    role = text_of(message.get("role"), "role") or "user"
    if role == "assistant":
        raise invalid(
            "The last message must be one of the user. Results of tools that the page runs are not supported here."
        )
    parts = objects_in(message.get("parts"), "The key 'parts' of a message must be a list of objects.")
    trigger = text_of(values.pop("trigger", None), "trigger") or "submit-message"
    return ChatRequest(
        chat,
        ChatMessage(
            id=text_of(message.get("id"), "id"),
            role=role,
            text=join_texts(parts),
            parts=parts,
            trigger=trigger,
            message_id=text_of(values.pop("messageId", None), "messageId"),
            body=values,
        ),
    )


def objects_in(value: Any, error: str) -> list[dict[str, Any]]:
    """Return a value that must be a list of objects.

    Raises:
        Refusal: the value is not a list of objects. The message of the refusal is `error`.
    """
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise invalid(error)
    return value


def join_texts(parts: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of all text parts of a message, joined by line breaks."""
    return "\n".join(part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str))


def is_storable(text: str, max_length: int = MAX_ID_LENGTH) -> bool:
    """Return whether an id or a name can be stored in a database, and looked up there."""
    return len(text) <= max_length and clean_text(text) == text


def text_of(value: Any, key: str) -> str:
    """Return the value of a key that must be a short string. None becomes an empty string.

    Raises:
        Refusal: the value is not a string, or is too long.
    """
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_ID_LENGTH:
        raise invalid(f"The key {key!r} must be a string of at most {MAX_ID_LENGTH} characters.")
    return value


def invalid(message: str) -> Refusal:
    """Return the refusal, with the status 400, of a request that is not valid."""
    return Refusal(HTTPStatus.BAD_REQUEST, message)
