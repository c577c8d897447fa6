"""Settings of a project that uses the test kit, on SQLite or on PostgreSQL."""

from __future__ import annotations

import os
import tempfile
from typing import Any

SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "channels",
    "reliable_cable",
    "tests.integration.kit_project",
]
ASGI_APPLICATION = "tests.integration.kit_project.cable.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

#: The engine with which the checks run.
KIT_ENGINE = os.environ.get("KIT_ENGINE", "memory")

DATABASES: dict[str, dict[str, Any]]
if host := os.environ.get("KIT_POSTGRES"):
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": host,
            "CONN_MAX_AGE": None,
            "TEST": {"NAME": f"test_kit_{os.getpid()}"},
        }
    }
else:
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    if KIT_ENGINE == "database":
        # A file, because threads that share a SQLite database in memory do not wait for each other's locks.
        name = os.path.join(tempfile.gettempdir(), f"test_kit_{os.getpid()}.sqlite3")
        DATABASES["default"]["TEST"] = {"NAME": name}

# A project has such a setting in production. Unless the tests set KIT_REDIS, there is no Redis at this URL, because the
# test kit does not need one for its other engines.
RELIABLE_CABLE = {"REDIS_URL": os.environ.get("KIT_REDIS", "redis://127.0.0.1:1/0")}
