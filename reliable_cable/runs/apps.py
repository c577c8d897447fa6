"""The Django app configuration of `reliable_cable.runs`."""

from django.apps import AppConfig

from reliable_cable.validation import private_prefixes

from .events import DURABLE_PREFIX, STREAM_PREFIX


class RunsConfig(AppConfig):
    """The configuration of the app, which keeps its streams private."""

    name = "reliable_cable.runs"
    label = "reliable_cable_runs"
    verbose_name = "Runs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Keep the streams of this app private even if a pattern of `PUBLIC_STREAMS` matches their names."""
        private_prefixes.update((STREAM_PREFIX, DURABLE_PREFIX))
