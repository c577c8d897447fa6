"""The Django app configuration of `reliable_cable.runs`."""

from django.apps import AppConfig

from reliable_cable.validation import private_prefixes

from .events import STREAM_PREFIX


class RunsConfig(AppConfig):
    """The configuration of the app, which keeps the streams of runs private."""

    name = "reliable_cable.runs"
    label = "reliable_cable_runs"
    verbose_name = "Runs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Keep the streams of runs private even if a pattern of `PUBLIC_STREAMS` matches their names."""
        private_prefixes.add(STREAM_PREFIX)
