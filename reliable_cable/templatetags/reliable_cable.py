"""`{% load reliable_cable %}`: what a page needs to connect."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString

from reliable_cable import signing
from reliable_cable.stores.engine import get_engine

register = template.Library()

SCRIPT = "reliable_cable/cable.js"


@register.simple_tag
def cable_meta_tags(url: str = "/cable", since: datetime | float | None = None) -> SafeString:
    """Render the meta tags that the client reads; they belong into the page's head.

    With the time that is in them, a client that subscribes for the first time asks for what was broadcast since the
    page was made. The time is that of the stream store's clock, rounded down to a whole second, so that messages of
    that second may be received again. Rendering never waits for the store: until a process has measured the store's
    clock, the time is 5 seconds earlier.

    Args:
        url: where the cable is, a path or a ws:// or wss:// URL.
        since: when the page's data was read, if that was long before the page is rendered; a datetime, or seconds since
            1970, by this host's clock.
    """
    clock = get_engine().stream_clock
    if since is None:
        since = clock.now()
    else:
        since = clock.of_host(since.timestamp() if isinstance(since, datetime) else since)
    return format_html(
        '<meta name="cable-url" content="{}">\n<meta name="cable-history-timestamp" content="{}">', url, int(since)
    )


@register.simple_tag(takes_context=True)
def cable_script(context: template.Context, nonce: str | None = None) -> SafeString:
    """Render the tag that loads the bundled client; it runs when the page was parsed, as deferred scripts do.

    Args:
        nonce: for the Content-Security-Policy; if not given, the nonce of Django's own CSP support (6.0 and later) or
            of django-csp, where one of them is in use.
    """
    if nonce is None:
        nonce = _request_nonce(context)
    if nonce is None:
        return format_html('<script src="{}" defer></script>', static(SCRIPT))
    return format_html('<script src="{}" defer nonce="{}"></script>', static(SCRIPT), nonce)


@register.simple_tag
def signed_stream_name(name: str) -> str:
    """Render a stream's name with its signature: `data-stream="{% signed_stream_name "chat/1" %}"`."""
    return signing.signed_stream_name(name)


def _request_nonce(context: template.Context) -> str | None:
    request: Any = context.get("request")
    # In this order: Django's context processor, django-csp, Django's middleware. Each is false until it is first used,
    # and using it is what puts it into the response's header.
    for found in (
        context.get("csp_nonce"),
        getattr(request, "csp_nonce", None),
        getattr(request, "_csp_nonce", None),
    ):
        if found is not None:
            return str(found)
    return None
