"""The URLs of the demo behind anycable-go: the page "Coming from Action Cable", the login and the logout.

The rooms and the assistant are left out, because they need positions of streams (see the page AnyCable of the
documentation).
"""

from __future__ import annotations

from django.urls import path
from django.views.generic import RedirectView

from demo_project import urls

#: The names of the URLs that also work behind anycable-go.
NAMES = ("migrations", "migrations_broadcast", "login", "logout")

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="migrations")),
    *(pattern for pattern in urls.urlpatterns if getattr(pattern, "name", None) in NAMES),
]
