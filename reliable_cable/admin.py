"""Admin pages that show streams and their messages.

Single messages cannot be deleted, because the offsets of a stream must have no holes. They cannot be changed, because
clients may have received them. Sessions are not shown, because session ids are secrets.
"""

from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from .broadcasting import forget
from .conf import NAMESPACE_SEPARATOR, get_settings
from .models import OutboxEntry, Stream, StreamEntry, TransientEntry
from .namespaces import current_namespace, qualify, split_namespace


class _ReadOnly(admin.ModelAdmin):  # type: ignore[type-arg]  # ModelAdmin is generic for type checkers only
    #: The model field that contains the name of the stream.
    name_field = "name"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Model]:
        """Return the rows of streams in the current namespace."""
        rows = super().get_queryset(request)
        if get_settings().namespace is None:
            return rows
        namespace = current_namespace()
        if namespace:
            return rows.filter(**{f"{self.name_field}__startswith": qualify(namespace, "")})
        return rows.exclude(**{f"{self.name_field}__contains": NAMESPACE_SEPARATOR})

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False, because subscribers receive a message only if it is broadcast."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False, because clients may already have received the message."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False, because the offsets of a stream must have no holes."""
        return False


@admin.register(Stream)
class StreamAdmin(_ReadOnly):
    """Lists the streams and their positions. An admin action calls `forget()` for the selected streams."""

    list_display = ("name", "epoch", "low", "tail")
    search_fields = ("name",)
    actions = ("forget_streams",)

    @admin.action(description="Forget the selected streams", permissions=["forget"])
    def forget_streams(self, request: HttpRequest, queryset: QuerySet[Stream]) -> None:
        """Delete the messages of the selected streams and begin new epochs, as `forget()` does."""
        names = list(queryset.values_list("name", flat=True))
        for name in names:
            forget(split_namespace(name)[1])
        self.message_user(request, f"Streams forgotten: {len(names)}.")

    def has_forget_permission(self, request: HttpRequest) -> bool:
        """Return whether the user has the permission to delete streams."""
        return request.user.has_perm("reliable_cable.delete_stream")


@admin.register(StreamEntry)
class StreamEntryAdmin(_ReadOnly):
    """Lists the numbered messages of streams."""

    name_field = "stream__name"
    list_display = ("stream", "offset", "created")
    list_select_related = ("stream",)
    search_fields = ("=stream__name",)


@admin.register(OutboxEntry, TransientEntry)
class UnnumberedAdmin(_ReadOnly):
    """Lists the messages without an offset: entries of the transactional outbox, or transient messages."""

    list_display = ("name", "id")
    search_fields = ("=name",)
