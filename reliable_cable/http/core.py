"""The code that all endpoints share, without a web framework: keys, errors as JSON, and limits for bodies.

An endpoint is a generator function. It yields the calls that have to wait, and is sent their results. `run` makes these
calls in sync code, and `arun` on an event loop. So sync views and the ASGI application share everything else.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPMethod, HTTPStatus
from typing import Any, Self, TypeVar

from reliable_cable.conf import get_settings
from reliable_cable.signing import accepted_keys

T = TypeVar("T")

#: The size limit of a body, as a multiple of `MAX_BROADCAST_SIZE`. A body may contain many payloads, with escapes.
BODY_FACTOR = 8

#: The value of `Cache-Control` in all responses of endpoints, as Django's `never_cache` sets it.
_NEVER_CACHE = "max-age=0, no-cache, no-store, must-revalidate, private"


@dataclass(frozen=True, slots=True)
class Request:
    """A request, without its body.

    Args:
        method: the method, in upper case.
        path: the path in the URL, for log lines.
        authorization: the header `Authorization`, decoded as Latin-1; `""` if there is none.
        content_length: the header `Content-Length`; `""` if there is none, or if the body is to be read in any case.
        stream: the name of a stream in the path, for endpoints that have one there.
        namespace: returns the context manager that sets the namespace of the request. It is called after the key was
            checked, so that a stranger cannot cause the errors of a project's own function.
    """

    method: str
    path: str
    authorization: str = ""
    content_length: str = ""
    stream: str = ""
    namespace: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, slots=True)
class Response:
    """A response.

    Args:
        status: the status.
        body: the body. It is JSON, or empty.
        headers: the headers, except for `Content-Length`.
    """

    status: HTTPStatus
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, status: HTTPStatus, text: str, **headers: str) -> Self:
        """Return a response whose body is a JSON text."""
        return cls(status, text.encode(), {"Content-Type": "application/json", **headers})


class Refusal(Exception):
    """An error to be sent as the response.

    Args:
        status: the status of the response.
        message: says what was wrong and what is allowed.
        details: additional keys of the JSON response.
    """

    def __init__(self, status: HTTPStatus, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.details = details

    def response(self) -> Response:
        """Return the response."""
        response = Response.json(self.status, json.dumps({"error": str(self), **self.details}))
        if self.status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response


# -- steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadBody:
    """The step that reads the body. Its result has at most `limit` bytes: the beginning of a larger body."""

    limit: int


@dataclass(frozen=True, slots=True)
class Call:
    """The step that makes a call.

    Args:
        asynchronous: makes the call on an event loop.
        sync: makes the call in sync code. None: the endpoint is served by `CableHTTP` only.
    """

    asynchronous: Callable[[], Awaitable[object]]
    sync: Callable[[], object] | None = None


async def _yield() -> None:
    await asyncio.sleep(0)


def _do_nothing() -> None:
    """Return at once: sync code has no event loop to which it could give way."""


#: The step that lets other tasks of the event loop run.
PAUSE = Call(_yield, _do_nothing)

#: A generator that yields steps, is sent their results, and returns a value.
Steps = Generator[ReadBody | Call, Any, T]


def run(steps: Steps[T], read: Callable[[int], bytes]) -> T:
    """Run a generator in sync code: perform each operation that it yields, and return what it returns.

    Args:
        steps: the generator.
        read: reads up to a number of bytes of the body.
    """

    async def take(step: ReadBody | Call) -> object:
        if isinstance(step, ReadBody):
            return read(step.limit)
        assert step.sync is not None  # noqa: S101 - no view serves such an endpoint
        return step.sync()

    try:
        # The coroutine awaits nothing, so it ends at once.
        _take_all(steps, take).send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("a step of sync code has waited")


async def arun(steps: Steps[T], read: Callable[[int], Awaitable[bytes]]) -> T:
    """Async twin of `run`."""

    async def take(step: ReadBody | Call) -> object:
        return await (read(step.limit) if isinstance(step, ReadBody) else step.asynchronous())

    return await _take_all(steps, take)


async def _take_all(steps: Steps[T], take: Callable[[ReadBody | Call], Coroutine[Any, Any, object]]) -> T:
    """Take steps until the generator returns, and return its value.

    Args:
        steps: the generator.
        take: takes one step, and returns its result.
    """
    with closing(steps):  # a cancelled generator would otherwise be closed later, in another context
        try:
            step = next(steps)
            while True:
                try:
                    result = await take(step)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value


def read_body(request: Request) -> Steps[bytes]:
    """Return the body of a request. Stop reading as soon as the body is known to be too large.

    Raises:
        Refusal: the body is too large.
    """
    limit = BODY_FACTOR * get_settings().max_broadcast_size
    try:
        too_large = int(request.content_length or 0) > limit
    except ValueError:
        too_large = False  # the body is limited while it is read, too
    body = b""
    if not too_large:
        body = yield ReadBody(limit + 1)
    if too_large or len(body) > limit:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body has more than {limit} bytes, {BODY_FACTOR} times RELIABLE_CABLE['MAX_BROADCAST_SIZE'].",
        )
    return body


# -- endpoints --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """The key that an endpoint requires.

    Args:
        purpose: the purpose for which the key is derived if the settings have none.
        setting: the name of the setting with the key, in lower case.
    """

    purpose: str
    setting: str

    def check(self, authorization: str) -> None:
        """Check the header `Authorization`.

        Raises:
            Refusal: the header does not contain the key.
        """
        scheme, _, token = authorization.partition(" ")
        # Servers decode headers as Latin-1, whatever their encoding is.
        given = token.strip().encode("latin-1", "replace")
        accepted = accepted_keys(self.purpose, getattr(get_settings(), self.setting))
        # Every key is compared, so that the response time does not reveal which one was right.
        if not sum(hmac.compare_digest(given, key.encode()) for key in accepted) or scheme.lower() != "bearer":
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                f"The key is missing or wrong: send 'Authorization: Bearer <key>'. The key is RELIABLE_CABLE"
                f"[{self.setting.upper()!r}] or, if that is not set, the one derived for {self.purpose!r}.",
            )


BROADCAST_KEY = Key("broadcast-cable", "broadcast_key")
API_KEY = Key("api-cable", "api_key")

POST = (HTTPMethod.POST,)
GET = (HTTPMethod.GET, HTTPMethod.HEAD)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An HTTP endpoint: the methods and the key that it requires, and how it answers a request.

    Args:
        methods: the allowed methods.
        key: the key that it requires; None: it requires none, and has no namespace.
        answer: returns the steps of a request. They may raise `Refusal`.
    """

    methods: tuple[HTTPMethod, ...]
    key: Key | None
    answer: Callable[[Request], Steps[Response]]

    def respond(self, request: Request) -> Steps[Response]:
        """Return the response to a request: that of `answer`, or an error."""
        if request.method not in self.methods:
            return Response(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(self.methods)})
        try:
            if self.key is None:
                response = yield from self.answer(request)
            else:
                self.key.check(request.authorization)
                with request.namespace():
                    response = yield from self.answer(request)
        except Refusal as refusal:
            response = refusal.response()
        response.headers.update({"Expires": formatdate(usegmt=True), "Cache-Control": _NEVER_CACHE})
        return response
