"""The configuration of the Django app."""

from django.apps import AppConfig


class ReliableCableConfig(AppConfig):
    """The app configuration. It imports the channels of all installed apps when Django starts."""

    name = "reliable_cable"
    verbose_name = "Reliable cable"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Import the module `cable` of each installed app, as Django's admin imports `admin`.

        This also registers the system checks and the built-in channels, installs the log filters, and connects signal
        receivers. The receivers close connections when a login ends, and record when each request began.
        """
        from django.contrib.auth.signals import user_logged_out
        from django.utils.module_loading import autodiscover_modules

        from . import checks, logs, request_time, server_logs  # noqa: F401 - registers the checks
        from .disconnecting import disconnect_logged_out
        from .login_signals import connect_receivers

        logs.install()
        server_logs.install()
        autodiscover_modules("cable")
        from . import pubsub_channel  # noqa: F401 - registers `$pubsub`

        user_logged_out.connect(disconnect_logged_out, dispatch_uid="reliable_cable.logout")
        connect_receivers()
        request_time.connect_receiver()
