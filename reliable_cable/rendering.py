"""Broadcasts HTML that is rendered from templates."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any, Final

from asgiref.sync import SyncToAsync
from django.template.loader import get_template

from .broadcasting import Batch
from .concurrency import on_commit
from .concurrency.django_thread import has_own_thread
from .concurrency.threads import run_handler, sync_only
from .exceptions import InvalidOption
from .protocol.events import EVENT, RESERVED_EVENTS
from .protocol.positions import StreamPosition
from .stores.engine import get_engine
from .stores.streams.failures import report_failure
from .validation import BatchOptions, Streamable, prepare_address, target_name

#: Matches the names that an event may have. `sse-swap` and `hx-trigger` of htmx can contain these names.
_EVENT_NAME: Final = re.compile(r"[^\s,\x00-\x1f\x7f]{1,100}")


@sync_only("abroadcast_template")
def broadcast_template(
    stream: Streamable,
    template: str,
    context: Mapping[str, Any] | None = None,
    *,
    event: str | None = None,
    transient: bool = False,
    immediate: bool = False,
    to_others: bool = False,
    exclude_socket: str | None = None,
    idempotency_key: str | None = None,
    using: str | None = None,
) -> StreamPosition | None:
    """Render a template, and broadcast the HTML.

    Inside transactions, the template is rendered after all of them have committed, so that its queries read the
    committed data. The messages are sent in the order of the calls. If the process ends before the template is
    rendered, the message is lost. An error that is raised after the commit is logged, and reported by the signal
    `broadcast_failed`.

    Args:
        stream: the stream's name. It can also be a model instance or a sequence, as for `{% turbo_stream_from %}`.
        template: the name of the template.
        context: the variables of the template. The template has no request, because all subscribers get the same HTML.
        event: the name of the server-sent event, for example for `sse-swap` of htmx. With a name, the message is
            `{"$event": event, "data": html}`. Without a name, the message is the HTML.
        transient, immediate, to_others, exclude_socket, idempotency_key, using: as for `broadcast`.

    Returns:
        The position of the message; None in the same cases as for `broadcast`.

    Raises:
        TemplateDoesNotExist, TemplateSyntaxError: the template cannot be loaded.
        ChannelError: `stream` cannot be converted to the name of a stream.
        BroadcastError: as for `broadcast`, or because `event` is not a valid name.
    """
    options = BatchOptions(transient, immediate, to_others, exclude_socket, using)
    return _template_broadcast(stream, template, context, event, idempotency_key, options).send()


async def abroadcast_template(
    stream: Streamable,
    template: str,
    context: Mapping[str, Any] | None = None,
    *,
    event: str | None = None,
    transient: bool = False,
    immediate: bool = False,
    to_others: bool = False,
    exclude_socket: str | None = None,
    idempotency_key: str | None = None,
    using: str | None = None,
) -> StreamPosition | None:
    """Async version of `broadcast_template`. It recognises the same transactions as `abroadcast`.

    The template is rendered in a thread, so that it may query the database.
    """
    options = BatchOptions(transient, immediate, to_others, exclude_socket, using)
    return await _template_broadcast(stream, template, context, event, idempotency_key, options).asend()


def _template_broadcast(
    stream: Streamable,
    template: str,
    context: Mapping[str, Any] | None,
    event: str | None,
    idempotency_key: str | None,
    options: BatchOptions,
) -> "RenderedBroadcast":
    if event is not None and (
        not isinstance(event, str) or not _EVENT_NAME.fullmatch(event) or event in RESERVED_EVENTS
    ):
        raise InvalidOption(
            f"The event is {event!r}; it must be a name of 1 to 100 characters without spaces and commas, other than "
            f"{', '.join(map(repr, RESERVED_EVENTS))}."
        )
    payload = (lambda html: html) if event is None else (lambda html: {EVENT: event, "data": html})
    return RenderedBroadcast(stream, template, context, payload, idempotency_key, options)


class RenderedBroadcast:
    """A message that is rendered immediately before it is sent, which may be after a commit.

    Args:
        stream: the stream's name, a model instance, or a sequence.
        template: the name of the template; None if the message needs no template.
        context: the variables of the template.
        payload: a function that is called with the rendered HTML, or with `""` if there is no template. It returns the
            payload.
        idempotency_key: as for `broadcast`.
        options: as for `broadcast`.

    Raises:
        CableError: as for `broadcast_template`.
    """

    def __init__(
        self,
        stream: Streamable,
        template: str | None,
        context: Mapping[str, Any] | None,
        payload: Callable[[str], Any],
        idempotency_key: str | None,
        options: BatchOptions,
    ) -> None:
        self._address = prepare_address(target_name(stream), idempotency_key, options)
        self._template = template
        self._variables = dict(context or {})
        self._payload = payload
        self._options = options
        #: The message if it needs no template. It is checked here, so that errors are raised before the commit.
        self._ready = self._address.outgoing(payload("")) if template is None else None

    def send(self) -> StreamPosition | None:
        """Render and send the message, now or after the commit.

        Returns:
            The position of the message; None in the same cases as for `broadcast`.
        """
        if not self._options.immediate and on_commit.defer_to_commit(self._send_on_commit, self._options.using):
            return None
        return self._batch().send()[0]

    async def asend(self) -> StreamPosition | None:
        """Async version of `send`."""
        if not self._options.immediate and await on_commit.adefer_to_commit(self._send_on_commit, self._options.using):
            return None
        if self._ready is not None:
            batch = self._batch()
        elif has_own_thread():  # with `immediate`, the template may read uncommitted data of this thread's transaction
            batch = await SyncToAsync(self._batch, thread_sensitive=True)()
        else:
            batch = await run_handler(self._batch)
        return (await batch.asend())[0]

    def _send_on_commit(self, databases: Sequence[str]) -> None:
        self._load()  # if the template cannot be loaded, this raises an error before the commit
        # The copy of the context contains the language and the time zone for the template.
        send = partial(copy_context().run, lambda: self._batch().send())
        failed = partial(report_failure, type(get_engine().streams), [self._address.stream])
        on_commit.call_after_commit(send, databases, failed=failed)

    def _batch(self) -> Batch:
        """Render the message, and return it as a batch that does not wait for a transaction."""
        outgoing = self._ready
        if outgoing is None:
            outgoing = self._address.outgoing(self._payload(str(self._load().render(self._variables))))
        return Batch([outgoing], replace(self._options, immediate=True, using=None))

    def _load(self) -> Any:
        return None if self._template is None else get_template(self._template)
