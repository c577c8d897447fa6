"""The configuration of the app of runs."""

from django.apps import AppConfig

from reliable_cable.validation import private_prefixes

from .events import STREAM_PREFIX


class RunsConfig(AppConfig):
    """Keeps the streams of runs private."""

    name = "reliable_cable.runs"
    label = "reliable_cable_runs"
    verbose_name = "Runs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Keep `PUBLIC_STREAMS` from opening the streams of runs."""
        private_prefixes.add(STREAM_PREFIX)
