"""The code that all endpoints share: keys, errors as JSON, and limits for bodies. It uses no web framework.

An endpoint answers with a generator. For each operation that has to wait, the generator yields a step, and is sent the
result of the step. `run` performs the steps in sync code, and `arun` performs them on an event loop. So Django's views
and the ASGI application can use the same endpoints.
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

#: The maximum size of a body, as a multiple of `MAX_BROADCAST_SIZE`. A body may contain several payloads, and escape
#: sequences make them longer.
BODY_FACTOR = 8

#: The value of `Cache-Control` in responses, except those with the status 405. Django's `never_cache` sets it, too.
NEVER_CACHE = "max-age=0, no-cache, no-store, must-revalidate, private"


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of an HTTP request that endpoints use, except for the body.

    Args:
        method: the method, in upper case.
        path: the path in the URL, which is used in log lines.
        authorization: the header `Authorization`, decoded as Latin-1, or `""`.
        content_length: the header `Content-Length`. If it is `""`, the size is checked only while the body is read.
        stream: the name of the stream in the path, or `""` if the path contains no stream.
        sid: the session id of the client, which anycable-go passes on in a header of its calls, or `""`.
        namespace: returns the context manager that sets the namespace of the request. It is called only after the key
            was checked, because it may call a function of the project.
    """

    method: str
    path: str
    authorization: str = ""
    content_length: str = ""
    stream: str = ""
    sid: str = ""
    namespace: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response, in the form that all endpoints return.

    Args:
        status: the HTTP status.
        body: a JSON text, or `b""`.
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
    """Raised to refuse a request. The client receives the error as the response.

    Args:
        status: the HTTP status of the response.
        message: tells the client what is wrong with the request, and what is allowed.
        retry_after: the number of seconds in the header `Retry-After`; None for no such header.
        details: further keys of the JSON object in the response.
    """

    def __init__(self, status: HTTPStatus, message: str, *, retry_after: int | None = None, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.details = details

    def response(self) -> Response:
        """Return the response, whose body is a JSON object with the message."""
        response = Response.json(self.status, json.dumps({"error": str(self), **self.details}))
        if self.status == HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
        return response


# -- steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadBody:
    """The step that reads the body of the request. Its result is the body, or its first `limit` bytes.

    Args:
        limit: the maximum number of bytes of the result.
    """

    limit: int


@dataclass(frozen=True, slots=True)
class Call:
    """The step that calls a function: `arun` calls its async version, and `run` its sync version.

    Args:
        asynchronous: the function that `arun` awaits.
        sync: the function that `run` calls. None means that no Django view serves the endpoint.
    """

    asynchronous: Callable[[], Awaitable[object]]
    sync: Callable[[], object] | None = None


async def _yield() -> None:
    await asyncio.sleep(0)


def _do_nothing() -> None:
    """Do nothing. This is the sync version of `_yield`: in sync code, there are no other tasks to run."""


#: The step that lets other tasks of the event loop run.
PAUSE = Call(_yield, _do_nothing)

#: A generator that yields steps, is sent their results, and returns a value.
Steps = Generator[ReadBody | Call, Any, T]


def run(steps: Steps[T], read: Callable[[int], bytes]) -> T:
    """Perform the steps that a generator yields, in sync code. Return the value that the generator returns.

    Args:
        steps: the generator of an endpoint.
        read: reads the body. Its argument is the maximum number of bytes to return.
    """

    async def take(step: ReadBody | Call) -> object:
        if isinstance(step, ReadBody):
            return read(step.limit)
        assert step.sync is not None  # noqa: S101 - no view serves an endpoint with such a step
        return step.sync()

    try:
        # The coroutine never suspends, so one `send` runs it to its end.
        _take_all(steps, take).send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("a step in sync code awaited something")


async def arun(steps: Steps[T], read: Callable[[int], Awaitable[bytes]]) -> T:
    """Async version of `run`."""

    async def take(step: ReadBody | Call) -> object:
        return await (read(step.limit) if isinstance(step, ReadBody) else step.asynchronous())

    return await _take_all(steps, take)


async def _take_all(steps: Steps[T], take: Callable[[ReadBody | Call], Coroutine[Any, Any, object]]) -> T:
    """Perform the steps that a generator yields. Return the value that the generator returns.

    Args:
        steps: the generator of an endpoint.
        take: performs one step, and returns the result of the step.
    """
    with closing(steps):  # after a cancellation, this closes the generator now, not later in another context
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
        too_large = False  # the length of the body is checked below
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
    """The secret key that an endpoint requires.

    Args:
        purpose: the purpose for which a key is derived if the setting is empty (see `signing.derived_key`).
        setting: the name, in lower case, of the setting that contains the key.
    """

    purpose: str
    setting: str

    def check(self, authorization: str) -> None:
        """Check the key in the header `Authorization`.

        Raises:
            Refusal: the header does not contain the key.
        """
        scheme, _, token = authorization.partition(" ")
        # Servers decode headers as Latin-1, even if they are encoded differently.
        given = token.strip().encode("latin-1", "replace")
        accepted = accepted_keys(self.purpose, getattr(get_settings(), self.setting))
        # Every accepted key is compared, so that the response time does not reveal which key was sent.
        if not sum(hmac.compare_digest(given, key.encode()) for key in accepted) or scheme.lower() != "bearer":
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                f"The key is missing or wrong: send 'Authorization: Bearer <key>'. The key is RELIABLE_CABLE"
                f"[{self.setting.upper()!r}] or, if that is not set, the one derived for {self.purpose!r}.",
            )


BROADCAST_KEY = Key("broadcast-cable", "broadcast_key")
API_KEY = Key("api-cable", "api_key")
RPC_KEY = Key("rpc-cable", "rpc_key")

POST = (HTTPMethod.POST,)
GET = (HTTPMethod.GET, HTTPMethod.HEAD)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An HTTP endpoint, with the methods that it allows and the key that it requires.

    Args:
        methods: the allowed methods.
        key: the key that a request must contain. None means that everybody may use the endpoint, and that it runs
            without a namespace.
        answer: returns a generator that answers a request. The generator may raise `Refusal`.
        in_namespace: whether the endpoint runs in the namespace of the request.
    """

    methods: tuple[HTTPMethod, ...]
    key: Key | None
    answer: Callable[[Request], Steps[Response]]
    in_namespace: bool = True

    def respond(self, request: Request) -> Steps[Response]:
        """Yield the steps that answer a request. Return the response, which may be an error."""
        if request.method not in self.methods:
            return Response(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(self.methods)})
        try:
            if self.key is None:
                response = yield from self.answer(request)
            else:
                self.key.check(request.authorization)
                with request.namespace() if self.in_namespace else nullcontext():
                    response = yield from self.answer(request)
        except Refusal as refusal:
            response = refusal.response()
        response.headers.update({"Expires": formatdate(usegmt=True), "Cache-Control": NEVER_CACHE})
        return response
