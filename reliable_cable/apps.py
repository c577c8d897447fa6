"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class ReliableCableConfig(AppConfig):
    """Finds the channels of every installed app, and registers the system checks."""

    name = "reliable_cable"
    verbose_name = "Reliable cable"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Import every installed app's `cable` module, as Django's admin does with `admin`; connect to logouts."""
        from django.contrib.auth.signals import user_logged_out
        from django.utils.module_loading import autodiscover_modules

        from . import checks  # noqa: F401 - registers them
        from .disconnecting import disconnect_logged_out

        autodiscover_modules("cable")
        from . import pubsub_channel as pubsub  # noqa: F401 - registers `$pubsub`

        user_logged_out.connect(disconnect_logged_out, dispatch_uid="reliable_cable.logout")
