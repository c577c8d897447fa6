"""The admin shows what is kept and changes none of it: a stream's numbering is a promise. Sessions are secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from .broadcasting import forget
from .models import OutboxEntry, Stream, StreamEntry, TransientEntry

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Model]
else:
    _ModelAdmin = admin.ModelAdmin


class _ReadOnly(_ModelAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        """Messages are broadcast, not added."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What was sent stays as it was."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A missing entry would be a hole in its stream."""
        return False


@admin.register(Stream)
class StreamAdmin(_ReadOnly):
    """Streams and their positions. Who may delete a stream can forget it: its next message begins a new epoch."""

    list_display = ("name", "epoch", "low", "tail")
    search_fields = ("name",)
    actions = ("forget_streams",)

    @admin.action(description="Forget the selected streams", permissions=["forget"])
    def forget_streams(self, request: HttpRequest, queryset: QuerySet[Stream]) -> None:
        """Delete the streams' messages; their subscribers are told."""
        names = list(queryset.values_list("name", flat=True))
        for name in names:
            forget(name)
        self.message_user(request, f"{len(names)} forgotten.")

    def has_forget_permission(self, request: HttpRequest) -> bool:
        """Whoever may delete streams."""
        return request.user.has_perm("reliable_cable.delete_stream")


@admin.register(StreamEntry)
class StreamEntryAdmin(_ReadOnly):
    """Kept messages."""

    list_display = ("stream", "offset", "created")
    list_select_related = ("stream",)
    search_fields = ("=stream__name",)


@admin.register(OutboxEntry, TransientEntry)
class UnnumberedAdmin(_ReadOnly):
    """Messages that wait for their number, and messages that have none."""

    list_display = ("name", "id")
    search_fields = ("=name",)
