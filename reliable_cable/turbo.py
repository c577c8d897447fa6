"""Broadcasts Turbo Stream actions, which change the web pages that contain `{% turbo_stream_from %}`."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, Unpack

from django.utils.html import conditional_escape, format_html, format_html_join

from .concurrency.threads import sync_only
from .exceptions import InvalidOption
from .protocol.positions import StreamPosition
from .rendering import RenderedBroadcast
from .validation import BatchOptions, Streamable


class SendOptions(TypedDict, total=False):
    """The options of `broadcast`, which the functions of this module accept, too."""

    transient: bool
    immediate: bool
    to_others: bool
    exclude_socket: str | None
    idempotency_key: str | None
    using: str | None


class TargetOptions(SendOptions, total=False):
    """The options of `broadcast`, and the elements of the web page that an action changes.

    Exactly one of `target` and `targets` is required.

    Args:
        target: the id of the element.
        targets: a CSS selector for the elements.
    """

    target: str
    targets: str


class ContentOptions(TargetOptions, total=False):
    """The options in `TargetOptions`, and the content of an action.

    Exactly one of `template` and `html` is required.

    Args:
        template: the name of a template. Inside transactions, it is rendered after the commit.
        context: the variables of the template.
        html: the content. Text is escaped unless it is marked as safe, as in templates. `render_to_string` and
            `format_html` return text that is marked as safe.
    """

    template: str
    context: Mapping[str, Any]
    html: str


class MorphOptions(ContentOptions, total=False):
    """The options in `ContentOptions`, and the method by which the content is replaced.

    Args:
        method: with `"morph"`, Turbo changes only the elements that differ. Other elements keep their state.
    """

    method: Literal["morph"]


@sync_only("abroadcast_append_to")
def broadcast_append_to(*streamables: Streamable, **options: Unpack[ContentOptions]) -> StreamPosition | None:
    """Append content to the target. Turbo first removes children of the target whose ids also occur in the content.

    Args:
        streamables: strings, numbers or model instances, which together make the stream's name, as for
            `{% turbo_stream_from %}`.
        options: see `ContentOptions`.

    Returns:
        The position of the message; None in the same cases as for `broadcast`.

    Raises:
        CableError: as for `broadcast_template`, or because the target or the content is missing or given twice.
    """
    return _broadcast("append", ContentOptions, streamables, options).send()


async def abroadcast_append_to(*streamables: Streamable, **options: Unpack[ContentOptions]) -> StreamPosition | None:
    """Async version of `broadcast_append_to`."""
    return await _broadcast("append", ContentOptions, streamables, options).asend()


@sync_only("abroadcast_prepend_to")
def broadcast_prepend_to(*streamables: Streamable, **options: Unpack[ContentOptions]) -> StreamPosition | None:
    """Prepend content to the target. In all other respects, this is like `broadcast_append_to`."""
    return _broadcast("prepend", ContentOptions, streamables, options).send()


async def abroadcast_prepend_to(*streamables: Streamable, **options: Unpack[ContentOptions]) -> StreamPosition | None:
    """Async version of `broadcast_prepend_to`."""
    return await _broadcast("prepend", ContentOptions, streamables, options).asend()


@sync_only("abroadcast_replace_to")
def broadcast_replace_to(*streamables: Streamable, **options: Unpack[MorphOptions]) -> StreamPosition | None:
    """Replace the target. The arguments are those of `broadcast_append_to`, and `method` (see `MorphOptions`)."""
    return _broadcast("replace", MorphOptions, streamables, options).send()


async def abroadcast_replace_to(*streamables: Streamable, **options: Unpack[MorphOptions]) -> StreamPosition | None:
    """Async version of `broadcast_replace_to`."""
    return await _broadcast("replace", MorphOptions, streamables, options).asend()


@sync_only("abroadcast_update_to")
def broadcast_update_to(*streamables: Streamable, **options: Unpack[MorphOptions]) -> StreamPosition | None:
    """Replace the content of the target. The arguments are those of `broadcast_replace_to`."""
    return _broadcast("update", MorphOptions, streamables, options).send()


async def abroadcast_update_to(*streamables: Streamable, **options: Unpack[MorphOptions]) -> StreamPosition | None:
    """Async version of `broadcast_update_to`."""
    return await _broadcast("update", MorphOptions, streamables, options).asend()


@sync_only("abroadcast_before_to")
def broadcast_before_to(*streamables: Streamable, **options: Unpack[ContentOptions]) -> StreamPosition | None:
    """Insert content before the target. The arguments are those of `broadcast_append_to`."""
    return _broadcast("before", ContentOptions, streamables, options).send()


async def abroadcast_before_to(*streamables: Streamable, **options: Unpack[ContentOptions]) -> StreamPosition | None:
    """Async version of `broadcast_before_to`."""
    return await _broadcast("before", ContentOptions, streamables, options).asend()


@sync_only("abroadcast_after_to")
def broadcast_after_to(*streamables: Streamable, **options: Unpack[ContentOptions]) -> StreamPosition | None:
    """Insert content after the target. The arguments are those of `broadcast_append_to`."""
    return _broadcast("after", ContentOptions, streamables, options).send()


async def abroadcast_after_to(*streamables: Streamable, **options: Unpack[ContentOptions]) -> StreamPosition | None:
    """Async version of `broadcast_after_to`."""
    return await _broadcast("after", ContentOptions, streamables, options).asend()


@sync_only("abroadcast_remove_to")
def broadcast_remove_to(*streamables: Streamable, **options: Unpack[TargetOptions]) -> StreamPosition | None:
    """Remove the target.

    Args:
        streamables: as for `broadcast_append_to`.
        options: see `TargetOptions`.
    """
    return _broadcast("remove", TargetOptions, streamables, options).send()


async def abroadcast_remove_to(*streamables: Streamable, **options: Unpack[TargetOptions]) -> StreamPosition | None:
    """Async version of `broadcast_remove_to`."""
    return await _broadcast("remove", TargetOptions, streamables, options).asend()


@sync_only("abroadcast_refresh_to")
def broadcast_refresh_to(
    *streamables: Streamable, request_id: str | None = None, **options: Unpack[SendOptions]
) -> StreamPosition | None:
    """Make the subscribed web pages reload.

    Args:
        streamables: as for `broadcast_append_to`.
        request_id: the header `X-Turbo-Request-Id` of the request that causes the broadcast. The web page that has sent
            this request does not reload.
        options: the options of `broadcast`.
    """
    return _broadcast("refresh", SendOptions, streamables, options, request_id).send()


async def abroadcast_refresh_to(
    *streamables: Streamable, request_id: str | None = None, **options: Unpack[SendOptions]
) -> StreamPosition | None:
    """Async version of `broadcast_refresh_to`."""
    return await _broadcast("refresh", SendOptions, streamables, options, request_id).asend()


def _broadcast(
    action: str,
    known: Any,
    streamables: tuple[Streamable, ...],
    options: Mapping[str, Any],
    request_id: str | None = None,
) -> RenderedBroadcast:
    """Check the arguments of a function in this module, and return the broadcast.

    Args:
        action: the name of the Turbo Stream action.
        known: the `TypedDict` of the options that the function accepts.
        streamables: the parts of the stream's name.
        options: the options of the call.
        request_id: as for `broadcast_refresh_to`.
    """
    unknown = options.keys() - known.__optional_keys__
    if unknown:
        raise TypeError(f"broadcast_{action}_to() got an unexpected keyword argument {min(unknown)!r}")
    given = (name for name in ("target", "targets", "method") if options.get(name) not in (None, ""))
    attributes = {name: options[name] for name in given}
    if request_id is not None:
        attributes["request-id"] = request_id
    if "target" in known.__optional_keys__ and len(attributes.keys() - {"method"}) != 1:
        raise InvalidOption(f"broadcast_{action}_to: give target, the id of an element, or targets, a CSS selector.")
    template, html = options.get("template"), options.get("html")
    if "html" in known.__optional_keys__ and (template is None) is (html is None):
        raise InvalidOption(f"broadcast_{action}_to: give template or html, and not both.")
    opening = format_html(
        '<turbo-stream action="{}"{}>', action, format_html_join("", ' {}="{}"', sorted(attributes.items()))
    )
    content = None if html is None else conditional_escape(html)

    def element(rendered: str) -> str:
        """Return the element `<turbo-stream>`. The variables in `rendered` were escaped by the template engine."""
        inner = content if template is None else rendered
        return opening + ("" if inner is None else f"<template>{inner}</template>") + "</turbo-stream>"

    return RenderedBroadcast(
        list(streamables),
        template,
        options.get("context"),
        element,
        options.get("idempotency_key"),
        BatchOptions(
            transient=options.get("transient", False),
            immediate=options.get("immediate", False),
            to_others=options.get("to_others", False),
            exclude_socket=options.get("exclude_socket"),
            using=options.get("using"),
        ),
    )
