"""The admin page of runs, which shows their states and ages, but neither prompts nor answers."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from .models import Run


@admin.register(Run)
class RunAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # `ModelAdmin` is generic for type checkers only
    """The admin page of runs, with an action that stops the selected runs."""

    list_display = ("id", "status", "age", "owner", "attempt", "created_at", "ended_at")
    list_filter = ("status",)
    list_select_related = ("owner",)
    search_fields = ("id",)
    ordering = ("-created_at",)
    actions = ("stop_runs",)
    fields = (
        "id",
        "owner",
        "subject_type",
        "subject_id",
        "status",
        "attempt",
        "usage",
        "error",
        "created_at",
        "started_at",
        "ended_at",
    )

    @admin.display(description="age")
    def age(self, run: Run) -> timedelta:
        """Return the time from the creation of the run to its end, or until now if it has not ended."""
        age = (run.ended_at or timezone.now()) - run.created_at
        return timedelta(seconds=round(age.total_seconds()))

    @admin.action(description="Stop the selected runs", permissions=["delete"])
    def stop_runs(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        """Stop the selected runs that have not ended."""
        count = sum(run.stop() for run in queryset)
        self.message_user(request, f"Runs stopped: {count}.")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False, because no task would write a run that is created on this page."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False, because only the task that writes a run may change it."""
        return False
