"""The Django app configuration of `reliable_cable.runs`."""

from django.apps import AppConfig, apps
from django.core.exceptions import ImproperlyConfigured

from reliable_cable.validation import private_prefixes

from .events import DURABLE_PREFIX, STREAM_PREFIX


class RunsConfig(AppConfig):
    """The configuration of the app, which keeps its streams private."""

    name = "reliable_cable.runs"
    label = "reliable_cable_runs"
    verbose_name = "Runs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Keep the streams of this app private even if a pattern of `PUBLIC_STREAMS` matches their names.

        This also registers the system checks of the app.

        Raises:
            ImproperlyConfigured: the app `reliable_cable`, whose models runs need, is not installed.
        """
        if not apps.is_installed("reliable_cable"):
            raise ImproperlyConfigured("'reliable_cable.runs' needs 'reliable_cable' in INSTALLED_APPS, too.")
        from . import checks  # noqa: F401 - registers the checks

        private_prefixes.update((STREAM_PREFIX, DURABLE_PREFIX))
