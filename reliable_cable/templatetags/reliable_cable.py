"""Template tags for web pages that connect to the cable. Load them with `{% load reliable_cable %}`."""

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

#: The default path of the cable. The npm client has the same default.
DEFAULT_URL = "/cable"


@register.simple_tag(takes_context=True)
def cable_meta_tags(
    context: template.Context, url: str = DEFAULT_URL, since: datetime | float | None = None, token: bool = False
) -> SafeString:
    """Render the meta tags that the JavaScript client reads. Put them into the head of the web page.

    The tags contain the time at which the request began. The view reads the data of the web page after this time. A
    client that subscribes for the first time requests the messages that were broadcast since this time. If the template
    has no variable `request`, the tags contain the time at which they are rendered. The time is rounded down to a whole
    second. So the client may receive a message whose data is already in the web page.

    The time is that of the stream store's clock. Rendering never waits for the store. While the process has no recent
    measurement of this clock, it subtracts 5 seconds from the estimated time.

    Args:
        context: the context of the template.
        url: the path of the cable, or its ws:// or wss:// URL.
        since: the time at which the data of the web page was read from the database: a datetime, or a number of seconds
            since 1970 by this host's clock. Give this time if the data was read before the request began, for example
            if it comes from a cache.
        token: whether to add a token for the user of the request, see `cable_token`. Anonymous users get no token. With
            `token`, the URL is absolute, or is left out if it is the default: a client that reads the tags again, to
            get a new token, does not accept a path in them.
    """
    tags = []
    if not token or url != DEFAULT_URL:
        tags.append(format_html('<meta name="cable-url" content="{}">', _absolute(context, url) if token else url))
    if token and (text := cable_token(context)):
        tags.append(format_html('<meta name="cable-token" content="{}">', text))
    tags.append(format_html('<meta name="cable-history-timestamp" content="{}">', int(_since(context, since))))
    return mark_safe("\n".join(tags))  # noqa: S308 - format_html has escaped each tag


def _absolute(context: template.Context, url: str) -> str:
    """Return the ws:// or wss:// URL of a path on the host of the request.

    Other URLs are returned unchanged. So is a path if there is no request.
    """
    request: Any = context.get("request")
    if request is None or not url.startswith("/") or url.startswith("//"):
        return url
    return f"{'wss' if request.is_secure() else 'ws'}://{request.get_host()}{url}"


@register.simple_tag(takes_context=True)
def cable_token(context: template.Context, ttl: float = tokens.DEFAULT_TTL) -> str:
    """Render a token with which the client of this web page connects as the user of the request.

    The token of an anonymous user is empty. Everyone who has a token can connect as its user. So do not cache the web
    page for other users.

    Args:
        context: the context of the template, which has a variable `request` or `user`.
        ttl: how long, in seconds, the token is valid.
    """
    request: Any = context.get("request")
    user = context.get("user") if request is None else getattr(request, "user", None)
    return tokens.cable_token(user, ttl) if getattr(user, "is_authenticated", False) else ""


@register.simple_tag(takes_context=True)
def cable_script(context: template.Context, nonce: str | None = None) -> SafeString:
    """Render the script tag that loads the bundled JavaScript client. The script is deferred.

    Args:
        context: the context of the template.
        nonce: the nonce of the Content-Security-Policy. The default is the nonce of Django's CSP support (6.0 and
            later) or of django-csp, if the project uses one of them.
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
        at: the stream's position. The view must read it before the data of the web page, see `cable_position`.
    """
    return signing.signed_stream_name(name, at=None if at is None else _checked_position("signed_stream_name", at))


@register.simple_tag
def cable_position(at: PagePosition) -> str:
    """Render the position of a stream, for example in `data-after="{% cable_position at %}"`.

    The view must read the position with `position()` before it reads the data of the web page, and pass it in the
    context. The tag cannot read the position itself, because tags run after the view: the client would miss
    messages that were sent between the queries of the view and the rendering.

    Args:
        at: the position that `position()` has returned.

    Raises:
        TemplateSyntaxError: the value is not a position.
    """
    return str(_checked_position("cable_position", at))


