"""Reads the settings for the checks."""

from django.core.exceptions import ImproperlyConfigured

from reliable_cable.conf import CableSettings, get_settings

#: The tag of all checks of this package, as in `manage.py check --tag reliable_cable`.
TAG = "reliable_cable"


def valid_settings() -> CableSettings | None:
    """Return the settings; None if they are invalid."""
    try:
        return get_settings()
    except ImproperlyConfigured:
        return None  # `check_settings` reports the error as E001
