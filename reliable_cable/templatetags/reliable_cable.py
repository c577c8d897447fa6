"""Template tags for pages that use the cable. Load them with `{% load reliable_cable %}`."""

from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import urlencode

from django import template
from django.contrib.staticfiles import finders
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from reliable_cable import signing
from reliable_cable.auth import tokens
from reliable_cable.logs import logger
from reliable_cable.namespaces import split_namespace
from reliable_cable.protocol.positions import PagePosition
from reliable_cable.request_time import request_began
from reliable_cable.stores.engine import get_engine
from reliable_cable.validation import Streamable, check_stream_name, target_name

register = template.Library()

#: The path of the bundled client in the static files.
SCRIPT = "reliable_cable/cable.js"

#: The path of the cable. It is also the default of the npm client.
DEFAULT_URL = "/cable"


@register.simple_tag(takes_context=True)
def cable_meta_tags(
    context: template.Context, url: str = DEFAULT_URL, since: datetime | float | None = None, token: bool = False
) -> SafeString:
    """Render the meta tags that the JavaScript client reads. Put them into the head of the page.

    They contain the time at which the request began, before its view read the page's data. If the template has no
    variable `request`, this is the time of the rendering. A client that subscribes for the first time requests the
    messages that were broadcast since then. The time is rounded down to a whole second. So the client may receive a
    message whose data is already in the page.

    The time is that of the stream store's clock. Rendering never waits for the store: until the process has measured
    the difference between the store's clock and its own, the time is 5 seconds earlier.

    Args:
        context: the context of the template.
        url: the path of the cable, or its ws:// or wss:// URL.
        since: when the page's data was read from the database, if that was before the request began, for example
            because the data comes from a cache: a datetime, or seconds since 1970 by this host's clock.
        token: whether to add a token of the request's user, see `cable_token`. There is none for anonymous users. The
            URL is then absolute, or left out if it is the default one: a client that reads the page again for a new
            token could not use a path.
    """
    tags = []
    if not token or url != DEFAULT_URL:
        tags.append(format_html('<meta name="cable-url" content="{}">', _absolute(context, url) if token else url))
    if token and (text := cable_token(context)):
        tags.append(format_html('<meta name="cable-token" content="{}">', text))
    tags.append(format_html('<meta name="cable-history-timestamp" content="{}">', int(_since(context, since))))
    return mark_safe("\n".join(tags))  # noqa: S308 - each of them is escaped


def _absolute(context: template.Context, url: str) -> str:
    """Return the ws:// or wss:// URL for a path on the host of the request. Without a request, return the path."""
    request: Any = context.get("request")
    if request is None or not url.startswith("/") or url.startswith("//"):
        return url
    return f"{'wss' if request.is_secure() else 'ws'}://{request.get_host()}{url}"


@register.simple_tag(takes_context=True)
def cable_token(context: template.Context, ttl: float = tokens.DEFAULT_TTL) -> str:
    """Render a token with which the client of this page connects as the user of the request.

    It is empty for anonymous users. Whoever has the token can connect as the user, so do not cache the page for others.

    Args:
        context: the context of the template, with the request or the user.
        ttl: how long, in seconds, the token is valid.
    """
    request: Any = context.get("request")
    user = context.get("user") if request is None else getattr(request, "user", None)
    return tokens.cable_token(user, ttl) if getattr(user, "is_authenticated", False) else ""


@register.simple_tag(takes_context=True)
def cable_script(context: template.Context, nonce: str | None = None) -> SafeString:
    """Render the script tag that loads the bundled JavaScript client. The script is deferred.

    Args:
        nonce: the nonce of the Content-Security-Policy; None: use the nonce of Django's CSP support (6.0 and later) or
            of django-csp, if one of them is in use.
    """
    _warn_if_missing()
    if nonce is None:
        nonce = _request_nonce(context)
    if nonce is None:
        return format_html('<script src="{}" defer></script>', static(SCRIPT))
    return format_html('<script src="{}" defer nonce="{}"></script>', static(SCRIPT), nonce)


@register.simple_tag
def signed_stream_name(name: str, at: PagePosition | None = None) -> str:
    """Render a signed stream name, for example in `data-stream="{% signed_stream_name "chat/1" at=at %}"`.

    Args:
        name: the stream's name.
        at: the position that the view has read before the page's data, see `cable_position`.
    """
    return signing.signed_stream_name(name, at=None if at is None else _checked_position("signed_stream_name", at))


