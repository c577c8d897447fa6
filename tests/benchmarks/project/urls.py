"""The URLs of the package, and a view that broadcasts with the channel layer."""

from __future__ import annotations

from django.urls import include, path

from .stock import broadcast

urlpatterns = [path("stock", broadcast), path("", include("reliable_cable.urls"))]
