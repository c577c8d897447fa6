"""The demo with another page, whose client connects with short-lived tokens: its URLs and its ASGI application."""

from __future__ import annotations

from unittest import mock

from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.template import Context, Template
from django.urls import path

django_application = get_asgi_application()

from demo_project.chat.consumers import AppConsumer  # noqa: E402
from demo_project.urls import urlpatterns as demo  # noqa: E402
from reliable_cable.auth import CableAuthMiddlewareStack  # noqa: E402
from reliable_cable.templatetags.reliable_cable import cable_token  # noqa: E402

#: How long, in seconds, the tokens of the page are valid. The times in a token are whole seconds.
TTL = 2.0

PAGE = """{% load static reliable_cable %}<!doctype html>
<html lang="en">
<head>
  <title>Tokens</title>
  <link rel="icon" href="{% static "chat/favicon.svg" %}">
  {% cable_meta_tags token=True %}
  {% cable_script %}
  <script src="/tokens.js" defer></script>
</head>
<body data-testid="page" data-room="{{ room }}" data-state="" data-reasons=""><ol data-testid="messages"></ol></body>
</html>"""

SCRIPT = """
const page = document.body
const cable = AnyCable.createCable({
  protocol: 'actioncable-v1-ext-json',
  websocketAuthStrategy: 'sub-protocol',
  tokenRefresher: AnyCable.fetchTokenFromHTML()
})
cable.on('close', event => { page.dataset.reasons += `${event.reason} ` })
const channel = cable.subscribeTo('ChatChannel', {room_id: Number(page.dataset.room)})
channel.on('connect', () => { page.dataset.state = 'connected' })
channel.on('close', () => { page.dataset.state = 'closed' })
channel.on('info', event => { if (event.type === 'history_not_found') page.dataset.state = 'lost' })
channel.on('message', message => {
  const item = document.createElement('li')
  item.textContent = message.text
  page.querySelector('ol').append(item)
})
"""


def page(request: HttpRequest, room: int) -> HttpResponse:
    """Render the page for a room."""
    # The template tag has no option for the lifetime of a token, because pages of projects need none.
    with mock.patch.object(cable_token, "__defaults__", (TTL,)):
        return HttpResponse(Template(PAGE).render(Context({"request": request, "room": room})))


def script(request: HttpRequest) -> HttpResponse:
    """Return the script of the page. The content security policy of the demo allows no inline scripts."""
    return HttpResponse(SCRIPT, content_type="text/javascript")


urlpatterns = [*demo, path("tokens/<int:room>/", page), path("tokens.js", script)]
application = ASGIStaticFilesHandler(
    ProtocolTypeRouter(
        {
            "http": django_application,
            "websocket": CableAuthMiddlewareStack(URLRouter([path("cable", AppConsumer.as_asgi())])),
        }
    )
)