def _checked_position(tag: str, value: object) -> PagePosition:
    # A lazy object is refused, too, because it would read the position only now, after the queries of the view.
    if type(value) is PagePosition:
        return value
    kind = "the name of a stream" if isinstance(value, str) and value else f"{type(value).__name__} {value!r:.80}"
    raise template.TemplateSyntaxError(
        f"{{% {tag} %}} needs a position, not {kind}. In the view, call position(stream) before you read the data of "
        "the web page, and pass the result in the context."
    )


@register.simple_tag(takes_context=True)
def cable_events_url(
    context: template.Context,
    *streams: "Streamable | PagePosition",
    url: str = "/events",
    since: datetime | float | None = None,
) -> str:
    """Render the URL from which the web page reads the messages of streams as server-sent events.

    Use the URL for `sse-connect` and `hx-sse:connect` of htmx, or for an `EventSource`. The URL contains the signed
    names of the streams, see `signed_stream_name`. The events contain only the messages (`raw=1`).

    Args:
        context: the context of the template.
        streams: the streams. A stream is a string, a model instance, or a list of these, as for
            `{% turbo_stream_from %}`. It can also be given as its position, which the view must read before the data of
            the web page, see `cable_position`.
        url: the URL or the path of the endpoint.
        since: a time, as for `{% cable_meta_tags %}`. The events begin with the messages since this time.

    Raises:
        TemplateSyntaxError: no stream was given.
        ChannelError: a model instance has not been saved, or a stream has no name.
        InvalidStreamName: the name of a stream is not allowed.
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
    """Return the time from which a web page requests messages, in seconds since 1970 by the stream store's clock."""
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
    """Render the element that subscribes the web page to a stream of Turbo Stream actions.

    The npm packages `@anycable/turbo-stream` and `@hotwired/turbo-rails` define the element. It contains the signed
    name of the stream, see `signed_stream_name`. Without `at`, it also contains the time at which the request began.
    The web page first receives the messages since this time, even if it was loaded by Turbo Drive.

    Args:
        context: the context of the template.
        streamables: strings, numbers or model instances, which together make the name of the stream.
        at: the stream's position. The view must read it before the data of the web page, see `cable_position`.
    """
    name = check_stream_name(target_name(list(streamables)))
    at = None if at is None else _checked_position("turbo_stream_from", at)
    # The time has six decimals, so that no two web pages contain the same time. If two subscriptions of a client had
    # the same params, the client would begin the second one at the position of the first.
    since = format_html(' data-since="{}"', f"{_since(context):.6f}") if at is None else ""
    return format_html(
        '<turbo-cable-stream-source channel="{}" signed-stream-name="{}"{}></turbo-cable-stream-source>',
        "Turbo::StreamsChannel",
        signing.signed_stream_name(name, at=at),
        since,
    )


@cache
def _warn_if_missing() -> None:
    """Log if the bundle is missing, as it is after an editable install without Node. A process logs this once."""
    if finders.find(SCRIPT) is None:
        logger.warning(
            "{%% cable_script %%} refers to %s, but there is no such static file. If you did not install a wheel, "
            "install Node 20 or later and run `manage.py cable_client`.",
            SCRIPT,
        )


def _request_nonce(context: template.Context) -> str | None:
    request: Any = context.get("request")
    # The three nonces are from Django's context processor, django-csp and Django's middleware. They are lazy objects,
    # which are falsy until they are converted to strings. The conversion adds the nonce to the response's header. So
    # compare with None.
    nonces = (context.get("csp_nonce"), getattr(request, "csp_nonce", None), getattr(request, "_csp_nonce", None))
    return next((str(nonce) for nonce in nonces if nonce is not None), None)