@register.simple_tag
def cable_position(at: PagePosition) -> str:
    """Render a position that the view has read, for example in `data-after="{% cable_position at %}"`.

    The view reads it with `position()` before it reads the page's data, and passes it in the context. The tag itself
    reads nothing, because it runs after the queries of the view: messages between these and the position would be in
    neither.

    Raises:
        TemplateSyntaxError: the value is not such a position.
    """
    return str(_checked_position("cable_position", at))


def _checked_position(tag: str, value: object) -> PagePosition:
    # A lazy object would read the position now.
    if type(value) is PagePosition:
        return value
    kind = "the name of a stream" if isinstance(value, str) and value else f"{type(value).__name__} {value!r:.80}"
    raise template.TemplateSyntaxError(
        f"{{% {tag} %}} needs a position, not {kind}. In the view, call position(stream) before the page's data are "
        "read, and pass the result in the context."
    )


@register.simple_tag(takes_context=True)
def cable_events_url(
    context: template.Context,
    *streams: "Streamable | PagePosition",
    url: str = "/events",
    since: datetime | float | None = None,
) -> str:
    """Render the URL from which the page reads the messages of streams as server-sent events.

    It is for `sse-connect` and `hx-sse:connect` of htmx, and for every `EventSource`. The names of the streams are
    signed, see `signed_stream_name`. The events contain only the messages (`raw=1`).

    Args:
        context: the context of the template.
        streams: the streams, each as for `{% turbo_stream_from %}`: a string, a model instance, or a list of these. A
            position that the view has read before the page's data stands for its stream, see `cable_position`.
        url: the URL or the path of the endpoint.
        since: as for `{% cable_meta_tags %}`. The reader is first sent what was broadcast since this time.

    Raises:
        TemplateSyntaxError: there is no stream.
        ChannelError, InvalidStreamName: a stream has no valid name.
    """
    if not streams:
        raise template.TemplateSyntaxError("{% cable_events_url %} needs a stream.")
    query = [("signed_stream", _signed(stream)) for stream in streams]
    query += [("history_since", str(int(_since(context, since)))), ("raw", "1")]
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"


def _signed(stream: "Streamable | PagePosition") -> str:
    if isinstance(stream, PagePosition):
        return signing.signed_stream_name(split_namespace(stream.stream)[1], at=stream)
    return signing.signed_stream_name(check_stream_name(target_name(stream)))


def _since(context: template.Context, since: datetime | float | None = None) -> float:
    """Return the time from which a page requests messages, in seconds of the stream store's clock."""
    clock = get_engine().stream_clock
    if since is not None:
        return clock.of_host(since.timestamp() if isinstance(since, datetime) else since)
    request = context.get("request")
    began = None if request is None else request_began(request)
    return clock.now() if began is None else clock.at(began)


@register.simple_tag(takes_context=True)
def turbo_stream_from(
    context: template.Context, *streamables: Streamable, at: PagePosition | None = None
) -> SafeString:
    """Render the element that subscribes the page to the Turbo Streams of a stream.

    The name of the stream is signed, see `signed_stream_name`. The npm packages `@anycable/turbo-stream` and
    `@hotwired/turbo-rails` define the element. Without `at`, the element has the time at which the request began. The
    page is then first sent the messages since this time, even if Turbo Drive shows it.

    Args:
        context: the context of the template.
        streamables: what names the stream: strings, numbers, model instances. Several make one name.
        at: the position of the stream that the view has read before the page's data, see `cable_position`.
    """
    name = check_stream_name(target_name(list(streamables)))
    at = None if at is None else _checked_position("turbo_stream_from", at)
    # The time has six decimals, so that each page has params of its own: the client gives a subscription the position
    # of a former one with the same params.
    since = format_html(' data-since="{}"', f"{_since(context):.6f}") if at is None else ""
    return format_html(
        '<turbo-cable-stream-source channel="{}" signed-stream-name="{}"{}></turbo-cable-stream-source>',
        "Turbo::StreamsChannel",
        signing.signed_stream_name(name, at=at),
        since,
    )


@cache
def _warn_if_missing() -> None:
    """Log once in each process that the bundle is missing, as after an editable install without Node."""
    if finders.find(SCRIPT) is None:
        logger.warning(
            "{%% cable_script %%} refers to %s, but there is no such static file. If you did not install a wheel, "
            "install Node 20 or later and run `manage.py cable_client`.",
            SCRIPT,
        )


def _request_nonce(context: template.Context) -> str | None:
    request: Any = context.get("request")
    # These are set by Django's context processor, django-csp and Django's middleware. Their values are lazy: they are
    # false until they are converted to text, which also adds the nonce to the response's header. So compare with None.
    nonces = (context.get("csp_nonce"), getattr(request, "csp_nonce", None), getattr(request, "_csp_nonce", None))
    return next((str(nonce) for nonce in nonces if nonce is not None), None)
