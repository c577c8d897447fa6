"""The admin page of runs, which lists their states and ages. Prompts and answers are not shown."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from .models import Run


@admin.register(Run)
class RunAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # it is generic for type checkers only
    """Lists runs. An action stops the selected ones."""

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
        """Return how long the run took, or how long ago it was created if it has not ended."""
        age = (run.ended_at or timezone.now()) - run.created_at
        return timedelta(seconds=round(age.total_seconds()))

    @admin.action(description="Stop the selected runs", permissions=["delete"])
    def stop_runs(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        """Stop the selected runs that have not ended."""
        count = sum(run.stop() for run in queryset)
        self.message_user(request, f"Runs stopped: {count}.")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: a run needs a task that writes it."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False, because the task changes the run."""
        return False
